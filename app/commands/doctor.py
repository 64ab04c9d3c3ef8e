"""`easel doctor`."""

import asyncio

import typer

from app.commands import start
from app.connections import open_connections
from app.embedded import Parts, running_parts
from app.logins import explain, login_faults
from app.migrate import is_current
from app.settings import Settings, SettingsError
from app.usage.plans import require
from app.usage.prices import load_prices
from app.worker.process import load_agents, price_warnings


def run() -> None:
    settings = start("error")
    registry = load_agents(settings)
    typer.echo(f"agents: {', '.join(sorted(registry.specs))}")
    prices = price_warnings(settings, registry, load_prices(settings.prices_file))
    for warning in (*registry.warnings, *settings.warnings, *prices):
        typer.echo(f"warning: {warning}")
    with running_parts(settings) as parts:
        asyncio.run(_look_at(settings, parts))
    typer.echo("All parts answer.")


async def _look_at(settings: Settings, parts: Parts) -> None:
    async with open_connections(settings, parts.database_url) as connections:
        await connections.broker.ping()
        if not await is_current(connections.database):
            raise SettingsError("The database's schema is behind: run `just migrate`.")
        await require(connections.database, settings.default_plan)
        name, faults = await login_faults(connections.database)
        if faults:
            typer.echo(f"warning: {explain(name, faults)} Production refuses it.")
        typer.echo(f"storage: {settings.storage_provider}; provider: {parts.provider_url or 'OpenAI'}")
