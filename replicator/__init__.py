"""Moves a live PostgreSQL database to another server: snapshot, stream, cutover."""
