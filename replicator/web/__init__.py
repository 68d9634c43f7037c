"""The metrics endpoint, the health check and the status page."""

from __future__ import annotations

from replicator.web.server import WebServer

__all__ = ["WebServer"]
