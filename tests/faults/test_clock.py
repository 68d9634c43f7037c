"""Our host's clock jumps, or the source's is wrong: timers do not care, and what is shown stays sane."""

import tempfile
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import DatabasePair
from tests.faults.shims import ShimmedServer, compile_shim

HOUR_S = 3600
YEAR_S = 365 * 24 * HOUR_S


@pytest.fixture
def clock():
    """A file of seconds to add to the time of day, and what a process needs in its environment to heed it."""
    with tempfile.TemporaryDirectory(prefix="clock-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        file = directory / "offset"
        file.write_text("0")
        yield file, {"LD_PRELOAD": str(compile_shim("clock", directory)), "CLOCK_OFFSET_FILE": str(file)}


def set_clock(file, seconds):
    other = file.with_suffix(".new")
    other.write_text(str(seconds))
    other.rename(file)


def metric(rig, name):
    url = f"http://{rig.environment['REPLICATOR_METRICS__LISTEN']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).rpartition(" ")[2])


def confirmed(rig):
    [(lsn,)] = rig.ask("source", "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", rig.slot)
    return lsn


def stored_lag(rig):
    return rig.ask("target", "SELECT lag_seconds FROM replicator.checkpoint WHERE slot = %s", rig.slot)[0][0]


def test_our_clock_jumps_in_the_middle_of_the_stream(make_faulty, clock):
    file, preload = clock
    rig = make_faulty(**preload)
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
        for jump in (-HOUR_S, HOUR_S, YEAR_S, -YEAR_S, 0):
            set_clock(file, jump)
            rig.mark()
            before = confirmed(rig)
            rig.mark()
            rig.wait_until(lambda before=before: confirmed(rig) != before, "feedback is not taken in")
            # A clock ahead makes the lag look larger; nothing makes it negative.
            for lag in (stored_lag(rig), metric(rig, "replicator_lag_seconds")):
                assert 0 <= lag < max(jump, 0) + HOUR_S, (jump, lag)
            assert metric(rig, "replicator_last_commit_timestamp_seconds") > 1.5e9
    assert writer.error is None
    assert rig.log_count("trying again") == 0
    rig.finish()


@pytest.mark.parametrize("skew", [pytest.param(YEAR_S, id="ahead"), pytest.param(-YEAR_S, id="behind")])
def test_the_clock_of_the_source_is_wrong(make_faulty, clock, pair, skew):
    """Commit times in the future are no negative lag."""
    file, preload = clock
    set_clock(file, skew)
    server_class = type("SkewedServer", (ShimmedServer,), {"preload": preload})
    with server_class.start(pair.source.major) as source:
        rig = make_faulty(DatabasePair(source, pair.target, source.create_database("app"), pair.target_dsn))
        with rig.writing() as writer:
            rig.service.start()
            rig.mark()
            [(year,)] = rig.ask("source", "SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz)", rig.clock())
            assert abs(float(year) - skew) < HOUR_S, "the shim does not work"
            rig.mark()
            for lag in (stored_lag(rig), metric(rig, "replicator_lag_seconds")):
                assert 0 <= lag < max(-skew, 0) + HOUR_S, lag
        assert writer.error is None
        rig.finish()
        rig.close()
