"""Look again at rows that differed, and decide: really different, or only ahead of the stream."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from replicator.errors import Refused
from replicator.model.row import NULL, Field, join
from replicator.postgres.connection import translated
from replicator.routing.idmap import IdMaps
from replicator.verify.candidates import Candidates, candidates_of
from replicator.verify.keys import Key
from replicator.verify.merge import Suspect
from replicator.verify.plan import Plan
from replicator.verify.report import MAX_KEYS
from replicator.verify.rows import Router, digest, find_rows
from replicator.verify.snapshot import Follower, Sessions, read_maps

CHUNK_KEYS: Final = 1000
# Beyond so many confirmed keys a table is known to be wrong; the rest is counted as it was first seen.
MAX_CONFIRMED: Final = 20_000
_ROUNDS: Final = 20
_PAUSE_S: Final = 0.05

Digests = Counter[bytes]


@dataclass(slots=True)
class Findings:
    """Differences of one table, growing."""

    missing: int = 0
    extra: int = 0
    different: int = 0
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All differences."""
        return self.missing + self.extra + self.different

    def add(self, source: Digests, target: Digests) -> None:
        """Count the rows of one key: what is left on both sides once equal rows are paired."""
        ours, theirs = (source - target).total(), (target - source).total()
        both = min(ours, theirs)
        self.different += both
        self.missing += ours - both
        self.extra += theirs - both


@dataclass(frozen=True, slots=True)
class _Look:
    """Both sides' rows of the keys asked for, at one moment of the target.

    ``source`` and ``target`` by key in the target's form. ``moved``: keys whose source rows changed meanwhile.
    """

    source: dict[Key, Digests]
    target: dict[Key, Digests]
    moved: set[Key]


