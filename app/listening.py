"""Sockets that listen before there is a server."""

import errno
import socket
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from app.settings import SettingsError


@contextmanager
def bound(host: str, port: int) -> Generator[list[socket.socket]]:
    """Sockets for a server that starts later; SettingsError where the address cannot be listened on."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingsError(f"--host {host} is no address of this machine: give one, or 0.0.0.0 for all.") from None
    with ExitStack() as stack:
        try:
            sockets = [stack.enter_context(_bind(*address)) for address in dict.fromkeys(addresses)]
        except OSError as error:
            raise SettingsError(_why_not(error, host, port)) from None
        yield sockets


def require_listening(sockets: Sequence[socket.socket], host: str, port: int) -> None:
    """Raise SettingsError where another process took the port after `bound`: of two that start, one listens.

    A server on uvloop does not tell: it closes the socket.
    """
    for listener in sockets:
        if listener.fileno() < 0 or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise SettingsError(_why_not(OSError(errno.EADDRINUSE, ""), host, port))


def _bind(family: int, kind: int, protocol: int, name: str, address: Any) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" would take the port of "0.0.0.0" as well.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        taken = f"Port {port} of {host} is taken by another process"
        return f"{taken}: end that one, or choose another port with --port or PORT."
    if error.errno == errno.EACCES:
        return f"Port {port} is reserved for root: choose one from 1024 on with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine: give one of its own, or 0.0.0.0 for all."
    return f"Easel cannot listen on port {port} of {host} ({error.strerror}): choose others with --host and --port."
