"""`easel migrate`."""

import asyncio

import typer

from app.commands import start
from app.embedded import running_database
from app.logins import make_login
from app.migrate import migrate
from app.settings import Settings, SettingsError


def run() -> None:
    settings = start()
    if settings.migration_database_url is not None and settings.database_url is None:
        raise SettingsError("MIGRATION_DATABASE_URL is set without DATABASE_URL, with which Easel serves: set both.")
    with running_database(settings) as url:
        revision = asyncio.run(_migrate(settings, url))
    typer.echo(f"The database is at revision {revision}.")


async def _migrate(settings: Settings, serving_url: str) -> str:
    if settings.migration_database_url is None:
        return await migrate(serving_url)
    url = settings.migration_database_url.get_secret_value()
    revision = await migrate(url)
    await make_login(url, serving_url)
    return revision
