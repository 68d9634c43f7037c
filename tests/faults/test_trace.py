"""Every failpoint is on the way of an ordinary replication: snapshot, stream, cutover."""

from replicator import failpoints

TABLES = """
CREATE TABLE parents (id int PRIMARY KEY, note text);
CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents, note text);
CREATE INDEX ON children (parent);
"""


def test_a_whole_replication_comes_to_every_failpoint(make_plain):
    rig = make_plain(TABLES)
    trace = rig.directory / "trace"
    rig.ask("source", "INSERT INTO parents SELECT n FROM generate_series(1, 100) AS n")
    rig.ask("source", "INSERT INTO children SELECT n, 1 + n % 100 FROM generate_series(1, 20000) AS n")
    rig.ask("source", "ANALYZE")
    rig.service.start(failpoints=f"trace={trace}")
    rig.wait_for_stream()
    rig.ask("source", "UPDATE parents SET note = 'changed'")
    rig.wait_until_near()
    file = rig.directory / "cutover.json"
    process = rig.popen("cutover", "--yes", "--report", str(file), failpoints=f"trace={trace}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rig.cutover_done(file)
    assert set(trace.read_text().splitlines()) == set(failpoints.NAMES)
