"""`easel usage`."""

import json
from datetime import datetime
from uuid import UUID

import typer

from app.commands.operator import operate, show
from app.db import Database, now
from app.usage import operation


def run(*, tenant_id: UUID | None, month: datetime | None, as_json: bool) -> None:
    of = (month or now()).date()
    show(operate(lambda _, database: operation.sum_months(database, of, tenant_id)), as_json=as_json)


def export(*, after: UUID | None, form: str, as_json: bool) -> None:
    if as_json and form == "stripe":
        raise typer.BadParameter("--json is --format jsonl: leave it or --format stripe away.")
    to_line = operation.to_meter_event if form == "stripe" else operation.to_json_line

    async def write(database: Database) -> None:
        async for tenant_id, row in operation.entries_after(database, after):
            typer.echo(json.dumps(to_line(tenant_id, row)))

    operate(lambda _, database: write(database))
