"""Where our CPU time goes: every stage of the stream run by itself over the same recorded messages."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.data import live
from bench.lab import Lab, source_lsn
from bench.options import Options, Say
from bench.peers import ours
from bench.report import Report
from bench.workloads import WORKLOADS, Workload
from replicator.config import Settings, load
from replicator.model.lsn import ZERO, Lsn
from replicator.pgoutput import XLOG_DATA, XLOG_DATA_HEADER_BYTES, decode
from replicator.postgres.connection import connect
from replicator.routing.route import Route
from replicator.source.slot import load_slot
from replicator.stream.assembler import Assembler
from replicator.stream.batch import Batch, coalesce
from replicator.stream.compose import COPY_FROM_ROWS, Composer
from replicator.stream.inbox import Inbox
from replicator.stream.lookup import followers
from replicator.stream.receiver import start_replication
from replicator.stream.relations import Relations
from replicator.survey import survey
from replicator.target.idmaps import load_maps
from replicator.target.rowtypes import make_row_types
from replicator.target.state import load_table_states

_TRIES = 3


@dataclass(frozen=True)
class _Site:
    """What the stages need of a replication: read once."""

    settings: Settings
    routes: list[Route]

    def assembler(self) -> Assembler:
        with connect(self.settings.target.dsn, "target", purpose="bench") as conn:
            specs = {spec.name: spec for spec in self.settings.map_specs}
            maps = load_maps(conn, specs)
        relations = Relations(
            self.routes,
            maps,
            followers(specs.values(), self.routes, maps),
            snapshot_lsns={},
            records={},
            ignore_new_columns=False,
        )
        stream = self.settings.stream
        return Assembler(
            relations,
            applied=ZERO,
            unmapped_before=set(),
            part_rows=stream.max_batch_rows,
            part_bytes=stream.max_batch_bytes,
        )


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """A column per workload, µs of CPU time per change."""
    case = live(lab, options.live_rows // 5)
    peer = ours.Stream(case)
    columns: dict[str, dict[str, float]] = {}
    gc.disable()  # all messages are held here, which the service never does, and it spares the collector
    try:
        peer.prepare()
        site = _site(peer)
        for workload in WORKLOADS:
            if options.workloads and workload.name not in options.workloads:
                continue
            workload.install(case.source_dsn)
            count = max(20, int(options.transactions * workload.share))
            columns[workload.name] = _stages(site, workload, count)
            peer.run()
            say(f"    {workload.name:8}" + "".join(f"  {k} {v:.2f}" for k, v in columns[workload.name].items()))
    finally:
        gc.enable()
        peer.clean()
        lab.drop(case.source_dsn)
    names = list(next(iter(columns.values())))
    table = [["stage, CPU µs per change", *columns]]
    table += [[name, *(f"{column[name]:.2f}" for column in columns.values())] for name in names]
    table.append(["sum", *(f"{sum(column.values()):.1f}" for column in columns.values())])
    report.tables["where our CPU time goes"] = table


def _site(peer: ours.Stream) -> _Site:
    settings = load(Path(peer.words()[peer.words().index("-c") + 1]))
    with (
        connect(settings.source.dsn, "source", purpose="bench") as source,
        connect(settings.target.dsn, "target", purpose="bench") as target,
    ):
        states = load_table_states(target, settings.source.slot)
        return _Site(settings, list(survey(settings, source, target, states).routes))


def _stages(site: _Site, workload: Workload, count: int) -> dict[str, float]:
    changes = workload.write(site.settings.source.dsn, count)
    received_s, frames = _receive(site.settings, Lsn.parse(source_lsn(site.settings.source.dsn)))
    tries = [_once(site, frames) for _ in range(_TRIES)]
    best = {name: min(each[name] for each in tries) for name in tries[0]}
    return {name: seconds / changes * 1e6 for name, seconds in {"receive": received_s, **best}.items()}


def _receive(settings: Settings, end: Lsn) -> tuple[float, list[bytes]]:
    """All frames up to ``end``, and the CPU seconds that it took to get them out of libpq."""
    slot = settings.source.slot
    with connect(settings.source.dsn, "source", purpose="bench") as conn:
        found = load_slot(conn, slot)
        assert found is not None
    frames: list[bytes] = []
    conn = connect(settings.source.dsn, "source", purpose="bench", replication=True)
    try:
        start_replication(conn, slot, settings.source.publication, ZERO, ahead=False)
        pgconn = conn.pgconn
        before = time.thread_time()
        while True:
            length, data = pgconn.get_copy_data(1)
            if length == 0:
                time.sleep(0.001)
                pgconn.consume_input()
                continue
            frame = bytes(data)
            frames.append(frame)
            if frame[:1] == b"k" and int.from_bytes(frame[1:9], "big") >= end:
                break
        return time.thread_time() - before, frames
    finally:
        conn.close()


def _once(site: _Site, frames: list[bytes]) -> dict[str, float]:
    spent: dict[str, float] = {}

    def stage(name: str, work: Callable[[], object]) -> None:
        before = time.thread_time()
        work()
        spent[name] = time.thread_time() - before

    messages: list[tuple[object, int]] = []

    def decode_all() -> None:
        add = messages.append
        for frame in frames:
            if frame[0] == XLOG_DATA:
                add((decode(frame, XLOG_DATA_HEADER_BYTES), len(frame)))

    stage("decode", decode_all)
    assembler = site.assembler()
    batches: list[Batch] = []

    def assemble_all() -> None:
        feed, add = assembler.feed, batches.append
        for message, size in messages:
            batch = feed(message, size)  # type: ignore[arg-type]
            if batch is not None:
                add(batch)
        last = assembler.take()
        if last is not None:
            add(last)

    stage("assemble", assemble_all)
    inbox = Inbox(max_rows=site.settings.stream.max_batch_rows, max_bytes=1 << 40)

    def queue_all() -> None:
        for batch in batches:
            inbox.put(batch)

    stage("queue", queue_all)
    merged = _drain(inbox)
    nets: list[object] = []
    stage("coalesce", lambda: nets.extend(coalesce(batch.events) for batch in merged))
    with connect(site.settings.target.dsn, "target", purpose="bench") as conn:
        composer = Composer(
            site.routes, replica_role=True, row_types=make_row_types(conn, [route.target for route in site.routes])
        )
        stage("encode", lambda: _encode(composer, nets))
    return spent


def _drain(inbox: Inbox) -> list[Batch]:
    taken = []
    while (batch := inbox.take(0)) is not None:
        taken.append(batch)
    return taken


def _encode(composer: Composer, nets: Iterable[object]) -> None:
    for segments in nets:
        for segment in segments:  # type: ignore[attr-defined]
            if isinstance(segment, dict):
                for table, net in segment.items():
                    composer.deletes(table, net)
                    composer.updates(table, net)
                    if len(net.inserts) < COPY_FROM_ROWS:
                        composer.inserts(table, net.inserts)
                    else:
                        for row in net.inserts:
                            len(row).to_bytes(2, "big") + b"".join(row)
