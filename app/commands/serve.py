"""`easel serve`."""

import asyncio
import sys

import typer

from app.commands import start
from app.db import Database
from app.embedded import running_parts
from app.server import Server, bound
from app.usage.plans import UNLIMITED, require


def run(host: str, port: int | None) -> None:
    settings = start()
    port = settings.port if port is None else port
    # First, so that a taken port is reported before anything is started.
    with bound(host, port) as sockets, running_parts(settings) as parts:
        if settings.default_plan != UNLIMITED:
            asyncio.run(_require_plan(parts.database_url, settings.default_plan))

        def announce() -> None:
            # A collector of logs reads JSON alone, and uvicorn logs the address as well.
            if sys.stderr.isatty():
                typer.echo(f"Easel listens on http://{host}:{port} (API documentation under /docs).", err=True)

        Server(settings, parts, host=host, port=port, on_started=announce).run(sockets)


async def _require_plan(database_url: str, name: str) -> None:
    database = Database(database_url, pool_size=1)
    try:
        await require(database, name)
    finally:
        await database.close()
