"""The benchmarks run, check what they measure, and call a peer that lost rows void."""

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from bench.peers import Measured
from bench.report import Figure, Report, comparison_table, lines, markdown
from bench.rounds import check
from tests.conftest import no_server
from tests.pairs import available_pairs, environment_dsns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """One tiny run beside the subscription, as JSON."""
    if environment_dsns() is not None:
        pytest.skip("benchmarks want servers of their own")
    if not available_pairs():
        no_server("no programs of PostgreSQL here")
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    words = ["stream", "--quick", "--no-durable", "--transactions", "60", "--scale", "0.1", "--workload", "mix"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words, "--peer", "subscription", "--peer", "pg_recvlogical", "--json", path],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def test_every_peer_has_a_valid_figure(document):
    assert [(each["peer"], each["fault"]) for each in document["figures"]] == [
        ("replicator", None),
        ("subscription", None),
        ("pg_recvlogical", None),
    ]
    for each in document["figures"]:
        assert each["changes"] >= 100
        assert 0 < each["measured"]["stream_s"] <= each["measured"]["seconds"]


def test_it_states_machine_versions_and_settings(document):
    about = document["about"]
    assert about["machine"]["cores"] >= 1
    assert about["source"].startswith("PostgreSQL ")
    assert about["fsync"] == "off"
    assert about["options"]["transactions"] == 60


def test_lanes_are_measured_beside_one():
    if environment_dsns() is not None:
        pytest.skip("benchmarks want servers of their own")
    if not available_pairs():
        no_server("no programs of PostgreSQL here")
    words = ["lanes", "--quick", "--no-durable", "--transactions", "60", "--scale", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VOID" not in done.stdout
    assert "replicator, 2 lanes" in done.stdout


class LossyPeer:
    name = "lossy"
    mapped = frozenset()

    def __init__(self, target_dsn):
        self.target_dsn = target_dsn


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("SELECT 1", None),
        ("DELETE FROM t WHERE id = 3", "t: 9 rows instead of 10"),
        ("UPDATE t SET note = 'other' WHERE id = 3", "t: rows differ"),
    ],
)
def test_a_peer_that_lost_rows_is_void(pair, change, fault):
    """However fast it was."""
    for dsn in (pair.source_dsn, pair.target_dsn):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE t (id int PRIMARY KEY, note text)")
            conn.execute("INSERT INTO t SELECT i, 'n' || i FROM generate_series(1, 10) i")
    with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
        conn.execute(change)
    assert check(pair.source_dsn, LossyPeer(pair.target_dsn), ["t"]) == fault


def figure(peer, number, seconds, fault=None):
    return Figure("stream", "mix", peer, number, 1_000, Measured(seconds), fault)


def test_ratios_are_of_the_same_round_and_void_runs_do_not_count():
    """A slow round slows both: medians of ratios tell more than ratios of medians."""
    figures = [
        figure("replicator", 0, 1.0), figure("subscription", 0, 2.0),
        figure("replicator", 1, 4.0), figure("subscription", 1, 6.0),
        figure("replicator", 2, 2.0), figure("subscription", 2, 0.1, "units: rows differ"),
    ]  # fmt: skip
    [ours, native] = lines(figures)
    assert (ours.median_s, ours.low_s, ours.high_s) == (2.0, 1.0, 4.0)
    assert (native.ratio, native.ratio_low, native.ratio_high) == (1.75, 1.5, 2.0)
    assert native.faults == ("units: rows differ",)


def test_a_peer_without_a_valid_run_is_told_as_void(tmp_path):
    report = Report({"source": "PostgreSQL 16"}, [figure("replicator", 0, 1.0), figure("lossy", 0, 0.1, "t: lost")])
    assert comparison_table(report.figures)[2][:2] == ["lossy", "void"]
    report.write_json(tmp_path / "report.json")
    again = Report.read_json(tmp_path / "report.json")
    assert again == report
    assert "void: t: lost" in markdown(again)
