"""Peers in turn: the same work, in another order each round, each result checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TypeVar

from bench.lab import Lab, difference
from bench.options import Say
from bench.peers import Measured, Peer
from bench.process import PeerFailed
from bench.report import Figure, Report

P = TypeVar("P", bound=Peer)


def rotated(peers: Sequence[P], number: int) -> list[P]:
    """In turn, so that none always finds the caches warm."""
    start = number % len(peers) if peers else 0
    return [*peers[start:], *peers[:start]]


def timed(lab: Lab, peer: Peer) -> tuple[Measured | None, str | None]:
    """Run it once: what it took, or why it failed."""
    lab.calm()
    before = lab.server_cpu_s()
    try:
        measured = peer.run()
        return replace(measured, server_cpu_s=lab.server_cpu_s() - before), None
    except (PeerFailed, TimeoutError) as exc:
        return None, str(exc)


def check(source_dsn: str, peer: Peer, tables: Sequence[str]) -> str | None:
    """What the peer's target lacks; a peer that lost rows is void, however fast it was."""
    if peer.target_dsn is None:
        return None
    return difference(source_dsn, peer.target_dsn, tables, peer.mapped)


@contextmanager
def prepared(peers: Sequence[P], report: Report, place: str, say: Say) -> Iterator[list[P]]:
    """Those that can take part, prepared; cleaned at the end. The others are named with their reason."""
    ready: list[P] = []
    with ExitStack() as stack:
        for peer in peers:
            reason = peer.unavailable()
            if reason is None:
                stack.callback(peer.clean)
                try:
                    peer.prepare()
                except PeerFailed as exc:
                    reason = str(exc)
                else:
                    ready.append(peer)
            if reason is not None:
                report.skipped[f"{place} / {peer.name}"] = reason
                say(f"  {peer.name} left out: {reason}")
        yield ready


def add(report: Report, figure: Figure, say: Say) -> None:
    """Keep a figure and tell it at once."""
    report.figures.append(figure)
    took = "" if figure.measured is None else f"{figure.measured.seconds:8.2f} s"
    say(f"    round {figure.round + 1}  {figure.peer:24}{took}{'  VOID: ' + figure.fault if figure.fault else ''}")
