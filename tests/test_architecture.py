"""The floors: imports run downwards only, pure rooms stay pure, files stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400

# Room → floor. A room is a package or a single module; a module belongs to the longest name that fits.
FLOORS = {
    "replicator.errors": 0,
    "replicator.model": 0,
    "replicator.routing": 1,
    "replicator.pgoutput": 1,
    "replicator.config": 2,
    "replicator.failpoints": 2,
    "replicator.logs": 2,
    "replicator.metrics": 2,
    "replicator.postgres": 2,
    "replicator.source": 2,
    "replicator.target": 2,
    "replicator.routes": 2,
    "replicator.lanes": 3,
    "replicator.survey": 3,
    "snapshot": 3,
    "replicator.stream": 3,
    "replicator.users": 3,
    "replicator.cutover": 4,
    "replicator.service": 4,
    "replicator.verify": 4,
    "replicator.web": 4,
    "replicator.preflight": 4,
    "replicator.status": 4,
    "replicator.overview": 4,
    "replicator.monitor": 4,
    "replicator.teardown": 4,
    "replicator.cli": 5,
    "replicator.demo": 5,
    "replicator.__main__": 6,
}
# Level arrows between rooms of one floor; any other is refused.
LEVEL = {
    ("replicator.service", "replicator.cutover"),
    ("replicator.stream", "replicator.survey"),  # it looks at the catalogs again as it goes
    ("replicator.service", "replicator.verify"),
    ("replicator.service", "replicator.web"),
    ("replicator.service", "replicator.monitor"),
    ("replicator.monitor", "replicator.status"),
    ("replicator.overview", "replicator.status"),
    ("replicator.cutover", "replicator.verify"),
    ("replicator.cli", "replicator.demo"),  # the `demo` command
}
LEVEL |= {  # floor 2: both sides stand on the shared room, and everybody may log, count and read settings
    (room, shared)
    for room in (
        "replicator.source",
        "replicator.target",
        "replicator.postgres",
        "replicator.config",
        "replicator.routes",
        "replicator.failpoints",
    )
    for shared in (
        "replicator.postgres",
        "replicator.config",
        "replicator.metrics",
        "replicator.logs",
        "replicator.failpoints",
    )
}
MAY_IMPORT_SNAPSHOT = {"snapshot", "replicator.service", "replicator.cli", "replicator.demo"}
# The package itself holds plain names and stands below everything.
EMPTY = {"replicator"}

PURE_FLOORS = {0, 1}
IMPURE = {
    *("psycopg", "logging", "structlog", "prometheus_client", "time", "random", "secrets"),
    *("socket", "select", "asyncio", "threading", "subprocess", "os", "sys", "io", "pathlib", "tempfile", "httpx"),
}
CLOCKS = {"now", "utcnow", "today"}  # of datetime and date


@dataclass(frozen=True, slots=True)
class Source:
    """One module and its text."""

    name: str
    path: Path
    text: str


def sources(root: Path) -> Iterator[Source]:
    for package in ("replicator", "snapshot"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield Source(name, path, path.read_text())


def room_of(module: str) -> str | None:
    fitting = [room for room in FLOORS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default=None)


def imports(source: Source, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of every module imported, anywhere in the file, also under TYPE_CHECKING.

    ``from package import name`` counts as ``package.name`` where that is a module of ours.
    """
    package = source.name if source.path.name == "__init__.py" else source.name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                # The package is no room: what is taken from it is one, or a plain name such as `__version__`.
                yield node.lineno, full if full in known or (base in EMPTY and room_of(full)) else base


def faults(root: Path) -> list[str]:
    """Every arrow that runs up or sideways, every impure import in a pure room, every file too long."""
    found = []
    all_sources = list(sources(root))
    known = {source.name for source in all_sources}
    for source in all_sources:
        place = source.path.relative_to(root)
        if (lines := source.text.count("\n")) > MAX_LINES:
            found.append(f"{place}: {lines} lines, more than {MAX_LINES}")
        if source.name in EMPTY:
            ours = [name for _, name in imports(source, known) if name.partition(".")[0] in ("replicator", "snapshot")]
            found += [f"{place}: imports {name}: it stands below everything" for name in ours]
            continue
        room = room_of(source.name)
        if room is None:
            found.append(f"{place}: belongs to no room; give it a floor")
            continue
        for line, name in imports(source, known):
            if fault := arrow_fault(room, name):
                found.append(f"{place}:{line}: {fault}")
        if FLOORS[room] in PURE_FLOORS:
            found += [f"{place}:{line}: reads the clock ({name})" for line, name in clocks(source)]
    return found


