"""A small HTTP server in a thread of its own: ``/metrics``, ``/healthz``, ``/status.json`` and the status page."""

from __future__ import annotations

import json
import math
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from replicator.logs import get_logger, redact
from replicator.model.lsn import Lsn
from replicator.web.address import parse_listen
from replicator.web.http import Response, Server, bind, text

Status = Callable[[], Mapping[str, object]]
Problems = Callable[[], list[str]]

_JSON: Final = "application/json; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"

log = get_logger(__name__)


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
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and serve; nothing if ``listen`` is empty.

        Raises:
            ConfigError: the address cannot be bound: in use, not of this host, not permitted.
        """
        if self._address is None or self._server is not None:
            return
        self._server = bind(*self._address, self._pages.get)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True)
        self._thread.start()
        log.info("web server listens", url=self.url)
        if not self._server.is_local:
            log.warning(
                "the web server is open to other hosts and asks for no password: it tells names of tables and how far "
                "the replication is",
                remedy="keep metrics.listen on 127.0.0.1, or the port behind a firewall",
            )

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
        page_headers = {"Content-Security-Policy": content_security_policy(self._index.decode())}
        self._routes: dict[str, Callable[[], Response]] = {
            "/": lambda: Response(HTTPStatus.OK, _HTML, self._index, page_headers),
            "/metrics": lambda: Response(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest()),
            "/healthz": self._healthz,
            "/status.json": self._status_json,
        }

    def get(self, path: str) -> Response:
        """Answer ``path`` (no query). A page that fails is a 500 without the cause, which goes to the log."""
        route = self._routes.get(path)
        if route is None:
            return text(HTTPStatus.NOT_FOUND, "not found")
        try:
            return route()
        except Exception:
            log.exception("a page failed", page=path)
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the log")

    def _healthz(self) -> Response:
        # Problems quote error messages, and this port needs no password to read them.
        reasons = [" ".join(redact(problem).split()) for problem in self._problems()]
        if reasons:
            return text(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(reasons))
        return text(HTTPStatus.OK, "ok")

    def _status_json(self) -> Response:
        body = json.dumps(_plain(self._status()), allow_nan=False, ensure_ascii=False)
        return Response(HTTPStatus.OK, _JSON, body.encode())


def content_security_policy(page: str) -> str:
    """The page's own scripts and styles, known by their hashes, and nothing from elsewhere."""
    hashes = {tag: " ".join(_hashes(page, tag)) for tag in ("script", "style")}
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(page: str, tag: str) -> list[str]:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [f"'sha256-{b64encode(sha256(block.encode()).digest()).decode()}'" for block in found]


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
