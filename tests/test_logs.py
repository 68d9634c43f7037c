"""The logs: where they go, and what never gets into them."""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime, timedelta
from typing import Literal

import pytest

from replicator import logs
from replicator.errors import SlotLost

SECRET = "hunter2-S3cret"
DSNS = [
    f"postgresql://app:{SECRET}@db.example:5432/live?sslmode=require",
    f"postgres://app:{SECRET}@db.example",
    f"postgresql://:{SECRET}@/live",
    f"postgresql://app:a@b/{SECRET}@db.example/live",
    f"host=db.example user=app password={SECRET} dbname=live",
    f"host=db.example password = '{SECRET}' dbname=live",
    f"password='it\\'s {SECRET}' dbname=live",
    f"postgresql://db.example/live?user=app&password={SECRET}&sslmode=require",
    f'{{"password": "{SECRET}", "user": "app"}}',
    f"PGPASSWORD={SECRET} psql",
    f"sslpassword={SECRET}",
    f"x-stack-secret-server-key: {SECRET}",
]


@pytest.fixture(autouse=True)
def _restore_root_logger():
    handlers, level = logging.root.handlers[:], logging.root.level
    hook = threading.excepthook
    yield
    threading.excepthook = hook
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("text", DSNS)
def test_redact_hides_the_password_and_nothing_that_tells_where(text: str) -> None:
    hidden = logs.redact(text)
    assert SECRET not in hidden
    assert "***" in hidden
    for name in ("db.example", "dbname=live", "sslmode=require"):
        assert (name in hidden) == (name in text)


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user app",
        "http://127.0.0.1:9187/metrics",
        "table profiles: column email",
        "postgresql://app@db.example/live",
    ],
)
def test_redact_leaves_other_text_alone(text: str) -> None:
    assert logs.redact(text) == text


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("dsn", DSNS)
def test_no_log_line_holds_a_password(
    style: Literal["json", "console"], dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted in the event, in nested values, in exceptions with their causes, and in library logs."""
    logs.configure(style, verbose=True)
    log = logs.get_logger("replicator.stream.applier")
    in_the_frame = f"local {SECRET}"
    log.info(f"connecting to {dsn}", dsn=dsn, nested={"targets": [dsn, (dsn,)], "password": SECRET})
    log.debug("object", obj=Exception(dsn), kind=type(in_the_frame))
    log.warning("top level", password=SECRET)
    try:
        try:
            raise ConnectionError(dsn)
        except ConnectionError as exc:
            raise RuntimeError(f"could not reach {dsn}") from exc
    except RuntimeError as exc:
        log.exception("failed", error=exc)
        logging.getLogger("driver").exception("failed with %s", dsn)
    out, err = capsys.readouterr()
    assert out == ""
    assert "could not reach" not in err, "a foreign message may hold anything"
    assert err.count("ConnectionError") == 2
    assert err.count(" in test_no_log_line_holds_a_password") >= 4, "the places are told"
    assert SECRET not in err


@pytest.mark.parametrize("style", ["json", "console"])
def test_our_own_errors_speak_in_a_traceback(
    style: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(style)
    try:
        try:
            raise ValueError("drunken sailor")
        except ValueError as exc:
            raise SlotLost("slot s is lost") from exc
    except SlotLost as exc:
        logs.get_logger("replicator.a").warning("failed", error=exc, exc_info=True)
        logs.get_logger("replicator.a").warning("failed", exc_info=exc)
    err = capsys.readouterr().err
    assert err.count("SlotLost: slot s is lost") == 3
    assert err.count("ValueError") == 2
    assert "drunken" not in err


def test_a_thread_that_dies_tells_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own hook would print the message."""
    logs.configure("json")

    def work() -> None:
        raise RuntimeError("drunken sailor")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    [event] = map(json.loads, capsys.readouterr().err.splitlines())
    assert (event["kind"], event["level"]) == ("RuntimeError", "error")
    assert "in work" in event["exception"]
    assert "drunken" not in str(event)


HOSTILE = "a\n2026 [error] forged\r\x1b[2J\x9b31m\u202etxt\x7f"


def test_a_name_breaks_no_line_and_drives_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console")
    logs.get_logger("replicator.a").info(f"about {HOSTILE}", table=HOSTILE, tables=[HOSTILE])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not set(err) & set("\r\x1b\x9b\u202e\x7f")
    assert "a\\n2026 [error] forged\\r\\x1b[2J" in err


def test_json_holds_a_name_as_it_is_and_drives_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.get_logger("replicator.a").info("about", table=HOSTILE)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not set(err) & set("\r\x1b\x9b\u202e\x7f")
    assert json.loads(err)["table"] == HOSTILE


def test_json_is_one_object_a_line_with_utc_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.get_logger("replicator.stream.applier").info("applied", rows=3)
    logging.getLogger("driver").warning("slow")
    ours, library = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert ours["event"] == "applied"
    assert (ours["rows"], ours["level"], ours["module"]) == (3, "info", "stream.applier")
    assert datetime.fromisoformat(ours["timestamp"]).utcoffset() == timedelta(0)
    assert (library["event"], library["level"], library["module"]) == ("slow", "warning", "driver")


def test_debug_events_need_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console", verbose=False)
    logs.get_logger("a").debug("quiet")
    assert capsys.readouterr().err == ""
    logs.configure("console", verbose=True)
    logs.get_logger("a").debug("loud")
    assert "loud" in capsys.readouterr().err


def test_logger_made_before_configure_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Modules make their logger on import, long before the command line is read."""
    early = logs.get_logger("replicator.early")
    logs.configure("json")
    early.info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
