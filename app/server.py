"""The HTTP server that runs the app."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from types import FrameType
from typing import Any

import uvicorn

from app import metrics, metrics_server
from app.connections import Connections
from app.embedded import Parts
from app.http_protocol import http_protocol
from app.listening import require_listening
from app.main import create_app
from app.metrics import Metric
from app.metrics_server import TICK_SECONDS
from app.settings import Settings, SettingsError

# Longer than a load balancer keeps a connection: it must never send a request down one that is just being closed.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """uvicorn that ends the app's open streams before it waits for them."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        *,
        host: str,
        port: int,
        on_started: Callable[[], None] | None = None,
    ) -> None:
        self.app = create_app(settings, parts)
        self._on_started = on_started
        self.loop: asyncio.AbstractEventLoop | None = None
        self._settings = settings
        self._metrics = AsyncExitStack()
        self._leaving = asyncio.Event()
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
        self.lifespan = _Lifespan(self.app.router.lifespan_context(self.app))
        metrics_socket = metrics_server.bind(self._settings)
        await super().startup(sockets)
        try:
            require_listening(sockets or (), self.config.host, self.config.port)
        except SettingsError:
            await self.shutdown(sockets)
            raise
        state = self.app.state
        connections = Connections(state.database, state.broker, state.store)
        serving = metrics_server.serving(metrics_socket, connections, self._read_streams, *state.worker_gauges)
        await self._metrics.enter_async_context(serving)
        if self._on_started is not None:
            self._on_started()

    async def main_loop(self) -> None:
        """As uvicorn's, but woken by the end, for which that one looks ten times a second."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What it reads is closed next.
        await self._metrics.aclose()
        await super().shutdown(sockets)

    async def _read_streams(self) -> list[Metric]:
        streams = self.app.state.limits.streams
        return [metrics.gauge("easel_streams_open", "Readers that follow a run at this process.", streams.open)]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.leave()

    def leave(self) -> None:
        """End the streams and the server, from any thread."""
        self.should_exit = True
        self.drain()
        self._wake(self._leaving)

    def drain(self) -> None:
        self._wake(self.app.state.draining)

    def _wake(self, event: asyncio.Event) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(event.set)


class _Lifespan:
    """The app's lifespan in the server's own task: a start that fails is raised, where uvicorn logs a traceback."""

    should_exit = False

    def __init__(self, context: AbstractAsyncContextManager[Any]) -> None:
        self.state: dict[str, Any] = {}
        self._context = context

    async def startup(self) -> None:
        await self._context.__aenter__()

    async def shutdown(self) -> None:
        await self._context.__aexit__(None, None, None)
