"""The command tree, the global options and `main`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, cast

import typer

from replicator import __version__
from replicator.cli import demo, faults, inspect, move, quarantine, users
from replicator.cli.argv import hide, with_password
from replicator.cli.context import Globals, LogFormat

app = typer.Typer(
    name="replicator",
    help="Moves a live PostgreSQL database to another server: snapshot, stream, cutover.",
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and with them rows and passwords
    context_settings={"help_option_names": ["-h", "--help"]},
)
inspect.register(app)
move.register(app)
quarantine.register(app)
users.register(app)
demo.register(app)
demo.register(app)

_VALUED: Final = ("-c", "--config", "--source", "--target", "--log-format")
_FLAGS: Final = ("-v", "--verbose")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"replicator {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def read_globals(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "-c", "--config", help="Settings file; else $REPLICATOR_CONFIG, else ./replicator.toml if present."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="DSN", help="Where the data is: libpq URI or keywords.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="DSN", help="Where it goes: libpq URI or keywords.")
    ] = None,
    log_format: Annotated[
        str, typer.Option("--log-format", metavar="console|json", help="How logs look; they go to stderr.")
    ] = "console",
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log more.")] = False,
    version: Annotated[  # noqa: ARG001  # its callback answers
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Global options: they may stand before the verb or after it."""
    if log_format not in ("console", "json"):
        raise typer.BadParameter("choose console or json", param_hint="--log-format")
    ctx.obj = Globals(config, source, target, cast(LogFormat, log_format), verbose)
    if ctx.invoked_subcommand is None:
        if help_text := ctx.get_help():
            typer.echo(help_text)
        raise typer.Exit(2)
    from replicator.failpoints import arm as arm_failpoints
    from replicator.logs import configure

    configure(ctx.obj.log_format, verbose)
    arm_failpoints()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 yes or done, 1 the answer is no, 2 bad usage or settings, 3 a run-time failure."""
    if arguments is None:
        hide(with_password(sys.argv[1:]))
    words = hoist(sys.argv[1:] if arguments is None else arguments)
    log_format: LogFormat = "json" if _wants_json(words) else "console"
    try:
        code = call(words)
    except faults.USAGE_ERROR as exc:
        # Without a message the help has been shown instead.
        if message := cast(Any, exc).format_message():
            typer.echo(f"replicator: {message} — see `replicator --help`", err=True)
        code = 2
    except typer.Abort:  # the prompt was left with Ctrl-C or Ctrl-D
        code = faults.EXIT_CODES[KeyboardInterrupt]
    except (Exception, KeyboardInterrupt) as exc:
        faults.report(exc, log_format, verbose=any(flag in words for flag in _FLAGS))
        code = faults.exit_code(exc)
    gc.freeze()  # the interpreter's last look for garbage goes through all that was loaded: a tenth of a second
    sys.exit(code)


def call(words: Sequence[str]) -> int:
    """Run one command; its exit code. Errors pass through."""
    code = app(list(words), prog_name="replicator", standalone_mode=False)
    return code if isinstance(code, int) else 0


def hoist(words: Sequence[str]) -> list[str]:
    """Move the global options to the front, so that they may stand after the verb too."""
    front: list[str] = []
    rest: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            rest += words[at:]
            break
        if word in _VALUED and at + 1 < len(words):
            front += words[at : at + 2]
            at += 1
        elif word in _FLAGS or word.startswith(tuple(f"{name}=" for name in _VALUED if name.startswith("--"))):
            front.append(word)
        else:
            rest.append(word)
        at += 1
    return front + rest


def _wants_json(words: Sequence[str]) -> bool:
    return "--log-format=json" in words or "json" in (
        after for before, after in pairwise(words) if before == "--log-format"
    )
