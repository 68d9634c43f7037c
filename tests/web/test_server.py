"""The web server, asked over real connections."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from replicator import logs, metrics
from replicator.config import Settings
from replicator.errors import ConfigError
from replicator.model.lsn import Lsn
from replicator.web import WebServer
from replicator.web import http as http_server

SECRET = "hunter2-S3cret"
STATUS: dict[str, object] = {
    "phase": "streaming",
    "applied_lsn": Lsn.parse("16/B374D848"),
    "source_lsn": "16/B3750000",
    "lag_bytes": 10168,
    "lag_seconds": 0.25,
    "slot": {
        "name": "replicator",
        "active": True,
        "wal_status": "reserved",
        "retained_bytes": 1024,
        "safe_bytes": None,
        "seconds_until_lost": float("inf"),
    },
    "tables": [
        {
            "name": "<img src=x onerror=document.title='owned'>",
            "state": "copied",
            "rows_copied": 1804,
            "rows_applied": 7,
            "snapshot_lsn": "16/A0000028",
        }
    ],
    "unmapped_ids": 3,
    "quarantined_rows": 0,
    "healthy": True,
    "problems": [f"cannot reach postgresql://app:{SECRET}@db.example/live"],
    "cutover": [
        {"step": "check", "state": "done", "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:02Z"},
        {"step": "freeze", "state": "running", "started_at": "2026-01-01T00:00:02Z", "finished_at": None},
    ],
}

Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server on a free port; gives its URL."""
    servers: list[WebServer] = []

    def run(
        listen: str = "127.0.0.1:0",
        status: Callable[[], Mapping[str, object]] = lambda: STATUS,
        problems: Callable[[], list[str]] = list,
    ) -> str:
        server = WebServer(listen, status=status, problems=problems)
        servers.append(server)
        server.start()
        return server.url

    yield run
    for server in servers:
        server.stop()


