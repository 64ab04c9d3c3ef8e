"""The statements that a process sends to Postgres, and what EXPLAIN says of each."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database
from tests.round_trips import called_from, noting

Plan = dict[str, Any]
# Compares all rows with all objects.
ONCE_A_DAY = "app.attachments.reconcile"


class Recorded:
    """Each statement once, with its values, and the role and tenant it ran with."""

    def __init__(self) -> None:
        self.statements: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        self.closed = False
        self._rights: dict[int, Any] = {}

    def note(self, connection: int, name: str, sql: str, given: Sequence[Any]) -> None:
        if name != "bind_execute":
            return
        if "set_config('role'" in sql:
            self._rights[connection] = given[0]
        elif not called_from(ONCE_A_DAY):
            self.statements[sql] = (self._rights.get(connection), tuple(given[0]))


def recording(database: Database, recorded: Recorded) -> AbstractContextManager[None]:
    recorded.closed = False
    return noting(database.engine, recorded)


async def explain(url: str, recorded: Recorded) -> dict[str, Plan]:
    """What each statement did, done again and rolled back; an insert of given values reads nothing."""
    database = Database(url, pool_size=1)
    plans: dict[str, Plan] = {}
    async with database.engine.connect() as connection:
        for statement, (rights, values) in recorded.statements.items():
            if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH locked")):
                plans[" ".join(statement.split())] = await _plan(connection, statement, rights, values)
    await database.close()
    return plans


async def _plan(connection: AsyncConnection, statement: str, rights: Any, values: tuple[Any, ...]) -> Plan:
    if rights is not None:
        sets = "SELECT set_config('role', $1, true), set_config('app.tenant_id', $2, true)"
        await connection.exec_driver_sql(sets, rights)
    found = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
    plan = cast(Plan, found.scalar_one()[0]["Plan"])
    await connection.rollback()
    return plan
