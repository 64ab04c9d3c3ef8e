"""Order in the store: what belongs to nobody is found and goes, what belongs to somebody stays."""

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.ingest import insert_once, new_attachment, store_image
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.attachments.reconcile import LOCK_KEY, Kind, Report, reconcile
from app.attachments.spool import Spool
from app.conversations.models import Conversation
from app.db import Base, Database, now, uuid7
from app.errors import Conflict
from app.exports.models import Export, ExportScope, archive_key
from app.exports.service import owned_keys
from app.identity.models import Tenant, User
from app.images.inspect import ImageFacts
from app.main import reconcile_store
from app.runs.models import Run
from app.settings import Settings, SettingsError
from app.storage import keys
from app.storage.outage import Outage
from app.storage.service import open_store
from app.storage.store import StorageError, Store
from tests.app_server import ApiUser, AppServer, one
from tests.results import Results
from tests.servers import GcsServer, Proxy, S3Server, gcs_server, s3_server

NO_GRACE = timedelta(0)
OLD = timedelta(days=2)
FACTS = ImageFacts(mime_type="image/png", extension="png", width=1, height=1)


@dataclass(frozen=True)
class Origin:
    """The run that an image belongs to."""

    tenant_id: UUID
    user_id: UUID
    conversation_id: UUID
    run_id: UUID


@dataclass(frozen=True)
class World:
    """A tenant with a conversation and a run, a stranger, and the store they share."""

    database: Database
    store: Store
    settings: Settings
    origin: Origin
    stranger: Origin

    @property
    def spool(self) -> Spool:
        return Spool(self.settings.data_dir / "spool")

    async def look(self, *, apply: bool, grace: timedelta = NO_GRACE) -> Report:
        return await reconcile(
            self.database, self.store, self.spool, self.settings, {keys.EXPORTS: owned_keys}, apply=apply, grace=grace
        )

    async def draw(self, origin: Origin | None = None) -> Attachment:
        data = os.urandom(64)
        row = new_attachment(
            FACTS,
            kind=AttachmentKind.GENERATED,
            **vars(origin or self.origin),
            agent_key="designer",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            tool_call_id=f"ig_{uuid4().hex}",
            options={},
        )
        row = await insert_once(self.database, row)
        return await store_image(self.database, self.store, self.spool, Outage(), row, data)

    async def upload(self, status: AttachmentStatus = AttachmentStatus.STORED, **fields: Any) -> Attachment:
        """A row alone."""
        object_id, tenant_id = uuid7(), self.origin.tenant_id
        row = Attachment(
            id=object_id,
            tenant_id=tenant_id,
            user_id=self.origin.user_id,
            kind=AttachmentKind.UPLOAD,
            status=status,
            filename="a.png",
            mime_type="image/png",
            size_bytes=1,
            sha256="-",
            storage_key=keys.upload_key(tenant_id, object_id, "png"),
            **fields,
        )
        async with self.database.tenant(tenant_id) as session:
            session.add(row)
        return row

    async def put(self, *found: str) -> None:
        for key in found:
            await self.store.put(key, b"bytes", mime_type="image/png")

    async def objects(self) -> set[str]:
        return {item.key async for item in self.store.list("t/")}

    async def row(self, object_id: UUID) -> Attachment:
        async with self.database.tenant(self.origin.tenant_id) as session:
            return await session.get_one(Attachment, object_id)

    async def rows(self) -> dict[UUID, tuple[AttachmentStatus, str | None]]:
        """Status and error's code of every row, whose ever it is."""
        statement = text("SELECT id, status, error->>'code' FROM attachments")
        async with self.database.engine.connect() as connection:
            return {row[0]: (AttachmentStatus(row[1]), row[2]) for row in await connection.execute(statement)}

    async def candidates(self) -> int:
        async with self.database.engine.connect() as connection:
            return cast(int, await connection.scalar(text("SELECT count(*) FROM orphan_candidates")))

    async def age_candidates(self) -> None:
        async with self.database.engine.begin() as connection:
            await connection.execute(text("UPDATE orphan_candidates SET marked_at = marked_at - interval '2 hours'"))

    def age(self, *found: str, by: timedelta = timedelta(hours=2)) -> None:
        """Objects in files alone can be made older than they are."""
        for key in found:
            moment = time.time() - by.total_seconds()
            os.utime(self.settings.data_dir / "objects" / key, (moment, moment))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Generator[GcsServer]:
    with gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


