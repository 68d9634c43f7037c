"""The demo as a user runs it: a process, its output, its exit code, and what is left behind."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from replicator.demo.commands import Commands, DemoFailed
from replicator.demo.servers import find_installations
from replicator.demo.stage import choose_majors
from replicator.demo.summary import Facts, show
from replicator.errors import ConfigError
from tests.conftest import no_server


@pytest.fixture
def temporary():
    """A directory for all that the demo makes. Short and open: a server's socket lies in it, under another account."""
    if not find_installations():
        no_server("no PostgreSQL programs here")
    path = Path(tempfile.mkdtemp(prefix="rd-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def start(temporary, *options):
    # REPLICATOR_SOURCE__SLOT and PGPORT stand for a user's own settings, which are meant for other servers.
    env = os.environ | {"TMPDIR": str(temporary), "REPLICATOR_SOURCE__SLOT": "mine", "PGPORT": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "replicator", "demo", "--rows", "1000", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )


def read_until(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail("".join(lines) + process.stderr.read())


def left_behind(temporary):
    """Directories but the copies of unreadable installations, and processes that work in one of them."""
    paths = [path.name for path in temporary.iterdir() if not path.name.startswith("replicator-pg-")]
    deadline = time.monotonic() + 10
    while True:
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        processes = [command for command in commands if str(temporary) in command]
        if not processes or time.monotonic() > deadline:
            return paths + processes
        time.sleep(0.2)


def test_the_demo_ends_with_everything_equal_and_keeps_its_servers_on_request(temporary):
    """Both servers answer until Ctrl-C; then nothing is left and the exit code is 0."""
    process = start(temporary, "--seconds", "4", "--keep")
    output = read_until(process, "teardown --keep-id-map")
    assert "everything is equal" in output
    assert "26 of 26 tables" in output
    assert "kill -9" in output and "write downtime" in output
    assert "0 writes after the fence" in output
    settings = next(line.split()[2] for line in output.splitlines() if line.endswith(" status"))
    status = subprocess.run(
        [sys.executable, "-m", "replicator", "-c", settings, "status"], capture_output=True, text=True, check=False
    )
    assert status.returncode == 0, status.stderr
    assert "cut_over" in status.stdout
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, process.stderr.read()
    assert left_behind(temporary) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_stream_leaves_nothing_behind(temporary, number, code):
    """Writers, service, both servers and the directory are gone."""
    process = start(temporary, "--seconds", "60")
    read_until(process, "catch up")
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(30) == code
    assert left_behind(temporary) == []


def test_a_killed_demo_takes_service_and_servers_with_it(temporary):
    """SIGKILL leaves no chance to clean up: the watchdogs do."""
    process = start(temporary, "--seconds", "60")
    read_until(process, "catch up")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(temporary.glob("rpg*")):
        time.sleep(0.2)
    assert [each for each in left_behind(temporary) if not each.startswith("replicator-demo-")] == []


def facts(**changes):
    equal = {"name": "sites", "source_rows": 2, "target_rows": 2, "equal": True} | dict.fromkeys(
        ("missing", "extra", "different"), 0
    )
    values = {
        "live_equal": True,
        "users": {"maps": []},
        "report": {
            "finalized": True, "outcome": "finalized", "verification": {"equal": True}, "writes_after_fence": 0,
            "steps": [], "final_lsn": "0/1", "kept": [],
        },
        "final": {"equal": True, "tables": [equal], "foreign_keys": []},
        "sequences": {"tickets_id_seq": (7, 7)},
    }  # fmt: skip
    return Facts(**values | changes)


def test_equal_facts_have_no_fault():
    assert list(facts().faults()) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"live_equal": False}, "under the running stream"),
        ({"report": facts().report | {"finalized": False, "outcome": "undone"}}, "the cutover is undone"),
        ({"report": facts().report | {"verification": {"equal": False}}}, "the cutover's verification"),
        ({"report": facts().report | {"verification": None}}, "the cutover's verification"),
        ({"report": facts().report | {"writes_after_fence": 3}}, "writes after the fence: 3"),
        ({"report": facts().report | {"writes_after_fence": None}}, "writes after the fence: None"),
        ({"final": {"equal": False, "tables": [], "foreign_keys": []}}, "after the cutover found differences"),
        ({"sequences": {"tickets_id_seq": (7, 6)}}, "tickets_id_seq stands at 7 on the source and at 6"),
        ({"triggers_fired": 1}, "triggers of the target fired"),
    ],
)
def test_each_difference_is_told(changes, fault):
    """Whatever is not equal makes the demo fail, and the summary says so."""
    found = facts(**changes)
    [told] = found.faults()
    assert fault in told
    console = Console(width=200, record=True, file=io.StringIO())
    show(found, console)
    text = console.export_text()
    assert f"NOT EQUAL: {told}" in text
    assert "everything is equal" not in text


def test_a_command_that_fails_ends_the_demo_with_what_it_said(tmp_path):
    settings = tmp_path / "replicator.toml"
    settings.write_text('tabels = ["a"]\n')
    with pytest.raises(DemoFailed) as caught:
        Commands(tmp_path, settings).run("status")
    assert "exit code 2" in caught.value.message
    assert "tabels: unknown key" in caught.value.hint


@pytest.mark.parametrize(
    ("found", "chosen"), [([15, 16, 18], (16, 18)), ([14, 15, 17], (15, 17)), ([17], (17, 17)), ([18, 16], (16, 18))]
)
def test_the_pair_of_servers(found, chosen):
    assert choose_majors(found) == chosen


def test_without_servers_the_remedy_is_told():
    with pytest.raises(ConfigError, match="no PostgreSQL programs") as caught:
        choose_majors([])
    assert "replicator[demo]" in caught.value.hint
