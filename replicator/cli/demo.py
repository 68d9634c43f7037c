"""``demo``: the whole way from a live source to the target, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo", rich_help_panel="Try")(demo)


def demo(
    rows: Annotated[int, typer.Option("--rows", min=1000, help="Rows of sample data, about.")] = 200_000,
    seconds: Annotated[float, typer.Option("--seconds", min=2, help="How long to stream under load.")] = 22.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave both servers running until Ctrl-C.")] = False,
) -> None:
    """Two embedded PostgreSQL servers, live writers, snapshot → stream → cutover → verify, a summary."""
    from replicator.demo.run import run

    run(rows=rows, seconds=seconds, keep=keep)