def s3_settings(s3: S3Server, endpoint: str | None = None) -> dict[str, Any]:
    place = {"minio_endpoint": endpoint or s3.endpoint, "storage_bucket": f"easel-{uuid4().hex[:12]}"}
    secrets = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
    return {"storage_provider": "minio", **place, **secrets}


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Files, unless a test asks for another store."""
    given: dict[str, Any] = {}
    kind = getattr(request, "param", "files")
    if kind == "memory":
        given = {"database_url": "postgresql://127.0.0.1/unused"}
    elif kind == "minio":
        given = s3_settings(request.getfixturevalue("s3"))
    elif kind == "gcs":
        url = cast(GcsServer, request.getfixturevalue("gcs")).url
        place = {"storage_emulator_host": url, "storage_bucket": f"easel-{uuid4().hex[:12]}"}
        given = {"storage_provider": "gcs", "gcs_project_id": "easel-tests", **place}
    return Settings.model_validate({"data_dir": tmp_path, **given})


@pytest.fixture
async def world(database_url: str, settings: Settings) -> AsyncGenerator[World]:
    database, store = Database(database_url, pool_size=10), open_store(settings)
    await store.prepare(create_bucket=True)
    origins = [Origin(uuid7(), uuid7(), uuid7(), uuid7()) for _ in range(2)]
    async with AsyncSession(database.engine) as session, session.begin():
        for row in (row for origin in origins for row in people_of(origin)):
            session.add(row)
            await session.flush()
    yield World(database, store, settings, *origins)
    await store.close()
    await database.close()


async def retry_on_conflict(work: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await work()
                return
            except Conflict:
                await asyncio.sleep(0.1)


def people_of(origin: Origin) -> list[Base]:
    owned: dict[str, Any] = {"tenant_id": origin.tenant_id, "user_id": origin.user_id, "agent_key": "designer"}
    return [
        Tenant(id=origin.tenant_id, name="A tenant"),
        User(id=origin.user_id, email=f"{origin.user_id}@example.org", password_hash="-"),
        Conversation(**owned, id=origin.conversation_id, title="A cat"),
        Run(
            **owned,
            id=origin.run_id,
            conversation_id=origin.conversation_id,
            input_message_id=uuid7(),
            output_message_id=uuid7(),
        ),
    ]


def orphans_of(tenant_id: UUID, count: int) -> list[str]:
    """Keys of originals, uploads and variants of no row."""
    made = [
        lambda: keys.image_key(tenant_id, uuid7(), "png"),
        lambda: keys.upload_key(tenant_id, uuid7(), "webp"),
        lambda: keys.variant_key(tenant_id, uuid7(), 256),
    ]
    return [made[number % 3]() for number in range(count)]


def counts(report: Report) -> dict[Kind, tuple[int, int, int]]:
    """What was found, noted and done, where it was anything."""
    return {kind: (count.found, count.marked, count.done) for kind, count in report.items() if count.found}


@pytest.mark.parametrize("settings", ["memory", "files", "minio", "gcs"], indirect=True)
async def test_what_was_planted_is_found_and_nothing_else(world: World) -> None:
    live = [await world.draw(origin) for origin in (world.origin, world.stranger) for _ in range(8)]
    copies = [keys.variant_key(row.tenant_id, row.id, 512) for row in live[::3]]
    await world.put(*copies)
    lost = [await world.draw() for _ in range(5)] + [await world.upload() for _ in range(5)]
    for row in lost[:5]:
        await world.store.delete(row.storage_key)
    inserted = orphans_of(world.origin.tenant_id, 7) + orphans_of(world.stranger.tenant_id, 3)
    await world.put(*inserted)
    objects, rows = await world.objects(), await world.rows()

    found = counts(await world.look(apply=False))
    assert found == {Kind.ORPHAN: (10, 0, 0), Kind.MISSING: (10, 0, 0)}
    assert (await world.objects(), await world.rows(), await world.candidates()) == (objects, rows, 0)

    assert counts(await world.look(apply=True)) == {Kind.ORPHAN: (10, 10, 0), Kind.MISSING: (10, 0, 10)}
    assert await world.objects() == objects
    missing = (AttachmentStatus.FAILED, "object_missing")
    assert await world.rows() == rows | {row.id: missing for row in lost}

    assert counts(await world.look(apply=True)) == {Kind.ORPHAN: (10, 0, 10)}
    assert await world.objects() == {row.storage_key for row in live} | set(copies)
    assert (counts(await world.look(apply=True)), await world.candidates()) == ({}, 0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("settings", ["memory", "minio"], indirect=True)
@pytest.mark.parametrize(("ingests", "sweeps"), [(100, 5), pytest.param(1_000, 20, marks=pytest.mark.prove)])
async def test_no_sweep_touches_what_is_being_stored(world: World, ingests: int, sweeps: int, results: Results) -> None:
    inserted = orphans_of(world.origin.tenant_id, 10)
    await world.put(*inserted)
    drawn: list[Attachment] = []
    reports: list[Report] = []
    for _ in range(sweeps):
        drawing = asyncio.gather(*(world.draw() for _ in range(ingests // sweeps)))
        reports.append(await world.look(apply=True))
        drawn += await drawing
    objects, rows = await world.objects(), await world.rows()
    deleted = {row.storage_key for row in drawn} - objects
    tried = f"{len(drawn)} ingests during {sweeps} sweeps"
    results(
        20,
        f"reconcile and ingest, {type(world.store).__name__}",
        tried=tried,
        kept=f"{len(deleted)} live objects deleted",
    )
    assert deleted == set()
    assert {rows[row.id] for row in drawn} == {(AttachmentStatus.STORED, None)}
    assert [counts(report).pop(Kind.ORPHAN, None) for report in reports[:2]] == [(10, 10, 0), (10, 0, 10)]
    assert [counts(report) for report in reports[2:]] == [{}] * (sweeps - 2)


async def test_what_is_young_is_left_alone(world: World) -> None:
    await world.put(*orphans_of(world.origin.tenant_id, 3))
    await world.upload()
    assert counts(await world.look(apply=True, grace=timedelta(hours=1))) == {}


async def test_an_object_of_nobody_is_deleted_a_grace_period_after_it_was_noted(world: World) -> None:
    hour = timedelta(hours=1)
    (orphan,) = orphans_of(world.origin.tenant_id, 1)
    await world.put(orphan)
    world.age(orphan)
    assert counts(await world.look(apply=True, grace=hour)) == {Kind.ORPHAN: (1, 1, 0)}
    assert counts(await world.look(apply=True, grace=hour)) == {Kind.ORPHAN: (1, 0, 0)}
    await world.age_candidates()
    assert counts(await world.look(apply=False, grace=hour)) == {Kind.ORPHAN: (1, 0, 0)}
    assert await world.objects() == {orphan}
    assert counts(await world.look(apply=True, grace=hour)) == {Kind.ORPHAN: (1, 0, 1)}
    assert await world.objects() == set()


async def test_what_was_noted_and_then_belongs_to_somebody_is_forgotten(world: World) -> None:
    row = await world.draw()
    async with world.database.engine.begin() as connection:
        await connection.execute(text("UPDATE attachments SET storage_key = storage_key || 'x'"))
    assert counts(await world.look(apply=True))[Kind.ORPHAN] == (1, 1, 0)
    async with world.database.engine.begin() as connection:
        await connection.execute(text("UPDATE attachments SET storage_key = rtrim(storage_key, 'x')"))
    await world.look(apply=True)
    assert (await world.objects(), await world.candidates()) == ({row.storage_key}, 0)


async def test_a_strangers_row_keeps_no_object_of_mine(world: World) -> None:
    theirs = await world.draw(world.stranger)
    mine = keys.image_key(world.origin.tenant_id, theirs.id, "png")
    unknown = keys.image_key(uuid7(), uuid7(), "png")
    await world.put(mine, unknown)
    await world.look(apply=True)
    assert counts(await world.look(apply=True)) == {Kind.ORPHAN: (1, 0, 1)}
    # The tenant of another installation, which shares the bucket, is no business of this one.
    assert await world.objects() == {theirs.storage_key, unknown}


async def test_an_archive_belongs_to_the_last_attempt_at_its_export(world: World) -> None:
    tenant_id, user_id, export_id = world.origin.tenant_id, world.origin.user_id, uuid7()
    row = Export(id=export_id, tenant_id=tenant_id, user_id=user_id, scope=ExportScope.ME, attempt=2, expires_at=now())
    async with world.database.tenant(tenant_id) as session:
        session.add(row)
    earlier, last, of_no_row = (
        archive_key(tenant_id, owner, attempt) for owner, attempt in ((export_id, 1), (export_id, 2), (uuid7(), 1))
    )
    await world.put(earlier, last, of_no_row)
    await world.look(apply=True)
    assert counts(await world.look(apply=True)) == {Kind.ORPHAN: (2, 0, 2)}
    assert await world.objects() == {last}


async def test_an_image_whose_object_comes_back_is_shown_again(world: World) -> None:
    row = await world.draw()
    data = await world.store.get(row.storage_key)
    await world.store.delete(row.storage_key)
    assert counts(await world.look(apply=True)) == {Kind.MISSING: (1, 0, 1)}
    assert counts(await world.look(apply=True)) == {}
    await world.store.put(row.storage_key, data, mime_type="image/png")
    assert counts(await world.look(apply=True)) == {Kind.RETURNED: (1, 0, 1)}
    again = await world.row(row.id)
    assert (again.status, again.error) == (AttachmentStatus.STORED, None)


async def test_an_upload_whose_process_died_ends(world: World) -> None:
    pending = AttachmentStatus.PENDING
    without, stored = [await world.upload(pending, created_at=now() - OLD) for _ in range(2)]
    young = await world.upload(pending)
    await world.put(stored.storage_key)
    assert counts(await world.look(apply=True)) == {Kind.UPLOAD: (1, 0, 1), Kind.RETURNED: (1, 0, 1)}
    assert await world.rows() == {
        without.id: (AttachmentStatus.FAILED, "lost"),
        stored.id: (AttachmentStatus.STORED, None),
        young.id: (pending, None),
    }


async def test_a_drawn_image_that_waits_is_reported_and_never_given_up(world: World) -> None:
    waiting, spooled = await world.draw(), await world.draw()
    for row in (waiting, spooled):
        await world.store.delete(row.storage_key)
    async with world.database.tenant(world.origin.tenant_id) as session:
        await session.execute(text("UPDATE attachments SET status = 'pending', created_at = now() - interval '2 days'"))
    await world.spool.keep(world.origin.tenant_id, spooled.id, b"bytes")
    assert counts(await world.look(apply=True)) == {Kind.WAITING: (1, 0, 0)}
    assert {status for status, _ in (await world.rows()).values()} == {AttachmentStatus.PENDING}


async def test_previews_go_once_no_stream_shows_them(world: World) -> None:
    shown, expired = (keys.preview_key(world.origin.tenant_id, world.origin.run_id, "ig_1", n, "png") for n in (0, 1))
    await world.put(shown, expired)
    world.age(expired, by=OLD)
    assert counts(await world.look(apply=True)) == {Kind.PREVIEW: (1, 1, 0)}
    assert counts(await world.look(apply=True)) == {Kind.PREVIEW: (1, 0, 1)}
    assert await world.objects() == {shown}


async def test_temporary_files_of_killed_processes_are_deleted(world: World) -> None:
    files = world.settings.data_dir / "objects" / "tmp"
    (files / "left").write_bytes(b"half")
    (files / "fresh").write_bytes(b"half")
    world.age("tmp/left", by=OLD)
    assert counts(await world.look(apply=False, grace=timedelta(hours=1))) == {Kind.TEMPORARY: (1, 0, 0)}
    assert counts(await world.look(apply=True, grace=timedelta(hours=1))) == {Kind.TEMPORARY: (1, 0, 1)}
    assert [path.name for path in files.iterdir()] == ["fresh"]


async def test_there_is_one_reconcile_at_a_time(world: World) -> None:
    async with world.database.engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        with pytest.raises(Conflict, match="Another reconcile is at work"):
            await world.look(apply=True)
        await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
    assert counts(await world.look(apply=True)) == {}


async def test_a_store_that_is_away_is_said_and_changes_nothing(database_url: str, s3: S3Server, world: World) -> None:
    await world.upload()
    with Proxy(s3.endpoint) as proxy:
        store = open_store(Settings.model_validate(s3_settings(s3, proxy.endpoint)))
        await store.prepare(create_bucket=True)
        proxy.mode = "refuse"
        with pytest.raises(StorageError):
            await reconcile(world.database, store, world.spool, world.settings, {}, apply=True, grace=NO_GRACE)
        await store.close()
    assert set((await world.rows()).values()) == {(AttachmentStatus.STORED, None)}
    assert counts(await world.look(apply=False)) == {Kind.MISSING: (1, 0, 0)}


async def test_the_owner_reads_that_an_image_is_gone(server: AppServer, ada: ApiUser) -> None:
    drawn = one(ada.draw(), "attachment.created")["attachment"]
    store = cast(Store, server.uvicorn.app.state.store)
    tenant_id = UUID(ada.signed_up["tenant"]["id"])
    for key in [item.key async for item in store.list(keys.tenant_prefix(tenant_id))]:
        await store.delete(key)
    assert server.settings.database_url
    database = Database(server.settings.database_url.get_secret_value(), pool_size=3)
    spool = Spool(server.settings.data_dir / "spool")
    # The server's own worker reconciles once after its start.
    await retry_on_conflict(lambda: reconcile(database, store, spool, server.settings, {}, apply=True, grace=NO_GRACE))
    await database.close()
    read = ada.http.get(f"/v1/attachments/{drawn['object_id']}").json()
    assert (read["status"], read["url"]) == ("failed", None)
    assert ada.http.get(f"/v1/attachments/{drawn['object_id']}/content").status_code == 409


@pytest.mark.slow
async def test_the_command_tells_what_it_found(world: World, database_url: str, s3: S3Server, tmp_path: Path) -> None:
    chosen = s3_settings(s3)
    store = open_store(Settings.model_validate(chosen))
    await store.prepare(create_bucket=True)
    await store.close()
    row = await world.upload(created_at=now() - OLD)
    variables = {name.upper(): str(value) for name, value in chosen.items()} | {"DATABASE_URL": database_url}
    done = await easel(tmp_path, "--apply", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{Kind.MISSING:32}{1:8}{0:8}{1:8}\n" in done.stdout
    assert (await world.rows())[row.id] == (AttachmentStatus.FAILED, "object_missing")


async def test_a_store_that_another_process_holds_in_memory_is_refused(database_url: str) -> None:
    settings = Settings.model_validate({"database_url": database_url, "storage_provider": "memory"})
    with pytest.raises(SettingsError, match="STORAGE_PROVIDER"):
        await reconcile_store(settings, database_url, apply=True)


async def easel(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [Path(sys.executable).parent / "easel", "reconcile", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "DATA_DIR": str(directory / "var"), **variables},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_a_tenant_that_is_erased_meanwhile_is_passed_over(world: World) -> None:
    gone, stays = sorted(origin.tenant_id for origin in (world.origin, world.stranger))
    await world.put(*orphans_of(gone, 3), *(left := orphans_of(stays, 3)))

    async def owned_keys_of_the_erased(session: AsyncSession, found: Sequence[str]) -> set[str]:
        async with world.database.engine.begin() as connection:
            await connection.execute(text("DELETE FROM tenants WHERE id = :id"), {"id": gone})
        return set()

    owners = {keys.EXPORTS: owned_keys_of_the_erased}
    report = await reconcile(
        world.database, world.store, world.spool, world.settings, owners, apply=True, grace=NO_GRACE
    )
    assert counts(report) == {Kind.ORPHAN: (6, 3, 0)}
    assert await world.candidates() == len(left)
