"""What the commands show to people: rich tables on stdout, progress on stderr where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from replicator.cli.context import print_json
from replicator.model.printable import printable
from replicator.model.schema import show_table

if TYPE_CHECKING:
    from replicator.cli.copying import Preview
    from replicator.cutover import CutoverReport
    from replicator.preflight import Check, Plan
    from replicator.status import Status
    from replicator.target.quarantine import Listed
    from replicator.users import UsersStatus
    from replicator.verify import Report

_COLOURS = {
    **dict.fromkeys(("pass", "copied", "done", "reserved", "streaming", "cut_over", "equal"), "green"),
    **dict.fromkeys(("warn", "copying", "running", "extended", "copy_requested", "catching_up"), "yellow"),
    **dict.fromkeys(("fail", "failed", "lost", "unreserved", "undone", "differs"), "bold red"),
}


def console() -> Console:
    """Stdout. Not narrower than a wide terminal where it is a file: lines are not to be cut there."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=200)


def plain(text: str, style: str = "") -> Text:
    """Text as it stands: no markup in it counts, and nothing in it drives the terminal."""
    return Text("\n".join(map(printable, text.split("\n"))), style=style)


def word(text: str) -> Text:
    """A state in its colour."""
    return Text(text, style=_COLOURS.get(text, ""))


