"""Read the rows of given keys on both sides, and see whether the source's changed meanwhile."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from replicator.model.row import Field, join
from replicator.postgres.connection import translated
from replicator.routing.idmap import IdMaps
from replicator.verify.candidates import Candidates, candidates_of
from replicator.verify.findings import Digests
from replicator.verify.keys import Key
from replicator.verify.plan import Plan
from replicator.verify.rows import Router, digest, find_rows
from replicator.verify.snapshot import Sessions, read_maps

Versions = set[Field]  # xmin of each row: every write makes a new one, also one of the same values


@dataclass(frozen=True, slots=True)
class Look:
    """Both sides' rows of the keys asked for, at one moment of the target; all by key in the target's form.

    ``moved``: keys whose source rows changed meanwhile. ``versions``: of the target's rows.
    """

    source: dict[Key, Digests]
    target: dict[Key, Digests]
    moved: set[Key]
    versions: dict[Key, Versions]


class Looker:
    """Looks at rows of one table. Rows are kept as digests, so that their size does not matter."""

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        self._plan = plan
        self._sessions = sessions

    def source_versions(self, keys: Iterable[Key]) -> dict[Key, Versions]:
        """The versions of the source rows that these keys of the target may come from, by source key."""
        found: dict[Key, Versions] = defaultdict(set)
        wanted = _expand(keys, candidates_of(self._plan, self._maps()))
        source = self._sessions.get("source")
        for *key, version in find_rows(source, "source", self._plan.select_versions(), self._plan, wanted):
            found[tuple(key)].add(version)
        return found

    def look(self, keys: list[Key], before: dict[Key, Versions] | None) -> Look:
        """Read first the target, then the source. ``before``: earlier versions of the source; None: it stands still."""
        target, versions, maps = self._read_target(keys)
        candidates = candidates_of(self._plan, maps)
        source, after = self._read_source(keys, _expand(keys, candidates), maps)
        moved = set()
        if before is not None:
            # A map that changed in between leads to other candidates, and so to another look.
            moved = {key for key in keys if any(before.get(c) != after.get(c) for c in candidates(key))}
        return Look(source, target, moved, versions)

    def key_texts(self, keys: list[Key]) -> list[str]:
        """The keys as people read them."""
        rows = find_rows(self._sessions.get("target"), "target", self._plan.select_key_text(), self._plan, keys)
        return [", ".join(value[4:].decode() for value in row) for row in rows]

    def _read_target(self, keys: list[Key]) -> tuple[dict[Key, Digests], dict[Key, Versions], IdMaps]:
        target = self._sessions.get("target")
        found: dict[Key, Digests] = {key: Counter() for key in keys}
        versions: dict[Key, Versions] = {key: set() for key in keys}
        with translated("target"):
            # One snapshot: the maps have to be those under which the rows were written.
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


def _expand(keys: Iterable[Key], candidates: Candidates) -> list[Key]:
    return list(dict.fromkeys(each for key in keys for each in candidates(key)))
