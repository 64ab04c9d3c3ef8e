"""A way past the ASGI calls for what many connections are sent at once: an extension of the server's scope."""

from collections.abc import Callable

EXTENSION = "easel.direct_write"

# Sends a piece of the response's body before it returns, or refuses it: the client reads slowly or has left.
DirectWrite = Callable[[bytes], bool]
