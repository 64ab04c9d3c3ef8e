"""Of two servers that start on one port at the same time, one listens, and the other says so."""

import socket
from pathlib import Path

import pytest

from app.embedded import Parts
from app.listening import bound
from app.server import Server
from app.settings import Settings, SettingsError


def test_a_port_that_is_taken_during_the_start_is_told(database_url: str, provider_url: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)  # pyright: ignore[reportCallIssue]
    with bound("127.0.0.1", 0) as sockets, socket.socket() as other:
        port = sockets[0].getsockname()[1]
        server = Server(settings, Parts(database_url, provider_url, "none"), host="127.0.0.1", port=port)
        # As another server does that started at the same time.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(SettingsError, match=f"Port {port} of 127.0.0.1 is taken by another process"):
            server.run(sockets)
