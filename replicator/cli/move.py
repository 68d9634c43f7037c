"""Commands that move the data: ``snapshot``, ``run``, ``cutover``, ``teardown``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replicator.cli.context import check_report, confirm, print_json, settings_of, warn_of_passwords, write_report
from replicator.model.printable import printable

if TYPE_CHECKING:
    from replicator.cli.copying import Selection
    from replicator.config import Settings
    from replicator.model.lsn import Lsn

_PANEL = "Move"

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Lane = Annotated[int | None, typer.Option("--lane", min=1, metavar="N", help="One lane of [lanes] in the settings.")]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate",
        help="Empty target tables that hold rows of somebody else's; start over if the slot is lost. Asks before.",
    ),
]


class Verification(StrEnum):
    """How the cutover compares both sides while the source is frozen."""

    FULL = "full"
    COUNTS = "counts"
    NONE = "none"


cutover_app = typer.Typer(
    invoke_without_command=True,
    help="Stop the writers, apply the last change, verify, hand over to the target; undone by itself if it fails.",
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    app.command("snapshot", rich_help_panel=_PANEL)(snapshot)
    app.command("run", rich_help_panel=_PANEL)(run)
    app.add_typer(cutover_app, name="cutover", rich_help_panel=_PANEL)
    app.command("teardown", rich_help_panel=_PANEL)(teardown)


def snapshot(
    ctx: typer.Context,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", help="Only this target table, again if it was copied before; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave this target table for later; may be repeated.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, max=64, help="Parallel copies.")] = None,
    dask: Annotated[
        str | None,
        typer.Option("--dask", metavar="ADDRESS", help="Copy on the workers of this Dask scheduler: tcp://host:8786."),
    ] = None,
    lane: Lane = None,
    truncate: Truncate = False,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be copied, and copy nothing.")] = False,
) -> None:
    """Phase one alone: copy all rows, or go on with a copy that was interrupted. Without --lane lane after lane."""
    settings = settings_of(ctx)
    from replicator.cli import copying, views
    from replicator.model.schema import parse_table_name

    selection = copying.Selection(
        only=frozenset(map(parse_table_name, table)) if table else None,
        exclude=frozenset(map(parse_table_name, exclude or ())),
        truncate=truncate,
    )
    chosen = copying.by_lane(settings, selection) if lane is None else [(settings.lane(lane), selection)]
    if dry_run:
        refused = False
        for one, asked in chosen:
            planned = copying.preview(one, asked)
            views.show_preview(planned, truncate=truncate, prefix=one.prefix)
            refused = refused or bool(planned.occupied or planned.broken)
        raise typer.Exit(1 if refused and not truncate else 0)
    for one, asked in chosen:
        _confirm_truncate(one, asked, yes=yes)
    for one, asked in chosen:
        _copy(one, asked, workers, dask)


def _copy(settings: Settings, selection: Selection, workers: int | None, dask: str | None) -> None:
    from replicator.cli import copying
    from replicator.cli.progress import snapshot_progress

    try:
        with snapshot_progress() as progress:
            copied = copying.copy(settings, selection, progress, workers=workers, dask=dask)
    except copying.Interrupted as exc:
        typer.echo(
            "replicator: interrupted — `replicator snapshot` or `replicator run` goes on where it ended", err=True
        )
        raise typer.Exit(128 + exc.signum) from exc
    if copied.by_service:
        done = "copied again by the running service"
    else:
        done = "snapshot complete" if copied.complete else "copied; other tables are still to be copied"
    typer.echo(settings.prefix + done)


def _confirm_truncate(settings: Settings, selection: Selection, *, yes: bool) -> None:
    if not selection.truncate or yes:
        return
    question = "Empty target tables that hold rows of somebody else's, and start over if the slot is lost?"
    if sys.stdin.isatty() and sys.stderr.isatty():
        from replicator.cli import copying
        from replicator.model.schema import show_tables

        planned = copying.preview(settings, selection)
        if not planned.occupied and not planned.broken:
            return
        question = f"Empty these target tables: {show_tables(planned.emptied + planned.occupied)}?"
        if planned.broken:
            slot = settings.source.slot
            question = f"{planned.broken}. Start over with a new slot {slot}? What remains of it is dropped. {question}"
    confirm(question, yes=False)


def run(
    ctx: typer.Context,
    lane: Lane = None,
    truncate: Truncate = False,
    yes: Yes = False,
    until_lsn: Annotated[
        str | None, typer.Option("--until-lsn", metavar="LSN", help="End once this source position is on the target.")
    ] = None,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End once all that is on the source now is on the target.")
    ] = False,
) -> None:
    """The service: snapshot if there is none, then stream until SIGTERM or until a cutover has finalized."""
    position = _parse_lsn(until_lsn)
    settings = settings_of(ctx)
    settings = settings.require_one_lane() if lane is None else settings.lane(lane)
    if truncate and not yes:
        from replicator.cli import copying

        _confirm_truncate(settings, copying.Selection(None, frozenset(), truncate=True), yes=False)
    from replicator import service

    warn_of_passwords(ctx)
    service.run(settings, truncate=truncate, until_lsn=position, until_caught_up=until_caught_up)


def _parse_lsn(text: str | None) -> Lsn | None:
    from replicator.model.lsn import Lsn

    try:
        return None if text is None else Lsn.parse(text)
    except ValueError as exc:
        raise typer.BadParameter("write a position such as 16/B374D848", param_hint="--until-lsn") from exc


@cutover_app.callback()
def cutover(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at all gates and freeze nothing.")] = False,
    yes: Yes = False,
    max_lag_bytes: Annotated[
        int | None, typer.Option("--max-lag-bytes", min=0, help="How far behind the target may be at the freeze.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=1, metavar="S", help="How long writers may wait before it is undone."),
    ] = None,
    verify: Annotated[
        Verification, typer.Option("--verify", help="What to compare while the source is frozen.")
    ] = Verification.FULL,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON document on stdout.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this file, as JSON.")] = None,
) -> None:
    """Without a subcommand: cut over, or go on with an unfinished cutover."""
    if ctx.invoked_subcommand is not None:
        return
    settings = settings_of(ctx)
    check_report(report)
    if not dry_run:
        confirm("Stop all writers of the source and hand over to the target?", yes=yes)
    from replicator.cli import views
    from replicator.cutover import CutoverRefused, run_cutover
    from replicator.cutover.run import DEFAULT_MAX_LAG_BYTES, DEFAULT_TIMEOUT_S

    try:
        done = run_cutover(
            settings,
            dry_run=dry_run,
            max_lag_bytes=DEFAULT_MAX_LAG_BYTES if max_lag_bytes is None else max_lag_bytes,
            timeout_s=DEFAULT_TIMEOUT_S if timeout is None else timeout,
            verify=verify.value,
        )
    except CutoverRefused as exc:
        write_report(report, exc.report.to_json())
        if json:
            print_json(exc.report.to_json())
        raise
    write_report(report, done.to_json())
    if json:
        print_json(done.to_json())
    else:
        views.show_cutover(done)
    raise typer.Exit(0 if done.ok else 1)


@cutover_app.command("abort")
def abort(ctx: typer.Context) -> None:
    """Undo an unfinished cutover whose process is gone, and reopen the source."""
    settings = settings_of(ctx)
    from replicator.cutover import abort as undo

    undo(settings)
    typer.echo("the cutover is undone: the source takes writes")


def teardown(
    ctx: typer.Context,
    yes: Yes = False,
    keep_id_map: Annotated[bool, typer.Option("--keep-id-map", help="Keep the ID maps on the target.")] = False,
    skip_source: Annotated[
        bool, typer.Option("--skip-source", help="The source is gone for good: clear the target alone.")
    ] = False,
) -> None:
    """Remove slot and publication from the source, and schema replicator from the target."""
    settings = settings_of(ctx, needs=("target",) if skip_source else ("source", "target"))
    slots = " and ".join(lane.source.slot for lane in settings.split())
    confirm(f"Remove slot {slots}, its publication and the state on the target? A later run starts anew.", yes=yes)
    from replicator.teardown import teardown as remove

    done = remove(settings, keep_id_map=keep_id_map, skip_source=skip_source)
    for line in done.removed or ("nothing: there was nothing left",):
        typer.echo(printable(f"removed {line}"))
    for line in done.kept:
        typer.echo(printable(f"kept {line}"))
