"""What the demo found out, and how it is shown at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(slots=True)
class Facts:
    """Filled in while the demo goes on; seconds unless named otherwise."""

    rows_copied: int = 0
    tables_copied: int = 0
    copy_s: float = 0.0
    written: Counter[str] = field(default_factory=Counter)  # by the writers, rows by kind
    transactions: int = 0
    applied: Counter[str] = field(default_factory=Counter)  # by the service, changes by kind
    stream_s: float = 0.0
    metrics_series: int = 0
    lag_now_s: float = 0.0
    lag_now_bytes: int = 0
    lag_peak_s: float = 0.0  # while the service ran
    lag_peak_bytes: int = 0
    recovery_s: float = 0.0  # from kill -9 until all that was on the source at the restart is on the target
    down_s: float = 0.0  # of that, until the process was started again
    live_equal: bool = False
    live_s: float = 0.0
    live_rows: int = 0
    left_out: int = 0
    users: Mapping[str, Any] = field(default_factory=dict)  # `users status --json`
    downtime_report_s: float = 0.0
    downtime_writers_s: float = 0.0
    refused: int = 0  # attempts of the writers after the freeze
    report: Mapping[str, Any] = field(default_factory=dict)  # `cutover --report`
    final: Mapping[str, Any] = field(default_factory=dict)  # `verify --json` after the cutover
    sequences: dict[str, tuple[int, int]] = field(default_factory=dict)  # name → position on the source, on the target
    triggers_fired: int = 0
    total_s: float = 0.0

    def faults(self) -> Iterator[str]:
        """Why the demo is not a success; nothing if it is."""
        if not self.live_equal:
            yield "the verification under the running stream found differences"
        if not self.report["finalized"]:
            yield f"the cutover is {self.report['outcome']}"
        if not (self.report["verification"] or {}).get("equal"):
            yield "the cutover's verification found differences"
        if self.report["writes_after_fence"] != 0:
            yield "writes after the fence: " + str(self.report["writes_after_fence"])
        if not self.final["equal"]:
            names = [table["name"] for table in self.final["tables"] if not table["equal"]]
            yield f"the verification after the cutover found differences: {', '.join(names) or 'foreign keys'}"
        for name, (source, target) in self.sequences.items():
            if source != target:
                yield f"sequence {name} stands at {source} on the source and at {target} on the target"
        if self.triggers_fired:
            yield f"triggers of the target fired for {self.triggers_fired} replicated changes"


def show(facts: Facts, console: Console) -> None:
    """Print the summary."""
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="verification after the cutover", title_justify="left")
    for name in ("table", "source rows", "target rows", "missing", "extra", "different", ""):
        table.add_column(name, justify="left" if name in ("table", "") else "right")
    for each in facts.final["tables"]:
        counts = [f"{each[key]:,}" for key in ("source_rows", "target_rows", "missing", "extra", "different")]
        verdict = Text("equal", "green") if each["equal"] else Text("DIFFERS", "bold red")
        table.add_row(each["name"], *counts, verdict)
    console.print(table)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for name, text in _lines(facts):
        grid.add_row(name, Text(text))
    console.print(grid)
    faults = list(facts.faults())
    console.print()
    if not faults:
        console.print(Text(f"everything is equal, in {facts.total_s:.0f} s", "bold green"))
    for fault in faults:
        console.print(Text(f"NOT EQUAL: {fault}", "bold red"))


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    yield from _movement(facts)
    yield from _handover(facts)
    yield from _proof(facts)
    for at, kept in enumerate(facts.report["kept"]):
        yield "" if at else "kept", kept


def _movement(facts: Facts) -> Iterator[tuple[str, str]]:
    rate = facts.rows_copied / facts.copy_s if facts.copy_s else 0
    yield (
        "copied",
        f"{facts.rows_copied:,} rows of {facts.tables_copied} tables in {facts.copy_s:.1f} s: {rate:,.0f} rows/s",
    )
    yield "written meanwhile", f"{facts.transactions:,} transactions: {_kinds(facts.written)}"
    yield "streamed", f"{facts.applied.total():,} changes in {facts.stream_s:.0f} s: {_kinds(facts.applied)}"
    now, peak = _lag(facts.lag_now_s, facts.lag_now_bytes), _lag(facts.lag_peak_s, facts.lag_peak_bytes)
    yield "lag", f"{now} before the cutover; peak {peak} while the service ran"
    yield "kill -9", f"caught up {facts.recovery_s:.1f} s later; the service was down for {facts.down_s:.1f} s of it"
    yield "unmapped users", _users(facts)


def _handover(facts: Facts) -> Iterator[tuple[str, str]]:
    report = facts.report
    yield "write downtime", f"{facts.downtime_report_s:.2f} s by the report of the cutover"
    yield "", f"{facts.downtime_writers_s:.2f} s as the writers saw it: from their last commit to the hand-over"
    yield "", f"{facts.refused} attempts to write were refused from the freeze on"
    yield "cutover steps", ", ".join(f"{step['name']} {step['seconds'] or 0:.2f} s" for step in report["steps"])
    yield "final position", f"{report['final_lsn']}; {report['writes_after_fence']} writes after the fence"


def _proof(facts: Facts) -> Iterator[tuple[str, str]]:
    tables, keys = facts.final["tables"], facts.final["foreign_keys"]
    rows, equal = sum(each["source_rows"] for each in tables), sum(each["equal"] for each in tables)
    live, frozen = facts.live_equal, bool((facts.report["verification"] or {}).get("equal"))
    yield "verified", f"{_verdict(live)} under the running stream: {facts.live_rows:,} rows in {facts.live_s:.1f} s"
    yield "", f"{_verdict(frozen)} while the source was frozen, by the cutover"
    yield "", f"{_verdict(facts.final['equal'])} afterwards: {equal} of {len(tables)} tables, {rows:,} rows"
    yield "foreign keys", f"{len(keys)} on the target, {sum(key['orphans'] for key in keys)} orphans"
    yield "sequences", ", ".join(f"{name} goes on after {target:,}" for name, (_, target) in facts.sequences.items())


def _verdict(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"


def _lag(seconds: float, size: float) -> str:
    return f"{seconds:.2f} s, {_size(size)}"


def _users(facts: Facts) -> str:
    """Maps of kind table know how much of ``auth.users`` they cover; lookups do not."""
    texts = []
    for each in facts.users["maps"]:
        if each["covered"] is not None:
            why = f"{facts.left_out} were left out on purpose, the others signed up meanwhile"
        else:
            why = "of users that are gone, set to NULL as the settings say"
        texts.append(f"{each['unmapped_ids']} IDs without a target ID in map {each['name']}: {why}")
    return "\n".join(texts)


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common() if count)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"
