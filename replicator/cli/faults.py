"""From an exception to its line on stderr and its exit code."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

import typer

from replicator import errors
from replicator.cli.context import LogFormat
from replicator.model.printable import printable

# 0 yes or done · 1 the answer is no · 2 bad usage or settings · 3 a run-time failure. Classes not named here are 3.
EXIT_CODES: Final[dict[type[BaseException], int]] = {
    errors.ConfigError: 2,
    errors.Refused: 1,
    errors.VerificationFailed: 1,
    KeyboardInterrupt: 130,  # 128 + SIGINT, as shells expect
}
RUN_TIME_FAILURE: Final = 3

# typer takes its usage errors from click, or from a copy of click that it carries, by version.
USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]


def exit_code(exc: BaseException) -> int:
    """The exit code for ``exc``, by the nearest class of the table."""
    return next((EXIT_CODES[kind] for kind in type(exc).__mro__ if kind in EXIT_CODES), RUN_TIME_FAILURE)


def report(exc: BaseException, log_format: LogFormat, *, verbose: bool) -> None:
    """Say on stderr what is wrong and what to do: one line per fault, no password, no value of a row."""
    # Imported late: `--help` needs no logger.
    from replicator.logs import configure, get_logger, redact, trace

    message, hint = describe(exc)
    if log_format == "json":
        configure("json")
        fields = {"trace": list(trace(exc))} if verbose else {}
        get_logger("cli").error(message, kind=type(exc).__name__, hint=hint, **fields)
        return
    text = f"{message} — {hint}" if hint else message
    lines = [f"replicator: {printable(line)}" for line in text.split("\n")]
    if verbose:
        lines += trace(exc)
    typer.echo(redact("\n".join(lines)), err=True)


def describe(exc: BaseException) -> tuple[str, str]:
    """Message and remedy. Of a foreign exception only its class and place: its message may hold values."""
    if isinstance(exc, errors.ReplicatorError):
        return exc.message, exc.hint
    if isinstance(exc, KeyboardInterrupt):
        return "interrupted", ""
    frames = traceback.extract_tb(exc.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(exc).__name__}{place}", "run it again with -v to see where it comes from"
