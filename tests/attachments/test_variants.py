"""Every stored image soon has smaller copies and a blurhash; they come and go with it, whatever fails on the way."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from PIL import Image
from sqlalchemy import event

from app.attachments import service, variant_maker
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.db import Database, uuid7
from app.errors import NotFound
from app.identity.models import Role
from app.identity.service import Actor
from app.storage import keys
from app.storage.memory import MemoryStore
from app.storage.store import StorageUnavailable, Store
from app.worker import housekeeping
from tests import timeouts
from tests.app_server import ApiUser, AppServer, one, running_server
from tests.tables import rows

Json = dict[str, Any]


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def test_a_drawn_image_soon_has_three_copies_and_a_blurhash(ada: ApiUser) -> None:
    attachment = with_variants(ada, draw(ada))
    assert [(found["width"], found["height"]) for found in attachment["variants"]] == [
        (256, 256),
        (512, 512),
        (1024, 1024),
    ]
    assert len(attachment["blurhash"]) == 28
    stem = attachment["filename"].removesuffix(".png")
    for variant in attachment["variants"]:
        answer = httpx.get(variant["url"])
        assert answer.headers["content-type"] == variant["mime_type"] == "image/webp"
        assert answer.headers["content-disposition"] == f'inline; filename="{stem}-{variant["width"]}.webp"'
        assert len(answer.content) == variant["size_bytes"]
        with Image.open(BytesIO(answer.content)) as image:
            assert (image.format, image.size) == ("WEBP", (variant["width"], variant["height"]))
        assert variant.keys() == {"width", "height", "size_bytes", "mime_type", "url", "url_expires_at"}


def test_every_place_shows_the_copies_and_no_row_holds_a_link(ada: ApiUser, database_url: str) -> None:
    events = ada.draw()
    shown = with_variants(ada, one(events, "attachment.created")["attachment"]["object_id"])
    (replayed,) = one(ada.events(events[0]["run_id"]), "message.completed")["message"]["attachments"]
    (listed,) = ada.http.get("/v1/attachments").json()["data"]
    (received,) = ada.messages(events[0]["run"]["conversation_id"])[-1]["attachments"]
    for attachment in (replayed, listed, received):
        assert attachment.keys() == shown.keys()
        assert "storage_key" not in json.dumps(attachment)
    assert widths(listed) == widths(received) == [256, 512, 1024]
    ((kept,),) = rows(database_url, "SELECT variants::text FROM attachments")
    assert "http" not in kept


@pytest.mark.slow
def test_the_copies_go_with_the_image_and_with_its_conversation(server: AppServer, ada: ApiUser) -> None:
    first, second = ada.draw(), ada.draw()
    for events, path in (
        (first, f"/v1/attachments/{one(first, 'attachment.created')['attachment']['object_id']}"),
        (second, f"/v1/conversations/{second[0]['run']['conversation_id']}"),
    ):
        object_id = one(events, "attachment.created")["attachment"]["object_id"]
        with_variants(ada, object_id)
        store = cast(Store, server.uvicorn.app.state.store)
        assert len(asyncio.run(objects(store, object_id))) == 4
        assert ada.http.delete(path).status_code == 204
        timeouts.wait_until(partial(is_gone, store, object_id))


def is_gone(store: Store, object_id: str) -> bool:
    return asyncio.run(objects(store, object_id)) == []


def test_a_stranger_is_not_shown_the_copies(ada: ApiUser, stranger: ApiUser) -> None:
    object_id = draw(ada)
    with_variants(ada, object_id)
    assert stranger.http.get(f"/v1/attachments/{object_id}").status_code == 404
    assert stranger.http.get("/v1/attachments").json()["data"] == []


@pytest.mark.slow
def test_what_a_lost_task_left_is_made_good_by_the_sweep(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "VARIANTS_EVERY", timedelta(seconds=0.2))
    with running_server(database_url, provider_url, tmp_path) as server:
        ada = server.sign_up()
        object_id = draw(ada)
        with_variants(ada, object_id)
        rows(database_url, "UPDATE attachments SET variants = NULL, blurhash = NULL")
        time.sleep(0.5)
        young = ada.http.get(f"/v1/attachments/{object_id}").json()
        assert (young["variants"], young["blurhash"]) == ([], None)
        rows(database_url, "UPDATE attachments SET created_at = created_at - interval '2 minutes'")
        with_variants(ada, object_id)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


@pytest.mark.parametrize(("mime_type", "data"), [("image/svg+xml", SVG), ("image/png", b"\x89PNG broken")])
async def test_an_image_without_copies_is_not_tried_again(
    shelf: "Shelf", ada: ApiUser, mime_type: str, data: bytes
) -> None:
    object_id = await shelf.place(data, mime_type)
    await shelf.make(object_id)
    assert await shelf.row(object_id) == ([], None)
    shown = ada.http.get(f"/v1/attachments/{object_id}").json()
    assert (shown["variants"], shown["blurhash"]) == ([], None)


async def test_an_original_that_is_lost_is_not_tried_again(shelf: "Shelf") -> None:
    object_id = await shelf.place(png(), "image/png")
    await shelf.store.delete(*await shelf.objects(object_id))
    await shelf.make(object_id)
    assert await shelf.row(object_id) == ([], None)


async def test_two_at_once_leave_one_set(shelf: "Shelf") -> None:
    object_id = await shelf.place(png(), "image/png")
    await asyncio.gather(shelf.make(object_id), shelf.make(object_id))
    await shelf.make(object_id)
    found, _ = await shelf.row(object_id)
    assert [variant["width"] for variant in found] == [256, 512, 1024]
    kept = {shelf.original_key(object_id), *(variant["storage_key"] for variant in found)}
    assert kept == set(await shelf.objects(object_id))


async def test_copies_cost_a_transaction_before_and_one_after(shelf: "Shelf") -> None:
    object_id = await shelf.place(png(), "image/png")
    begun: list[object] = []
    event.listen(shelf.database.engine.sync_engine, "begin", begun.append)
    await shelf.make(object_id)
    assert len(begun) == 2


async def test_a_store_that_fails_in_between_leaves_the_image_for_later(shelf: "Shelf") -> None:
    object_id = await shelf.place(png(), "image/png")
    shelf.store.before_put = failing_at(2)
    with pytest.raises(StorageUnavailable):
        await shelf.make(object_id)
    assert await shelf.row(object_id) == (None, None)
    shelf.store.before_put = nothing
    await shelf.make(object_id)
    found, blur = await shelf.row(object_id)
    assert (len(found), len(blur)) == (3, 28)


@pytest.mark.parametrize("failing_put", [None, 2, 3])
async def test_an_image_deleted_meanwhile_leaves_no_object(shelf: "Shelf", failing_put: int | None) -> None:
    object_id = await shelf.place(png(), "image/png")
    fail = failing_at(failing_put)

    async def delete_first() -> None:
        await shelf.remove(object_id)
        await fail()

    shelf.store.before_put = delete_first
    with nullcontext() if failing_put is None else pytest.raises(StorageUnavailable):
        await shelf.make(object_id)
    assert await shelf.objects(object_id) == []


async def test_a_lost_workers_task_that_comes_back_clears_what_it_left(shelf: "Shelf") -> None:
    object_id = await shelf.place(png(), "image/png")
    await shelf.remove(object_id)
    left = keys.variant_key(shelf.actor.tenant_id, object_id, 256)
    await shelf.store.put(left, b"half done", mime_type="image/webp")
    await shelf.make(object_id)
    assert await shelf.objects(object_id) == []


class FlakyStore(MemoryStore):
    """Awaits `before_put` before each put; what that raises is the put's failure."""

    def __init__(self) -> None:
        super().__init__()
        self.before_put: Callable[[], Awaitable[None]] = nothing

    async def put(self, key: str, data: bytes | Path, *, mime_type: str) -> None:
        await self.before_put()
        await super().put(key, data, mime_type=mime_type)


