"""A limit for snapshots: COPY … (FORMAT binary) from psql to psql, into tables without any index or constraint."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from bench.lab import value
from bench.peers import Case, Measured
from bench.process import PeerFailed, children_cpu_s

# With more tables than this, starting two programs for each is most of the time, which limits nobody.
_MOST_TABLES = 50


class Snapshot:
    """Tables side by side, the largest first."""

    name = "COPY pipe"
    mapped: frozenset[str] = frozenset()
    target_dsn: str | None = None

    def __init__(self, case: Case) -> None:
        self._case = case

    def unavailable(self) -> str | None:
        if len(self._case.tables) > _MOST_TABLES:
            return f"two psql for each of {len(self._case.tables)} tables would measure the start of programs"
        return None

    def prepare(self) -> None:
        lab = self._case.lab
        self.target_dsn = lab.new_target("piped")
        lab.psql(self.target_dsn, lab.dump_schema(self._case.source_dsn, "--section=pre-data")[0])
        self._tables = value(
            self._case.source_dsn,
            "SELECT array_agg(relname::text ORDER BY pg_relation_size(oid) DESC) FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
        )

    def run(self) -> Measured:
        started, cpu_before = time.monotonic(), children_cpu_s()
        with ThreadPoolExecutor(self._case.workers) as pool:
            list(pool.map(self._copy, self._tables))
        return Measured(time.monotonic() - started, cpu_s=children_cpu_s() - cpu_before)

    def _copy(self, table: str) -> None:
        assert self.target_dsn is not None
        psql = [str(self._case.lab.programs / "psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-c"]
        out = [*psql, f'COPY public."{table}" TO STDOUT (FORMAT binary)', self._case.source_dsn]
        into = [*psql, f'COPY public."{table}" FROM STDIN (FORMAT binary)', self.target_dsn]
        with subprocess.Popen(out, stdout=subprocess.PIPE) as reader:
            done = subprocess.run(into, stdin=reader.stdout, check=False)
        if reader.returncode or done.returncode:
            raise PeerFailed(f"psql: COPY of {table} failed")

    def clean(self) -> None:
        if self.target_dsn is not None:
            self._case.lab.drop(self.target_dsn)
            self.target_dsn = None
