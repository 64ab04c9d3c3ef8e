"""Entries of the ledger as tests read and write them."""

from decimal import Decimal
from typing import Any

from tests.app_server import ApiUser
from tests.tables import rows

NANO = 10**9
Json = dict[str, Any]

# `n` entries of a user, a second apart up to a moment; each a run of its own.
MANY = """
INSERT INTO usage_entries (id, created_at, tenant_id, user_id, run_id, call, agent_key, model, kind, quantity, basis,
nano_each, cost_nano)
SELECT gen_random_uuid(), timestamptz '{until}' - n * interval '{step}', '{tenant}', '{user}', gen_random_uuid(), 1,
(ARRAY['assistant', 'designer'])[1 + n % 2], (ARRAY['gpt-6.1-sol', 'gpt-5'])[1 + n % 2],
(ARRAY['input_tokens', 'output_tokens', 'image_output_tokens'])[1 + n % 3], n % 1000, 'reported', 1000,
1000 * (n % 1000) FROM generate_series(0, {count} - 1) n RETURNING 1
"""


def add_entries(database_url: str, user: ApiUser, *, count: int, until: str, step: str = "1 second") -> None:
    tenant = user.signed_up["tenant"]["id"]
    rows(database_url, MANY.format(until=until, step=step, tenant=tenant, user=user.id, count=count))


def entries(user: ApiUser, **query: Any) -> list[Json]:
    """All of them, page by page."""
    found: list[Json] = []
    query = {"limit": 100, **query}
    while True:
        answer = user.http.get("/v1/usage/entries", params=query)
        assert answer.status_code == 200, answer.text
        found += answer.json()["data"]
        if (cursor := answer.json()["next_cursor"]) is None:
            return found
        query["cursor"] = cursor


def usage(user: ApiUser, **query: Any) -> Json:
    answer = user.http.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def nano(amount: str | None) -> int:
    return int(Decimal(amount or "0") * NANO)
