"""Migrations beside traffic: how long the service's statements wait while each of them runs."""

import asyncio
import itertools
import os
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest

from app import schema_steps
from app.db import SET_RIGHTS, uuid7
from app.migrate import migrate
from app.schema import head_revision
from tests import migrations, timeouts
from tests.results import Results
from tests.tables import rows
from tests.volume import Volume

FULL = "EASEL_PROVE" in os.environ
SEED = 11
CONNECTIONS = 6
LONGEST_WAIT = 1 * timeouts.SCALE
# A request waits for a step that has got its lock as well, and for the processor.
WAIT_BEHIND_A_LOCK = (schema_steps.LOCK_TIMEOUT_MS / 1000 + 0.5) * timeouts.SCALE

# In columns that each revision has; after those of 0001 `family_id` is the only one that a later one took away.
RIGHTS = str(SET_RIGHTS).replace(":role", "$1::text").replace(":tenant", "$2::text")
GALLERY = """
SELECT id, status, filename, size_bytes, variants FROM attachments WHERE tenant_id = $1 AND user_id = $2
ORDER BY id DESC LIMIT 20
"""
CONVERSATIONS = """
SELECT id, title, updated_at FROM conversations WHERE tenant_id = $1 AND user_id = $2 ORDER BY updated_at DESC LIMIT 20
"""
MESSAGES = "SELECT id, role, text FROM messages WHERE tenant_id = $1 AND conversation_id = $2 ORDER BY id"
TALK = """
INSERT INTO messages (id, created_at, tenant_id, conversation_id, run_id, role, text)
VALUES ($1, now(), $2, $3, $4, 'user', 'Draw a house')
"""
START = """
INSERT INTO runs (id, created_at, tenant_id, conversation_id, user_id, agent_key, status, attempt, options,
input_message_id, output_message_id, calling_turn, last_seq)
VALUES ($1, now(), $2, $3, $4, 'designer', 'running', 1, '{}', $1, $1, 1, 1)
"""
DRAW = """
INSERT INTO attachments (id, created_at, tenant_id, conversation_id, run_id, user_id, kind, status, filename, mime_type,
size_bytes, sha256, storage_key, options)
VALUES ($1, now(), $2, $3, $4, $5, 'generated', 'pending', 'a.png', 'image/png', 1000, repeat('0', 64), 'k', '{}')
"""
STORE = "UPDATE attachments SET status = 'stored', variants = '[{\"size_bytes\": 10}]' WHERE tenant_id = $1 AND id = $2"
LOOK = "UPDATE attachments SET blurhash = 'x' WHERE tenant_id = $1 AND id = $2"
END = "UPDATE runs SET status = 'completed', finished_at = now() WHERE tenant_id = $1 AND id = $2"
TOUCH = "UPDATE conversations SET updated_at = now() WHERE tenant_id = $1 AND id = $2"
BOOK = """
INSERT INTO usage_entries (id, created_at, tenant_id, user_id, run_id, model, kind, quantity)
VALUES ($1, now(), $2, $3, $4, 'm', 'output_tokens', 7)
"""
MEMBER = """
SELECT u.id, u.email, t.name, m.role FROM memberships m JOIN users u ON u.id = m.user_id
JOIN tenants t ON t.id = m.tenant_id WHERE m.user_id = $1
"""
TOKEN = "SELECT id, kind, expires_at FROM tokens WHERE secret_hash = $1"


@dataclass
class Traffic:
    """What requests do to one tenant, until it is ended; the longest of them by the phase that it ended in."""

    url: str
    tenant: UUID
    phase: str = "before"
    longest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: list[str] = field(default_factory=list)
    ended: bool = False

    async def run(self, seed: int) -> None:
        dice = random.Random(seed)
        connection = await cast(Any, asyncpg).connect(self.url)
        owned = "SELECT user_id, id FROM conversations ORDER BY id LIMIT 200"
        chosen = [tuple(row) for row in await connection.fetch(owned)]
        drawn = [row["id"] for row in await connection.fetch("SELECT id FROM attachments ORDER BY id LIMIT 2000")]
        for kind in itertools.cycle((self._read, self._write, self._sign_in, self._look)):
            if self.ended:
                break
            began = time.monotonic()
            user, conversation = dice.choice(chosen)
            try:
                await kind(connection, user, conversation, dice.choice(drawn))
            except asyncpg.PostgresError as error:
                self.failures.append(f"{self.phase}: {kind.__name__}: {error}")
            self.longest[self.phase] = max(self.longest[self.phase], time.monotonic() - began)
            self.requests[self.phase] += 1
            await asyncio.sleep(0.005)
        await connection.close()

    async def _read(self, connection: Any, user: UUID, conversation: UUID, image: UUID) -> None:
        async with self._tenant(connection):
            await connection.fetch(GALLERY, self.tenant, user)
            await connection.fetch(CONVERSATIONS, self.tenant, user)
            await connection.fetch(MESSAGES, self.tenant, conversation)

    async def _write(self, connection: Any, user: UUID, conversation: UUID, image: UUID) -> None:
        run, new = uuid7(), uuid7()
        async with self._tenant(connection):
            await connection.execute(TOUCH, self.tenant, conversation)
            await connection.execute(START, run, self.tenant, conversation, user)
            await connection.execute(TALK, uuid7(), self.tenant, conversation, run)
        async with self._tenant(connection):
            await connection.execute(DRAW, new, self.tenant, conversation, run, user)
        async with self._tenant(connection):
            await connection.execute(STORE, self.tenant, new)
            await connection.execute(END, self.tenant, run)
            await connection.execute(BOOK, uuid7(), self.tenant, user, run)

    async def _look(self, connection: Any, user: UUID, conversation: UUID, image: UUID) -> None:
        async with self._tenant(connection):
            await connection.execute(LOOK, self.tenant, image)

    async def _sign_in(self, connection: Any, user: UUID, conversation: UUID, image: UUID) -> None:
        async with connection.transaction():
            await connection.fetchrow(RIGHTS, "easel_identity", "")
            await connection.fetch(MEMBER, user)
            await connection.fetch(TOKEN, b"none")

    @asynccontextmanager
    async def _tenant(self, connection: Any) -> AsyncGenerator[None]:
        async with connection.transaction():
            await connection.fetchrow(RIGHTS, "easel_app", str(self.tenant))
            yield


