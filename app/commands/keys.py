"""`easel keys`."""

from uuid import UUID

from app.commands.operator import operate, show
from app.tenants import operation


def list_all(*, tenant_id: UUID, as_json: bool) -> None:
    show(operate(lambda _, database: operation.list_keys(database, tenant_id)), as_json=as_json)


def revoke(*, key_id: UUID, as_json: bool) -> None:
    show([operate(lambda _, database: operation.revoke_key(database, key_id))], as_json=as_json)