def arrow_fault(room: str, name: str) -> str | None:
    """What is wrong with ``room`` importing ``name``, if anything."""
    top = name.partition(".")[0]
    if top not in ("replicator", "snapshot"):
        if FLOORS[room] in PURE_FLOORS and top in IMPURE:
            return f"{room} is pure and imports {name}"
        return None
    other = room_of(name)
    if name in EMPTY or other == room:
        return None
    if other is None:
        return f"imports {name}, which belongs to no room"
    if other == "snapshot" and room not in MAY_IMPORT_SNAPSHOT:
        return f"{room} imports snapshot: only {', '.join(sorted(MAY_IMPORT_SNAPSHOT - {'snapshot'}))} may"
    if FLOORS[other] > FLOORS[room]:
        return f"{room} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]}): arrows run downwards"
    if FLOORS[other] == FLOORS[room] and FLOORS[room] > 0 and (room, other) not in LEVEL:
        return f"{room} imports {name} of the same floor"
    return None


def clocks(source: Source) -> Iterable[tuple[int, str]]:
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
            yield node.lineno, ast.unparse(node)


def test_every_arrow_runs_downwards_and_pure_rooms_are_pure() -> None:
    assert faults(ROOT) == []


def test_the_tree_is_really_read() -> None:
    """An empty walk would find no fault either."""
    names = {source.name for source in sources(ROOT)}
    assert {"replicator.errors", "replicator.model.lsn", "replicator.web.server", "snapshot"} <= names
    by_name = {source.name: source for source in sources(ROOT)}
    taken = {name for _, name in imports(by_name["replicator.web.server"], names)}
    assert {"replicator.web.http", "replicator.logs", "prometheus_client", "replicator.model.lsn"} <= taken


BROKEN = {
    "up": ("replicator/stream/a.py", "from replicator.service import Service\n", "arrows run downwards"),
    "up by the package": ("replicator/stream/a.py", "from replicator import cli\n", "arrows run downwards"),
    "up, relative": ("replicator/stream/a.py", "from ..verify import x\n", "arrows run downwards"),
    "up in a function": ("replicator/target/a.py", "def f():\n    import replicator.stream.b\n", "downwards"),
    "up for types": (
        "replicator/source/a.py",
        "if TYPE_CHECKING:\n    from replicator.stream.b import B\n",
        "arrows run downwards",
    ),
    "snapshot imports service": ("snapshot/run.py", "import replicator.service\n", "arrows run downwards"),
    "snapshot imports cli": ("snapshot/run.py", "from replicator.cli import main\n", "arrows run downwards"),
    "stream imports snapshot": ("replicator/stream/a.py", "import snapshot\n", "imports snapshot: only"),
    "cutover imports snapshot": ("replicator/cutover/a.py", "from snapshot.run import run\n", "snapshot: only"),
    "sideways": ("replicator/verify/a.py", "from replicator.cutover import x\n", "same floor"),
    "source and target": ("replicator/target/a.py", "from replicator.source.slot import x\n", "same floor"),
    "web imports service": ("replicator/web/a.py", "import replicator.service\n", "same floor"),
    "connection in a pure room": ("replicator/routing/a.py", "import psycopg\n", "is pure"),
    "connection in the model": ("replicator/model/a.py", "from psycopg import sql\n", "is pure"),
    "clock": ("replicator/pgoutput/a.py", "from time import monotonic\n", "is pure"),
    "wall clock": ("replicator/routing/a.py", "import datetime\nx = datetime.datetime.now()\n", "reads the clock"),
    "logger": ("replicator/pgoutput/a.py", "import structlog\n", "is pure"),
    "our logger": ("replicator/pgoutput/a.py", "from replicator.logs import get_logger\n", "downwards"),
    "metric": ("replicator/routing/a.py", "from replicator import metrics\n", "downwards"),
    "pure rooms are apart": ("replicator/routing/a.py", "import replicator.pgoutput.decoder\n", "same floor"),
    "stray module": ("replicator/utils.py", "", "belongs to no room"),
    "package with imports": ("replicator/__init__.py", "from replicator.service import run\n", "below everything"),
    "long file": ("replicator/stream/a.py", "x = 1\n" * (MAX_LINES + 1), "401 lines"),
}


@pytest.mark.parametrize("path, text, fault", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_tree_is_caught(tmp_path: Path, path: str, text: str, fault: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    found = faults(tmp_path)
    assert len(found) == 1
    assert fault in found[0]


def test_a_sound_tree_is_not(tmp_path: Path) -> None:
    tree = {
        "replicator/__init__.py": '"""A package."""\n',
        "replicator/verify/a.py": "from replicator import __version__\n",
        "replicator/model/lsn.py": "import datetime\nimport dataclasses\nfrom replicator import errors\n",
        "replicator/routing/a.py": "from replicator.model.lsn import Lsn\nfrom .b import x\n",
        "replicator/source/a.py": "import time\nimport psycopg\nfrom replicator.postgres import connect\n",
        "snapshot/run.py": "import replicator\nfrom replicator import metrics\nfrom replicator.source import slot\n",
        "replicator/service.py": "import snapshot.run\nfrom replicator.cutover import x\nfrom .web import WebServer\n",
        "replicator/cli/main.py": "from snapshot.plan import plan\nfrom replicator.service import run\n",
    }
    for path, text in tree.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert faults(tmp_path) == []
