"""The port of a process that is there for its operators alone: `/metrics`, `/livez` and `/readyz`.

It is served by the same event loop as everything else, so that a process whose loop stands still fails its probes.
"""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import cast

import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app import metrics
from app.connections import Connections
from app.errors import AppError
from app.metrics import REGISTRY, Collector, CollectorRegistry, Metric
from app.readiness import Readiness
from app.settings import Settings, SettingsError

READY_SECONDS = 5.0
# How often the replies' `Date` is written anew.
TICK_SECONDS = 1.0
UNAVAILABLE = "The database or Redis does not answer."

Source = Callable[[], Awaitable[Sequence[Metric]]]
"""Reads families as somebody asks for them."""


def bind(settings: Settings) -> socket.socket | None:
    """The port, where one is set; raises SettingsError where it cannot be had."""
    port, host = settings.metrics_port, settings.metrics_host
    if port is None:
        return None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(cast(tuple[str, int], address), family=family, backlog=64)
    except OSError as error:
        # A number below zero is of the look-up of the name.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise SettingsError(
            f"METRICS_PORT={port} on METRICS_HOST={host} cannot be listened on ({why}):"
            " give each process on a machine a port of its own, or leave METRICS_PORT empty."
        ) from error


@asynccontextmanager
async def serving(bound: socket.socket | None, connections: Connections, *sources: Source) -> AsyncGenerator[None]:
    """Answer on the bound port until the block ends."""
    if bound is None:
        yield
        return
    app = _app(connections, [_pool_source(connections), *sources])
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not by `serve`, which would take the process's signals.
    await server.startup(sockets=[bound])
    ticking = asyncio.create_task(_tick(server))
    try:
        yield
    finally:
        ticking.cancel()
        await server.shutdown(sockets=[bound])


async def _tick(server: uvicorn.Server) -> None:
    # uvicorn's own loop looks ten times a second whether it is to end.
    while True:
        await server.on_tick(0)
        await asyncio.sleep(TICK_SECONDS)


def _app(connections: Connections, sources: Sequence[Source]) -> Starlette:
    readiness = Readiness(connections.database, connections.broker, connections.store)

    async def show_metrics(request: Request) -> Response:
        read = [await source() for source in sources]
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # In a thread: a full scrape takes as long as a hundred deltas.
        text = await asyncio.to_thread(encode, cast(CollectorRegistry, _Scrape(chain.from_iterable(read))))
        return Response(text, media_type=content_type)

    async def check_liveness(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def check_readiness(request: Request) -> Response:
        try:
            async with asyncio.timeout(READY_SECONDS):
                storage = await readiness.check()
        except AppError as error:
            return JSONResponse({"status": "not ready", "detail": error.detail}, status_code=503)
        except Exception:
            return JSONResponse({"status": "not ready", "detail": UNAVAILABLE}, status_code=503)
        return JSONResponse({"status": "ready", "storage": storage})

    routes = {"/metrics": show_metrics, "/livez": check_liveness, "/readyz": check_readiness}
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()])


class _Scrape(Collector):
    """What the process has counted, and what was read for this scrape."""

    def __init__(self, read: Iterable[Metric]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield from REGISTRY.collect()
        yield from self._read


def _pool_source(connections: Connections) -> Source:
    async def read() -> list[Metric]:
        pool = cast(metrics.SizedPool, connections.database.engine.pool)
        return [
            metrics.gauge("easel_database_pool_connections", "Connections in use by transactions.", pool.checkedout()),
            metrics.gauge("easel_database_pool_size", "DATABASE_POOL_SIZE.", pool.size()),
        ]

    return read
