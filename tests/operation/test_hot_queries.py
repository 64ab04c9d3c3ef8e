"""No query of a turn or a page reads a whole table, however much its tenant has stored: asked of EXPLAIN."""

import asyncio
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from app.db import Database
from app.runs import idempotency
from tests.app_server import ApiUser, AppServer, kinds, running_server
from tests.explained import Plan, Recorded, explain, recording
from tests.servers import redis_server
from tests.tables import rows
from tests.volume import MESSAGES_OF_A_CONVERSATION, Volume, insert_volume

# What a statement may read from one table or index, or sort: as much as one conversation or search may hold.
MOST_ROWS = 600
TABLES = ("messages", "attachments", "attachment_words", "runs", "conversations", "idempotency_keys")
# The sweeps look every two seconds.
SWEEPS_RAN_SECONDS = 2.0
FOREIGN_KEYS_WITHOUT_INDEX = """
SELECT conname FROM pg_constraint c WHERE contype = 'f' AND confdeltype = 'c'
AND confrelid IN ('conversations'::regclass, 'runs'::regclass, 'attachments'::regclass) AND NOT EXISTS (
  SELECT FROM pg_index WHERE indrelid = conrelid AND indpred IS NULL
  AND (indkey::int2[])[0:cardinality(conkey) - 1] @> conkey)
"""
THREE_THOUSAND_LIKE_IT = """
INSERT INTO runs SELECT (jsonb_populate_record(
  run, jsonb_build_object('id', gen_random_uuid(), 'status', CAST(:status AS text)))).*
FROM runs AS run, generate_series(1, 3000) WHERE run.id = :id
"""
DEPTH = [
    pytest.param(Volume(messages=10_000, users=10), id="small"),
    pytest.param(Volume(messages=100_000), id="full", marks=[pytest.mark.prove, pytest.mark.timeout(300)]),
]


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("volume", DEPTH)
def test_no_hot_query_reads_a_whole_table(
    server: AppServer, ada: ApiUser, stranger: ApiUser, database_url: str, volume: Volume
) -> None:
    insert_volume(database_url, _id(stranger, "tenant"), Volume(2_000, users=2), owner=_id(stranger, "user"))
    insert_volume(database_url, _id(ada, "tenant"), volume, owner=_id(ada, "user"))
    recorded = Recorded()
    with recording(server.uvicorn.app.state.database, recorded):
        use(ada)
        time.sleep(SWEEPS_RAN_SECONDS)
    asyncio.run(delete_expired_keys(database_url, recorded))
    plans = asyncio.run(explain(database_url, recorded))
    assert {name for name in TABLES if any(f" {name}" in sql for sql in plans)} == set(TABLES)
    assert [(found, sql) for sql, plan in plans.items() if (found := faults(plan))] == []


@pytest.mark.slow
def test_a_start_reads_neither_the_queues_of_others_nor_all_runs_of_its_tenant(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with (
        redis_server(tmp_path / "redis") as broker,
        # Without a worker all runs stay in the queue.
        running_server(
            database_url,
            provider_url,
            tmp_path,
            redis_url=broker.url,
            embedded_worker=False,
            tenant_queued_runs=MOST_ROWS // 2,
        ) as server,
    ):
        ada, stranger = server.sign_up("Ada's"), server.sign_up("Stranger's")
        for user, status in ((stranger, "queued"), (ada, "completed")):
            rows(database_url, THREE_THOUSAND_LIKE_IT, {"id": user.start("Hello")["id"], "status": status})
        rows(database_url, "ANALYZE runs")
        recorded = Recorded()
        with recording(server.uvicorn.app.state.database, recorded):
            first = ada.start("Hello")
            ada.start("Hello", conversation_id=first["conversation_id"], if_busy="queue")
        plans = asyncio.run(explain(database_url, recorded))
    assert any("count(*)" in sql for sql in plans)
    assert [(found, sql) for sql, plan in plans.items() if (found := faults(plan))] == []


def test_a_query_without_its_index_is_noticed(database_url: str, server: AppServer, ada: ApiUser) -> None:
    insert_volume(database_url, _id(ada, "tenant"), Volume(10_000, users=10), owner=_id(ada, "user"))
    rows(database_url, "DROP INDEX ix_attachments_message")
    recorded = Recorded()
    with recording(server.uvicorn.app.state.database, recorded):
        talk = ada.http.get("/v1/conversations").json()["data"][0]
        ada.messages(talk["id"])
    plans = asyncio.run(explain(database_url, recorded))
    assert [sql for sql, plan in plans.items() if faults(plan)]


def test_what_is_deleted_with_another_row_is_found_by_an_index(database_url: str) -> None:
    assert rows(database_url, FOREIGN_KEYS_WITHOUT_INDEX) == []


async def delete_expired_keys(url: str, recorded: Recorded) -> None:
    database = Database(url, pool_size=1)
    with recording(database, recorded):
        await idempotency.delete_expired(database)
    await database.close()


def use(ada: ApiUser) -> None:
    """A turn, an image and a page of everything, in what has been there for long."""
    talk = ada.http.get("/v1/conversations").json()["data"][0]["id"]
    for agent_key, words in (("assistant", "Hello"), ("designer", "Draw a boat")):
        ada.http.headers["Idempotency-Key"] = words.replace(" ", "-")
        events = ada.ask(words, agent_key=agent_key, conversation_id=talk)
        assert kinds(events)[-1] == "run.completed"
    ada.http.headers.pop("Idempotency-Key")
    for _ in range(MESSAGES_OF_A_CONVERSATION // 2):
        # Until the newest image is further back than the history goes.
        ada.ask("Hello", agent_key="assistant", conversation_id=talk)
    image = ada.http.get("/v1/attachments").json()["data"][0]
    for path in (
        f"/v1/runs/{events[0]['run_id']}",
        "/v1/runs",
        "/v1/runs?status=completed",
        f"/v1/runs?conversation_id={talk}",
        "/v1/conversations?q=Talk",
        f"/v1/conversations/{talk}",
        f"/v1/conversations/{talk}/messages",
        f"/v1/attachments/{image['object_id']}",
        "/v1/attachments?kind=generated",
        *(f"/v1/attachments?q={q}" for q in ("quokka", "house", "nothing", "house quokka")),
    ):
        assert ada.http.get(path).is_success, path
    ada.ask("Look", agent_key="assistant", attachments=[image["object_id"]])
    assert ada.http.delete(f"/v1/attachments/{image['object_id']}").is_success
    assert ada.http.delete(f"/v1/conversations/{talk}").is_success


def faults(plan: Plan) -> list[str]:
    """Nodes that read or sort too much, and whole tables read in sequence that an index could serve."""
    return [
        f"{node['Node Type']} {node.get('Relation Name', '')}: {count} rows"
        for node in nodes(plan)
        if (count := rows_of(node)) > MOST_ROWS
    ]


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def rows_of(node: Plan) -> int:
    read = node["Actual Rows"] + sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return int(read * node["Actual Loops"])


def _id(user: ApiUser, kind: str) -> UUID:
    return UUID(user.signed_up[kind]["id"])
