"""The command ``replicator``; ``python -m replicator`` is the same."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Load the command line and run it."""
    if "run" in sys.argv[1:]:
        # A service that is told to end ends with exit code 0, also while it is still being loaded: nothing has begun.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        from replicator import cli
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    cli.main()


if __name__ == "__main__":
    main()
