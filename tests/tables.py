"""What lies in a database, whatever its tables are; read as superuser, past row security."""

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database

_COLUMNS = """
SELECT table_name, column_name, data_type FROM information_schema.columns
JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY 1, 2
"""


def every_value(url: str) -> dict[str, list[bytes]]:
    """`table.column` -> its values that are not null: bytes as they are, all else as Postgres writes it."""
    return asyncio.run(_connected(url, _read_all))


def rows(url: str, statement: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """The rows that a statement answers with; it is committed."""

    async def execute(connection: AsyncConnection) -> list[tuple[Any, ...]]:
        result = await connection.execute(text(statement), values or {})
        return [tuple(row) for row in result.all()] if result.returns_rows else []

    return asyncio.run(_connected(url, execute))


async def _read_all(connection: AsyncConnection) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for table, column, kind in (await connection.execute(text(_COLUMNS))).all():
        chosen = f'"{column}"' if kind == "bytea" else f"convert_to(\"{column}\"::text, 'UTF8')"
        statement = f'SELECT {chosen} FROM "{table}" WHERE "{column}" IS NOT NULL'  # noqa: S608 - named by the catalogue
        found[f"{table}.{column}"] = [bytes(value) for value in await connection.scalars(text(statement))]
    return found


async def _connected(url: str, work: Any) -> Any:
    database = Database(url, pool_size=1)
    try:
        async with database.engine.begin() as connection:
            return await work(connection)
    finally:
        await database.close()