class Rechecker:
    """Reads suspects again on sessions of its own, at later positions, until each is settled.

    While the stream runs, a row differs for certain only if the source did not change it between a moment that the
    target has reached and one after the target was read. A row that changes in every round is settled by its
    target: if that changes too, the stream is writing this row, and the row is left out with a note; if it stays as it
    is, the stream passes it by, and it differs.
    """

    def __init__(
        self, plan: Plan, sessions: Sessions, follower: Follower | None, findings: Findings, stop: threading.Event
    ) -> None:
        self._plan = plan
        self._sessions = sessions
        self._follower = follower
        self._findings = findings
        self._stop = stop

    def check(self, suspects: Sequence[Suspect]) -> None:
        """Settle suspects and add what is really different to the findings."""
        without_null = [suspect for suspect in suspects if NULL not in suspect.key]
        for suspect in suspects:
            # No equality finds a NULL, and no source key holds one: such a row has no partner.
            if NULL in suspect.key:
                self._count(suspect)
        if self._findings.total >= MAX_CONFIRMED:
            self._stop_rechecking()
            for suspect in without_null:
                self._count(suspect)
        elif without_null:
            self._settle(list(dict.fromkeys(suspect.key for suspect in without_null)))

    def _count(self, suspect: Suspect) -> None:
        if suspect.on_source and suspect.on_target:
            self._findings.different += 1
        elif suspect.on_source:
            self._findings.missing += 1
        else:
            self._findings.extra += 1

    def _stop_rechecking(self) -> None:
        note = f"{self._plan.name}: counts beyond {MAX_CONFIRMED:,} differences are of the first look"
        if note not in self._findings.notes:
            self._findings.notes.append(note)

    def _settle(self, keys: list[Key]) -> None:
        first_targets: dict[Key, Digests] = {}
        last_seen_absent: dict[Key, Digests] = {}
        confirmed: list[Key] = []
        for turn in range(_ROUNDS):
            look = self._look(keys)
            undecided = []
            for key in keys:
                ours, theirs = look.source[key], look.target[key]
                first_targets.setdefault(key, theirs)
                if ours == theirs:
                    continue
                # A row inserted and deleted in between leaves no trace on the source: absence is looked at twice.
                absent_once = self._follower is not None and not ours and last_seen_absent.get(key) != theirs
                if absent_once:
                    last_seen_absent[key] = theirs
                if key in look.moved or absent_once:
                    undecided.append(key)
                else:
                    self._findings.add(ours, theirs)
                    confirmed.append(key)
            keys = undecided
            if not keys:
                break
            if self._stop.wait(_PAUSE_S * turn):
                raise Refused("verification was stopped before its end")
        else:
            confirmed += self._judge_restless(keys, first_targets, look)
        self._add_key_texts(confirmed)

    def _judge_restless(self, keys: list[Key], first_targets: dict[Key, Digests], last: _Look) -> list[Key]:
        stuck = [key for key in keys if last.target[key] == first_targets[key]]
        for key in stuck:
            self._findings.add(last.source[key], last.target[key])
        if len(keys) > len(stuck):
            self._findings.notes.append(
                f"{self._plan.name}: {len(keys) - len(stuck)} rows changed on both sides too often to be compared"
            )
        return stuck

    def _look(self, keys: list[Key]) -> _Look:
        live = self._follower is not None
        before: dict[Key, set[Field]] = {}
        if self._follower is not None:
            before = self._versions(_expand(keys, candidates_of(self._plan, self._maps())))
            self._follower.wait_for_now()
        target, maps = self._read_target(keys)
        candidates = candidates_of(self._plan, maps)
        source, after = self._read_source(keys, _expand(keys, candidates), maps)
        # A map that changed in between leads to other candidates, and so to another look.
        moved = {key for key in keys if live and any(before.get(c) != after.get(c) for c in candidates(key))}
        return _Look(source, target, moved)

    def _versions(self, keys: list[Key]) -> dict[Key, set[Field]]:
        found: dict[Key, set[Field]] = defaultdict(set)
        source = self._sessions.get("source")
        for *key, version in find_rows(source, "source", self._plan.select_versions(), self._plan, keys):
            found[tuple(key)].add(version)
        return found

    def _read_target(self, keys: list[Key]) -> tuple[dict[Key, Digests], IdMaps]:
        target = self._sessions.get("target")
        found: dict[Key, Digests] = {key: Counter() for key in keys}
        with translated("target"):
            target.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            maps = self._maps()
            for fields in find_rows(target, "target", self._plan.select("target"), self._plan, keys):
                if (rows := found.get(self._plan.key_of(fields))) is not None:
                    rows[digest(join(fields))] += 1
            target.execute("COMMIT")
        return found, maps

    def _read_source(
        self, keys: list[Key], source_keys: list[Key], maps: IdMaps
    ) -> tuple[dict[Key, Digests], dict[Key, set[Field]]]:
        found: dict[Key, Digests] = {key: Counter() for key in keys}
        versions: dict[Key, set[Field]] = defaultdict(set)
        router = Router(self._plan, maps)
        source = self._sessions.get("source")
        for *fields, version in find_rows(source, "source", self._plan.select("source"), self._plan, source_keys):
            raw = tuple(fields)
            versions[self._plan.key_of(raw)].add(version)
            routed = router.fields(raw)
            if (rows := found.get(self._plan.key_of(routed))) is not None:
                rows[digest(join(routed))] += 1
        return found, versions

    def _maps(self) -> IdMaps:
        return read_maps(self._sessions.get("target"), {spec.name for spec in self._plan.route.maps})

    def _add_key_texts(self, keys: list[Key]) -> None:
        wanted = keys[: MAX_KEYS - len(self._findings.keys)]
        if wanted:
            target = self._sessions.get("target")
            rows = find_rows(target, "target", self._plan.select_key_text(), self._plan, wanted)
            self._findings.keys += [", ".join(value[4:].decode() for value in row) for row in rows]


def _expand(keys: Iterable[Key], candidates: Candidates) -> list[Key]:
    return list(dict.fromkeys(each for key in keys for each in candidates(key)))