async def nothing() -> None:
    """What a store that works does before a put."""


def failing_at(number: int | None) -> Callable[[], Awaitable[None]]:
    """Fails the put of this number, counted from 1."""
    calls = count(1)

    async def fail() -> None:
        if next(calls) == number:
            raise StorageUnavailable("The store is away.")

    return fail


class Shelf:
    """Images of one user, in a store that only the test and `make` know."""

    def __init__(self, database: Database, actor: Actor) -> None:
        self.database = database
        self.actor = actor
        self.store = FlakyStore()

    async def place(self, data: bytes, mime_type: str) -> UUID:
        row = Attachment(
            id=uuid7(),
            tenant_id=self.actor.tenant_id,
            user_id=self.actor.user_id,
            kind=AttachmentKind.UPLOAD,
            status=AttachmentStatus.STORED,
            filename="mine.png",
            mime_type=mime_type,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        row.storage_key = self.original_key(row.id)
        await self.store.put(row.storage_key, data, mime_type=mime_type)
        async with self.database.tenant(self.actor.tenant_id) as session:
            session.add(row)
        return row.id

    def original_key(self, object_id: UUID) -> str:
        return keys.upload_key(self.actor.tenant_id, object_id, "png")

    async def make(self, object_id: UUID) -> None:
        await variant_maker.make(self.database, self.store, self.actor.tenant_id, object_id)

    async def remove(self, object_id: UUID) -> None:
        with suppress(NotFound):
            async with self.database.tenant(self.actor.tenant_id) as session:
                await service.remove(session, self.store, self.actor, object_id)

    async def row(self, object_id: UUID) -> tuple[Any, Any]:
        """Its variants and its blurhash."""
        async with self.database.tenant(self.actor.tenant_id) as session:
            row = await session.get_one(Attachment, object_id)
            return row.variants, row.blurhash

    async def objects(self, object_id: UUID) -> list[str]:
        return await objects(self.store, str(object_id))


@pytest.fixture
async def shelf(database_url: str, ada: ApiUser) -> AsyncGenerator[Shelf]:
    database = Database(database_url, pool_size=5)
    tenant_id, user_id = (UUID(ada.signed_up[name]["id"]) for name in ("tenant", "user"))
    yield Shelf(database, Actor(user_id=user_id, tenant_id=tenant_id, role=Role.OWNER))
    await database.close()


def draw(user: ApiUser) -> str:
    return str(one(user.draw(), "attachment.created")["attachment"]["object_id"])


def with_variants(user: ApiUser, object_id: str) -> Json:
    """The attachment, once its copies are there."""
    deadline = time.monotonic() + timeouts.PATIENCE
    while True:
        attachment = cast(Json, user.http.get(f"/v1/attachments/{object_id}").json())
        if attachment["variants"]:
            return attachment
        assert time.monotonic() < deadline, attachment
        time.sleep(0.05)


def widths(attachment: Json) -> list[int]:
    return [variant["width"] for variant in attachment["variants"]]


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(buffer, "PNG")
    return buffer.getvalue()


async def objects(store: Store, object_id: str) -> list[str]:
    return [stored.key async for stored in store.list("t/") if object_id in stored.key]
