"""Entries of the ledger as tests read and write them."""

import asyncio
from decimal import Decimal
from typing import Any

import httpx

from app.db import Database
from app.usage.operation import Verified, verify
from tests.app_server import ApiUser
from tests.tables import rows
from tests.usage import hand

NANO = 10**9
AT_ONCE = 20_000
Json = dict[str, Any]

# `n` entries of a user, a second apart up to a moment; each a run of its own.
MANY = """
INSERT INTO usage_entries (id, created_at, tenant_id, user_id, run_id, call, agent_key, model, kind, quantity, basis,
nano_each, cost_nano)
SELECT gen_random_uuid(), timestamptz '{until}' - n * interval '{step}', '{tenant}', '{user}', gen_random_uuid(), 1,
(ARRAY['assistant', 'designer'])[1 + n % 2], (ARRAY['gpt-6.1-sol', 'gpt-5'])[1 + n % 2],
(ARRAY['input_tokens', 'output_tokens', 'image_output_tokens'])[1 + n % 3], n % 1000, 'reported', 1000,
1000 * (n % 1000) FROM generate_series({first}, {last}) n
"""


def add_entries(database_url: str, user: ApiUser, *, count: int, until: str, step: str = "1 second") -> None:
    tenant = user.signed_up["tenant"]["id"]
    # No statement takes longer than the service's may.
    for first in range(0, count, AT_ONCE):
        last = min(first + AT_ONCE, count) - 1
        rows(database_url, MANY.format(until=until, step=step, tenant=tenant, user=user.id, first=first, last=last))


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


def assert_books_right(database_url: str, provider_url: str) -> int:
    """Each call is settled, and booked as a hand calculates from what the provider has of it; how many were estimated.

    The calls have one picture at most.
    """
    verified = asyncio.run(_verify(database_url))
    assert verified.faults == []
    estimated = {(str(one["run_id"]), one["call"]) for one in verified.estimated}
    calls = "SELECT run_id::text, number, state, response_id FROM provider_calls"
    booked = "SELECT run_id::text, call, sum(cost_nano) FROM usage_entries GROUP BY run_id, call"
    costs = {(run_id, call): int(cost) for run_id, call, cost in rows(database_url, booked)}
    for run_id, number, state, response_id in rows(database_url, calls):
        assert state == "settled"
        if (run_id, number) not in estimated and response_id is not None:
            answer = httpx.get(f"{provider_url}/responses/{response_id}", headers={"Authorization": "Bearer sk-test"})
            assert costs.pop((run_id, number)) == hand.response_cost(answer.json())
    assert costs.keys() <= estimated
    return len(estimated)


def faults(database_url: str, run_id: str) -> list[Any]:
    """What is wrong with the books of a run."""
    return [one["fault"] for one in asyncio.run(_verify(database_url)).faults if str(one["run_id"]) == run_id]


async def _verify(database_url: str) -> Verified:
    database = Database(database_url, pool_size=1)
    try:
        return await verify(database)
    finally:
        await database.close()
