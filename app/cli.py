"""The `easel` command."""

import asyncio
import json
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn

from app import demo as demonstration
from app import logs
from app.embedded import Parts, free_port, running_database, running_parts
from app.errors import AppError
from app.main import agents_of, create_app, open_context, reconcile_store, work
from app.migrate import is_current
from app.migrate import migrate as run_migrations
from app.settings import Settings, SettingsError, load_settings
from app.storage.store import StorageError
from offline.routes import SERVED
from offline.routes import create_app as create_offline

cli = typer.Typer(add_completion=False, no_args_is_help=True, help="The backend of an agents SaaS whose agents draw.")

# Longer than a load balancer keeps a connection: it must never send a request down one that is just being closed.
KEEP_ALIVE_SECONDS = 75

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(help="The port to listen on.")]


def main() -> None:
    """Run a command; a fault is one plain sentence on standard error and a non-zero exit."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        cli()
    except (SettingsError, StorageError, AppError, OSError) as error:
        sys.exit(f"easel: {getattr(error, 'detail', error)}")


def _leave(number: int, frame: FrameType | None) -> None:
    # As an exception, so that every block that started a process ends it.
    sys.exit(0)


@cli.command()
def serve(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the API (and, unless EMBEDDED_WORKER=false, execute runs)."""
    settings = _start()
    with running_parts(settings) as parts:
        if settings.database_url is None:
            asyncio.run(run_migrations(parts.database_url))
        server = Server(settings, parts, host=host, port=port)
        typer.echo(f"Easel listens on http://{host}:{port} (API documentation under /docs).", err=True)
        server.run()
        if not server.started:
            sys.exit(1)


class Server(uvicorn.Server):
    """uvicorn that tells the app's open streams to end before it waits for them."""

    def __init__(self, settings: Settings, parts: Parts, *, host: str, port: int) -> None:
        self.app = create_app(settings, parts)
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                self.app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
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


@cli.command()
def worker() -> None:
    """Execute runs and housekeeping; needs REDIS_URL."""
    settings = _start()
    if settings.redis_url is None:
        raise SettingsError("`easel worker` needs REDIS_URL: without it, `easel serve` executes runs itself.")
    with running_parts(settings) as parts:
        asyncio.run(_work(settings, parts))


async def _work(settings: Settings, parts: Parts) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await work(settings, parts, stopping)


@cli.command()
def migrate() -> None:
    """Bring the database to the newest schema; safe to repeat, and several at a time."""
    with running_database(_start()) as url:
        revision = asyncio.run(run_migrations(url))
    typer.echo(f"The database is at revision {revision}.")


@cli.command()
def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = demonstration.PROMPT,
) -> None:
    """One designer chat, from sign-up to the saved picture."""
    settings = _start("warning")
    with running_parts(settings) as parts:
        asyncio.run(run_migrations(parts.database_url))
        with _serving(settings, parts) as base_url:
            done = asyncio.run(demonstration.run(base_url, settings, prompt, offline=parts.offline))
    if not done:
        sys.exit(1)


@contextmanager
def _serving(settings: Settings, parts: Parts) -> Generator[str]:
    """A server on a free port in a thread, for as long as the block lasts."""
    port = free_port()
    server = Server(settings, parts, host="127.0.0.1", port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.drain()
        server.should_exit = True
        thread.join(10)


@cli.command()
def doctor() -> None:
    """Check settings, agents, database, broker and storage; say what is wrong and how to mend it."""
    settings = _start("error")
    registry = agents_of(settings)
    typer.echo(f"agents: {', '.join(sorted(registry.specs))}")
    for warning in registry.warnings:
        typer.echo(f"warning: {warning}")
    with running_parts(settings) as parts:
        if settings.database_url is None:
            asyncio.run(run_migrations(parts.database_url))
        asyncio.run(_look_at(settings, parts, registry))
    typer.echo("All parts answer.")


async def _look_at(settings: Settings, parts: Parts, registry: Any) -> None:
    async with open_context(settings, parts, registry, asyncio.Event()) as ctx:
        await ctx.broker.ping()
        if not await is_current(ctx.database):
            raise SettingsError("The database's schema is behind: run `just migrate`.")
        typer.echo(f"storage: {settings.storage_provider}; provider: {parts.provider_url or 'OpenAI'}")


@cli.command()
def reconcile(
    apply: Annotated[bool, typer.Option("--apply", help="Put right what is found; else nothing changes.")] = False,
) -> None:
    """Compare the store's objects with the rows; an object of nobody is marked, and deleted an hour later or more."""
    settings = _start("error")
    with running_database(settings) as url:
        report = asyncio.run(reconcile_store(settings, url, apply=apply))
    typer.echo(f"{'':32}{'found':>8}{'marked':>8}{'done':>8}")
    for kind, count in report.items():
        typer.echo(f"{kind:32}{count.found:8}{count.marked:8}{count.done:8}")
    if not apply:
        typer.echo("Nothing was changed: `easel reconcile --apply` does it.")


@cli.command()
def offline(port: Port = 8001) -> None:
    """Serve the offline provider: a simulator of the Responses API for development and tests."""
    settings = _start()
    app = create_offline(settings.data_dir / "offline")
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False, **SERVED)


@cli.command()
def openapi() -> None:
    """Print the API's OpenAPI document."""
    app = create_app(_start(), Parts("postgresql://", None, "none"))
    typer.echo(json.dumps(app.openapi(), indent=2))


def _start(level: str | None = None) -> Settings:
    settings = load_settings()
    logs.configure(level or settings.log_level)
    return settings


if __name__ == "__main__":
    main()