def get(url: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        with urlopen(Request(url, method=method), timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except HTTPError as answer:
        with answer:
            return answer.code, answer.headers["Content-Type"], answer.read().decode()


def test_metrics_are_the_live_registry(start: Start) -> None:
    url = start()
    metrics.LAG_BYTES.set(4711)
    status, kind, body = get(url + "metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert "\nreplicator_lag_bytes 4711.0\n" in body


def test_healthy_is_200_and_problems_are_503_one_a_line(start: Start) -> None:
    problems: list[str] = []
    url = start(problems=lambda: problems)
    assert get(url + "healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    problems += ["slot is lost", "first\nsecond line", f"postgresql://app:{SECRET}@db.example/live"]
    status, _, body = get(url + "healthz")
    assert status == 503
    assert body.splitlines() == ["slot is lost", "first second line", "postgresql://app:***@db.example/live"]


def test_status_json_is_strict_json_without_passwords(start: Start) -> None:
    """Browsers refuse Infinity; LSNs are integers inside and must not show as such."""
    status, kind, body = get(start() + "status.json")
    assert (status, kind.split(";")[0]) == (200, "application/json")
    document = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["applied_lsn"] == "16/B374D848"
    assert document["slot"]["seconds_until_lost"] is None
    assert document["slot"]["active"] is True
    assert document["lag_bytes"] == 10168
    assert SECRET not in body


def test_page_is_one_file_without_outside_resources(start: Start) -> None:
    status, kind, body = get(start())
    assert (status, kind.split(";")[0]) == (200, "text/html")
    assert "prefers-color-scheme: dark" in body
    assert "http://www.w3.org/2000/svg" in body  # a name, not an address: nothing is loaded from it
    assert body.count("http://") + body.count("https://") == 1
    assert "innerHTML" not in body


@pytest.mark.parametrize("path", ["nope", "metrics/", "../etc/passwd", "index.html"])
def test_other_paths_are_404(start: Start, path: str) -> None:
    assert get(start() + path)[0] == 404


def test_query_is_ignored(start: Start) -> None:
    assert get(start() + "healthz?from=probe")[0] == 200


@pytest.mark.parametrize("path", ["", "metrics", "healthz", "status.json", "nope"])
def test_head_answers_as_get_without_the_body(start: Start, path: str) -> None:
    """On one kept-alive connection: a body where none is announced would corrupt the next answer."""
    url = start()
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
    for _ in range(2):
        connection.request("HEAD", f"/{path}")
        answer = connection.getresponse()
        assert answer.read() == b""
        assert answer.status == (404 if path == "nope" else 200)
        assert int(answer.headers["Content-Length"]) > 0
    connection.close()


def test_a_failing_page_is_500_without_the_cause(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")

    def broken() -> dict[str, object]:
        raise RuntimeError(f"postgresql://app:{SECRET}@db.example/live")

    url = start(status=broken)
    status, _, body = get(url + "status.json")
    assert status == 500
    assert "db.example" not in body
    err = capsys.readouterr().err
    assert "a page failed" in err
    assert "RuntimeError" in err
    assert " in broken" in err
    assert "db.example" not in err
    assert SECRET not in err
    assert get(url + "healthz")[0] == 200


def test_no_request_is_logged(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A query string may hold whatever somebody pasted into it."""
    logs.configure("json", verbose=True)
    url = start()
    capsys.readouterr()
    assert get(url + f"status.json?token={SECRET}")[0] == 200
    assert get(url + f"nope?token={SECRET}")[0] == 404
    assert capsys.readouterr().err == ""


def test_port_in_use_is_a_config_error_with_a_remedy(start: Start) -> None:
    url = start()
    port = url.rstrip("/").rpartition(":")[2]
    with pytest.raises(ConfigError, match=port) as caught:
        start(f"127.0.0.1:{port}")
    assert "REPLICATOR_METRICS__LISTEN" in caught.value.hint


@pytest.mark.parametrize(
    "listen", ["9187", "localhost", "localhost:", "localhost:http", "localhost:65536", "::1:9187", "[localhost]:1"]
)
def test_what_is_no_address_is_a_config_error(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.listen") as caught:
        WebServer(listen, status=dict, problems=list)
    assert "127.0.0.1:9187" in caught.value.hint


def test_empty_listen_is_off() -> None:
    server = WebServer("", status=dict, problems=list)
    server.start()
    assert server.url == ""
    server.stop()


def test_ipv6(start: Start) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6 loopback")
    url = start("[::1]:0")
    assert url.startswith("http://[::1]:")
    assert get(url + "healthz")[0] == 200


def raw(url: str, request: bytes, *, timeout: float = 20) -> bytes:
    """What the server answers to these bytes until it hangs up."""
    with connect(url, timeout) as client:
        client.sendall(request)
        return read_all(client)


def connect(url: str, timeout: float = 20) -> socket.socket:
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout)


def read_all(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass  # it hung up while we were still sending
    return b"".join(parts)


def test_by_default_only_this_machine_is_served() -> None:
    server = WebServer(Settings().metrics.listen.replace("9187", "0"), status=dict, problems=list)
    server.start()
    assert server._server is not None
    host, _ = server._server.socket.getsockname()
    server.stop()
    assert host == "127.0.0.1"


@pytest.mark.parametrize(("listen", "warned"), [("127.0.0.1:0", False), ("localhost:0", False), ("0.0.0.0:0", True)])
def test_listening_for_other_hosts_is_warned_of(
    start: Start, capsys: pytest.CaptureFixture[str], listen: str, warned: bool
) -> None:
    logs.configure("json")
    start(listen)
    assert ("open to other hosts" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "<script>"])
def test_other_methods_are_405(start: Start, method: str) -> None:
    answer = raw(start(), f"{method} /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD" in answer
    assert b"<" not in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 200_000, b""),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"GET / HTTP/x\r\n\r\n", b"400"),
        (b"<script>alert(1)</script>\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"400"),
        (b"GET // HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n", b"421"),
        (b"\0" * 5000 + b"\r\n\r\n", b"400"),
        (b"\xff\xfe\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /../../../../etc/passwd HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /\x1b[2J HTTP/1.0\r\n\r\n", b"404"),
    ],
)
def test_odd_requests_are_refused_and_harm_nobody(start: Start, request_bytes: bytes, status: bytes) -> None:
    url = start()
    answer = raw(url, request_bytes)
    assert b"root:" not in answer
    assert b"<script>alert" not in answer
    assert b"Traceback" not in answer
    assert status in answer[:20]
    assert not status or b"Content-Security-Policy" in answer
    assert get(url + "healthz")[0] == 200


@pytest.mark.parametrize("size", [http_server.MAX_HEAD_BYTES, http_server.MAX_HEAD_BYTES + 1])
def test_a_head_that_is_too_long_is_refused_before_it_is_read(start: Start, size: int) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
    assert raw(start(), head + b"a" * (size - len(head))).startswith(b"HTTP/1.1 431 ")
    assert raw(start(), b"GET /" + b"a" * (size - 5)).startswith(b"HTTP/1.1 414 ")


def test_a_body_is_not_taken_for_the_next_request(start: Start) -> None:
    inner = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(inner)}\r\n\r\n".encode()
    assert raw(start(), head + inner).count(b"HTTP/1.1 ") == 1


def test_slow_clients_hold_up_nobody_and_are_hung_up_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read within its time, the request never whole: the time for all of it counts."""
    monkeypatch.setattr(http_server, "PATIENCE_S", 1.0)
    url = start()
    slow = [connect(url) for _ in range(20)]
    begun = time.monotonic()
    for client in slow:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
    dripping = list(slow)
    while dripping and time.monotonic() - begun < 20:
        assert get(url + "healthz")[0] == 200
        for client in list(dripping):
            try:
                client.sendall(b"X")
            except OSError:
                dripping.remove(client)
        time.sleep(0.1)
    assert not dripping
    for client in slow:
        client.close()


def test_too_many_connections_make_room_for_the_newest(start: Start) -> None:
    """Idle ones may not use up the file descriptors that the replication needs."""
    url = start()
    before = threading.active_count()
    idle = [connect(url) for _ in range(http_server.MAX_CONNECTIONS * 3)]
    assert get(url + "healthz")[0] == 200
    deadline = time.monotonic() + 10
    while threading.active_count() - before > http_server.MAX_CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() - before <= http_server.MAX_CONNECTIONS
    assert read_all(idle[0]) == b""
    for client in idle:
        client.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:9187", 200), ("127.0.0.1:9187", 200), ("[::1]:9187", 200), ("", 200),
        ("10.1.2.3", 200), ("replicator.localhost", 200), ("evil.example", 421), ("evil.example:9187", 421),
        ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421), ("evil.example@127.0.0.1", 421), ("[", 421),
    ],
)  # fmt: skip
def test_a_web_site_that_points_its_name_at_us_reads_nothing(start: Start, host: str, status: int) -> None:
    answer = raw(start(), f"GET /status.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert int(answer.split()[1]) == status
    assert (b"streaming" in answer) == (status == 200)


def test_where_other_hosts_are_served_any_name_is_ours(start: Start) -> None:
    """Prometheus asks for ``replicator:9187`` in a compose file."""
    url = start("0.0.0.0:0").replace("0.0.0.0", "127.0.0.1")
    assert b" 200 " in raw(url, b"GET /healthz HTTP/1.1\r\nHost: replicator:9187\r\nConnection: close\r\n\r\n")


def test_the_page_may_run_its_own_script_alone(start: Start) -> None:
    with urlopen(start(), timeout=10) as answer:
        policy = answer.headers["Content-Security-Policy"]
        body = answer.read().decode()
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        [block] = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", body, re.DOTALL)
        assert b64encode(sha256(block.encode()).digest()).decode() in policy
    assert not re.search(r"\s(on\w+|style)\s*=", body.partition("<script>")[0])


def test_stop_frees_the_port_even_with_a_client_connected() -> None:
    server = WebServer("127.0.0.1:0", status=dict, problems=list)
    server.start()
    host, _, port = server.url.removeprefix("http://").rstrip("/").rpartition(":")
    with socket.create_connection((host, int(port))):
        server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    server.start()
    server.stop()


def test_page_shows_the_status_in_a_browser(start: Start, tmp_path: Path) -> None:
    """Values stand there as text, also one that looks like markup; the script raises nothing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}"]
    options += ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
    page = subprocess.run([chromium, *options, start()], capture_output=True, text=True, timeout=120, check=True)
    body = page.stdout.partition("<script>")[0]
    assert "No answer" not in body
    for shown in ("streaming", "250 ms", "16/B374D848", "reserved", "1,804", "freeze", "db.example", "&lt;img src=x"):
        assert shown in body, shown
    assert "owned" not in page.stdout.partition("<body>")[0]
    assert "CONSOLE" not in page.stderr
