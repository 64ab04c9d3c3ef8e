"""The HTTP server that runs the app."""

import asyncio
import socket
from types import FrameType

import uvicorn

from app.embedded import Parts
from app.http_protocol import http_protocol
from app.main import create_app
from app.settings import Settings

# Longer than a load balancer keeps a connection: it must never send a request down one that is just being closed.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """uvicorn that ends the app's open streams before it waits for them."""

    def __init__(self, settings: Settings, parts: Parts, *, host: str, port: int) -> None:
        self.app = create_app(settings, parts)
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                self.app,
                host=host,
                port=port,
                http=http_protocol(settings),
                log_config=None,
                access_log=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=settings.trusted_proxies,
                timeout_graceful_shutdown=4,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.drain()
        super().handle_exit(sig, frame)

    def drain(self) -> None:
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.app.state.draining.set)
