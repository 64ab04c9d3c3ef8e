"""`easel doctor`."""

import asyncio

import typer

from app.agents._shared.registry import Registry
from app.commands import start
from app.embedded import Parts, running_parts
from app.main import agents_of, open_context
from app.migrate import is_current, migrate
from app.settings import Settings, SettingsError


def run() -> None:
    settings = start("error")
    registry = agents_of(settings)
    typer.echo(f"agents: {', '.join(sorted(registry.specs))}")
    for warning in registry.warnings:
        typer.echo(f"warning: {warning}")
    with running_parts(settings) as parts:
        if settings.database_url is None:
            asyncio.run(migrate(parts.database_url))
        asyncio.run(_look_at(settings, parts, registry))
    typer.echo("All parts answer.")


async def _look_at(settings: Settings, parts: Parts, registry: Registry) -> None:
    async with open_context(settings, parts, registry, asyncio.Event()) as ctx:
        await ctx.broker.ping()
        if not await is_current(ctx.database):
            raise SettingsError("The database's schema is behind: run `just migrate`.")
        typer.echo(f"storage: {settings.storage_provider}; provider: {parts.provider_url or 'OpenAI'}")
