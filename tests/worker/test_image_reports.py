"""What readers of a run are told of its images while it goes on."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from app.attachments.file_tokens import Grant
from app.attachments.links import Link, Links
from app.attachments.models import AttachmentError, AttachmentStatus
from app.db import now, uuid7
from app.error_codes import ErrorCode
from app.event_log import MemoryEventLog, Record
from app.limits import Permit
from app.runs.events import MessageCompleted
from app.runs.models import Run, RunOptions
from app.runs.reader import CONNECTED, Pause, frame_of, frames
from app.worker.event_writer import EventWriter
from app.worker.image_reports import ImageReports
from app.worker.image_rows import ImageRows
from tests.app_server import ApiUser, Event, kinds, one, running_server
from tests.made_streams import call, image, stream_of, text
from tests.stream_server import serving

Json = dict[str, Any]


def places(events: list[Event], kind: str) -> list[int]:
    return [number for number, event in enumerate(events) if event["type"] == kind]


@pytest.mark.slow
def test_small_copies_are_told_while_the_run_goes_on(ada: ApiUser) -> None:
    events = ada.draw("Draw two [offline: two] [offline: slow=1.5]")
    created, updated = places(events, "attachment.created"), places(events, "attachment.updated")
    # The second image is drawn for longer than the copies of the first take.
    assert created[0] < updated[0] < created[1]
    first, copies = events[created[0]]["attachment"], events[updated[0]]["attachment"]
    assert copies["object_id"] == first["object_id"]
    assert (first["variants"], first["blurhash"]) == ([], None)
    assert [one["width"] for one in copies["variants"]] == [256, 512, 1024]
    assert len(copies["blurhash"]) == 28
    for copy in copies["variants"]:
        assert httpx.get(copy["url"]).headers["content-type"] == "image/webp"
    kept = one(events, "message.completed")["message"]["attachments"][0]
    assert [variant["width"] for variant in kept["variants"]] == [256, 512, 1024]
    told = [events[place]["attachment"]["object_id"] for place in updated]
    assert len(told) == len(set(told))
    # Whoever reads later reads the same.
    assert kinds(ada.events(events[0]["run_id"])) == kinds(events)


@pytest.mark.slow
async def test_small_copies_are_left_out_before_images_where_the_event_would_be_too_large(ada: ApiUser) -> None:
    events = await asyncio.to_thread(ada.draw, "Draw two [offline: two] [offline: slow=1.5]")
    told = one(events, "message.completed")
    many = [{**told["message"]["attachments"][0], "revised_prompt": "x" * 1_200}] * 20
    event = MessageCompleted.model_validate({**told, "message": {**told["message"], "attachments": many}})
    assert len(event.model_dump_json()) > 64 * 1024
    sent = await event.with_links(cast(Links, LongLinks()))
    assert len(sent.model_dump_json()) <= 64 * 1024
    assert [attachment.variants for attachment in sent.message.attachments] == [[]] * 20


class LongLinks:
    async def to(self, grants: list[Grant]) -> list[Link]:
        return [Link("http://127.0.0.1:8000/v1/files/" + "a" * 240, now()) for _ in grants]


def test_previews_say_how_many_of_them_there_will_be_and_until_when_they_can_be_seen(ada: ApiUser) -> None:
    events = ada.draw(image={"partial_images": 2})
    partials = [event for event in events if event["type"] == "image.partial"]
    assert [(event["index"], event["of"]) for event in partials] == [(0, 2), (1, 2)]
    for event in partials:
        assert datetime.fromisoformat(event["url_expires_at"]) > now()
        assert httpx.get(event["url"]).status_code == 200


def test_a_preview_that_nobody_asked_for_counts_too(ada: ApiUser) -> None:
    events = ada.draw("Draw a house [offline: order=3]", image={"partial_images": 0})
    assert [(event["index"], event["of"]) for event in events if event["type"] == "image.partial"] == [(0, 1)]


def test_the_progress_of_a_tool_never_says_that_it_is_completed(ada: ApiUser) -> None:
    events = ada.draw(image={"partial_images": 2})
    assert {event["status"] for event in events if event["type"] == "tool.progress"} == {"in_progress", "generating"}
    (completed,) = [event for event in events if event["type"] == "tool.completed"]
    assert completed["status"] == "completed"


def test_an_image_that_failed_is_of_the_agent_that_was_to_draw_it(database_url: str, tmp_path: Path) -> None:
    handed_over = stream_of(call("transfer_to_designer"))
    drawn = stream_of(image(b"no image"), text(["Here it is."]))
    with serving(handed_over, drawn) as provider, running_server(database_url, provider.url, tmp_path) as server:
        events = server.sign_up("Ada's").ask("Draw a red house", agent_key="assistant", image={"format": "webp"})
    (shown,) = one(events, "message.completed")["message"]["attachments"]
    assert (shown["status"], shown["agent_key"], shown["mime_type"]) == ("failed", "designer", "image/webp")
    assert shown["options"]["output_format"] == "webp"


async def test_an_attempt_that_takes_over_knows_what_was_told() -> None:
    log, run = MemoryEventLog(ttl_seconds=600), Run(id=uuid7(), agent_key="designer", options=RunOptions())
    run.tenant_id = run.user_id = run.conversation_id = run.output_message_id = uuid7()
    rows = ImageRows(run, lambda agent_key: {})
    first = EventWriter(log, run.id, 1, [])
    reports = ImageReports(first, rows)
    for code in (ErrorCode.INGEST_FAILED, ErrorCode.IMAGE_UNREADABLE, ErrorCode.IMAGE_UNREADABLE):
        reports.failed("ig_1", code, "No.", retryable=False)
    reports.failed(None, ErrorCode.IMAGE_NOT_DRAWN, "None.", retryable=True)
    await first.flush()
    told = reports.failed_rows()
    assert len(told) == 2
    written = await log.fence(run.id, 2)
    # One of an earlier release, which named no attachment.
    old = {"type": "attachment.failed", "tool_call_id": "ig_0", "object_id": None, "code": "image_unreadable"}
    written.append(Record(9, "attachment.failed", json.dumps(old).encode(), "old"))
    second = ImageReports(EventWriter(log, run.id, 2, written), rows, written)
    second.failed("ig_1", ErrorCode.IMAGE_UNREADABLE, "No.", retryable=False)
    again = second.failed_rows()
    assert [(row.id, row.tool_call_id, row.error) for row in again] == [
        (row.id, row.tool_call_id, row.error) for row in told
    ]
    # The image has come after all.
    rows.ids["ig_1"] = uuid7()
    assert [row.tool_call_id for row in second.failed_rows()] == [None]


async def test_an_image_too_small_for_copies_is_told_by_its_blurhash() -> None:
    log, run = MemoryEventLog(ttl_seconds=600), Run(id=uuid7(), agent_key="designer", options=RunOptions())
    run.tenant_id = run.user_id = run.conversation_id = run.output_message_id = uuid7()
    rows = ImageRows(run, lambda agent_key: {})
    events = EventWriter(log, run.id, 1, [])
    reports = ImageReports(events, rows)
    error = AttachmentError(code=ErrorCode.IMAGE_UNREADABLE, detail="")
    row = rows.new_failed(uuid7(), "ig_1", error)
    row.status, row.error, row.variants = AttachmentStatus.STORED, None, None
    reports.row("created", row)
    reports.tell_copies([row])
    row.variants, row.blurhash = [], "L00000fQfQfQ"
    reports.tell_copies([row])
    reports.tell_copies([row])
    await events.flush()
    assert [record.type for record in await log.read(run.id, 0)] == ["attachment.created", "attachment.updated"]


async def test_an_event_that_an_earlier_release_wrote_otherwise_ends_no_stream() -> None:
    old = Record(1, "image.partial", b'{"type": "image.partial", "seq": 1}')
    new = Record(2, "agent.changed", b"{}")

    async def written() -> AsyncIterator[list[Record] | Pause]:
        yield [old, new]

    sent = [chunk async for chunk in frames(written(), cast(Links, None), cast(Permit, nullcontext()))]
    assert sent == [CONNECTED, frame_of(new, b"{}")]
