"""Look again at rows that differed, and decide: really different, or only on their way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from replicator.model.row import NULL
from replicator.verify.findings import Findings
from replicator.verify.keys import Key
from replicator.verify.look import Look, Looker, Versions
from replicator.verify.merge import Suspect
from replicator.verify.plan import Plan
from replicator.verify.report import MAX_KEYS
from replicator.verify.snapshot import Follower, Sessions

_WAVE_KEYS: Final = 20_000  # looked at together, over all tables; some 30 MB
_ROUNDS: Final = 8
_FEWEST_ROUNDS: Final = 3
_PATIENCE_S: Final = 30.0  # after the fewest rounds: a stream that lags makes each of them long
_PAUSE_S: Final = 0.05


class Recheck:
    """The suspects of one table, looked at again at later positions until each is settled.

    While the stream runs, a row differs for certain only if the source did not change it between a moment that the
    target has reached and one after the target was read. That a row is not on the source needs two looks, since one
    inserted and deleted in between leaves no trace there: the target's must be the same version both times. A row that
    changes in every round is judged by its target: if that changes too, the stream is writing it, and it is left out
    with a note; if it stays as it is, the stream passes it by, and it differs.
    """

    def __init__(self, plan: Plan, suspects: Sequence[Suspect], findings: Findings) -> None:
        self._plan = plan
        self._findings = findings
        for suspect in suspects:
            # No equality finds a NULL, and no source key holds one: such a row has no partner.
            if NULL in suspect.key:
                findings.add_suspect(suspect)
        self._waiting = list(dict.fromkeys(suspect.key for suspect in suspects if NULL not in suspect.key))
        self._keys: list[Key] = []
        self._before: dict[Key, Versions] | None = None
        self._first: dict[Key, Versions] = {}  # of the target, at the first look
        self._absent: dict[Key, Versions] = {}  # keys not on the source at the last look, and what the target had
        self._look: Look | None = None

    @property
    def unsettled(self) -> bool:
        """Whether keys of this wave need another look."""
        return bool(self._keys)

    def start_wave(self, size: int) -> bool:
        """Take the next keys; whether there are any."""
        self._keys, self._waiting = self._waiting[:size], self._waiting[size:]
        self._first, self._absent = {}, {}
        return bool(self._keys)

    def note_versions(self, sessions: Sessions) -> None:
        """What the source holds before the target is waited for."""
        self._before = Looker(self._plan, sessions).source_versions(self._keys)

    def look(self, sessions: Sessions) -> None:
        """Read both sides and settle what can be settled."""
        looker = Looker(self._plan, sessions)
        self._look = look = looker.look(self._keys, self._before)
        self._first = {key: self._first.get(key, look.versions[key]) for key in self._keys}
        differing = [key for key in self._keys if look.source[key] != look.target[key]]
        undecided = {key for key in differing if key in look.moved or self._is_newly_absent(key, look)}
        self._absent = {key: look.versions[key] for key in undecided if not look.source[key]}
        self._keys = [key for key in self._keys if key in undecided]
        self._confirm(looker, [key for key in differing if key not in undecided])

    def judge(self, sessions: Sessions) -> None:
        """Decide on rows that changed in every round."""
        look = self._look
        assert look is not None
        passed_by = [key for key in self._keys if look.versions[key] == self._first[key]]
        self._confirm(Looker(self._plan, sessions), passed_by)
        if restless := len(self._keys) - len(passed_by):
            self._findings.note(f"{self._plan.name}: {restless} rows changed on both sides too often to be compared")
        self._keys = []

    def _is_newly_absent(self, key: Key, look: Look) -> bool:
        return self._before is not None and not look.source[key] and self._absent.get(key) != look.versions[key]

    def _confirm(self, looker: Looker, keys: list[Key]) -> None:
        assert self._look is not None
        for key in keys:
            self._findings.add_rows(self._look.source[key], self._look.target[key])
        named = keys[: MAX_KEYS - len(self._findings.keys)]
        if named:
            self._findings.keys += looker.key_texts(named)


def settle(
    rechecks: Sequence[Recheck], sessions: Sessions, follower: Follower | None, raise_if_stopped: Callable[[], None]
) -> None:
    """Settle all suspects of these tables; they wait for the stream together. ``follower`` None: nothing moves."""
    size = max(1, _WAVE_KEYS // max(1, len(rechecks)))
    while wave := [recheck for recheck in rechecks if recheck.start_wave(size)]:
        started = time.monotonic()
        for turn in range(_ROUNDS):
            raise_if_stopped()
            if follower is not None:
                time.sleep(_PAUSE_S * turn)
                for recheck in wave:
                    recheck.note_versions(sessions)
                follower.wait_for_now()
            for recheck in wave:
                recheck.look(sessions)
            wave = [recheck for recheck in wave if recheck.unsettled]
            if not wave or (turn + 1 >= _FEWEST_ROUNDS and time.monotonic() - started > _PATIENCE_S):
                break
        for recheck in wave:
            recheck.judge(sessions)
