"""`easel tenants`."""

from uuid import UUID

import typer

from app.commands.operator import operate, show
from app.erasure import retention
from app.tenants import operation


def list_all(*, as_json: bool) -> None:
    show(operate(lambda _, database: operation.list_tenants(database)), as_json=as_json)


def show_one(*, tenant_id: UUID, as_json: bool) -> None:
    tenant, members = operate(lambda _, database: operation.show_tenant(database, tenant_id))
    if as_json:
        show([{**tenant, "members": members}], as_json=True)
        return
    show([tenant], as_json=False)
    typer.echo()
    show(members, as_json=False)


def suspend(*, tenant_id: UUID, suspended: bool, as_json: bool) -> None:
    show([operate(lambda _, database: operation.suspend(database, tenant_id, suspended=suspended))], as_json=as_json)


def plan(*, tenant_id: UUID, name: str, as_json: bool) -> None:
    show([operate(lambda _, database: operation.change_plan(database, tenant_id, name))], as_json=as_json)


def retain(*, as_json: bool) -> None:
    rows = operate(lambda settings, database: retention.retain(database, settings))
    show([{"rows": rows}], as_json=as_json)
