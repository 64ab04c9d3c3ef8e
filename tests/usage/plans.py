"""Plans as tests give them to a tenant, and limits as its members read them."""

import json
import secrets
from typing import Any

import httpx

from tests.app_server import ApiUser
from tests.tables import rows
from tests.usage.books import NANO, Json


def give_plan(database_url: str, user: ApiUser, **limits: float) -> str:
    """A plan of their tenant's own with these limits and no other, from now on; its name. Money is in USD."""
    name = f"plan-{secrets.token_hex(4)}"
    columns = {key.replace("_usd", "_nano"): amount for key, amount in limits.items()}
    values = {
        column: int(amount * NANO) if column.endswith("_nano") else int(amount) for column, amount in columns.items()
    }
    record = "INSERT INTO plans SELECT * FROM jsonb_populate_record(NULL::plans, CAST(:plan AS jsonb))"
    rows(database_url, record, {"plan": json.dumps({"name": name, **values})})
    moved = "UPDATE tenants SET plan = :plan WHERE id = :tenant"
    rows(database_url, moved, {"plan": name, "tenant": user.signed_up["tenant"]["id"]})
    return name


def limits_of(user: ApiUser) -> dict[tuple[str, str], Json]:
    """By limit and scope."""
    answer = user.http.get("/v1/limits")
    assert answer.status_code == 200, answer.text
    return {(one["limit"], one["scope"]): one for one in answer.json()["data"]}


def used(user: ApiUser, limit: str, scope: str = "tenant") -> tuple[Any, Any]:
    """How much is used, and how much reserved."""
    one = limits_of(user)[limit, scope]
    return one["used"], one["reserved"]


def start(user: ApiUser, said: str = "Hello", **fields: Any) -> httpx.Response:
    return user.http.post("/v1/runs", json={"input": said, **fields})
