"""Run a snapshot in a process that the tests may kill: ``python -m tests.snapshot.killable SETTINGS``."""

import sys
import tomllib
from pathlib import Path

import snapshot.pool
from replicator.config import Settings
from tests.snapshot.case import Case

if __name__ == "__main__":
    settings = Settings(**tomllib.loads(Path(sys.argv[1]).read_text()))
    # Processes even for little data: they must not outlive us.
    snapshot.pool.SMALL_BYTES = 0
    case = Case(settings.source.dsn, settings.target.dsn, settings)
    sys.exit(0 if case.run() else 1)
