"""Where a function listens."""

from __future__ import annotations

import socket

import pytest

from erless.serve.logs import Log
from erless.serve.process.sockets import bind_socket


def test_every_address_is_of_both_families() -> None:
    """A cluster gives its pods addresses of IPv4, of IPv6 or of both."""
    with bind_socket("::", 0, Log("info", function="test")) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        if not socket.has_ipv6:
            pytest.skip("this machine has no IPv6")
        try:
            connection = socket.create_connection(("::1", port), timeout=5)
        except OSError as error:
            pytest.skip(f"this machine has no IPv6 loopback: {error}")
        connection.close()
