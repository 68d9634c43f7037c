"""Rounds until the time is up. Each has its own servers, versions, sizes and faults, all from the seed.

What must hold: whatever happens, both sides are equal row by row once everything has arrived; the target never shows
half a transaction; the service never ends by itself; SIGTERM is answered in time; nothing is left behind.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.endurance.process import tail
from tests.faults.soak.ending import clear_away, cut_over
from tests.faults.soak.site import Site
from tests.faults.soak.storm import storm
from tests.faults.soak.tally import Tally

_ROUND_S = (50.0, 150.0)
_LOG_LINES = 150


def soak(
    seed: int,
    seconds: float,
    pairs: Sequence[tuple[int, int]],
    *,
    first_round: int = 1,
    rounds: int | None = None,
    logs: Path | None = None,
) -> Tally:
    """Run rounds of one seed until the time is up or one fails; the tally says which.

    Args:
        pairs: (source major, target major); the seed chooses one for each round.
        first_round: to begin with a later one: it does not depend on those before.
        logs: directory for what a failed round leaves.
    """
    tally = Tally(seed)
    end = time.monotonic() + seconds
    number = first_round
    while tally.failure is None and time.monotonic() < end and (rounds is None or number < first_round + rounds):
        rng = Random(f"{seed}/{number}")
        majors = rng.choice(pairs)
        tally.rounds = number
        if (pair := f"{majors[0]}to{majors[1]}") not in tally.pairs:
            tally.pairs.append(pair)
        tally.say(f"begins, {pair}")
        _round(rng, majors, tally, number, min(rng.uniform(*_ROUND_S), end - time.monotonic()), logs)
        number += 1
    tally.rounds = number - first_round
    return tally


def _round(rng: Random, majors: tuple[int, int], tally: Tally, number: int, seconds: float, logs: Path | None) -> None:
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    site = None
    try:
        site = Site(rng, majors, directory, tally, large=rng.random() < 0.25)
        _play(site, rng, time.monotonic() + seconds)
    except (Exception, KeyboardInterrupt) as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        tally.failure = f"round {number}: {type(exc).__name__}: {str(exc)[:300]}"
        tally.again = f"python -m tests.faults.soak --seed {tally.seed} --first-round {number} --rounds 1"
        tally.say("FAILED\n" + traceback.format_exc())
        if site is not None:
            tally.say(tail(site.rig.service.log, _LOG_LINES))
        if logs is not None:
            _keep(site, directory, logs / f"seed-{tally.seed}-round-{number}")
    finally:
        if site is not None:
            site.close()
        shutil.rmtree(directory, ignore_errors=True)


def _play(site: Site, rng: Random, end: float) -> None:
    site.start_writing()
    site.start()
    if rng.random() < 0.75:
        # Every fault lengthens the snapshot: at some point it must come to its end.
        storm(site, rng.uniform(3.0, 25.0), gap_s=1.5, enough=lambda: site.rig.phase() not in ("new", "copying"))
    site.watch()
    site.rig.wait_for_stream()
    site.tally.event("snapshot complete", f"life {site.rig.service.lives} of the service")
    while True:
        storm(site, rng.uniform(5.0, 30.0), gap_s=rng.choice((1.0, 2.5, 5.0)))
        site.settle()
        if time.monotonic() > end:
            break
        site.start_writing()
    if rng.random() < 0.7:
        site.start_writing()
        cut_over(site)
    else:
        site.terminate()
    clear_away(site)


def _keep(site: Site | None, directory: Path, logs: Path) -> None:
    shutil.copytree(directory, logs, dirs_exist_ok=True)
    if site is not None:
        for side in ("source", "target"):
            (logs / f"{side}.log").write_text(getattr(site, side).log_text())
