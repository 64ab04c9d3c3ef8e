"""`easel serve`."""

import asyncio
import logging
import sys

import typer

from app.commands import start
from app.db import Database
from app.embedded import starting_parts
from app.listening import bound
from app.loading import load
from app.observing import observed
from app.processes import serve_in_processes
from app.usage.plans import UNLIMITED, require

log = logging.getLogger(__name__)


def run(host: str, port: int | None) -> None:
    settings = start()
    port = settings.port if port is None else port
    # First, so that a taken port is reported before anything is started.
    with bound(host, port) as sockets, starting_parts(settings) as parts_once_ready:
        # Half a second's work while the parts start.
        server = load("app.server").Server
        parts = parts_once_ready()
        if settings.default_plan != UNLIMITED:
            asyncio.run(_require_plan(parts.database_url, settings.default_plan))

        actual = sockets[0].getsockname()[1]

        def announce() -> None:
            # uvicorn logs no address where it is given the sockets, and a collector of logs reads JSON alone.
            log.info("server.started", extra={"host": host, "port": actual})
            if sys.stderr.isatty():
                typer.echo(f"Easel listens on http://{host}:{actual} (API documentation under /docs).", err=True)

        def serve(number: int) -> None:
            # Each process has a port of its own for its metrics.
            own = settings.metrics_port and settings.metrics_port + number
            of_process = settings.model_copy(update={"metrics_port": own})
            on_started = announce if not number else None
            with observed(of_process):
                server(of_process, parts, host=host, port=port, on_started=on_started).run(sockets)

        if settings.web_concurrency == 1:
            serve(0)
        else:
            serve_in_processes(settings.web_concurrency, serve)


async def _require_plan(database_url: str, name: str) -> None:
    database = Database(database_url, pool_size=1)
    try:
        await require(database, name)
    finally:
        await database.close()
