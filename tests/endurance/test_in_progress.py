"""A transaction that the service has begun to apply while it is still in progress on the source."""

import psycopg

READINGS = """
CREATE TABLE readings (id bigint PRIMARY KEY, sensor int NOT NULL, note text);
CREATE INDEX ON readings (sensor);
CREATE TABLE doors (id int PRIMARY KEY);
"""
# Ten megabytes of changes, and some.
MUCH = "INSERT INTO readings SELECT n, n % 10, repeat(md5(n::text), 3) FROM generate_series(1, 100000) AS n"
APPLIED = """
SELECT 1 FROM pg_stat_activity
WHERE application_name = 'replicator apply' AND backend_xid IS NOT NULL AND state = 'idle in transaction'
"""
GIVEN_UP = "large transactions are applied once they have committed"


def test_it_is_killed_there_and_then_something_else_commits_first(make_plain):
    rig = make_plain(READINGS)
    rig.service.start()
    rig.wait_for_stream()
    with psycopg.connect(rig.source_dsn) as giant:
        for way in ("killed", "overtaken"):
            giant.execute(MUCH if way == "killed" else "UPDATE readings SET sensor = 11")
            rig.ask("source", "SELECT pg_switch_wal()")
            rig.wait_until(lambda: rig.ask("target", APPLIED), "the transaction in progress is not applied")
            assert rig.ask("target", "SELECT count(*) FROM readings") == [(0,)]
            if way == "killed":
                assert GIVEN_UP not in rig.service.log.read_text()
                rig.service.kill()
                rig.service.start()
        rig.ask("source", "INSERT INTO doors VALUES (1)")
        rig.wait_until(lambda: rig.ask("target", "SELECT 1 FROM doors"), "the other transaction does not come")
        assert rig.ask("target", "SELECT count(*) FROM readings") == [(0,)]
        assert GIVEN_UP in rig.service.log.read_text()
    rig.wait_until_drained()
    assert rig.assert_same("readings", "doors") == 100_001


def test_after_failures_in_a_row_nothing_is_applied_before_it_has_committed(make_plain):
    """It may be such a transaction that they come from."""
    rig = make_plain(READINGS)
    rig.service.start()
    rig.wait_for_stream()

    def interrupted_until_given_up():
        for pid, _ in rig.walsender():
            rig.ask("source", "SELECT pg_terminate_backend(%s)", pid)
        return GIVEN_UP in rig.service.log.read_text()

    rig.wait_until(interrupted_until_given_up, "it goes on to ask for transactions in progress")
    with psycopg.connect(rig.source_dsn) as giant:
        giant.execute(MUCH)
    rig.wait_until_drained()
    assert rig.assert_same("readings", "doors") == 100_000
    # What the source sent while it was in progress.
    assert rig.ask("source", "SELECT stream_txns FROM pg_stat_replication_slots") == [(0,)]
