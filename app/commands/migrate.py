"""`easel migrate`."""

import asyncio

import typer

from app.commands import start
from app.embedded import running_database
from app.migrate import migrate


def run() -> None:
    with running_database(start()) as url:
        revision = asyncio.run(migrate(url))
    typer.echo(f"The database is at revision {revision}.")
