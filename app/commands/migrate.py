"""`easel migrate`."""

import asyncio

import typer

from app.commands import start_beside_database
from app.database_settings import DatabaseSettings
from app.embedded import running_database
from app.logins import IS_PUBLIC, make_roles, roles_sql
from app.migrate import migrate
from app.settings import SettingsError


def run(*, roles: bool = False) -> None:
    settings = start_beside_database()
    if settings.migration_database_url is not None and settings.database_url is None:
        raise SettingsError("MIGRATION_DATABASE_URL is set without DATABASE_URL, with which Easel serves: set both.")
    if roles:
        typer.echo(_roles_sql(settings), nl=False)
        return
    with running_database(settings) as url:
        revision = asyncio.run(_migrate(settings, url))
    typer.echo(f"The database is at revision {revision}.")


def _roles_sql(settings: DatabaseSettings) -> str:
    if settings.owner_url is None or settings.database_url is None:
        raise SettingsError("Set MIGRATION_DATABASE_URL and DATABASE_URL: the roles are made for their users.")
    return roles_sql(settings.owner_url.get_secret_value(), settings.database_url.get_secret_value())


async def _migrate(settings: DatabaseSettings, serving_url: str) -> str:
    owner_url = settings.owner_url.get_secret_value() if settings.owner_url else serving_url
    is_public = await make_roles(owner_url, serving_url)
    if is_public and owner_url != serving_url:
        typer.echo(IS_PUBLIC, err=True)
    return await migrate(owner_url)
