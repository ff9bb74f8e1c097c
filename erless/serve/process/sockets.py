"""The sockets that a function listens on: bound by itself, or inherited."""

from __future__ import annotations

import resource
import socket

from erless.errors import ConfigError
from erless.serve.logs import Log

__all__ = ["bind_socket", "connection_limit", "inherited_socket"]

BACKLOG = 1024
EVERYWHERE = "::"
OTHER_DESCRIPTORS = 256  # files, sockets to shards, what is accepted and not counted yet


def bind_socket(host: str, port: int, log: Log) -> socket.socket:
    """A socket that listens at `host` and `port`; `::` is every address, of IPv6 and of IPv4.

    Raises:
        ConfigError: the address is not to be had.
    """
    everywhere = host == EVERYWHERE
    if everywhere and not _has_ipv6():
        host = "0.0.0.0"  # noqa: S104 - what was asked for, on a machine without IPv6
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=everywhere and family == socket.AF_INET6,
        )
    except OSError as error:
        shown = f"[{host}]" if ":" in host else host
        raise ConfigError(f"cannot listen on {shown}:{port}: {error}") from error
    log.info("listening", host=host, port=listener.getsockname()[1])
    return listener


def _has_ipv6() -> bool:
    """Whether this machine gives out sockets that speak both IPv6 and IPv4."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        socket.create_server((EVERYWHERE, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def inherited_socket(variable: str, descriptor: int) -> socket.socket:
    """The listening socket that `variable` names by its descriptor.

    Raises:
        ConfigError: the descriptor is no socket.
    """
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{variable} is {descriptor}: no listening socket: {error}") from error


def connection_limit(wanted: int) -> int:
    """How many clients can be connected: `wanted`, or what the descriptors of this process allow.

    The soft limit of descriptors is raised as far as it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - OTHER_DESCRIPTORS))
