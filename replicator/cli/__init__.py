"""The command line: reads options, calls the floors below, shows what they return. No logic of its own."""

import gc

# Classes by the thousand come in now, and none is garbage: looking for some took a tenth of the start.
gc.set_threshold(100_000, 20, 100)

from replicator.cli.app import main  # noqa: E402  # only then

__all__ = ["main"]