def grid(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without lines but under its head."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def show_size(size: float | None) -> str:
    """Bytes in units of 1024."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def show_seconds(seconds: float | None) -> str:
    """A time span in the unit that fits."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def show_checks(checks: Sequence[Check]) -> None:
    """One row per check; remedies beside those that did not pass."""
    table = grid("", "check", "side", "found", "remedy")
    for check in checks:
        table.add_row(word(check.status.value), check.name, check.side, plain(check.message), plain(check.remedy))
    console().print(table)
    counts = {kind: sum(check.status.value == kind for check in checks) for kind in ("pass", "warn", "fail")}
    console().print(f"{counts['pass']} passed, {counts['warn']} warnings, {counts['fail']} failed")


def show_plan(plan: Plan) -> None:
    """Routes in copy order, then what is created on the source, then what stands in the way."""
    out = console()
    laned = len(plan.lanes) > 1
    table = grid("level", "table", "rows ≈", "size", "how", "columns", right=("level", "rows ≈", "size"))
    for each in plan.tables:
        name = each.name if each.source == each.name else f"{each.source} → {each.name}"
        notes = [f"{column} through {id_map}" for column, id_map in each.id_maps.items()]
        notes += [f"{target} from {source}" for target, source in each.renamed.items()]
        notes += [f"lane {each.lane}"] if laned else []
        notes += [f"dropped: {', '.join(each.dropped)}"] if each.dropped else []
        notes += [f"default: {', '.join(each.defaulted)}"] if each.defaulted else []
        size = show_size(each.bytes_estimate)
        table.add_row(str(each.level), plain(name), f"{each.rows_estimate:,}", size, each.mode, plain("; ".join(notes)))
    out.print(table)
    made = [lane for lane in plan.lanes if lane.publication_sql]
    if made:
        out.print("[bold]created on the source[/], removed by `replicator teardown`:")
    for lane in made:
        kind = "pgoutput, failover" if lane.failover else "pgoutput"
        whose = f" of lane {lane.lane}" if laned else ""
        out.print(
            plain(f"  logical replication slot {lane.slot}{whose} ({kind}), which keeps WAL until it is read"),
            soft_wrap=True,
        )
        out.print(plain(f"  {lane.publication_sql};"), soft_wrap=True)
    if made:
        out.print("  logical messages with prefix replicator: a heartbeat every 5 s, a fence at the cutover")
    for note in plan.notes:
        out.print(plain(f"  · {note}", style="yellow"), soft_wrap=True)
    if plan.faults:
        out.print("[bold red]not replicable:[/]")
    for fault in plan.faults:
        out.print(plain(f"  {show_table(fault.table)}: {fault.message} — {fault.remedy}"), soft_wrap=True)


def show_preview(preview: Preview, *, truncate: bool, prefix: str = "") -> None:
    """What `snapshot` would do."""
    out = console()
    out.print(prefix, end="")
    out.print(f"phase {preview.phase}: {len(preview.to_copy)} tables to copy, {len(preview.done)} copied already")
    if preview.broken:
        how = "--truncate would start over" if truncate else "refused without --truncate, which would start over"
        out.print(f"{preview.broken}: {how}", markup=False, soft_wrap=True)
    for name in preview.to_copy:
        if name in preview.emptied:
            out.print(f"  {show_table(name)} — would be emptied and copied again", markup=False)
            continue
        filled = name in preview.occupied
        note = (
            (" — would be emptied first" if truncate else " — holds rows: refused without --truncate") if filled else ""
        )
        out.print(plain(f"  {show_table(name)}{note}"), soft_wrap=True)


def show_status(status: Status) -> None:
    """The whole status once."""
    console().print(status_view(status))


def status_view(status: Status) -> RenderableType:
    """Facts, problems, tables, cutover steps."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("phase", word(status.phase))
    lag = f"{show_seconds(status.lag_seconds)}, {show_size(status.lag_bytes)}"
    facts.add_row("lag", f"{lag} (applied {status.applied_lsn or '–'} of {status.source_lsn or '–'})")
    facts.add_row("slot", _slot_line(status))
    facts.add_row("unmapped IDs", str(status.unmapped_ids))
    facts.add_row("quarantined rows", str(status.quarantined_rows))
    parts: list[RenderableType] = [facts]
    if status.lanes:
        lanes = grid("lane", "phase", "lag", "applied", "slot", right=("lane",))
        for each in status.lanes:
            one = each.status
            lag = f"{show_seconds(one.lag_seconds)}, {show_size(one.lag_bytes)}"
            lanes.add_row(str(each.lane), word(one.phase), lag, str(one.applied_lsn or "–"), _slot_line(one))
        parts.append(lanes)
    parts += [plain(f"! {problem}", style="bold red") for problem in status.problems]
    parts += [plain(f"· {note}", style="yellow") for note in status.notes]
    if status.tables:
        tables = grid("table", "state", "copied", "applied", "snapshot", right=("copied", "applied"))
        for table in status.tables:
            counts = f"{table.rows_copied:,}", f"{table.rows_applied:,}"
            tables.add_row(plain(table.name), word(table.state), *counts, table.snapshot_lsn or "–")
        parts.append(tables)
    if any(step.state != "pending" for step in status.cutover):
        steps = grid("cutover step", "state", "started", "finished")
        for step in status.cutover:
            steps.add_row(step.step, word(step.state), step.started_at or "–", step.finished_at or "–")
        parts.append(steps)
    return Group(*parts)


def show_quarantine(changes: Sequence[Listed]) -> None:
    """What waits, and why."""
    out = console()
    if not changes:
        out.print("nothing is in quarantine")
        return
    table = grid("ID", "table", "key", "change", "why", "LSN", "since", "attempts", right=("ID", "attempts"))
    for each in changes:
        key = "cannot be read" if each.key is None else ", ".join(f"{name} {value}" for name, value in each.key.items())
        behind = (
            "waited behind one that is gone" if each.waiting_behind is None else f"waits behind {each.waiting_behind}"
        )
        why = each.error or behind
        since = f"{each.since:%Y-%m-%d %H:%M:%S}"
        table.add_row(str(each.id), plain(each.table), plain(key), each.op, plain(why), each.lsn, since,
                      str(each.attempts))  # fmt: skip
    out.print(table)
    refused = sum(each.error is not None for each in changes)
    out.print(f"{refused} changes were refused, {len(changes) - refused} wait behind them: mend the target, then "
              "`replicator quarantine retry`", markup=False, soft_wrap=True)  # fmt: skip


def _slot_line(status: Status) -> Text:
    slot = status.slot
    if slot is None:
        return Text("none")
    parts = [" ", slot.name, ", active" if slot.active else ", not active", f", keeps {show_size(slot.retained_bytes)}"]
    parts.insert(2, ", failover" if slot.failover else "")
    if slot.wal_status == "lost":
        parts.append(f" ({slot.invalidation_reason})" if slot.invalidation_reason else "")
    elif slot.safe_bytes is None:
        parts.append(", without limit")
    else:
        parts.append(f", may be lost after {show_size(slot.safe_bytes)} more")
    if slot.seconds_until_lost is not None and slot.wal_status != "lost":
        parts.append(f" (in {show_seconds(slot.seconds_until_lost)} at this rate)")
    return word(slot.wal_status).append(printable("".join(parts)), style="")


@contextmanager
def live_status(first: Status, *, as_json: bool) -> Iterator[Callable[[Status], None]]:
    """A view that renews itself on a terminal; elsewhere, or as JSON, one status after the other."""
    out = console()
    if as_json or not out.is_terminal:

        def show(status: Status) -> None:
            print_json(status.to_json()) if as_json else show_status(status)

        show(first)
        yield show
        return
    with Live(status_view(first), console=out, screen=True, auto_refresh=False) as live:
        yield lambda status: live.update(status_view(status), refresh=True)


def show_verification(report: Report) -> None:
    """Tables, foreign keys that do not hold, notes, and the result in one sentence."""
    out = console()
    numbers = ("source", "target", "missing", "extra", "different")
    table = grid("table", "", *numbers, "first keys", right=numbers)
    for each in report.tables:
        counts = (each.source_rows, each.target_rows, each.missing, each.extra, each.different)
        result = word("equal" if each.equal else "differs")
        keys = ", ".join(each.keys[:3]) + (" …" if len(each.keys) > 3 else "")
        table.add_row(plain(each.name), result, *(f"{count:,}" for count in counts), plain(keys))
    out.print(table)
    for key in report.orphaned:
        out.print(plain(f"{key.table}: {key.orphans:,} rows violate foreign key {key.name}"), soft_wrap=True)
    for note in report.notes:
        out.print(plain(f"note: {note}"), soft_wrap=True)
    out.print(plain(report.summary()), soft_wrap=True)


def show_cutover(report: CutoverReport) -> None:
    """Gates or steps, then what matters of the rest."""
    out = console()
    if report.steps:
        table = grid("step", "state", "seconds", right=("seconds",))
        for step in report.steps:
            seconds = step.to_json()["seconds"]
            table.add_row(step.step.value, word(step.state.value), "–" if seconds is None else f"{seconds:.3f}")
        out.print(table)
    else:
        table = grid("", "gate", "found", "remedy")
        for gate in report.gates:
            table.add_row(word(gate.state), gate.name, plain(gate.message), plain(gate.remedy))
        out.print(table)
    for warning in report.warnings:
        out.print(plain(f"warning: {warning}"), soft_wrap=True)
    if report.write_downtime_seconds is not None:
        out.print(f"nobody could write for {report.write_downtime_seconds:.3f} s; final LSN {report.final_lsn}")
    for line in report.removed:
        out.print(plain(f"removed {line}"), soft_wrap=True)
    for line in report.kept:
        out.print(plain(f"kept {line}"), soft_wrap=True)
    out.print(f"cutover {report.outcome}" if report.steps else f"gates {report.outcome}")


def show_users(status: UsersStatus) -> None:
    """One row per map, then the columns in which IDs without a target ID were met."""
    out = console()
    numbers = ("entries", "users covered", "unmapped IDs", "expired")
    table = grid("map", *numbers, "kept until", right=numbers)
    for each in status.maps:
        covered = "–" if each.covered is None else f"{each.covered:,} of {each.source_users:,}"
        until = f"{each.retain_until:%Y-%m-%d}" if each.retain_until else "–"
        table.add_row(
            plain(each.name), f"{each.entries:,}", covered, f"{each.unmapped_ids:,}", f"{each.expired:,}", until
        )
    out.print(table)
    for each in status.maps:
        for column in each.columns:
            out.print(
                plain(f"{each.name}: {column.ids:,} unmapped IDs in {column.table}.{column.column}"), soft_wrap=True
            )
