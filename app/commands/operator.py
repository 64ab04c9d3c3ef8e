"""What the operator's commands have in common: a current database, and tables for people or machines."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import typer
from pydantic_core import to_jsonable_python

from app.commands import start
from app.db import Database
from app.embedded import running_database
from app.schema import is_current
from app.settings import Settings, SettingsError

Row = Mapping[str, object]
T = TypeVar("T")


def operate(work: Callable[[Settings, Database], Awaitable[T]]) -> T:
    """What `work` returns; it gets the settings and the database."""
    settings = start("error")
    with running_database(settings) as url:
        return asyncio.run(_operate(settings, url, work))


async def _operate(settings: Settings, url: str, work: Callable[[Settings, Database], Awaitable[T]]) -> T:
    database = Database(url, pool_size=2)
    try:
        if not await is_current(database):
            raise SettingsError("The database's schema is behind: run `just migrate`.")
        return await work(settings, database)
    finally:
        await database.close()


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """A table whose columns are the keys of the first row; or a JSON list."""
    if as_json:
        show_json([dict(row) for row in rows])
        return
    if not rows:
        typer.echo("There are none.")
        return
    lines = [tuple(rows[0]), *(tuple(_cell(value) for value in row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_json(value: object) -> None:
    """For machines; ids and times are written as the API writes them."""
    typer.echo(json.dumps(to_jsonable_python(value), indent=2))


def _cell(value: object) -> str:
    shown = "" if value is None else str(value)
    # One line a row, and no control character of a tenant's name in the operator's terminal.
    return "".join(character if character.isprintable() else "?" for character in shown)
