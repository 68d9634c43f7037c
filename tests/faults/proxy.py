"""A TCP proxy before a server, on loopback only, that does to connections what networks do to them."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

from psycopg.conninfo import make_conninfo

from replicator.demo.servers import free_port

Direction = Literal["to_server", "to_client"]
Side = Literal["server", "client"]
DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")

_HOST = "127.0.0.1"
_CHUNK = 1 << 18
_STARTUP_BYTES = 4096  # the startup packet, which names the application, lies within the first so many
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER 0: close() sends RST

T = TypeVar("T")


class _Cut(Exception):
    """This connection ends here, without another byte."""


@dataclass(eq=False)
class Link:
    """One connection through the proxy. ``name`` is its ``application_name``, once the client has sent it."""

    client: socket.socket
    server: socket.socket
    name: str = ""
    passed: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(DIRECTIONS, 0))
    _flows: dict[Direction, asyncio.Event] = field(default_factory=lambda: {d: asyncio.Event() for d in DIRECTIONS})
    _silent: bool = False  # what still comes is taken and thrown away
    _startup: bytes = b""
    _gone: set[Side] = field(default_factory=set)
    _tails: dict[Direction, bytes] = field(default_factory=lambda: dict.fromkeys(DIRECTIONS, b""))
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def _close(self, *sides: Side, reset: bool) -> None:
        for side in sides:
            if side in self._gone:
                continue
            self._gone.add(side)
            connection = self.client if side == "client" else self.server
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()


@dataclass(eq=False)
class Trap:
    """Something that is to happen once, at a certain byte. ``fired`` is set when it has."""

    direction: Direction
    only: str
    act: Callable[[Link, bytes], tuple[bytes, bool]]  # → what to pass on, and whether it has sprung
    silence: bool = False  # instead of cutting the connection
    fired: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float = 60.0) -> None:
        assert self.fired.wait(timeout_s), "nothing has sprung the trap"


class Proxy:
    """Listens on a port of its own and connects to ``port`` of 127.0.0.1. A context manager.

    Faults apply to the connections whose ``application_name`` begins with ``only``; to all by default. Those with a
    duration (`stall`, `delay`, `drip`, `refuse`) hold for new connections too, until `resume`.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.port = free_port()
        self.accepted = 0  # how many connections there ever were
        self._links: list[Link] = []
        self._traps: list[Trap] = []
        self._stalled: list[tuple[Direction, str]] = []
        self._delay_s: dict[Direction, float] = dict.fromkeys(DIRECTIONS, 0.0)
        self._bytes_per_s = 0
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._accepting: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen)

    def dsn(self, dsn: str) -> str:
        """The same DSN through the proxy."""
        return make_conninfo(dsn, host=_HOST, port=self.port)

    def links(self, only: str = "") -> list[Link]:
        """The connections that are open on either side."""
        return self._call(lambda: self._matching(only))

    # ── faults of connections that are open ────────────────────────────────────────────────────────────

    def cut(self, *, reset: bool = True, only: str = "") -> int:
        """Close both sides, with RST or with FIN; how many connections that were."""

        def apply() -> int:
            links = self._matching(only)
            for link in links:
                self._end(link, reset=reset)
            return len(links)

        return self._call(apply)

    def half_open(self, gone: Side = "server", *, reset: bool = True, only: str = "") -> int:
        """One side's connection is gone; the other stays open, swallows what it is sent and stays silent."""

        def apply() -> int:
            links = self._matching(only)
            for link in links:
                self._silence(link, gone, reset=reset)
            return len(links)

        return self._call(apply)

    def silence(self, only: str = "") -> int:
        """Both sides stay open and never hear of each other again."""

        def apply() -> int:
            links = self._matching(only)
            for link in links:
                link._silent = True
            return len(links)

        return self._call(apply)

    # ── faults that last ───────────────────────────────────────────────────────────────────────────────

    def stall(self, *directions: Direction, only: str = "") -> None:
        """Hold all bytes of these directions, default both; connections stay open, new ones are taken and held too."""

        def apply() -> None:
            self._stalled += [(direction, only) for direction in directions or DIRECTIONS]
            self._set_flows()

        self._call(apply)

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Let bytes arrive this much later."""
        for direction in directions or DIRECTIONS:
            self._delay_s[direction] = seconds

    def drip(self, bytes_per_s: int) -> None:
        """Let no more through than this, per connection and direction."""
        self._bytes_per_s = bytes_per_s

    def refuse(self) -> None:
        """Take no new connections: ECONNREFUSED, as if nobody listened."""
        self._call(self._close_listener)

    def listen(self) -> None:
        """Take new connections again, and leave all else as it is."""
        self._call(lambda: self._listen() if self._listener is None else None)

    def resume(self) -> None:
        """End all that lasts, deliver what was held, forget the traps. What is cut stays cut."""

        def apply() -> None:
            self._stalled.clear()
            self._traps.clear()
            self._delay_s = dict.fromkeys(DIRECTIONS, 0.0)
            self._bytes_per_s = 0
            self._set_flows()
            if self._listener is None:
                self._listen()

        self._call(apply)

    # ── traps ──────────────────────────────────────────────────────────────────────────────────────────

    def reset_after(self, count: int, direction: Direction, *, only: str = "") -> Trap:
        """Reset the first connection on which ``count`` more bytes went this way, right behind them."""
        seen: dict[Link, int] = {}

        def act(link: Link, data: bytes) -> tuple[bytes, bool]:
            left = count - seen.get(link, 0)
            seen[link] = seen.get(link, 0) + len(data)
            return data[:left], len(data) >= left

        return self._arm(Trap(direction, only, act))

    def lose_answer(self, answer: bytes = b"COMMIT\0", *, only: str = "", silence: bool = False) -> Trap:
        """The server has done it, but its answer is lost: cut, or stay open and silent, instead of passing it on.

        Args:
            answer: what the answer holds; by default the tag of a COMMIT that was done.
        """
        return self._arm(Trap("to_client", only, self._before(answer, "to_client"), silence))

    def lose_request(self, request: bytes = b"COMMIT", *, only: str = "", silence: bool = False) -> Trap:
        """What the client asks never reaches the server: cut, or stay open and silent, instead of passing it on."""
        return self._arm(Trap("to_server", only, self._before(request, "to_server"), silence))

    @staticmethod
    def _before(pattern: bytes, direction: Direction) -> Callable[[Link, bytes], tuple[bytes, bool]]:
        def act(link: Link, data: bytes) -> tuple[bytes, bool]:
            tail = link._tails[direction][-(len(pattern) - 1) :] if len(pattern) > 1 else b""
            at = (tail + data).find(pattern)
            return (data, False) if at < 0 else (data[: max(0, at - len(tail))], True)

        return act

    def _arm(self, trap: Trap) -> Trap:
        self._call(lambda: self._traps.append(trap))
        return trap

    # ── its life ───────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """End every connection; safe to repeat."""
        if not self._thread.is_alive():
            return

        def end() -> None:
            self._close_listener()
            for link in list(self._links):
                self._end(link, reset=True)

        self._call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ── inside, all in the loop's thread ───────────────────────────────────────────────────────────────

    def _call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, self.port))
        listener.listen(64)
        listener.setblocking(False)
        self._listener = listener
        self._accepting = self._loop.create_task(self._accept(listener))

    def _close_listener(self) -> None:
        if self._listener is not None and self._accepting is not None:
            self._accepting.cancel()
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            self.accepted += 1
            client.setblocking(False)
            server = socket.socket()
            server.setblocking(False)
            try:
                await self._loop.sock_connect(server, (_HOST, self._server_port))
            except OSError:  # as the server would have: the client sees a connection that ends
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                server.close()
                continue
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(client, server)
            self._links.append(link)
            self._set_flows()
            link._tasks = [self._loop.create_task(self._pump(link, direction)) for direction in DIRECTIONS]

    async def _pump(self, link: Link, direction: Direction) -> None:
        to_server = direction == "to_server"
        origin, end = (link.client, link.server) if to_server else (link.server, link.client)
        try:
            while data := await self._loop.sock_recv(origin, _CHUNK):
                if to_server and not link.name:
                    self._name(link, data)
                await link._flows[direction].wait()
                if self._delay_s[direction]:
                    await asyncio.sleep(self._delay_s[direction])
                await self._pass_on(link, direction, end, data)
            await link._flows[direction].wait()
            if link._silent:
                self._close_origin(link, to_server)
            else:
                end.shutdown(socket.SHUT_WR)
                self._forget_if_done(link)
        except (OSError, _Cut):
            self._end(link, reset=True)

    async def _pass_on(self, link: Link, direction: Direction, end: socket.socket, data: bytes) -> None:
        sprung = None
        for trap in list(self._traps):
            if trap.direction == direction and link.name.startswith(trap.only) and not link._silent:
                data, has_sprung = trap.act(link, data)
                if has_sprung:
                    sprung = trap
                    self._traps.remove(trap)
                    break
        link._tails[direction] = (link._tails[direction] + data)[-64:]
        if not link._silent:
            await self._send(link, direction, end, data)
        if sprung is not None:
            link._silent = link._silent or sprung.silence
            sprung.fired.set()
            if not sprung.silence:
                raise _Cut

    async def _send(self, link: Link, direction: Direction, end: socket.socket, data: bytes) -> None:
        if not self._bytes_per_s:
            await self._loop.sock_sendall(end, data)
            link.passed[direction] += len(data)
            return
        rest = memoryview(data)
        while rest and not link._silent:
            step = len(rest) if not self._bytes_per_s else max(1, self._bytes_per_s // 50)
            await self._loop.sock_sendall(end, rest[:step])
            link.passed[direction] += min(step, len(rest))
            rest = rest[step:]
            await asyncio.sleep(0.02)

    def _name(self, link: Link, data: bytes) -> None:
        if len(link._startup) > _STARTUP_BYTES:
            return
        link._startup += data[:_STARTUP_BYTES]
        _, found, value = link._startup.partition(b"application_name\0")
        if found:
            link.name = value.partition(b"\0")[0].decode()
            self._set_flows()

    def _set_flows(self) -> None:
        for link in self._links:
            for direction in DIRECTIONS:
                held = any(way == direction and link.name.startswith(only) for way, only in self._stalled)
                flow = link._flows[direction]
                (flow.clear if held else flow.set)()

    def _matching(self, only: str) -> list[Link]:
        return [link for link in self._links if link.name.startswith(only)]

    def _silence(self, link: Link, gone: Side, *, reset: bool) -> None:
        link._silent = True
        index = 0 if gone == "client" else 1  # the pump that reads there
        link._tasks[index].cancel()
        self._unwatch(link.client if gone == "client" else link.server)
        link._close(gone, reset=reset)
        for flow in link._flows.values():
            flow.set()

    def _close_origin(self, link: Link, is_client: bool) -> None:
        """Of a silent connection: who hangs up is let go, the other side does not hear of it."""
        self._unwatch(link.client if is_client else link.server)
        link._close("client" if is_client else "server", reset=False)
        self._forget_if_done(link)

    def _forget_if_done(self, link: Link) -> None:
        if all(task.done() or task is asyncio.current_task() for task in link._tasks):
            self._end(link, reset=False)

    def _end(self, link: Link, *, reset: bool) -> None:
        for task in link._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for connection in (link.client, link.server):
            self._unwatch(connection)
        link._close("client", "server", reset=reset)
        if link in self._links:
            self._links.remove(link)

    def _unwatch(self, connection: socket.socket) -> None:
        """A closed descriptor must not stay registered: its number is soon another connection's."""
        if connection.fileno() >= 0:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
