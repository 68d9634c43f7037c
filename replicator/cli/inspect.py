"""Commands that look and change nothing: ``check``, ``plan``, ``status``, ``verify``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replicator.cli.context import check_report, print_json, settings_of, write_report

if TYPE_CHECKING:
    from replicator.config import Settings
    from replicator.overview import Reader
    from replicator.routing.route import Route
    from replicator.status import Status

_PANEL = "Look"
_WATCH_EVERY_S = 1.0

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for name, command in (("check", check), ("plan", plan), ("status", status), ("verify", verify)):
        app.command(name, rich_help_panel=_PANEL)(command)


def check(ctx: typer.Context, json: Json = False) -> None:
    """Preflight of both sides: every check with its remedy. Exits 1 if one failed."""
    settings = settings_of(ctx)
    from replicator.preflight import Status, run_checks

    checks = run_checks(settings)
    ok = not any(each.status is Status.FAIL for each in checks)
    if json:
        print_json({"ok": ok, "checks": [each.to_json() for each in checks]})
    else:
        from replicator.cli import views

        views.show_checks(checks)
    raise typer.Exit(0 if ok else 1)


def plan(ctx: typer.Context, json: Json = False) -> None:
    """The routes: order, columns, ID maps, and what will be created on the source. Exits 1 if not replicable."""
    settings = settings_of(ctx)
    from replicator.preflight import load_plan

    planned = load_plan(settings)
    if json:
        print_json(planned.to_json())
    else:
        from replicator.cli import views

        views.show_plan(planned)
    raise typer.Exit(0 if planned.ok else 1)


def status(
    ctx: typer.Context,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Phase, lag, slot health, tables, unmapped IDs, cutover steps. Exits 1 if something needs a person."""
    settings = settings_of(ctx)
    from replicator.overview import open_reader

    reader = open_reader(settings)
    try:
        current = _watch(reader, json=json) if watch else _read_once(reader)
    finally:
        reader.close()
    if not watch:
        _show(current, json=json)
    raise typer.Exit(0 if current.healthy else 1)


def _read_once(reader: Reader) -> Status:
    current = reader.read()
    if current.slot is not None and current.slot.safe_bytes is not None:
        # The forecast needs the rate at which WAL is written: two readings.
        time.sleep(1.0)
        current = reader.read()
    return current


def _show(current: Status, *, json: bool) -> None:
    if json:
        print_json(current.to_json())
        return
    from replicator.cli import views

    views.show_status(current)


def _watch(reader: Reader, *, json: bool) -> Status:
    """Until Ctrl-C: a live view on a terminal, else one reading after the other."""
    from replicator.cli import views

    current = reader.read()
    try:
        with views.live_status(current, as_json=json) as update:
            while True:
                time.sleep(_WATCH_EVERY_S)
                current = _read_on(reader, current)
                update(current)
    except KeyboardInterrupt:
        return current


def _read_on(reader: Reader, last: Status) -> Status:
    """The next reading; while the target is away the last one, with that problem."""
    from dataclasses import replace

    from replicator.errors import TransientError

    try:
        return reader.read()
    except TransientError as exc:
        return replace(last, problems=(f"the status cannot be read: {exc.message}",))


def verify(
    ctx: typer.Context,
    table: Annotated[list[str] | None, typer.Option("--table", help="Only this target table; may be repeated.")] = None,
    counts_only: Annotated[bool, typer.Option("--counts-only", help="Compare numbers of rows alone.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End with the first difference.")] = False,
    json: Json = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write the JSON document to this file too.")] = None,
) -> None:
    """Compare source and target through the routes, ID maps included; right while the stream runs."""
    settings = settings_of(ctx)
    from replicator.cli import views
    from replicator.cli.progress import verify_progress
    from replicator.model.schema import parse_table_name
    from replicator.verify import verify as run_verification

    check_report(report)
    names = {parse_table_name(name) for name in table} if table else None
    with verify_progress() as progress:
        found = run_verification(
            settings,
            _routes(settings),
            tables=names,
            counts_only=counts_only,
            fail_fast=fail_fast,
            progress=progress,
        )
    write_report(report, found.to_json())
    if json:
        print_json(found.to_json())
    else:
        views.show_verification(found)
    raise typer.Exit(0 if found.equal else 1)


def _routes(settings: Settings) -> Sequence[Route]:
    """The routes to compare, and a word on what is not compared."""
    from replicator.errors import SchemaMismatch
    from replicator.logs import get_logger
    from replicator.postgres.connection import connect
    from replicator.routes import refuse_faults
    from replicator.survey import newcomer_message, survey_lanes

    with (
        connect(settings.source.dsn, "source", purpose="plan") as source,
        connect(settings.target.dsn, "target", purpose="plan") as target,
    ):
        found = survey_lanes(settings, source, target)
    refuse_faults(found.faults)
    log = get_logger(__name__)
    for drift in found.drifts:
        log.warning(str(drift), remedy=drift.remedy)
    for name in found.newcomers:
        message, remedy = newcomer_message(name)
        log.warning(f"{message}, and not verified", remedy=remedy)
    if not found.routes:
        raise SchemaMismatch("there is nothing to replicate", hint="name the tables in the settings")
    return found.routes
