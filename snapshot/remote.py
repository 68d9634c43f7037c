"""Copying on other machines: the workers of a Dask scheduler as an executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicator import __version__
from replicator.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """``executor`` hands tasks to ``threads`` threads, all workers together."""

    executor: Executor
    workers: int
    threads: int


@contextmanager
def dask_cluster(address: str) -> Iterator[Cluster]:
    """The workers of the scheduler at ``address``, for one ``tcp://scheduler:8786``.

    A task whose worker dies is given to another one: tasks must bear being run twice, even side by side.

    Raises:
        ConfigError: Dask is not installed, nobody answers, there are no workers, or they run another version of this.

    Source: Dask.distributed docs, "Client.get_executor".
    """
    try:
        from distributed import Client
    except ImportError as exc:
        raise ConfigError("Dask is not installed here", hint="pip install 'replicator[dask]'") from exc
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigError(
            f"no Dask scheduler answers at {address}", hint="start `dask scheduler`, or correct the address"
        ) from exc
    with client:
        threads: dict[str, int] = client.nthreads()
        if not threads:
            raise ConfigError(
                f"the Dask scheduler at {address} has no workers", hint=f"start `dask worker {address}` on each machine"
            )
        _require_same_version(client)
        # Not pure: two tasks are never one, however alike they look.
        yield Cluster(client.get_executor(pure=False), len(threads), sum(threads.values()))


def _require_same_version(client: Client) -> None:
    """A task is data and the name of a function: what it does is what the worker knows by that name."""
    for worker, found in client.run(_version, on_error="return").items():
        if found != __version__:
            raise ConfigError(
                f"Dask worker {worker} has {f'replicator {found}' if isinstance(found, str) else 'no replicator'}, "
                f"here is {__version__}",
                hint="install the same version in the worker's environment",
            )


def _version() -> str:
    from replicator import __version__ as version

    return version
