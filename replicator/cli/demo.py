"""``demo``: the whole way on two embedded servers."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command of this file to ``app``."""
    app.command("demo", rich_help_panel="Try")(demo)


def demo(
    rows: Annotated[int | None, typer.Option("--rows", min=1_000, help="About how many rows the source has.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, help="How long to stream while writers change the source.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave both servers running until Ctrl-C.")] = False,
) -> None:
    """Two PostgreSQL servers on this machine, sample data, live writers: from snapshot to cutover, and a summary."""
    from replicator.demo.run import DEFAULT_ROWS, DEFAULT_SECONDS, run

    run(
        rows=DEFAULT_ROWS if rows is None else rows,
        seconds=DEFAULT_SECONDS if seconds is None else seconds,
        keep=keep,
    )
