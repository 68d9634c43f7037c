"""Watches the replication from beside it while the demo does other things."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections import Counter
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from replicator.config import Settings
from replicator.errors import ReplicatorError
from replicator.status import Status, StatusReader

_EVERY_S: Final = 0.25
_HTTP_TIMEOUT_S: Final = 2.0

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Watch:
    """A thread that reads the status four times a second, and the metrics of whichever service answers.

    A context manager. What it has seen can be read at any time; the peaks may be set back.
    """

    def __init__(self, settings: Settings) -> None:
        self.status = Status()
        self.peak_lag_seconds = 0.0
        self.peak_lag_bytes = 0
        self._reader = StatusReader(settings)
        self._url = f"http://{settings.metrics.listen}/metrics"
        self._changes: list[Counter[str]] = [Counter()]  # per life of the service
        self._lives = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    @property
    def changes(self) -> Counter[str]:
        """Changes applied by kind, over all lives of the service."""
        return sum(self._changes, Counter())

    def begin_life(self) -> None:
        """The service was killed: the next one counts from 0."""
        with self._lives:
            self._changes.append(Counter())

    def scrape(self) -> Samples:
        """Read the service's metrics endpoint once; every sample by name and labels.

        Raises:
            OSError: nobody answers.
        """
        with self._lives, urllib.request.urlopen(self._url, timeout=_HTTP_TIMEOUT_S) as response:  # noqa: S310
            text = response.read().decode("utf-8")
            samples = {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            life: Counter[str] = Counter()
            for (name, labels), value in samples.items():
                if name == "replicator_changes_total":
                    life[dict(labels)["op"]] += int(value)
            self._changes[-1] = life
        return samples

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self.status = status = self._reader.read()
            except ReplicatorError:
                continue
            if status.phase in ("streaming", "catching_up", "cutting_over"):
                self.peak_lag_seconds = max(self.peak_lag_seconds, status.lag_seconds or 0.0)
                self.peak_lag_bytes = max(self.peak_lag_bytes, status.lag_bytes or 0)
            try:
                self.scrape()
            except OSError:
                continue  # killed, or over

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()


def wall_clock(monotonic: float) -> float:
    """Unix time of a reading of ``time.monotonic()``."""
    return time.time() - time.monotonic() + monotonic
