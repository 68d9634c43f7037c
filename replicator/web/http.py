"""HTTP for few paths and strangers: what a client sends is bounded in size, time and number of connections."""

from __future__ import annotations

import io
import ipaddress
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from replicator.errors import ConfigError
from replicator.logs import get_logger

# From a connection's start, or the last answer, until the next request is whole and answered.
PATIENCE_S: Final = 10.0
# Each has a thread and a file descriptor, of which the replication needs some too.
MAX_CONNECTIONS: Final = 64
# Request line and headers. No browser and no scraper sends more to a server without cookies.
MAX_HEAD_BYTES: Final = 16 << 10

_BASE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """What one path answers; ``headers`` on top of those that every answer has."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def text(status: HTTPStatus, line: str) -> Response:
    """An answer in plain text."""
    return Response(status, "text/plain; charset=utf-8", (line + "\n").encode())


class Server(ThreadingHTTPServer):
    """A thread per connection; a client that is slow, or one of too many, is hung up on."""

    daemon_threads = True  # an open browser tab must not keep the process alive
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Response]) -> None:
        """``answer``: from a path to its response."""
        super().__init__(address, _Handler)
        self.answer = answer
        self.is_local = _is_loopback(str(self.server_address[0]))
        self._lock = threading.Lock()
        self._waiting_since: dict[socket.socket, float] = {}

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's full name, which can hang where DNS does not answer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room for a newcomer: whoever has waited longest without a request of his own has to go."""
        with self._lock:
            if len(self._waiting_since) >= MAX_CONNECTIONS:
                longest = min(self._waiting_since, key=self._waiting_since.__getitem__)
                self._hang_up(longest)
            self._waiting_since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Hang up on the slow: a time limit on each read alone would let them drip bytes for ever."""
        oldest = time.monotonic() - PATIENCE_S
        with self._lock:
            for slow in [request for request, since in self._waiting_since.items() if since < oldest]:
                self._hang_up(slow)

    def answered(self, request: socket.socket) -> None:
        """A request of this connection is done: its time counts anew."""
        with self._lock:
            if request in self._waiting_since:
                self._waiting_since[request] = time.monotonic()

    def shutdown_request(self, request: Any) -> None:
        """The end of a connection."""
        with self._lock:
            self._waiting_since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the base's signature
        """A client that hung up is no event; the default prints a traceback to stderr."""
        log.debug("request aborted", exc_info=True)

    def _hang_up(self, request: socket.socket) -> None:
        """Its thread reads the end of the stream, and closes the connection."""
        self._waiting_since.pop(request, None)
        try:
            request.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone by itself


class _Server6(Server):
    address_family = socket.AF_INET6


def bind(host: str, port: int, answer: Callable[[str], Response]) -> Server:
    """A server that listens on ``host`` and ``port``.

    Raises:
        ConfigError: the address cannot be bound: in use, not of this host, not permitted.
    """
    kind = _Server6 if ":" in host else Server
    try:
        return kind((host, port), answer)
    except OSError as exc:
        raise ConfigError(
            f"metrics.listen: cannot listen on {host or '*'} port {port}: {exc.strerror}",
            hint="stop what uses it, choose another host:port (REPLICATOR_METRICS__LISTEN), or set it to "
            '"" to turn the web server off',
        ) from exc


class _Head(io.RawIOBase):
    """The client's bytes, as many as a request may have; then the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.left = MAX_HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.left <= 0:
            return 0
        count = self._connection.recv_into(memoryview(buffer)[: self.left])
        self.left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE_S
    protocol_version = "HTTP/1.1"
    server_version = "replicator"
    sys_version = ""
    default_request_version = "HTTP/1.1"  # the base's, 0.9, would answer a fault without any header
    raw_requestline: bytes  # the base sets it

    def setup(self) -> None:
        super().setup()
        self.requestline, self.request_version = "", self.default_request_version
        self.rfile.close()
        self._head = _Head(self.connection)
        self.rfile = io.BufferedReader(self._head, 4096)

    def handle_one_request(self) -> None:
        self._head.left = MAX_HEAD_BYTES
        super().handle_one_request()
        self.server.answered(self.request)

    def parse_request(self) -> bool:
        if not self.raw_requestline.endswith(b"\n"):
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return False
        if not super().parse_request():
            return False
        if self._head.left <= 0:  # the rest was cut off, and with it what else the client may have asked
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return False
        return True

    def do_GET(self) -> None:
        self._answer(self._respond())

    def do_HEAD(self) -> None:
        self._answer(self._respond(), with_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Of the base's faults: in plain words, none of the client's in them."""
        status = HTTPStatus(code)
        self.close_connection = True
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        answer = text(status, status.phrase.lower())
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            answer = Response(status, answer.content_type, answer.body, {"Allow": "GET, HEAD"})
        self._answer(answer, with_body=getattr(self, "command", "") != "HEAD")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: scrapes are noise, and a query string may hold what somebody pasted into it."""

    def _respond(self) -> Response:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body, which nobody reads, would be taken for the next request
        if self.server.is_local and not _may_ask_here(self.headers.get("Host", "")):
            return text(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its address and to localhost")
        try:
            path = urlsplit(self.path).path
        except ValueError:  # "http://[" and the like
            return text(HTTPStatus.BAD_REQUEST, "bad request")
        return self.server.answer(path)

    def _answer(self, response: Response, *, with_body: bool = True) -> None:
        self.send_response(response.status)
        headers = {"Content-Type": response.content_type, "Content-Length": str(len(response.body))}
        for name, value in (headers | _BASE_HEADERS | dict(response.headers)).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _may_ask_here(host: str) -> bool:
    """Whether a request with this ``Host`` may reach a server of this machine alone.

    A web site can let its own name lead to 127.0.0.1, and then read with its visitor's browser what is served here
    (DNS rebinding); but its name stands in the request.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if "@" in host:
        return False
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
