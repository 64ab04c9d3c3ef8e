"""The HTTP server that runs the app."""

import asyncio
import socket
from contextlib import AsyncExitStack
from types import FrameType

import uvicorn

from app import metrics, metrics_server
from app.connections import Connections
from app.embedded import Parts
from app.http_protocol import http_protocol
from app.main import create_app
from app.metrics import Metric
from app.settings import Settings

# Longer than a load balancer keeps a connection: it must never send a request down one that is just being closed.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """uvicorn that ends the app's open streams before it waits for them."""

    def __init__(self, settings: Settings, parts: Parts, *, host: str, port: int) -> None:
        self.app = create_app(settings, parts)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._settings = settings
        self._metrics = AsyncExitStack()
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
        bound = metrics_server.bind(self._settings)
        await super().startup(sockets)
        state = self.app.state
        connections = Connections(state.database, state.broker, state.store)
        serving = metrics_server.serving(bound, connections, self._read_streams, *state.worker_gauges)
        await self._metrics.enter_async_context(serving)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What it reads is closed next.
        await self._metrics.aclose()
        await super().shutdown(sockets)

    async def _read_streams(self) -> list[Metric]:
        streams = self.app.state.limits.streams
        return [metrics.gauge("easel_streams_open", "Readers that follow a run at this process.", streams.open)]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.drain()
        super().handle_exit(sig, frame)

    def drain(self) -> None:
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.app.state.draining.set)
