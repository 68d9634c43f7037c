"""Look again at rows that differed, and decide: really different, or only ahead of the stream."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.model.row import NULL, Field, join
from replicator.postgres.connection import translated
from replicator.routing.idmap import IdMaps
from replicator.verify.candidates import Candidates, candidates_of
from replicator.verify.findings import Digests, Findings
from replicator.verify.keys import Key
from replicator.verify.merge import Suspect
from replicator.verify.plan import Plan
from replicator.verify.report import MAX_KEYS
from replicator.verify.rows import Router, digest, find_rows
from replicator.verify.snapshot import Follower, Sessions, read_maps

_CHUNK_KEYS: Final = 2000
_ROUNDS: Final = 8
_PAUSE_S: Final = 0.05

Versions = set[Field]


@dataclass(frozen=True, slots=True)
class _Look:
    """Both sides' rows of the keys asked for, at one moment of the target.

    All by key in the target's form. ``moved``: keys whose source rows changed meanwhile. ``versions``: of the target's
    rows; every write makes a new one, also one of the same values.
    """

    source: dict[Key, Digests]
    target: dict[Key, Digests]
    moved: set[Key]
    versions: dict[Key, Versions]


class Rechecker:
    """Reads suspects again on sessions of its own, at later positions, until each is settled.

    While the stream runs, a row differs for certain only if the source did not change it between a moment that the
    target has reached and one after the target was read. That a row is not on the source needs two looks, since one
    inserted and deleted in between leaves no trace there: the target's must be the same version both times. A row that
    changes in every round is judged by its target: if that changes too, the stream is writing it, and it is left out
    with a note; if it stays as it is, the stream passes it by, and it differs.
    """

    def __init__(
        self,
        plan: Plan,
        sessions: Sessions,
        follower: Follower | None,
        findings: Findings,
        raise_if_stopped: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._sessions = sessions
        self._follower = follower
        self._findings = findings
        self._raise_if_stopped = raise_if_stopped

    def check(self, suspects: Sequence[Suspect]) -> None:
        """Settle suspects and add what is really different to the findings."""
        keys = []
        for suspect in suspects:
            # No equality finds a NULL, and no source key holds one: such a row has no partner.
            if NULL in suspect.key:
                self._findings.add_suspect(suspect)
            else:
                keys.append(suspect.key)
        keys = list(dict.fromkeys(keys))
        for start in range(0, len(keys), _CHUNK_KEYS):
            self._settle(keys[start : start + _CHUNK_KEYS])

    def _settle(self, keys: list[Key]) -> None:
        first: dict[Key, Versions] = {}
        absent: dict[Key, Versions] = {}  # keys not on the source at the last look, and what the target had
        confirmed: list[Key] = []
        for turn in range(_ROUNDS):
            look = self._look(keys)
            first = {key: first.get(key, look.versions[key]) for key in keys}
            differing = [key for key in keys if look.source[key] != look.target[key]]
            undecided = {key for key in differing if key in look.moved or self._is_newly_absent(key, look, absent)}
            absent = {key: look.versions[key] for key in undecided if not look.source[key]}
            confirmed += self._confirm(look, [key for key in differing if key not in undecided])
            keys = [key for key in keys if key in undecided]
            if not keys:
                break
            self._raise_if_stopped()
            time.sleep(_PAUSE_S * turn)
        else:
            # The last look is at least at these keys.
            passed_by = [key for key in keys if look.versions[key] == first[key]]
            confirmed += self._confirm(look, passed_by)
            self._note_restless(len(keys) - len(passed_by))
        self._add_key_texts(confirmed)

    def _is_newly_absent(self, key: Key, look: _Look, absent: dict[Key, Versions]) -> bool:
        return self._follower is not None and not look.source[key] and absent.get(key) != look.versions[key]

    def _confirm(self, look: _Look, keys: list[Key]) -> list[Key]:
        for key in keys:
            self._findings.add_rows(look.source[key], look.target[key])
        return keys

    def _note_restless(self, rows: int) -> None:
        if rows:
            self._findings.note(f"{self._plan.name}: {rows} rows changed on both sides too often to be compared")

    def _look(self, keys: list[Key]) -> _Look:
        live = self._follower is not None
        before: dict[Key, Versions] = {}
        if self._follower is not None:
            before = self._versions(_expand(keys, candidates_of(self._plan, self._maps())))
            self._follower.wait_for_now()
        target, versions, maps = self._read_target(keys)
        candidates = candidates_of(self._plan, maps)
        source, after = self._read_source(keys, _expand(keys, candidates), maps)
        # A map that changed in between leads to other candidates, and so to another look.
        moved = {key for key in keys if live and any(before.get(c) != after.get(c) for c in candidates(key))}
        return _Look(source, target, moved, versions)

    def _versions(self, keys: list[Key]) -> dict[Key, Versions]:
        found: dict[Key, Versions] = defaultdict(set)
        source = self._sessions.get("source")
        for *key, version in find_rows(source, "source", self._plan.select_versions(), self._plan, keys):
            found[tuple(key)].add(version)
        return found

    def _read_target(self, keys: list[Key]) -> tuple[dict[Key, Digests], dict[Key, Versions], IdMaps]:
        target = self._sessions.get("target")
        found: dict[Key, Digests] = {key: Counter() for key in keys}
        versions: dict[Key, Versions] = {key: set() for key in keys}
        with translated("target"):
            target.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            maps = self._maps()
            for *fields, version in find_rows(target, "target", self._plan.select("target"), self._plan, keys):
                row = tuple(fields)
                key = self._plan.key_of(row)
                if key in found:
                    found[key][digest(join(row))] += 1
                    versions[key].add(version)
            target.execute("COMMIT")
        return found, versions, maps

    def _read_source(
        self, keys: list[Key], source_keys: list[Key], maps: IdMaps
    ) -> tuple[dict[Key, Digests], dict[Key, Versions]]:
        found: dict[Key, Digests] = {key: Counter() for key in keys}
        versions: dict[Key, Versions] = defaultdict(set)
        router = Router(self._plan, maps)
        source = self._sessions.get("source")
        for *fields, version in find_rows(source, "source", self._plan.select("source"), self._plan, source_keys):
            row = tuple(fields)
            versions[self._plan.key_of(row)].add(version)
            routed = router.fields(row)
            key = self._plan.key_of(routed)
            if key in found:
                found[key][digest(join(routed))] += 1
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
