"""The command line: reads options, calls the floors below, shows what they return. No logic of its own."""

from replicator.cli.app import main

__all__ = ["main"]
