"""`easel keys`."""

from collections.abc import Sequence
from uuid import UUID

from app.commands.operator import operate, show
from app.tenants import operation


def list_all(*, tenant_id: UUID, as_json: bool) -> None:
    keys = operate(lambda _, database: operation.list_keys(database, tenant_id))
    show(keys if as_json else [{**key, "scopes": _words(key["scopes"])} for key in keys], as_json=as_json)


def revoke(*, key_id: UUID, as_json: bool) -> None:
    show([operate(lambda _, database: operation.revoke_key(database, key_id))], as_json=as_json)


def _words(scopes: Sequence[str] | None) -> str:
    return "all" if scopes is None else " ".join(scopes)
