"""Image options as a request gives them, seen on the attachment that comes back."""

from typing import Any

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, kinds, one

DOCUMENTED = ("object_id", "filename", "mime_type", "size_bytes", "url", "tool_call_id")


@pytest.mark.parametrize(
    ("options", "mime_type", "size"),
    [
        ({"format": "png", "size": "1024x1536"}, "image/png", (1024, 1536)),
        ({"format": "jpeg", "compression": 60}, "image/jpeg", (1024, 1024)),
        ({"format": "webp", "background": "transparent"}, "image/webp", (1024, 1024)),
        ({"format": "gif", "frame_count": 3}, "image/gif", (1024, 1024)),
        ({"format": "svg"}, "image/svg+xml", (1024, 1024)),
    ],
    ids=["png", "jpeg", "webp", "gif", "svg"],
)
def test_a_run_chooses_its_images_options(
    ada: ApiUser, options: dict[str, Any], mime_type: str, size: tuple[int, int]
) -> None:
    attachment = one(ada.draw("Draw a robot", image=options), "attachment.created")["attachment"]
    assert attachment["mime_type"] == mime_type
    assert (attachment["width"], attachment["height"]) == size
    served = httpx.get(attachment["url"])
    assert served.headers["content-type"] == mime_type
    inline = mime_type in ("image/png", "image/jpeg", "image/webp")
    assert served.headers["content-disposition"].startswith("inline" if inline else "attachment")
    assert served.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in served.headers["content-security-policy"]


def test_an_attachment_has_every_documented_field(ada: ApiUser) -> None:
    events = ada.draw()
    attachment = one(events, "attachment.created")["attachment"]
    assert all(attachment[field] for field in DOCUMENTED)
    assert attachment["run_id"] == events[0]["run_id"]
    assert attachment["options"]["output_format"] == "png"


@pytest.mark.parametrize("choice", ["image_generation", {"type": "image_generation"}], ids=["word", "object"])
def test_tool_choice_forces_an_image(ada: ApiUser, choice: object) -> None:
    events = ada.ask("Hello, how are you?", agent_key="designer", tool_choice=choice)
    assert "attachment.created" in kinds(events)


def test_agents_are_listed_with_their_image_options(ada: ApiUser) -> None:
    listed = {agent["key"]: agent for agent in ada.http.get("/v1/agents").json()["data"]}
    assert {"assistant", "designer"} <= listed.keys()
    assert listed["designer"]["image"]["size"] == "1024x1024"
    assert "image_generation" in listed["designer"]["tools"]


@pytest.mark.slow
def test_a_deleted_conversation_takes_its_images_along(ada: ApiUser) -> None:
    events = ada.draw()
    attachment = one(events, "attachment.created")["attachment"]
    conversation_id = one(events, "run.created")["run"]["conversation_id"]
    assert ada.http.delete(f"/v1/conversations/{conversation_id}").status_code == 204
    assert ada.http.get(f"/v1/attachments/{attachment['object_id']}").status_code == 404
    timeouts.wait_until(lambda: httpx.get(attachment["url"]).status_code == 404)
