"""Every kind of fault: a generator that begins it, yields the seconds that it lasts, and ends it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, LiteralString

import psutil
import psycopg
from psycopg import sql

from tests.faults.soak import failures
from tests.faults.soak.site import ALL_TABLES, Site

_VERIFY_S = 90
_CHORES: dict[str, tuple[LiteralString, ...]] = {
    "source": ("SELECT pg_switch_wal()", "CHECKPOINT", "VACUUM FULL public.accounts"),
    "target": ("VACUUM (SKIP_LOCKED)", "CHECKPOINT"),
}

Side = Literal["source", "target"]
Course = Iterator[float]


@dataclass(frozen=True, slots=True)
class Kind:
    """``touches``: two faults that touch the same thing do not overlap."""

    name: str
    touches: frozenset[str]
    weight: float
    begin: Callable[[Site], Course]

    @property
    def strains(self) -> bool:
        """Whether a server may be out of reach meanwhile."""
        return bool(self.touches & {"source", "target", "source net", "target net"})


def kill(site: Site) -> Course:
    site.kill()
    yield site.rng.choice((0.0, 0.0, 2.0))
    site.start()


def terminate(site: Site) -> Course:
    site.terminate()
    yield site.rng.choice((0.0, 0.0, 2.0))
    site.start()


def stand_still(site: Site) -> Course:
    """SIGSTOP, at times for longer than the server waits; at times it never wakes up."""
    site.pause_service()
    yield site.rng.uniform(0.2, 6.0)
    if site.rng.random() < 0.2:
        site.kill()
        site.start()
    site.resume_service()


def kill_copier(site: Site) -> Course:
    """One of its copying processes, if there are any."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(site.rig.service.pid).children()
        if children:
            site.rng.choice(children).kill()
    yield 0.0


def at_failpoint(site: Site) -> Course:
    """A new life with a fault in it. It is over when the fault has come, or never came."""
    text = failures.choose(site.rng, copying=site.rig.phase() in ("new", "copying"))
    site.tally.event("failpoint", text)
    site.kill()
    site.start(text)
    yield site.rng.uniform(2.0, 8.0)
    if site.rig.service.running:
        site.kill()
    else:
        site.watch()  # that it ended is what was asked for
        site.kill()
    site.start()


def _sessions(side: Side, function: str) -> Callable[[Site], Course]:
    def run(site: Site) -> Course:
        """One or all of our sessions there."""
        limit = site.rng.choice(("LIMIT 1", "LIMIT 1", ""))
        with contextlib.suppress(psycopg.OperationalError):
            site.rig.ask(
                side,
                f"SELECT {function}(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name"
                f" LIKE 'replicator%' ORDER BY random() {limit}) AS s",
            )
        yield 0.0

    return run


def _restart(side: Side) -> Callable[[Site], Course]:
    def run(site: Site) -> Course:
        server = getattr(site, side)
        # Mode fast waits until its WAL senders are done: with a service that stands still, for a minute.
        server.stop("immediate" if len(site.touched) > 1 else site.rng.choice(("fast", "immediate")))
        yield site.rng.choice((0.0, 0.5, 3.0))
        server.start_again()

    return run


def _pause(side: Side) -> Callable[[Site], Course]:
    def run(site: Site) -> Course:
        server = getattr(site, side)
        server.pause()
        yield site.rng.uniform(0.5, 8.0)
        server.resume()

    return run


def _lock(side: Side) -> Callable[[Site], Course]:
    def run(site: Site) -> Course:
        """Somebody holds a table."""
        dsn = getattr(site.rig, f"{side}_dsn")
        table = site.rng.choice(ALL_TABLES)
        mode = site.rng.choice(("ACCESS EXCLUSIVE", "SHARE ROW EXCLUSIVE"))
        with contextlib.suppress(psycopg.OperationalError):
            conn = psycopg.connect(dsn, options="-c lock_timeout=2s -c default_transaction_read_only=off")
            try:
                conn.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(sql.Identifier(table), sql.SQL(mode)))
                yield site.rng.uniform(0.5, 5.0)
            finally:
                conn.close()

    return run


def open_transaction(site: Site) -> Course:
    """A slot can be made only once it has ended."""
    with contextlib.suppress(psycopg.OperationalError):
        conn = psycopg.connect(site.rig.source_dsn)
        try:
            conn.execute("SELECT pg_current_xact_id()")
            yield site.rng.uniform(0.5, 4.0)
        finally:
            conn.close()


def housekeeping(site: Site) -> Course:
    """What moves the WAL and rows around without changing any."""
    options = "-c lock_timeout=1s -c default_transaction_read_only=off"
    for side, statements in _CHORES.items():
        for statement in statements:
            dsn = getattr(site.rig, f"{side}_dsn")
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(dsn, autocommit=True, options=options) as conn,
            ):
                conn.execute(statement)
    yield 0.0


def late_users(site: Site) -> Course:
    site.import_users()
    yield 0.0


def copy_again(site: Site) -> Course:
    """`snapshot --table` of some tables under the stream, whatever else happens meanwhile."""
    if site.rig.phase() in ("catching_up", "streaming"):
        tables = site.rng.sample(ALL_TABLES, site.rng.randrange(1, 4))
        words = [word for table in tables for word in ("--table", table)]
        site.copies.append(site.rig.popen("snapshot", *words))
    yield site.rng.uniform(0.0, 2.0)


