"""``verify`` beside a running stream holds up neither the stream nor the writers of the source."""

import json
import threading
import time

import psycopg

TABLES = """
CREATE TABLE busy (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE emptied (id int PRIMARY KEY, filler text);
"""


def test_a_table_truncated_while_verify_runs_does_not_stop_the_stream(make_plain):
    """The stream's TRUNCATE waits for whoever reads the table, and verify waits for the stream."""
    rig = make_plain(TABLES)
    rig.ask("source", "INSERT INTO busy SELECT n, 0 FROM generate_series(1, 20000) AS n")
    rig.ask("source", "INSERT INTO emptied SELECT n FROM generate_series(1, 100) AS n")
    rig.service.start()
    rig.wait_for_stream()
    stop = threading.Event()
    writer = threading.Thread(target=write, args=(rig.writers_dsn, stop), daemon=True)
    writer.start()
    try:
        time.sleep(0.5)
        for _ in range(3):
            began = time.monotonic()
            assert json.loads(rig.run("verify", "--json"))["equal"]
            assert time.monotonic() - began < 40, "verify waited for a stream that waited for verify"
    finally:
        stop.set()
        writer.join()
    rig.wait_until_drained()
    rig.assert_same("busy", "emptied")


def write(dsn, stop):
    """Whoever wants to read waits for each of these transactions, then reads both sides at once: long before the
    stream, which has all the updates to apply, comes to the truncation."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        while not stop.wait(2.0):
            with conn.transaction():
                conn.execute("UPDATE busy SET n = n + 1")
                conn.execute("TRUNCATE emptied")
                conn.execute("INSERT INTO emptied SELECT n, 'x' FROM generate_series(1, 100) AS n")
