"""The address of a server: its socket, and how it is written."""

from __future__ import annotations

import socket

from vlmprune.core.errors import Option, UserError

LOCAL = ("localhost", "127.0.0.1", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 takes any that is free.

    Raises:
        UserError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        options = Option("host", host), " and ", Option("port", port)
        raise UserError("Nothing can be served at ", *options, f": {reason}.") from error


def url_of(host: str, at: socket.socket) -> str:
    """Where a browser finds what listens at this socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{at.getsockname()[1]}"
