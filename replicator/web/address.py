"""The ``listen`` setting: where the web server binds."""

from __future__ import annotations

from replicator.errors import ConfigError

_HINT = 'write host:port, such as "127.0.0.1:9187" or "[::1]:9187"; "" turns the web server off'


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``host:port``, ``[ipv6]:port`` or ``:port`` (all interfaces) into host and port.

    Raises:
        ConfigError: not of that form, or the port is not within 0 (any free one) … 65535.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"metrics.listen: {listen!r} is not an address with a port", hint=_HINT)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if (":" in host) != bracketed:
        raise ConfigError(f"metrics.listen: {listen!r}: only an IPv6 address stands in brackets", hint=_HINT)
    return host, int(port)