@asynccontextmanager
async def flowing(url: str, tenant: UUID, connections: int = CONNECTIONS) -> AsyncGenerator[Traffic]:
    traffic = Traffic(url, tenant)
    async with asyncio.TaskGroup() as tasks:
        for number in range(connections):
            tasks.create_task(traffic.run(SEED + number))
        yield traffic
        traffic.ended = True


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.timeout(900 if FULL else 120)
async def test_no_migration_keeps_a_request_waiting(empty_database_url: str, results: Results) -> None:
    volume = Volume(messages=400_000, messages_of_an_image=2) if FULL else Volume(messages=4_000)
    url = empty_database_url
    first, *others = migrations.revisions()
    await migrations.upgrade(url, first)
    tenant = await asyncio.to_thread(migrations.fill, url, volume)
    async with flowing(url, tenant) as traffic:
        await asyncio.sleep(3 if FULL else 0.3)
        seconds = await migrate_beside(traffic, others)
        traffic.phase = "after"
        await asyncio.sleep(0.3)
    waits = {revision: traffic.longest[revision] for revision in others}
    results(
        39,
        "migrations beside traffic",
        tried=f"{len(others)} migrations on {volume.attachments:,} attachments and {volume.messages:,} messages,"
        f" {sum(traffic.requests.values()):,} requests beside them, {seconds:.0f} s",
        kept=f"{len(traffic.failures)} failed; the longest waited, by migration: "
        + ", ".join(f"{revision} {wait * 1000:.0f} ms" for revision, wait in waits.items()),
        seed=SEED,
    )
    assert traffic.failures == []
    assert {revision: wait for revision, wait in waits.items() if wait > LONGEST_WAIT} == {}
    unfilled = "SELECT count(*) FROM attachments WHERE stored_bytes IS NULL"
    assert await asyncio.to_thread(rows, url, unfilled) == [(0,)]


async def migrate_beside(traffic: Traffic, revisions: list[str]) -> float:
    """The seconds that it took."""
    began = time.monotonic()
    program = migrations.program(traffic.url, *revisions)
    process = await asyncio.create_subprocess_exec(*program, cwd=migrations.ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for revision in revisions:
        traffic.phase = revision
        assert (await process.stdout.readline()).decode().strip() == revision
    assert await process.wait() == 0
    return time.monotonic() - began


@pytest.mark.slow
async def test_who_comes_after_a_migration_does_not_wait_for_its_lock(empty_database_url: str) -> None:
    url = empty_database_url
    tenant = await asyncio.to_thread(filled_at, url, "0007")
    async with flowing(url, tenant, connections=2) as traffic:
        async with reading_attachments(url):
            migrating = asyncio.create_task(asyncio.to_thread(asyncio.run, migrations.upgrade(url, "0008")))
            await asyncio.sleep(2 * WAIT_BEHIND_A_LOCK)
            assert not migrating.done()
        await migrating
    assert traffic.failures == []
    assert max(traffic.longest.values()) < WAIT_BEHIND_A_LOCK


@pytest.mark.slow
async def test_a_lock_that_is_never_free_ends_the_migration_with_a_sentence(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = empty_database_url
    await asyncio.to_thread(filled_at, url, "0007")
    monkeypatch.setattr(schema_steps, "LOCK_GIVE_UP_SECONDS", 0.1)
    async with reading_attachments(url):
        with pytest.raises(schema_steps.MigrationError, match="step 'extend_attachments' got no lock within"):
            await migrate(url)
    done = await asyncio.to_thread(rows, url, "SELECT step FROM app.migration_steps")
    assert ("extend_messages",) in done
    assert await migrate(url) == head_revision()
    assert await asyncio.to_thread(rows, url, "SELECT to_regclass('app.migration_steps')") == [(None,)]


def filled_at(url: str, revision: str) -> UUID:
    """A little of everything in a database at this revision; its tenant."""
    asyncio.run(migrations.upgrade(url, "0001"))
    tenant = migrations.fill(url, Volume(messages=200))
    asyncio.run(migrations.upgrade(url, revision))
    return tenant


@asynccontextmanager
async def reading_attachments(url: str) -> AsyncGenerator[None]:
    """A transaction that has read the table and is open, as that of a report or of a backup is."""
    connection = await cast(Any, asyncpg).connect(url)
    async with connection.transaction():
        await connection.execute("SELECT FROM attachments LIMIT 1")
        yield
    await connection.close()
