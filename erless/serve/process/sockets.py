"""The sockets that a function listens on: bound by itself, or inherited."""

from __future__ import annotations

import socket

from erless.errors import ConfigError
from erless.serve.logs import Log

__all__ = ["bind_socket", "inherited_socket"]

BACKLOG = 1024


def bind_socket(host: str, port: int, log: Log) -> socket.socket:
    """A socket that listens at `host` and `port`.

    Raises:
        ConfigError: the address is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    log.info("listening", host=host, port=listener.getsockname()[1])
    return listener


def inherited_socket(variable: str, descriptor: int) -> socket.socket:
    """The listening socket that `variable` names by its descriptor.

    Raises:
        ConfigError: the descriptor is no socket.
    """
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{variable} is {descriptor}: no listening socket: {error}") from error