def verify_beside(site: Site) -> Course:
    """It never finds a difference while the stream runs. It looks once whether it does, so nothing else happens."""
    if not site.rig.walsender():
        return
    process = site.rig.popen("verify", "--json")
    try:
        deadline = time.monotonic() + _VERIFY_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                site.tally.event("verify took too long")
                return
            yield 1.0
        out, err = process.communicate()
    finally:
        process.kill()
    refused = not out  # while a snapshot is copied, say
    assert process.returncode in (0, 3) or refused or site.copies, f"verify: {process.returncode}\n{out}\n{err}"


# ── the network ────────────────────────────────────────────────────────────────────────────────────────

_OURS = ("", "", "replicator apply", "replicator stream", "replicator copy", "replicator slot")


def _net(side: Side, action: Callable[[Site, random.Random, Side], float]) -> Callable[[Site], Course]:
    def run(site: Site) -> Course:
        yield action(site, site.rng, side)
        site.proxies[side].resume()

    return run


def _cut(site: Site, rng: random.Random, side: Side) -> float:
    site.proxies[side].cut(reset=rng.random() < 0.5, only=rng.choice(_OURS))
    return 0.0


def _stall(site: Site, rng: random.Random, side: Side) -> float:
    directions = rng.choice(((), ("to_server",), ("to_client",)))
    site.proxies[side].stall(*directions, only=rng.choice(_OURS))
    return rng.uniform(0.5, 8.0)


def _delay(site: Site, rng: random.Random, side: Side) -> float:
    site.proxies[side].delay(rng.choice((0.01, 0.1, 0.5)))
    return rng.uniform(1.0, 5.0)


def _drip(site: Site, rng: random.Random, side: Side) -> float:
    site.proxies[side].drip(rng.choice((2_000, 100_000)))
    return rng.uniform(1.0, 5.0)


def _refuse(site: Site, rng: random.Random, side: Side) -> float:
    site.proxies[side].refuse()
    site.proxies[side].cut()
    return rng.uniform(0.5, 5.0)


def _reset_after(site: Site, rng: random.Random, side: Side) -> float:
    way: Literal["to_server", "to_client"] = rng.choice(("to_server", "to_client"))
    site.proxies[side].reset_after(rng.randrange(1, 200_000), way, only=rng.choice(_OURS))
    return rng.uniform(0.5, 4.0)


def _lose_answer(site: Site, rng: random.Random, side: Side) -> float:
    site.proxies[side].lose_answer(only=rng.choice(("replicator apply", "replicator copy", "")))
    return rng.uniform(0.5, 3.0)


def _lose_request(site: Site, rng: random.Random, side: Side) -> float:
    site.proxies[side].lose_request(only=rng.choice(("replicator apply", "replicator copy", "")))
    return rng.uniform(0.5, 3.0)


def _fall_silent(side: Side) -> Callable[[Site], Course]:
    def run(site: Site) -> Course:
        """Connections that one or both ends still believe in; at last whatever is between hangs up."""
        rng, proxy, only = site.rng, site.proxies[side], site.rng.choice(_OURS)
        how = rng.choice(("silence", "server gone", "client gone"))
        if how == "silence":
            proxy.silence(only=only)
        else:
            proxy.half_open("server" if how == "server gone" else "client", only=only)
        yield rng.choice((1.0, 5.0, 30.0))
        proxy.cut()

    return run


_NETWORK = {
    "cut": (_cut, 3.0), "stall": (_stall, 3.0), "delay": (_delay, 1.0), "drip": (_drip, 1.5), "refuse": (_refuse, 1.5),
    "reset": (_reset_after, 3.0), "lost answer": (_lose_answer, 2.0), "lost request": (_lose_request, 1.0),
}  # fmt: skip


def _both(name: str, touches: str, weight: float, make: Callable[[Side], Callable[[Site], Course]]) -> list[Kind]:
    sides: tuple[Side, Side] = ("source", "target")
    return [Kind(f"{name} ({side})", frozenset({f"{side}{touches}"}), weight, make(side)) for side in sides]


def _service(name: str, weight: float, begin: Callable[[Site], Course]) -> Kind:
    return Kind(name, frozenset({"service"}), weight, begin)


_EVERYTHING_FAR = frozenset({"source", "target", "source net", "target net"})

KINDS: tuple[Kind, ...] = (
    _service("kill -9", 6, kill),
    _service("SIGTERM", 4, terminate),
    _service("SIGSTOP", 4, stand_still),
    _service("kill -9 a copier", 2, kill_copier),
    _service("failpoint", 10, at_failpoint),
    *_both("end sessions", "", 3, lambda side: _sessions(side, "pg_terminate_backend")),
    *_both("cancel statements", "", 1.5, lambda side: _sessions(side, "pg_cancel_backend")),
    *_both("restart", "", 3, _restart),
    *_both("pause", "", 3, _pause),
    *_both("lock", "", 2, _lock),
    Kind("open transaction", frozenset({"source"}), 1, open_transaction),
    Kind("housekeeping", frozenset({"source", "target"}), 1, housekeeping),
    # The command is waited for, so nothing that it needs may stand still.
    Kind("late users", _EVERYTHING_FAR, 2, late_users),
    Kind("copy again", frozenset({"copy"}), 4, copy_again),
    Kind("verify beside", frozenset({"copy", "service", *_EVERYTHING_FAR}), 1.5, verify_beside),
    # A service that is killed meanwhile leaves a session that its server believes in, and with it the writer's lock.
    *(
        Kind(f"silence ({side})", frozenset({f"{side} net", "service"}), 2, _fall_silent(side))
        for side in ("source", "target")
    ),
    *(
        kind
        for name, (action, weight) in _NETWORK.items()
        for kind in _both(name, " net", weight, lambda side, action=action: _net(side, action))  # type: ignore[misc]
    ),
)
