"""Figures into tables and JSON: medians over the rounds, ratios within a round, and where they were measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import Measured

OURS = "replicator"


@dataclass(frozen=True, slots=True)
class Figure:
    """One timed run. ``fault``: why it is void, if it is. ``changes``: rows moved, or changes applied."""

    section: str
    case: str
    peer: str
    round: int
    changes: int
    measured: Measured | None
    fault: str | None = None

    @property
    def valid(self) -> bool:
        return self.measured is not None and self.fault is None


@dataclass
class Report:
    """All that was measured. ``tables`` hold what is no comparison of seconds: heading → rows of cells."""

    about: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # "section / case / peer" → reason

    def comparisons(self) -> dict[tuple[str, str], list[Figure]]:
        """Figures by section and case, in the order they were measured."""
        found: dict[tuple[str, str], list[Figure]] = {}
        for figure in self.figures:
            found.setdefault((figure.section, figure.case), []).append(figure)
        return found

    def write_json(self, path: Path) -> None:
        document = {
            "about": self.about,
            "figures": [asdict(figure) for figure in self.figures],
            "tables": self.tables,
            "skipped": self.skipped,
        }
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")

    @classmethod
    def read_json(cls, path: Path) -> Report:
        """What `write_json` wrote."""
        document = json.loads(path.read_text())
        figures = []
        for entry in document["figures"]:
            measured = entry.pop("measured")
            figures.append(Figure(measured=Measured(**measured) if measured else None, **entry))
        return cls(document["about"], figures, document["tables"], document["skipped"])


@dataclass(frozen=True, slots=True)
class Line:
    """One peer in one comparison. Ratios: its seconds over ours, round by round."""

    peer: str
    median_s: float
    low_s: float
    high_s: float
    stream_s: float | None
    schema_s: float
    per_second: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    session_ratio: float | None  # of the sessions alone
    cpu_us: float | None  # per change, of the peer's processes
    all_cpu_us: float | None  # per change, of both servers too
    peak_rss: int | None
    faults: tuple[str, ...]


def lines(figures: Sequence[Figure]) -> list[Line]:
    """One line per peer; void runs are left out of the figures and named in ``faults``."""
    ours = {figure.round: figure for figure in figures if figure.peer == OURS and figure.valid}
    return [_line(peer, figures, ours) for peer in dict.fromkeys(figure.peer for figure in figures)]


def _line(peer: str, figures: Sequence[Figure], ours: dict[int, Figure]) -> Line:
    runs = [figure for figure in figures if figure.peer == peer]
    faults = tuple(dict.fromkeys(figure.fault for figure in runs if figure.fault))
    valid = [(figure, figure.measured) for figure in runs if figure.valid and figure.measured is not None]
    if not valid:
        nothing = float("nan")
        return Line(peer, nothing, nothing, nothing, None, 0, nothing, None, None, None, None, None, None, None, faults)
    seconds = [measured.seconds for _, measured in valid]
    ratios = [
        measured.seconds / mine.seconds
        for figure, measured in valid
        if figure.round in ours and (mine := ours[figure.round].measured) is not None
    ]
    return Line(
        peer,
        statistics.median(seconds),
        min(seconds),
        max(seconds),
        _median(measured.stream_s for _, measured in valid),
        statistics.median(measured.schema_s for _, measured in valid),
        statistics.median(figure.changes / measured.seconds for figure, measured in valid),
        statistics.median(ratios) if ratios else None,
        min(ratios, default=None),
        max(ratios, default=None),
        _median(_session_ratio(measured, ours.get(figure.round)) for figure, measured in valid),
        _median(None if m.cpu_s is None else m.cpu_s / figure.changes * 1e6 for figure, m in valid),
        _median(
            None if m.server_cpu_s is None else ((m.cpu_s or 0.0) + m.server_cpu_s) / figure.changes * 1e6
            for figure, m in valid
        ),
        max((measured.peak_rss for _, measured in valid if measured.peak_rss is not None), default=None),
        faults,
    )


def _session_ratio(measured: Measured, ours: Figure | None) -> float | None:
    if ours is None or ours.measured is None or not measured.stream_s or not ours.measured.stream_s:
        return None
    return measured.stream_s / ours.measured.stream_s


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def comparison_table(figures: Sequence[Figure]) -> list[list[str]]:
    """Cells of one comparison, header first."""
    with_stream = any(figure.measured and figure.measured.stream_s is not None for figure in figures)
    part = ["session, s", "× ours, session"] if with_stream else ["of it schema, s"]
    rows = [["", "seconds, median (range)", "× ours (range)", *part, "rows/s", "CPU µs/row", "with servers", "peak MB"]]
    for line in lines(figures):
        if line.median_s != line.median_s:  # NaN: no valid run
            rows.append([line.peer, "void", *[""] * (len(rows[0]) - 2)])
        else:
            rows.append(_cells(line, with_stream))
        rows += [[f"  void: {fault}"] for fault in line.faults]
    return rows


def _cells(line: Line, with_stream: bool) -> list[str]:
    part = [_number(line.stream_s), _number(line.session_ratio)] if with_stream else [_number(line.schema_s or None)]
    return [
        line.peer,
        f"{line.median_s:.2f} ({line.low_s:.2f}–{line.high_s:.2f})",
        "" if line.ratio is None else f"{line.ratio:.2f} ({line.ratio_low:.2f}–{line.ratio_high:.2f})",
        *part,
        f"{line.per_second:,.0f}",
        _number(line.cpu_us, 1),
        _number(line.all_cpu_us, 1),
        "" if not line.peak_rss else f"{line.peak_rss / 1e6:.0f}",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def show(rows: Sequence[Sequence[str]]) -> str:
    """Cells as aligned text."""
    widths = [max(len(row[at]) for row in rows if len(row) > max(at, 1)) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(widths[at]) if at == 0 else cell.rjust(widths[at]) for at, cell in enumerate(row)).rstrip()
        if len(row) > 1
        else row[0]
        for row in rows
    )


def markdown(report: Report) -> str:
    """All tables as Markdown, for docs/performance.md."""
    parts = []
    for (section, case), figures in report.comparisons().items():
        parts += [f"**{section}: {case}**", "", _markdown_table(comparison_table(figures)), ""]
    for heading, rows in report.tables.items():
        parts += [f"**{heading}**", "", _markdown_table(rows), ""]
    parts += [f"- left out: {what}: {reason}" for what, reason in report.skipped.items()]
    return "\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    width = len(rows[0])
    body = [[*row, *[""] * (width - len(row))] for row in rows]
    head, rest = body[0], body[1:]
    ruled = [head, ["---", *["---:"] * (width - 1)], *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def machine() -> dict[str, Any]:
    """The machine, as far as it bears on the figures."""
    cpu = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines_of_file:
        cpu = next((line.partition(":")[2].strip() for line in lines_of_file if line.startswith("model name")), cpu)
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages * size / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }
