"""What every command shares: the global options, and how it asks and answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import typer

from replicator.cli.argv import with_password
from replicator.errors import ConfigError
from replicator.model.printable import printable, printable_json

if TYPE_CHECKING:
    from replicator.config import Settings

LogFormat = Literal["console", "json"]
Side = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class Globals:
    """The options that stand before the verb (or after it)."""

    config: Path | None = None
    source: str | None = None
    target: str | None = None
    log_format: LogFormat = "console"
    verbose: bool = False

    def settings(self) -> Settings:
        """The settings with these options applied.

        Raises:
            ConfigError: one line per fault.
        """
        from replicator.config import load

        return load(self.config, source_dsn=self.source, target_dsn=self.target)


def settings_of(ctx: typer.Context, *, needs: Sequence[Side] = ("source", "target")) -> Settings:
    """The settings of this call, with the DSNs that it needs.

    Raises:
        ConfigError: one line per fault.
    """
    settings = cast(Globals, ctx.obj).settings()
    given = {"source": settings.source.dsn, "target": settings.target.dsn}
    missing = [side for side in needs if not given[side]]
    if missing:
        names = " and ".join(missing)
        ways = " and ".join(f"--{side} (or REPLICATOR_{side.upper()}__DSN, or [{side}] dsn)" for side in missing)
        raise ConfigError(f"no DSN for the {names}", hint=f"give {ways}")
    return settings


def warn_of_passwords(ctx: typer.Context) -> None:
    """For commands that go on for long: their command line is there to be read all the while, or was at the start."""
    from replicator.logs import get_logger

    given = cast(Globals, ctx.obj)
    for side, dsn in (("source", given.source), ("target", given.target)):
        if with_password([dsn or ""]):
            get_logger("cli").warning(
                f"a password stands in --{side}, where others on this machine can read it until it is overwritten",
                remedy=f"give the DSN through REPLICATOR_{side.upper()}__DSN, or the password through a passfile",
            )


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document on stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write(printable_json(text) + "\n")
    sys.stdout.flush()


def confirm(question: str, *, yes: bool) -> None:
    """Go on only with ``--yes`` or a typed yes.

    Raises:
        ConfigError: nobody is there to ask.
        typer.Exit: the answer was no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{question} There is no terminal to ask", hint="give --yes to confirm")
    if not typer.confirm(printable(question), err=True):
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(1)


def check_report(path: Path | None) -> None:
    """See that the report can be written, before the work that it is to tell of.

    Raises:
        ConfigError: it cannot.
    """
    if path is None:
        return
    fresh = _fresh(path)
    try:
        fresh.touch()
        fresh.unlink()
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror}", hint="name another file with --report") from exc
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a directory", hint="name a file with --report")


def write_report(path: Path | None, document: Mapping[str, object]) -> None:
    """Write ``document`` as JSON, whole or not at all."""
    if path is None:
        return
    fresh = _fresh(path)
    fresh.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")
