"""What needs no server: usage, settings, exit codes, and what may never be printed."""

import json
import signal
import socket
import subprocess
import sys
import time

import psycopg
import pytest

from replicator import __version__, errors
from replicator.cli import app as cli
from replicator.cli import faults
from tests.cli.command import environment, replicator

PASSWORD = "planted-Pa55word"
NOWHERE = f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/app?connect_timeout=2"


def test_help_names_every_command_and_needs_no_settings(tmp_path):
    (tmp_path / "replicator.toml").write_text("nonsense")
    done = replicator("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ("check", "plan", "snapshot", "run", "status", "verify", "cutover", "teardown", "users", "demo"):
        assert command in done.stdout
    assert replicator("--version", cwd=tmp_path).stdout == f"replicator {__version__}\n"


def test_help_is_fast_since_no_command_is_imported_for_it(tmp_path):
    code = "import sys; from replicator.cli import app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "replicator.cli.move" in loaded
    assert not {"psycopg", "pydantic", "prometheus_client", "snapshot"} & set(loaded)


@pytest.mark.parametrize(
    "words, names",
    [
        (["nonsense"], "nonsense"),
        (["status", "--nonsense"], "--nonsense"),
        (["snapshot", "--workers", "0"], "--workers"),
        (["snapshot", "--workers", "many"], "--workers"),
        (["run", "--until-lsn", "12"], "--until-lsn"),
        (["cutover", "--verify", "some"], "--verify"),
        (["users", "import"], "FILE"),
        (["--log-format", "xml", "status"], "--log-format"),
        (["status", "--config"], "--config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage_is_one_line_and_exit_2(tmp_path, words, names):
    done = replicator(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert names.lower() in done.stderr.lower()


@pytest.mark.parametrize("words", [[], ["users"]], ids=["nothing", "users alone"])
def test_without_a_verb_the_help_is_shown_and_the_exit_code_is_2(tmp_path, words):
    done = replicator(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage:" in done.stdout
    assert done.stderr == ""


def test_an_unknown_key_is_one_line_that_says_where_and_what_to_do(tmp_path):
    (tmp_path / "replicator.toml").write_text("[stream]\nmax_batch_row = 5\n")
    done = replicator("status", cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "replicator.toml: stream.max_batch_row: unknown key" in line
    assert "remove it or correct its name" in line


def test_every_fault_of_the_settings_has_its_line(tmp_path):
    (tmp_path / "other.toml").write_text("tabels = []\n[snapshot]\nworkers = 0\n")
    done = replicator("plan", "-c", "other.toml", cwd=tmp_path)
    assert done.returncode == 2
    first, second = sorted(done.stderr.splitlines())
    assert "snapshot.workers" in first
    assert "tabels" in second


@pytest.mark.parametrize("text", ["[source\n", b"\xff\xfe"], ids=["syntax", "not text"])
def test_a_file_that_is_not_toml_is_exit_2(tmp_path, text):
    (tmp_path / "replicator.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    done = replicator("status", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_settings_file_is_taken_from_option_then_environment_then_directory(tmp_path):
    (tmp_path / "replicator.toml").write_text("in_directory = 1\n")
    (tmp_path / "environment.toml").write_text("in_environment = 1\n")
    (tmp_path / "option.toml").write_text("in_option = 1\n")
    assert "in_directory" in replicator("status", cwd=tmp_path).stderr
    by_environment = {"REPLICATOR_CONFIG": "environment.toml"}
    assert "in_environment" in replicator("status", cwd=tmp_path, **by_environment).stderr
    assert "in_option" in replicator("status", "-c", "option.toml", cwd=tmp_path, **by_environment).stderr
    missing = replicator("status", "-c", "missing.toml", cwd=tmp_path)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", ["check", "plan", "snapshot", "run", "status", "verify"])
def test_a_missing_dsn_is_exit_2_and_says_how_to_give_it(tmp_path, command):
    done = replicator(command, cwd=tmp_path, REPLICATOR_METRICS__LISTEN="")
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "no DSN for the" in line
    assert "REPLICATOR_" in line


POOLER = f"postgresql://postgres:{PASSWORD}@aws-0-eu.pooler.supabase.com:6543/postgres"


def test_a_pooler_is_recognized_by_its_address(tmp_path):
    done = replicator("plan", "--source", POOLER, "--target", NOWHERE, cwd=tmp_path)
    assert done.returncode == 2
    assert "pooler" in done.stderr
    assert PASSWORD not in done.stderr
    checked = replicator("check", "--json", "--source", POOLER, "--target", NOWHERE, cwd=tmp_path)
    assert checked.returncode == 1
    checks = json.loads(checked.stdout)["checks"]
    assert any("pooler" in check["message"] and check["status"] == "fail" for check in checks)
    assert PASSWORD not in checked.stdout + checked.stderr


def test_a_server_that_is_not_there_is_a_run_time_failure(tmp_path):
    done = replicator("status", "--source", NOWHERE, "--target", NOWHERE, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("replicator: target: ")
    assert PASSWORD not in done.stderr


def test_v_adds_where_it_came_from_and_no_values(tmp_path):
    done = replicator("status", "--source", NOWHERE, "--target", NOWHERE, "-v", cwd=tmp_path)
    assert done.returncode == 3
    assert "connection.py" in done.stderr
    assert "TransientError" in done.stderr
    assert PASSWORD not in done.stderr


def test_with_json_logs_the_fault_is_an_object_too(tmp_path):
    done = replicator("--log-format", "json", "status", "--source", NOWHERE, "--target", NOWHERE, cwd=tmp_path)
    assert done.returncode == 3
    event = json.loads(done.stderr)
    assert event["level"] == "error"
    assert event["kind"] == "TransientError"
    assert event["event"].startswith("target: ")


@pytest.mark.parametrize("words", [["cutover"], ["teardown"], ["snapshot", "--truncate"], ["run", "--truncate"]])
def test_what_needs_a_confirmation_is_refused_where_nobody_can_be_asked(tmp_path, words):
    done = replicator(*words, "--source", NOWHERE, "--target", NOWHERE, cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "--yes" in line


def test_a_report_that_cannot_be_written_is_found_before_the_work(tmp_path):
    done = replicator(
        *("cutover", "--yes", "--report", "missing/report.json"), "--source", NOWHERE, "--target", NOWHERE, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "missing/report.json" in done.stderr


def test_options_win_over_the_environment_and_that_over_the_file(tmp_path):
    """What each place gives is wrong in another way."""
    file = "port=1 host=127.0.0.1 connect_timeout=2"
    (tmp_path / "replicator.toml").write_text(f'[source]\ndsn = "{file}"\n[target]\ndsn = "{file}"\n')
    environment_dsn = {"REPLICATOR_TARGET__DSN": "no DSN at all"}
    assert replicator("status", cwd=tmp_path).returncode == 3
    assert "libpq connection string" in replicator("status", cwd=tmp_path, **environment_dsn).stderr
    assert "pooler" in replicator("status", "--target", POOLER, cwd=tmp_path, **environment_dsn).stderr


def test_global_options_may_stand_after_the_verb():
    words = ["plan", "--json", "-c", "a.toml", "--source=x", "-v", "--target", "y", "--", "-c"]
    assert cli.hoist(words) == ["-c", "a.toml", "--source=x", "-v", "--target", "y", "plan", "--json", "--", "-c"]


EXPECTED = {
    errors.ConfigError: 2,
    errors.Refused: 1,
    errors.VerificationFailed: 1,
    errors.TransientError: 3,
    errors.StateError: 3,
    errors.SlotLost: 3,
    errors.SchemaMismatch: 3,
    errors.ReplicatorError: 3,
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_every_class_of_error_has_its_exit_code(kind, monkeypatch, capsys):
    def fail(_words):
        raise kind("what is wrong", hint="what to do")

    monkeypatch.setattr(cli, "call", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status"])
    assert ended.value.code == EXPECTED[kind]
    assert capsys.readouterr().err == "replicator: what is wrong — what to do\n"


def test_a_subclass_has_the_exit_code_of_its_parent():
    class Narrower(errors.Refused):
        pass

    assert faults.exit_code(Narrower("no")) == 1


def test_an_unexpected_exception_is_one_line_without_its_message(monkeypatch, capsys):
    """A foreign message may quote a row."""

    def fail(_words):
        cause = psycopg.errors.UniqueViolation(f"duplicate key\nDETAIL: Key (email)=({PASSWORD}) already exists.")
        raise ValueError(f"bad value {PASSWORD}") from cause

    monkeypatch.setattr(cli, "call", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status"])
    out, err = capsys.readouterr()
    assert ended.value.code == 3
    assert err.startswith("replicator: unexpected ValueError at test_usage.py:")
    assert err.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["status", "-v"])
    out, err = capsys.readouterr()
    assert "UniqueViolation" in err
    assert PASSWORD not in out + err


def test_an_interrupt_is_130(monkeypatch, capsys):
    def fail(_words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "call", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "replicator: interrupted\n"


def test_ctrl_c_at_a_real_process_leaves_no_traceback(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/app?connect_timeout=60"
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "status", "--source", dsn, "--target", dsn],
            cwd=tmp_path,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        accepted, _ = silent.accept()  # so it waits for an answer now
        with accepted:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
