"""The failpoints: what the variable may say, that all names are known, and that they are inert without it."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from replicator import failpoints
from replicator.cutover.transitions import Step
from replicator.errors import ConfigError, TransientError
from tests.endurance.process import command, environment

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm({})


def arm(text):
    failpoints.arm({failpoints.VARIABLE: text})


def names_in_code():
    """Every name that a call ``failpoint(…)`` names; of an f-string what it begins with, and a star."""
    for package in ("replicator", "snapshot"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                    name = node.args[0]
                    if isinstance(name, ast.JoinedStr):
                        yield f"{name.values[0].value}*"
                    else:
                        yield name.value


def test_every_name_in_the_code_is_listed_and_every_listed_name_is_in_the_code():
    found = set(names_in_code())
    stems = tuple(name[:-1] for name in found if name.endswith("*"))
    assert stems
    assert {name for name in found if not name.endswith("*")} <= set(failpoints.NAMES)
    assert {name for name in failpoints.NAMES if name not in found and not name.startswith(stems)} == set()


def test_every_step_of_the_cutover_has_its_two():
    assert tuple(step.value for step in Step) == failpoints.STEPS


def test_without_the_variable_nothing_happens():
    failpoints.arm({})
    failpoints.failpoint("no such name")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("after_comit=kill", "no failpoint after_comit"),
        ("after_commit=explode", "no action explode"),
        ("after_commit", "does not read NAME=ACTION"),
        ("after_commit=kill@0", "does not read NAME=ACTION"),
        ("after_commit=hold", "want seconds"),
        ("after_commit=kill:3", "want seconds"),
        ("after_commit=kill,,", "does not read NAME=ACTION"),
    ],
)
def test_what_makes_no_sense_is_refused(text, fault):
    with pytest.raises(ConfigError, match=fault):
        arm(text)


def test_a_command_refuses_it_as_a_wrong_setting():
    variables = environment(REPLICATOR_FAILPOINTS="nowhere=kill")
    done = subprocess.run(command("status"), env=variables, capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert "there is no failpoint nowhere" in done.stderr


def test_a_fault_comes_once_at_the_visit_that_was_asked_for():
    arm("before_commit=fail@3,after_commit=reject")
    failpoints.failpoint("before_commit")
    failpoints.failpoint("before_commit")
    with pytest.raises(TransientError, match="before_commit"):
        failpoints.failpoint("before_commit")
    failpoints.failpoint("before_commit")
    with pytest.raises(psycopg.errors.CheckViolation):
        failpoints.failpoint("after_commit")
    failpoints.failpoint("after_commit")


def test_hold_waits_once_and_slow_every_time():
    arm("before_batch=hold:0.2,after_batch=slow:0.1@2")
    assert [seconds_at("before_batch") >= 0.2 for _ in range(3)] == [True, False, False]
    assert [seconds_at("after_batch") >= 0.1 for _ in range(3)] == [False, True, True]


def seconds_at(name):
    began = time.monotonic()
    failpoints.failpoint(name)
    return time.monotonic() - began


def test_lost_cuts_the_connection_and_the_driver_knows(database):
    with psycopg.connect(database, autocommit=True) as conn:
        arm("after_commit=lost")
        with pytest.raises(psycopg.OperationalError):
            failpoints.failpoint("after_commit", conn)
        assert conn.broken


def test_a_place_without_a_connection_cannot_lose_it():
    arm("before_feedback=lost")
    with pytest.raises(ConfigError, match="no connection"):
        failpoints.failpoint("before_feedback")


@pytest.mark.parametrize("action, number", [("kill", signal.SIGKILL), ("term", signal.SIGTERM)])
def test_signals_reach_the_process_itself(action, number):
    code = "from replicator import failpoints as f; f.arm(); f.failpoint('after_part'); print('alive')"
    variables = environment(REPLICATOR_FAILPOINTS=f"after_part={action}")
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-number, "")


def test_a_stopped_process_goes_on_when_it_is_told_to():
    code = "from replicator import failpoints as f; f.arm(); f.failpoint('after_part'); print('alive')"
    variables = environment(REPLICATOR_FAILPOINTS="after_part=stop")
    process = subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=30)
    assert out == "alive\n"


def test_the_trace_names_every_place_once(tmp_path):
    arm(f"trace={tmp_path / 'trace'}")
    for name in ("before_slot", "after_slot", "before_slot"):
        failpoints.failpoint(name)
    assert (tmp_path / "trace").read_text().splitlines() == ["before_slot", "after_slot"]
