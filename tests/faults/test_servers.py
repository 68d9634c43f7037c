"""What servers do to our sessions: end them, set limits, turn read-only by default."""

import time

import psycopg
import pytest
from psycopg import sql

from tests.endurance.process import say

SIDES = ["source", "target"]

# Far below what anything takes; our own settings must win over all of these.
LIMITS = {
    "statement_timeout": "40ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "40ms",
    "idle_session_timeout": "300ms",
    "default_transaction_isolation": "serializable",
    "search_path": "nowhere",
    "DateStyle": "German",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "client_min_messages": "debug1",
}


@pytest.mark.parametrize("side", SIDES)
def test_every_session_of_ours_is_terminated_in_its_turn(make_faulty, side):
    rig = make_faulty()
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
        seen = set()
        for _ in range(3):
            for name, pids in rig.our_sessions(side).items():
                seen.add(name)
                for pid in pids:
                    rig.ask(side, "SELECT pg_terminate_backend(%s)", pid)
                rig.mark()
    assert writer.error is None
    assert {"source": "replicator stream", "target": "replicator apply"}[side] in seen
    say(sorted(seen))
    rig.finish()


@pytest.mark.parametrize("side", SIDES)
def test_copying_sessions_are_terminated(make_faulty, side):
    rig = make_faulty(rows=20_000, REPLICATOR_SNAPSHOT__WORKERS="2", REPLICATOR_SNAPSHOT__SPLIT_ABOVE="256kB")
    ended = []
    with rig.writing() as writer:
        rig.proxies[side].drip(400_000)
        rig.service.start()
        while len(ended) < 3:
            names = [name for name in rig.our_sessions(side) if name.startswith("replicator copy")]
            for name in names[:1]:
                ended += rig.our_sessions(side).get(name, [])[:1]
                rig.ask(side, "SELECT pg_terminate_backend(%s)", ended[-1])
                time.sleep(0.3)
            rig.service.require_running()
            if rig.phase() not in ("new", "copying"):
                break
        rig.proxies[side].resume()
        rig.mark()
    assert ended, "nothing was copied for long enough"
    assert writer.error is None
    rig.finish()


def alter(rig, side, settings):
    """Set these for the role in this database, which wins over both alone."""
    [(database, role)] = rig.ask(side, "SELECT current_database(), current_user")
    for name, value in settings.items():
        parts = sql.Identifier(role), sql.Identifier(database), sql.SQL(name), sql.Literal(value)
        rig.ask(side, sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(*parts))


@pytest.mark.parametrize("side", SIDES)
def test_our_settings_win_over_those_of_role_and_database(make_faulty, own_servers, side):
    rig = make_faulty(own_servers)
    plain = "-c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 -c search_path=public"
    for name in ("source_dsn", "target_dsn", "writers_dsn"):
        old = psycopg.conninfo.conninfo_to_dict(getattr(rig, name)).get("options", "")
        more = f"{plain} -c idle_in_transaction_session_timeout=0 -c default_transaction_isolation=read\\ committed"
        setattr(rig, name, psycopg.conninfo.make_conninfo(getattr(rig, name), options=f"{old} {more}"))
    alter(rig, side, LIMITS)
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
        with psycopg.connect(rig.target_dsn) as blocker:
            blocker.execute("LOCK TABLE journal IN SHARE MODE")
            rig.ask("source", "INSERT INTO journal VALUES (0, 'waits longer than any limit')")
            time.sleep(1)
        rig.mark()
    assert writer.error is None
    assert rig.log_count("trying again") == 0
    rig.finish()


def test_a_target_whose_default_is_read_only_is_written_to(make_faulty, own_servers):
    """``default_transaction_read_only`` is a default, and ours is another."""
    rig = make_faulty(own_servers)
    rig.ask("target", "ALTER SYSTEM SET default_transaction_read_only = on")
    rig.ask("target", "SELECT pg_reload_conf()")
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
    assert writer.error is None
    rig.finish()
