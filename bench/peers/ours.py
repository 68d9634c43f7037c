"""This replicator, as its users run it: a process with a settings file, ID maps on."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers import MAPPED_TABLES, Case, Measured
from bench.process import PeerFailed, Program, Usage, children_cpu_s, run
from replicator.demo.freshtrack import ID_MAPS


def settings_toml(source_dsn: str, tables: Sequence[str], *, user_columns: Sequence[str] = (), **stream: int) -> str:
    """Settings with both ID maps; ``{target}`` stands for the target's DSN. ``user_columns`` join the users map."""
    maps = {name: dict(each) for name, each in ID_MAPS.items() if "profiles" in tables}
    if maps:
        maps["users"]["columns"] = [*maps["users"]["columns"], *user_columns]
    sections: dict[str, dict[str, Any]] = {
        "source": {"dsn": source_dsn},
        "target": {"dsn": "{target}"},
        "metrics": {"listen": ""},
        "stream": dict(stream),
        **{f"id_maps.{name}": each for name, each in maps.items()},
    }
    lines = [f"tables = {json.dumps(list(tables))}"]
    for name, section in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(each)}" for key, each in section.items())]
    return "\n".join(lines) + "\n"


class _Ours:
    name = "replicator"
    mapped = MAPPED_TABLES
    target_dsn: str | None = None

    def __init__(self, case: Case, *, slot: str = "replicator") -> None:
        self._case, self._slot, self.source_dsn = case, slot, case.source_dsn
        self._settings: Path | None = None

    def unavailable(self) -> str | None:
        return None

    def verify(self) -> str | None:
        """Our own comparison through the ID maps: what differs, or None."""
        try:
            self._command("verify")
        except PeerFailed as exc:
            return f"verify: {exc}"
        return None

    def words(self, *arguments: str) -> list[str]:
        """The command line; a settings file is written when there is none yet."""
        assert self.target_dsn is not None
        if self._settings is None:
            self._settings = self._case.lab.directory / f"{self.target_dsn.rpartition('/')[2]}.toml"
            text = self._case.settings.replace("{target}", self.target_dsn)
            self._settings.write_text(text.replace("[source]\n", f'[source]\nslot = "{self._slot}"\n', 1))
        return [sys.executable, "-m", "replicator", "-c", str(self._settings), "--log-format", "json", *arguments]

    def _command(self, *arguments: str) -> Usage:
        return run(self.words(*arguments))

    def _create_target(self, name: str) -> float:
        """A target database with tables and the user map. Returns: seconds that the schema took."""
        lab = self._case.lab
        self.target_dsn, self._settings = lab.new_target(name), None
        started = time.monotonic()
        schema = self._case.schema or lab.dump_schema(self._case.source_dsn)[0]
        lab.psql(self.target_dsn, schema)
        seconds = time.monotonic() - started
        if "[id_maps" in self._case.settings:
            self._command("users", "import", str(self._case.map_file))
        return seconds

    def clean(self) -> None:
        if self.target_dsn is None:
            return
        try:
            self._command("teardown", "--yes")
        finally:
            self._case.lab.drop(self.target_dsn)
            self.target_dsn = None


class Snapshot(_Ours):
    """`replicator snapshot` into tables with all their indexes and constraints."""

    def prepare(self) -> None:
        self._schema_s = self._create_target("ours")

    def run(self) -> Measured:
        usage = self._command("snapshot")
        return Measured(usage.seconds + self._schema_s, None, self._schema_s, usage.cpu_s, usage.peak_rss)


class Stream(_Ours):
    """`replicator run --until-caught-up`."""

    def prepare(self) -> None:
        self._create_target("ours")
        self._command("snapshot")

    def run(self) -> Measured:
        usage = self._command("run", "--until-caught-up")
        return Measured(usage.seconds, session_s(usage.output), 0.0, usage.cpu_s, usage.peak_rss)

    def live(self) -> Program:
        """The service, streaming until SIGTERM; to be started."""
        return Program(self.words("run"))

    def limit_batches(self, rows: int) -> None:
        """Rewrite the settings for batches of at most ``rows`` changes."""
        self.words()
        assert self._settings is not None
        text = self._case.settings.replace("{target}", str(self.target_dsn))
        text = text.replace("[source]\n", f'[source]\nslot = "{self._slot}"\n', 1)
        self._settings.write_text(text.replace("[stream]\n", f"[stream]\nmax_batch_rows = {rows}\n", 1))


class Lanes(_Ours):
    """`replicator run --lane N --until-caught-up` of all lanes at once, until the last has caught up."""

    def __init__(self, case: Case, lanes: Mapping[int, Sequence[str]], *, slot: str) -> None:
        """``slot``: name of slot and publication."""
        table = "\n".join(f"{number} = {json.dumps(list(tables))}" for number, tables in lanes.items())
        settings = case.settings.replace("[source]\n", f'[source]\npublication = "{slot}"\n', 1)
        super().__init__(replace(case, settings=f"{settings}\n[lanes]\n{table}\n"), slot=slot)
        self.name = f"replicator, {len(lanes) + 1} lanes"
        self._lanes = (1, *lanes)

    def prepare(self) -> None:
        self._create_target("lanes")
        self._command("snapshot")

    def run(self) -> Measured:
        before, started = children_cpu_s(), time.monotonic()
        programs = [Program(self.words("run", "--lane", str(lane), "--until-caught-up")) for lane in self._lanes]
        with ExitStack() as stack:
            for program in programs:
                stack.enter_context(program)
            usages = [program.finish() for program in programs]
        seconds = time.monotonic() - started
        times = [session_times(usage.output) for usage in usages]
        session = max(end for _, end in times) - min(begin for begin, _ in times)
        peak = sum(usage.peak_rss for usage in usages)
        return Measured(seconds, session.total_seconds(), 0.0, children_cpu_s() - before, peak)


def session_s(log: str) -> float:
    """From our log: seconds between the start of the session and its end."""
    begin, end = session_times(log)
    return (end - begin).total_seconds()


def session_times(log: str) -> tuple[dt.datetime, dt.datetime]:
    """From our log: when the session began, and when it ended."""
    times = {}
    for line in log.splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            times[entry.get("event")] = dt.datetime.fromisoformat(entry["timestamp"])
    return times["streaming"], times["stopping"]
