"""``users …``: who is who on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replicator.cli.context import confirm, print_json, settings_of
from replicator.model.printable import printable

app = typer.Typer(no_args_is_help=True, help="Who is who on both sides: the ID map, its coverage and retention.")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
MapName = Annotated[str, typer.Option("--map", help="The map, by its name in the settings.")]


def register(root: typer.Typer) -> None:
    """Add the commands of this file to ``root``."""
    root.add_typer(app, name="users", rich_help_panel="Users")


@app.command("import")
def import_map(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file in the form of user-mapping.json.")],
    map_name: MapName = "users",
    replace: Annotated[
        bool, typer.Option("--replace", help="Let the file change the target ID of users that are in the map.")
    ] = False,
    json: Json = False,
) -> None:
    """Add a map file's users to the map, all or none."""
    settings = settings_of(ctx, needs=("target",))
    from replicator.postgres.connection import connect
    from replicator.users import import_file

    with connect(settings.target.dsn, "target", purpose="users") as conn:
        result = import_file(conn, file, map_name, replace=replace)
    if json:
        print_json(result.to_json())
    else:
        typer.echo(f"{result.added} users added, {result.changed} changed, {result.unchanged} as they were")


@app.command("export")
def export_map(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    map_name: MapName = "users",
) -> None:
    """Write the map to a file in the form of user-mapping.json."""
    settings = settings_of(ctx, needs=("target",))
    from replicator.postgres.connection import connect
    from replicator.users import export_file

    with connect(settings.target.dsn, "target", purpose="users") as conn:
        count = export_file(conn, file, map_name)
    typer.echo(f"{count} users written to {file}")


@app.command("status")
def show_status(ctx: typer.Context, json: Json = False) -> None:
    """Coverage of the source's users, IDs without a target ID, retention."""
    settings = settings_of(ctx)
    from replicator.errors import TransientError
    from replicator.postgres.connection import connect
    from replicator.users import load_status

    names = [spec.name for spec in settings.map_specs if not spec.is_lookup] or ["users"]
    with connect(settings.target.dsn, "target", purpose="users") as conn:
        try:
            with connect(settings.source.dsn, "source", purpose="users") as source:
                found = load_status(conn, source, tables=names)
        except TransientError as exc:
            typer.echo(printable(f"replicator: coverage is left out: {exc.message}"), err=True)
            found = load_status(conn, tables=names)
    if json:
        print_json(found.to_json())
        return
    from replicator.cli import views

    views.show_users(found)


@app.command()
def lookup(ctx: typer.Context, user_id: Annotated[str, typer.Argument(help="An ID of either side.")]) -> None:
    """Show the map's entries of one user, for customer support. Exits 1 if there is none."""
    settings = settings_of(ctx, needs=("target",))
    from replicator.postgres.connection import connect
    from replicator.users import lookup as find

    with connect(settings.target.dsn, "target", purpose="users") as conn:
        entries = find(conn, user_id)
    for entry in entries:
        until = f", kept until {entry.retain_until:%Y-%m-%d}" if entry.retain_until else ""
        typer.echo(printable(f"{entry.map}: {entry.source_id} → {entry.target_id} {entry.email or ''}{until}"))
    if not entries:
        typer.echo("no map knows this ID", err=True)
        raise typer.Exit(1)


@app.command()
def purge(
    ctx: typer.Context,
    expired: Annotated[  # noqa: ARG001  # states what is done anyway
        bool, typer.Option("--expired", help="Only entries past their retention (the default).")
    ] = True,
    everything: Annotated[bool, typer.Option("--all", help="Entries before their time too, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove entries of the map past their retention."""
    settings = settings_of(ctx, needs=("target",))
    if everything:
        confirm("Remove the whole user map, before its retention has passed?", yes=yes)
    from replicator.postgres.connection import connect
    from replicator.users import purge as remove

    with connect(settings.target.dsn, "target", purpose="users") as conn:
        count = remove(conn, expired_only=not everything)
    typer.echo(f"{count} entries removed")
