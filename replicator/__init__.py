"""Moves a live PostgreSQL database to another server: snapshot, stream, cutover."""

__version__ = "0.1.0"
