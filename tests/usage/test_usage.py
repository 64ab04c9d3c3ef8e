"""Sums over the ledger: equal to the last digit by any grouping, of whole days in UTC, each reader's own."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.app_server import ApiUser, AppServer
from tests.explained import Plan, Recorded, explain, recording
from tests.results import Results
from tests.tables import rows
from tests.usage.books import Json, add_entries, entries, nano, usage

BY_INDEX = {"Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Bitmap Index Scan"}
GROUPINGS = ["day", "agent", "user", "model", "day,agent", "user,model", "day,agent,user,model"]


def refused(user: ApiUser, path: str = "/v1/usage", **query: Any) -> tuple[int, str]:
    answer = user.http.get(path, params=query)
    return answer.status_code, answer.json()["detail"]


def test_every_grouping_sums_up_to_the_entries_and_to_what_the_runs_show(
    server: AppServer, ada: ApiUser, stranger: ApiUser
) -> None:
    grace = server.sign_up_invited(ada, "member")
    runs = [
        user.ask(said, **fields)[-1]["run"]
        for user in (ada, grace)
        for said, fields in (
            ("Hello", {}),
            ("Hello [offline: answers_as=gpt-5] [offline: tier=flex]", {}),
            ("Hello [offline: answers_as=gpt-9-nova]", {}),
            ("Draw a house [offline: no_usage]", {"agent_key": "designer", "image": {"quality": "low"}}),
        )
    ]
    stranger.ask("Hello")
    found = entries(ada)
    total = usage(ada)["total"]
    cost = sum(nano(entry["cost_usd"]) for entry in found)
    assert cost == nano(total["cost_usd"]) == sum(nano(run["cost_usd"]) for run in runs)
    assert (total["runs"], total["images"]) == (8, 2)
    estimated = [entry for entry in found if entry["basis"] == "estimated"]
    assert nano(total["estimated_usd"]) == sum(nano(entry["cost_usd"]) for entry in estimated) > 0
    assert total["unpriced"] == sum(entry["basis"] == "unpriced" for entry in found) == 4
    for grouping in GROUPINGS:
        groups = usage(ada, group_by=grouping)
        assert groups["total"] == total
        assert sum(nano(group["cost_usd"]) for group in groups["data"]) == cost
        for kind, quantity in total["quantities"].items():
            assert sum(group["quantities"].get(kind, 0) for group in groups["data"]) == quantity
            assert quantity == sum(entry["quantity"] for entry in found if entry["kind"] == kind)
        named = {name for group in groups["data"] for name in group} - total.keys()
        names = {"day": "day", "agent": "agent_key", "user": "user_id", "model": "model"}
        assert named == {names[group] for group in grouping.split(",")}
    of_grace = usage(ada, user_id=grace.id)["total"]
    assert nano(of_grace["cost_usd"]) == sum(nano(run["cost_usd"]) for run in runs[4:])
    assert usage(ada, agent_key="designer")["total"]["images"] == 2


def test_members_see_their_own_and_admins_the_tenants(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    people = {role: server.sign_up_invited(ada, role) for role in ("admin", "member", "viewer")}
    ada.ask("Hello")
    people["member"].ask("Hello")
    assert usage(ada)["total"]["runs"] == usage(people["admin"])["total"]["runs"] == 2
    assert usage(people["member"])["total"]["runs"] == 1
    assert {entry["user_id"] for entry in entries(people["member"])} == {people["member"].id}
    assert usage(people["member"], user_id=people["member"].id)["total"]["runs"] == 1
    answer = people["member"].http.get("/v1/usage", params={"user_id": ada.id})
    assert (answer.status_code, answer.json()["needs_role"]) == (403, "admin")
    for path in ("/v1/usage", "/v1/usage/entries"):
        assert people["viewer"].http.get(path).status_code == 403
    assert (usage(stranger)["data"], entries(stranger)) == ([], [])
    key = people["member"].http.post("/v1/api-keys", json={"name": "A key", "scopes": ["usage:read"]}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert server.anyone().get("/v1/usage", headers=headers).json()["total"]["runs"] == 1
    other = people["member"].http.post("/v1/api-keys", json={"name": "A key", "scopes": ["chat:read"]}).json()["key"]
    answer = server.anyone().get("/v1/usage", headers={"Authorization": f"Bearer {other}"})
    assert (answer.status_code, answer.json()["needs_scope"]) == (403, "usage:read")


def test_days_begin_at_midnight_in_utc(ada: ApiUser, database: str) -> None:
    add_entries(database, ada, count=2, until="2026-03-01 00:00:00+00", step="1 microsecond")
    assert [
        (group["day"], group["runs"]) for group in usage(ada, **{"from": "2026-02-01", "to": "2026-04-01"})["data"]
    ] == [
        ("2026-02-28", 1),
        ("2026-03-01", 1),
    ]
    february, march = {"from": "2026-02-01", "to": "2026-03-01"}, {"from": "2026-03-01"}
    assert usage(ada, **february)["total"]["runs"] == usage(ada, **march)["total"]["runs"] == 1
    (entry,) = entries(ada, **march)
    assert entry["at"].startswith("2026-03-01T00:00:00")


def test_a_runs_entries_are_listed_whenever_it_was(ada: ApiUser, database: str) -> None:
    run_id = ada.ask("Hello")[0]["run"]["id"]
    rows(
        database, "UPDATE usage_entries SET created_at = '2025-02-03 04:05:06+00' WHERE run_id = :run", {"run": run_id}
    )
    assert len(entries(ada, run_id=run_id)) == 2
    assert len(entries(ada, run_id=run_id, **{"from": "2025-02-03", "to": "2025-02-04"})) == 2
    assert entries(ada, run_id=run_id, **{"from": "2025-02-04"}) == []
    assert entries(ada) == []


def test_groups_and_entries_come_in_pages(ada: ApiUser, database: str) -> None:
    add_entries(database, ada, count=250, until="2026-03-01 12:00:00+00", step="3 hours")
    query: Json = {"from": "2026-01-01", "to": "2026-12-31", "group_by": "day,model"}
    whole, found, cursor = usage(ada, **query, limit=1000), list[Json](), None
    while True:
        page = usage(ada, **query, limit=7, **({"cursor": cursor} if cursor else {}))
        assert page["total"] == whole["total"]
        found += page["data"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == whole["data"]
    assert len(found) > 50
    listed = entries(ada, **{"from": "2026-01-01", "to": "2026-12-31"})
    assert [entry["at"] for entry in listed] == sorted(entry["at"] for entry in listed)
    assert len({entry["id"] for entry in listed}) == 250


def test_a_cursor_of_another_tenant_or_question_is_refused(ada: ApiUser, stranger: ApiUser, database: str) -> None:
    for user in (ada, stranger):
        add_entries(database, user, count=30, until="2026-03-01 12:00:00+00", step="1 day")
    period: Json = {"from": "2026-01-01", "to": "2026-12-31", "limit": 5}
    theirs = usage(stranger, **period)["next_cursor"]
    for query in ({"cursor": theirs}, {"cursor": "nonsense"}, {"cursor": "W10="}, {"cursor": "ÿ"}):
        status, detail = refused(ada, **period, **query)
        assert (status, detail) == (422, "cursor: the `next_cursor` of the page before, with the same question.")
    own = usage(ada, **period)["next_cursor"]
    assert refused(ada, **{**period, "group_by": "model"}, cursor=own)[0] == 422
    seal = json.loads(base64.urlsafe_b64decode(own))[0]
    for forged in (5, None, [], [seal], [seal, "a", "b"], [seal, "\0"], [seal, 5], {"a": 1}):
        made = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode()
        assert refused(ada, **period, cursor=made)[0] == 422
    answer = stranger.http.get("/v1/usage/entries", params=period)
    status, detail = refused(ada, "/v1/usage/entries", **period, cursor=answer.json()["next_cursor"])
    assert (status, detail) == (422, "cursor: the `next_cursor` of the page before.")


def test_a_cursor_that_was_made_by_hand_is_refused_in_every_group(ada: ApiUser, database: str) -> None:
    add_entries(database, ada, count=3, until="2026-03-01 12:00:00+00", step="1 day")
    for groups, value in (("day,model", "\0"), ("day,user", "zz"), ("day,agent", "\0"), ("day", "2026-02-30")):
        query: Json = {"from": "2026-01-01", "to": "2026-12-31", "limit": 1, "group_by": groups}
        own = json.loads(base64.urlsafe_b64decode(usage(ada, **query)["next_cursor"]))
        forged = base64.urlsafe_b64encode(json.dumps([*own[:-1], value]).encode()).decode()
        assert refused(ada, **query, cursor=forged)[0] == 422
    assert refused(ada, agent_key="\0")[0] == 422


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"from": "2026-03-02", "to": "2026-03-01"}, "to: a day after `from` (2026-03-02), 366 days later at most."),
        ({"from": "2026-03-01", "to": "2026-03-01"}, "to: a day after `from` (2026-03-01), 366 days later at most."),
        ({"from": "2025-01-01", "to": "2026-03-01"}, "366 days later at most."),
        ({"group_by": "month"}, "group_by: some of day, agent, user, model, each once, with commas between."),
        ({"group_by": "day,day"}, "group_by: some of"),
        ({"group_by": ""}, "group_by: some of"),
        ({"from": "yesterday"}, "from: "),
        ({"from": "0001-01-01"}, "from: "),
        ({"to": "9999-12-31"}, "to: "),
        ({"limit": "0"}, "limit: "),
        ({"user_id": "me"}, "user_id: "),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused_in_one_sentence(ada: ApiUser, query: Json, told: str) -> None:
    status, detail = refused(ada, **query)
    assert status == 422
    assert told in detail
    assert "\n" not in detail


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.prove, pytest.mark.timeout(600)])], ids=["few", "many"]
)
def test_a_month_is_summed_up_by_an_index(
    server: AppServer, ada: ApiUser, database: str, count: int, results: Results
) -> None:
    """Of a tenant with entries of a year."""
    seconds = 365 * 86_400 // count
    add_entries(database, ada, count=count, until="2026-11-30 23:59:59+00", step=f"{seconds} seconds")
    rows(database, "ANALYZE usage_entries")
    ((each,),) = rows(database, "SELECT pg_total_relation_size('usage_entries') / count(*) FROM usage_entries")
    month = {"from": "2026-11-01", "to": "2026-12-01"}
    recorded = Recorded()
    with recording(server.uvicorn.app.state.database, recorded):
        for group_by in GROUPINGS:
            usage(ada, **month, group_by=group_by)
        usage(ada, **month, user_id=ada.id, agent_key="assistant")
        page = ada.http.get("/v1/usage/entries", params=month).json()
        for query in ({**month, "cursor": page["next_cursor"]}, {"run_id": page["data"][0]["run_id"]}):
            assert ada.http.get("/v1/usage/entries", params=query).status_code == 200
    plans = {sql: plan for sql, plan in asyncio.run(explain(database, recorded)).items() if "usage_entries" in sql}
    assert len(plans) >= len(GROUPINGS) + 4
    for sql, plan in plans.items():
        assert {node["Node Type"] for node in nodes_of(plan) if "Relation Name" in node} <= BY_INDEX, sql
    summed = sorted(seconds_of(lambda: usage(ada, **month)) for _ in range(5))[2]
    paged = sorted(seconds_of(lambda: ada.http.get("/v1/usage/entries", params=month)) for _ in range(5))[2]
    results(
        7,
        "usage: sums",
        tried=f"{count} entries of a year: a month by day, a page of entries",
        kept=f"{1000 * summed:.0f} and {1000 * paged:.0f} ms; {each} bytes an entry",
    )
    assert summed < 0.3


def nodes_of(plan: Plan) -> list[Plan]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in nodes_of(part))]


def seconds_of(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began
