"""Pages of what is stored, and the first turn of a tenant that has 20,000 images."""

import asyncio
import json
import statistics
import time
from collections.abc import Generator
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
from minio import Minio

from tests.app_server import ApiUser
from tests.bench.images import SMALL, cost_of_turn
from tests.bench.lab import Easel, Lab, sql, target_of
from tests.bench.machine import cpu
from tests.bench.report import Row
from tests.volume import Volume, insert_volume

REPEATS, REQUESTS = 5, 20
VOLUME = Volume(messages=100_000)
PAGES = {
    "gallery, a page of 20": "/v1/attachments?limit=20",
    "gallery search, a rare word, 20,000 images": "/v1/attachments?q=quokka",
}
ONE_QUERY = """SELECT m.id, m.role, m.text, m.created_at, a.id AS object_id, a.storage_key, a.filename, a.mime_type
FROM messages m LEFT JOIN attachments a ON a.tenant_id = m.tenant_id AND a.message_id = m.id
WHERE m.tenant_id = $1 AND m.conversation_id = $2 ORDER BY m.id LIMIT 50"""


def rows(lab: Lab) -> Generator[Row]:
    with lab.easel() as easel:
        busy, empty = easel.sign_up(), easel.sign_up()
        tenant, owner = (UUID(busy.signed_up[name]["id"]) for name in ("tenant", "user"))
        insert_volume(easel.database_url, tenant, VOLUME, owner=owner)
        yield _first_turns(easel, busy, empty)
        talk = busy.http.get("/v1/conversations").json()["data"][-1]["id"]
        sql(easel.database_url, _fifty_images(tenant, UUID(talk)), "ANALYZE")
        listed = f"/v1/conversations/{talk}/messages?limit=50"
        seconds, used = _get(easel, busy, listed, images=50)
        floor = asyncio.run(_query_and_sign(lab, easel.database_url, tenant, UUID(talk)))
        what = "list 50 messages with 50 images"
        yield Row(f"{what}, p50", 1000 * seconds, "ms", 1000 * floor[0], "one query + signing", ratio_most=1.5)
        yield Row(f"{what}, CPU", 1000 * used, "ms", 1000 * floor[1], "one query + signing")
        for what, path in PAGES.items():
            seconds, used = _get(easel, busy, path)
            yield Row(f"{what}, p50", 1000 * seconds, "ms", most=5)


def _first_turns(easel: Easel, busy: ApiUser, empty: ApiUser) -> Row:
    of_busy, of_empty = (target_of(user, "designer") for user in (busy, empty))
    costs: dict[str, list[float]] = {"busy": [], "empty": []}
    for _ in range(REPEATS + 1):
        costs["busy"].append(1000 * cost_of_turn(easel, of_busy, SMALL)[0])
        costs["empty"].append(1000 * cost_of_turn(easel, of_empty, SMALL)[0])
    # The first of each prepares statements.
    mine, other = (statistics.median(found[1:]) for found in (costs["busy"], costs["empty"]))
    what = "first turn of a conversation, 20,000 images in the tenant, CPU"
    return Row(what, mine, "ms", other, "of a new tenant", ratio_most=1.1)


def _get(easel: Easel, user: ApiUser, path: str, *, images: int = 0) -> tuple[float, float]:
    """Seconds for the client, and of processor time."""
    answer = user.http.get(path)
    assert answer.status_code == 200, answer.text
    assert not images or sum(len(one["attachments"]) for one in answer.json()["data"]) == images, answer.text[:300]
    took: list[float] = []
    used: list[float] = []
    for _ in range(REPEATS):
        before = cpu(easel.pid)
        for _ in range(REQUESTS):
            began = time.perf_counter()
            user.http.get(path)
            took.append(time.perf_counter() - began)
        used.append((cpu(easel.pid) - before) / REQUESTS)
    return statistics.median(took), statistics.median(used)


async def _query_and_sign(lab: Lab, url: str, tenant: UUID, talk: UUID) -> tuple[float, float]:
    """Seconds for the caller, and of processor time."""
    s3 = lab.s3
    store = Minio(s3.endpoint, s3.access_key, s3.secret_key, secure=False, region="us-east-1")
    connection = await cast(Any, asyncpg).connect(url)
    took: list[float] = []
    used: list[float] = []
    for _ in range(REPEATS * REQUESTS):
        began, before = time.perf_counter(), time.process_time()
        found = [dict(row) for row in await connection.fetch(ONE_QUERY, tenant, talk)]
        for row in found:
            row["url"] = store.presigned_get_object("easel", row["storage_key"] or "-", timedelta(minutes=5))
        json.dumps(found, default=str)
        took.append(time.perf_counter() - began)
        used.append(time.process_time() - before)
    await connection.close()
    return statistics.median(took), statistics.median(used)


def _fifty_images(tenant: UUID, talk: UUID) -> str:
    """One image for each message of a conversation."""
    return f"""UPDATE attachments a SET conversation_id = m.conversation_id, message_id = m.id, run_id = m.run_id FROM
    (SELECT row_number() OVER (ORDER BY id) n, id, conversation_id, run_id FROM messages
    WHERE conversation_id = '{talk}') m,
    (SELECT row_number() OVER (ORDER BY conversation_id = '{talk}' DESC, id) n, id FROM attachments
    WHERE tenant_id = '{tenant}' AND kind = 'generated') x WHERE x.n = m.n AND a.id = x.id"""  # noqa: S608 - composed of ids
