"""A small HTTP server in a thread of its own: ``/metrics``, ``/healthz``, ``/status.json`` and the status page."""

from __future__ import annotations

import json
import math
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from replicator.errors import ConfigError
from replicator.logs import get_logger, redact
from replicator.model.lsn import Lsn
from replicator.web.address import parse_listen

Status = Callable[[], Mapping[str, object]]
Problems = Callable[[], list[str]]

_CLIENT_TIMEOUT_S: Final = 10  # a client that sends nothing must not hold a thread for ever
_JSON: Final = "application/json; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # The page is one file: its own script and style, and nothing from elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """What one path answers."""

    status: HTTPStatus
    content_type: str
    body: bytes


class WebServer:
    """Serves the state of the service over HTTP.

    Args:
        listen: ``host:port`` or ``[ipv6]:port``; port 0 takes a free one; ``""`` turns the server off.
        status: the document of ``/status.json``; called in a thread of the server, once a request.
        problems: why the service is unhealthy, one line each; empty means healthy.

    Raises:
        ConfigError: ``listen`` is no address.
    """

    def __init__(self, listen: str, *, status: Status, problems: Problems) -> None:
        self._address = parse_listen(listen) if listen else None
        self._pages = _Pages(status, problems)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and serve; nothing if ``listen`` is empty.

        Raises:
            ConfigError: the address cannot be bound: in use, not of this host, not permitted.
        """
        if self._address is None or self._server is not None:
            return
        self._server = _bind(*self._address, self._pages)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True)
        self._thread.start()
        log.info("web server listens", url=self.url)

    def stop(self) -> None:
        """Stop serving and free the port; harmless if never started."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None

    @property
    def url(self) -> str:
        """Where it serves, such as ``http://127.0.0.1:9187/``; empty while it does not."""
        if self._server is None:
            return ""
        host, port = self._server.socket.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def __enter__(self) -> WebServer:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


class _Pages:
    """Path → response."""

    def __init__(self, status: Status, problems: Problems) -> None:
        self._status = status
        self._problems = problems
        self._index = files(__package__ or "").joinpath("index.html").read_bytes()
        self._routes: dict[str, Callable[[], Response]] = {
            "/": lambda: Response(HTTPStatus.OK, _HTML, self._index),
            "/metrics": lambda: Response(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest()),
            "/healthz": self._healthz,
            "/status.json": self._status_json,
        }

    def get(self, path: str) -> Response:
        """Answer ``path`` (no query). A page that fails is a 500 without the cause, which goes to the log."""
        route = self._routes.get(path)
        if route is None:
            return _text(HTTPStatus.NOT_FOUND, "not found")
        try:
            return route()
        except Exception:
            log.exception("a page failed", page=path)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the log")

    def _healthz(self) -> Response:
        # Problems quote error messages, and this port needs no password to read them.
        reasons = [" ".join(redact(problem).split()) for problem in self._problems()]
        if reasons:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(reasons))
        return _text(HTTPStatus.OK, "ok")

    def _status_json(self) -> Response:
        body = json.dumps(_plain(self._status()), allow_nan=False, ensure_ascii=False)
        return Response(HTTPStatus.OK, _JSON, body.encode())


def _plain(value: object) -> object:
    """``value`` as JSON can hold it: an LSN or a time as people read it, infinity as null, no passwords."""
    match value:
        case None | bool():
            return value
        case float():
            return value if math.isfinite(value) else None
        case int() if not isinstance(value, Lsn):
            return value
        case Mapping():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case _:
            return redact(str(value))


def _text(status: HTTPStatus, text: str) -> Response:
    return Response(status, _TEXT, (text + "\n").encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # an open browser tab must not keep the process alive
    block_on_close = False
    pages: _Pages

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's full name, which can hang where DNS does not answer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the base's signature
        """A client that hung up is no event; the default prints a traceback to stderr."""
        log.debug("request aborted", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "replicator"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        response = self.server.pages.get(urlsplit(self.path).path)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: scrapes are noise, and a query string may hold what somebody pasted into it."""


def _bind(host: str, port: int, pages: _Pages) -> _Server:
    kind = _Server6 if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except OSError as exc:
        raise ConfigError(
            f"metrics.listen: cannot listen on {host or '*'} port {port}: {exc.strerror}",
            hint="stop what uses it, choose another host:port (REPLICATOR_METRICS__LISTEN), or set it to "
            '"" to turn the web server off',
        ) from exc
    server.pages = pages
    return server
