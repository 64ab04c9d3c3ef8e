"""What readers of a run are told of its images while it goes on."""

from datetime import datetime
from typing import Any

import httpx
import pytest

from app.db import now
from tests.app_server import ApiUser, AppServer, Event, kinds

Json = dict[str, Any]


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def places(events: list[Event], kind: str) -> list[int]:
    return [number for number, event in enumerate(events) if event["type"] == kind]


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
    told = [events[place]["attachment"]["object_id"] for place in updated]
    assert len(told) == len(set(told))
    # Whoever reads later reads the same.
    assert kinds(ada.events(events[0]["run_id"])) == kinds(events)


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
