"""``quarantine …``: the changes that the target refused, seen, tried again or given up."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from replicator.cli.context import confirm, print_json, settings_of

if TYPE_CHECKING:
    from replicator.config import Settings
    from replicator.postgres.connection import Connection
    from replicator.target.quarantine import Listed

app = typer.Typer(
    no_args_is_help=True, help="Changes that the target refused: look at them, try them again, give them up."
)

_POLL_S = 0.2
_SERVICE_GONE_S = 20.0  # a service that reconnects is without its lock for a while

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Changes by their number in the list.")]
Table = Annotated[list[str] | None, typer.Option("--table", help="Those of this target table; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(root: typer.Typer) -> None:
    """Add the commands of this file to ``root``."""
    root.add_typer(app, name="quarantine", rich_help_panel="Look")


@app.command("list")
def show(ctx: typer.Context, table: Table = None, json: Json = False) -> None:
    """What waits, with the key of its row, why, and behind what. Shows values of keys."""
    with _target(settings_of(ctx, needs=("target",))) as (conn, lanes):
        found = _choose(conn, lanes, (), table)
    if json:
        print_json({"changes": [each.to_json() for each in found]})
        return
    from replicator.cli import views

    views.show_quarantine(found)


@app.command()
def retry(
    ctx: typer.Context,
    ids: Ids = None,
    table: Table = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0, metavar="S", help="How long to wait for it.")] = 60,
) -> None:
    """Let the service apply changes anew, all by default, each with all others of its row. Exits 1 if some are left."""
    with _target(settings_of(ctx, needs=("target",))) as (conn, lanes):
        from replicator.target import quarantine

        chosen = {each.id for each in _choose(conn, lanes, ids or (), table)}
        if not chosen:
            typer.echo("nothing is in quarantine")
            return
        for lane in lanes:
            quarantine.request_retry(conn, lane.source.slot, chosen)
        from replicator.cli.progress import waiting

        deadline = time.monotonic() + timeout
        with waiting("the service tries them again"):
            waited = "; ".join(filter(None, [_wait(conn, lane, chosen, deadline) for lane in lanes]))
        left = [each for each in _listed(conn, lanes) if each.id in chosen]
    typer.echo(f"{len(chosen) - len(left)} changes applied, {len(left)} left")
    if left:
        typer.echo(waited or "`replicator quarantine list` shows why", err=True)
        raise typer.Exit(1)


@app.command()
def drop(
    ctx: typer.Context,
    ids: Ids = None,
    table: Table = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is in quarantine.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Give changes up for good: both sides go on differing in their rows."""
    if not (ids or table or everything):
        raise typer.BadParameter("name changes, tables, or --all", param_hint="ID")
    if everything and (ids or table):
        raise typer.BadParameter("it leaves nothing to choose", param_hint="--all")
    settings = settings_of(ctx, needs=("target",))
    with _target(settings) as (conn, lanes):
        chosen = _choose(conn, lanes, ids or (), table)
    if not chosen:
        typer.echo("nothing is in quarantine")
        return
    confirm(f"Give up {len(chosen)} changes of {_tables(chosen)} for good?", yes=yes)
    with _target(settings) as (conn, _):  # a new session: nobody knows how long the question stood
        from replicator.target import quarantine

        count = quarantine.remove(conn, [each.id for each in chosen])
    typer.echo(f"{count} changes dropped: source and target differ in these rows; `replicator verify` shows them")


@contextmanager
def _target(settings: Settings) -> Iterator[tuple[Connection, Sequence[Settings]]]:
    """A session on a target that has our state, and the lanes.

    Raises:
        Refused: it has none.
    """
    from replicator.errors import Refused
    from replicator.postgres.connection import connect, translated
    from replicator.target import state

    with connect(settings.target.dsn, "target", purpose="quarantine") as conn, translated("target"):
        if not state.exists(conn):
            raise Refused("nothing has been replicated to this target yet", hint="start `replicator run`")
        yield conn, settings.split()


def _listed(conn: Connection, lanes: Sequence[Settings]) -> list[Listed]:
    from replicator.target import quarantine

    found = [each for lane in lanes for each in quarantine.listed(conn, lane.source.slot)]
    return sorted(found, key=lambda each: each.id)


def _choose(
    conn: Connection, lanes: Sequence[Settings], ids: Collection[int], tables: Collection[str] | None
) -> list[Listed]:
    """The changes of these numbers and tables; all where neither is given.

    Raises:
        Refused: there is no change of a number.
    """
    from replicator.errors import Refused
    from replicator.model.schema import parse_table_name, show_table

    found = _listed(conn, lanes)
    names = {show_table(parse_table_name(name)) for name in tables or ()}
    unknown = set(ids) - {each.id for each in found}
    if unknown:
        raise Refused(
            f"not in quarantine: {', '.join(map(str, sorted(unknown)))}",
            hint="`replicator quarantine list` has the IDs",
        )
    if not ids and not names:
        return found
    return [each for each in found if each.id in ids or each.table in names]


def _wait(conn: Connection, lane: Settings, chosen: set[int], deadline: float) -> str:
    """Wait until the lane's service has tried those of its own; why it has not, if so."""
    from replicator.target import quarantine, state

    slot, seen = lane.source.slot, None
    while asked := chosen & quarantine.requested(conn, slot):
        now = time.monotonic()
        if now > deadline:
            return f"{lane.prefix}the service has not come to it in time: it still will; --timeout waits longer"
        if state.writer_is_running(conn, slot):
            seen = now
        elif seen is None:
            return f"{lane.prefix}the service is not running: it tries {len(asked)} changes again when it starts"
        elif now - seen > _SERVICE_GONE_S:
            return f"{lane.prefix}the service has ended meanwhile: it tries them when it starts again"
        time.sleep(_POLL_S)
    return ""


def _tables(chosen: Collection[Listed]) -> str:
    return ", ".join(sorted({each.table for each in chosen}))
