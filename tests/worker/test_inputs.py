"""Images that a user sends along with a run, or names as a mask: how they reach the provider, and what is refused.

The provider is asked what it was sent; a data URL is seen there by its length alone.
"""

# Pillow's types mention numpy, which is not here.
# pyright: reportUnknownMemberType=false

import hashlib
import json
import random
import shutil
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from PIL import Image, ImageChops
from sqlalchemy import update

from app.agents._shared.spec_files import AGENTS_DIRECTORY
from app.attachments.models import Attachment
from app.db import Database
from app.provider.client import FILE_SECONDS
from app.worker.image_inputs import INLINE_BYTES
from tests.app_server import ApiUser, AppServer, Event, one, running_provider, running_server
from tests.conftest import Postgres

Json = dict[str, Any]
KEY = {"Authorization": "Bearer sk-test"}
NEVER = "01a20000-0000-7000-8000-000000000000"
SQUARE = (1024, 1024)
OPEN = (256, 256, 768, 768)


@pytest.fixture(scope="module")
def database_url(postgres: Postgres, migrated_template: str) -> Generator[str]:
    with postgres.database(migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Nobody else asks it, so that what it was sent is this file's."""
    with running_provider(tmp_path_factory.mktemp("provider")) as url:
        yield url


@pytest.fixture(scope="module")
def server(database_url: str, provider: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[AppServer]:
    """One service for all: every test has users of its own."""
    with running_server(database_url, provider, tmp_path_factory.mktemp("inputs")) as server:
        yield server


def test_images_reach_the_provider_as_bytes_in_the_order_given(ada: ApiUser, provider: str) -> None:
    sent = [upload(ada, noise(20 + number, 20)) for number in range(6)]
    random.Random(7).shuffle(sent)
    run_of(ada.draw("Make one image of these", attachments=ids_of(sent)))
    parts = images_in(last_request(provider))
    assert [part["image_url"] for part in parts] == [data_url_of(one_sent) for one_sent in sent]
    assert {part["type"] for part in parts} == {"input_image"}
    assert "http" not in str(last_request(provider)["input"])


@pytest.mark.slow
def test_a_request_that_is_too_large_is_sent_once_more_with_less(ada: ApiUser, provider: str) -> None:
    sent = [upload(ada, noise(300, 300)) for _ in range(3)]
    events = ada.draw("Make one image of these [offline: max_body=400000]", attachments=ids_of(sent))
    assert events[-1]["type"] == "run.completed"
    parts = images_in(last_request(provider))
    assert [part.keys() & {"file_id", "image_url"} for part in parts] == [{"file_id"}] * 3
    whole, *smaller = [httpx.get(f"{provider}/files/{part['file_id']}", headers=KEY).json() for part in parts]
    assert whole["bytes"] == sent[0]["size_bytes"]
    assert all(file["bytes"] < one_sent["size_bytes"] / 2 for file, one_sent in zip(smaller, sent[1:], strict=True))


def test_a_request_that_stays_too_large_is_sent_twice_at_most(ada: ApiUser, provider: str) -> None:
    before = len(requests_to(provider, "/v1/responses"))
    events = ada.draw("Draw a house [offline: max_body=10]")
    assert (events[-1]["type"], events[-1]["error"]["code"]) == ("run.failed", "upstream_too_large")
    assert events[-1]["error"]["retryable"] is False
    assert len(requests_to(provider, "/v1/responses")) == before + 2


@pytest.mark.parametrize(("count", "beside"), [(17, {}), (16, {"edit": NEVER})])
def test_more_than_sixteen_images_are_refused(ada: ApiUser, provider: str, count: int, beside: Json) -> None:
    assert_refused(ada, provider, 422, "attachments", attachments=[NEVER] * count, **beside)


@pytest.mark.slow
def test_what_is_more_than_a_request_carries_goes_as_files(ada: ApiUser, provider: str) -> None:
    large = [upload(ada, noise(1140, 1140, seed=seed)) for seed in range(3)]
    small = upload(ada, noise(40, 40))
    assert sum(one_sent["size_bytes"] for one_sent in large[:2]) < INLINE_BYTES
    assert sum(one_sent["size_bytes"] for one_sent in large) > INLINE_BYTES
    run_of(ada.draw("Make one image of these", attachments=ids_of([*large, small])))
    first, second, third, fourth = images_in(last_request(provider))
    assert [part["image_url"] for part in (first, second, fourth)] == [
        data_url_of(one_sent) for one_sent in (*large[:2], small)
    ]
    assert last_request(provider, "/v1/files")
    file = httpx.get(f"{provider}/files/{third['file_id']}", headers={"Authorization": "Bearer sk-test"}).json()
    assert (file["filename"], file["bytes"]) == (large[2]["filename"], large[2]["size_bytes"])
    assert file["expires_at"] - file["created_at"] == FILE_SECONDS


def test_the_persons_message_shows_what_was_sent_with_it(ada: ApiUser) -> None:
    sent = [upload(ada, noise(30 + number, 30)) for number in (2, 0, 1)]
    run = run_of(ada.ask("What is this?", attachments=ids_of(sent)))
    (message, answer) = ada.messages(run["conversation_id"])
    assert ids_of(message["attachments"]) == ids_of(sent)
    assert answer["attachments"] == []
    for shown in message["attachments"]:
        assert hashlib.sha256(httpx.get(shown["url"]).content).hexdigest() == shown["sha256"]
    assert ada.http.delete(f"/v1/attachments/{sent[0]['object_id']}").status_code == 204
    (message, _) = ada.messages(run["conversation_id"])
    assert ids_of(message["attachments"]) == ids_of(sent[1:])


@pytest.mark.slow
def test_it_means_the_first_image_that_was_sent(ada: ApiUser, provider: str) -> None:
    first, second = upload(ada, noise(64, 64)), upload(ada, noise(65, 65))
    edited = drawn(ada, "Make it red", attachments=ids_of([first, second]))
    assert edited["parent_object_id"] == first["object_id"]
    looked = run_of(ada.ask("Look at this [offline: text_only]", agent_key="designer", attachments=ids_of([second])))
    followed = drawn(ada, "Now make it blue", conversation_id=looked["conversation_id"])
    assert followed["parent_object_id"] == second["object_id"]
    assert last_request(provider)["previous_response_id"]


@pytest.mark.slow
def test_it_means_an_image_whose_run_failed(ada: ApiUser, provider: str) -> None:
    first = drawn(ada, "Draw a green house")
    sent = upload(ada, noise(64, 64))
    talk = {"conversation_id": first["conversation_id"]}
    failed = ada.draw("Make it red [offline: failed]", attachments=ids_of([sent]), **talk)
    assert failed[-1]["type"] == "run.failed"
    again = drawn(ada, "Please make it red", **talk)
    assert again["parent_object_id"] == sent["object_id"]
    # The answer that this one continues from knows nothing of it.
    assert last_request(provider)["previous_response_id"]
    assert [part["image_url"] for part in images_in(last_request(provider))] == [data_url_of(sent)]
    drawn(ada, "Make it green", **talk)
    assert images_in(last_request(provider)) == []


@pytest.mark.slow
def test_once_the_sent_image_is_deleted_it_means_the_one_before(ada: ApiUser) -> None:
    first = drawn(ada, "Draw a green house")
    talk = {"conversation_id": first["conversation_id"]}
    sent = upload(ada, noise(64, 64))
    run_of(ada.ask("Look at this [offline: text_only]", attachments=ids_of([sent]), **talk))
    ada.http.delete(f"/v1/attachments/{sent['object_id']}").raise_for_status()
    assert drawn(ada, "Make it red", **talk)["parent_object_id"] == first["object_id"]


def test_a_narrow_image_that_has_no_smaller_copy_is_recalled_as_it_is(ada: ApiUser, provider: str) -> None:
    sent = upload(ada, noise(200, 800))
    failed = ada.draw("Look at this [offline: failed]", attachments=ids_of([sent]))
    drawn(ada, "Make it red", conversation_id=one(failed, "run.created")["run"]["conversation_id"])
    assert [part["image_url"] for part in images_in(last_request(provider))] == [data_url_of(sent)]


@pytest.mark.slow
def test_an_agent_that_stores_nothing_sends_them_too(database_url: str, provider: str, tmp_path: Path) -> None:
    folder = tmp_path / "agents" / "designer"
    shutil.copytree(AGENTS_DIRECTORY / "designer", folder)
    spec = folder / "spec.py"
    spec.write_text(spec.read_text().replace("tool_keys=", "store=False,\n        tool_keys=", 1))
    with running_server(database_url, provider, tmp_path / "data", agents=tmp_path / "agents") as server:
        ada = server.sign_up()
        first, second = upload(ada, noise(64, 64)), upload(ada, noise(65, 65))
        edited = drawn(ada, "Make it red", attachments=ids_of([second, first]))
        assert edited["parent_object_id"] == second["object_id"]
        assert last_request(provider)["store"] is False
        parts = images_in(last_request(provider))
    assert [part["image_url"] for part in parts] == [data_url_of(second), data_url_of(first)]


@pytest.mark.slow
@pytest.mark.proof(9, "masks")
@pytest.mark.parametrize(("kind", "covers"), [("alpha", "edit"), ("black and white", "attachments")])
def test_only_what_the_mask_leaves_open_is_changed(ada: ApiUser, provider: str, kind: str, covers: str) -> None:
    original = upload(ada, noise(*SQUARE, coarse=64))
    mask = upload(ada, mask_of(kind))
    fields: Json = {covers: original["object_id"] if covers == "edit" else [original["object_id"]]}
    changed = drawn(ada, "Make it red", mask=mask["object_id"], **fields)
    assert changed["parent_object_id"] == original["object_id"]
    assert last_request(provider)["tool_choice"] == {"type": "image_generation"}
    difference = ImageChops.difference(opened(original), opened(changed))
    inside = difference.crop(OPEN)
    difference.paste((0, 0, 0), OPEN)
    assert difference.getbbox() is None
    assert inside.getbbox() is not None


@pytest.mark.proof(9, "masks")
def test_an_image_may_be_its_own_mask(ada: ApiUser, provider: str) -> None:
    both = upload(ada, mask_of("black and white"))
    drawn(ada, "Make it red", attachments=[both["object_id"]], mask=both["object_id"])
    request = last_request(provider)
    (tool,) = [tool for tool in request["tools"] if tool["type"] == "image_generation"]
    # The mask went as it was converted, the image as it is.
    assert images_in(request)[0]["image_url"] == data_url_of(both)
    assert tool["input_image_mask"]["image_url"] != data_url_of(both)


@pytest.mark.slow
@pytest.mark.proof(9, "masks")
def test_a_mask_that_does_not_fit_is_refused_before_anything_is_paid(ada: ApiUser, provider: str) -> None:
    server = drawn(ada, "Draw a green house")["object_id"]
    mask = upload(ada, mask_of("alpha"))["object_id"]
    small = upload(ada, mask_of("alpha").resize((512, 512)))["object_id"]
    plain = upload(ada, noise(*SQUARE, coarse=64))["object_id"]
    refusals: list[tuple[str, str, str, Json]] = [
        ("mask", mask, "beside `edit` or `attachments`", {"mask": mask}),
        ("mask", "512x512", "1024x1024, the size of the image", {"mask": small, "edit": server}),
        ("mask", "512x512", "1024x1024, the size of the image", {"mask": small, "attachments": [server]}),
        ("mask", "noise.png", "transparent pixels", {"mask": plain, "edit": server}),
        ("mask", "designer-", "transparent pixels", {"mask": server, "edit": server}),
        ("mask", "a mask", "every format but gif", {"mask": mask, "edit": server, "image": {"format": "gif"}}),
        ("image.action", "generate", "edit or auto", {"mask": mask, "edit": server, "image": {"action": "generate"}}),
        (
            "image.action",
            "generate",
            "edit or auto",
            {"mask": mask, "attachments": [server], "image": {"action": "generate"}},
        ),
    ]
    for field, given, allowed, fields in refusals:
        error = assert_refused(ada, provider, 422, field, **fields)
        assert given in error["given"], fields
        assert allowed in error["message"], fields


@pytest.mark.parametrize("form", ["svg", "gif"])
def test_what_the_provider_cannot_read_is_refused(ada: ApiUser, provider: str, form: str) -> None:
    image = drawn(ada, "Draw a green house", image={"format": form})["object_id"]
    for field, fields in (("attachments.0", {"attachments": [image]}), ("edit", {"edit": image})):
        error = assert_refused(ada, provider, 422, field, **cast(Json, fields))
        assert form in error["given"]
        assert "PNG, JPEG or WebP" in error["message"]


@pytest.mark.parametrize("status", ["pending", "failed"])
async def test_what_is_not_stored_cannot_be_sent(server: AppServer, ada: ApiUser, provider: str, status: str) -> None:
    object_id = upload(ada, noise(64, 64))["object_id"]
    assert server.settings.database_url
    database = Database(server.settings.database_url.get_secret_value(), pool_size=1)
    async with database.tenant(UUID(ada.signed_up["tenant"]["id"])) as session:
        await session.execute(update(Attachment).where(Attachment.id == UUID(object_id)).values(status=status))
    await database.close()
    for fields in ({"attachments": [object_id]}, {"edit": object_id}):
        assert_refused(ada, provider, 409, None, **cast(Json, fields))


def test_a_strangers_image_is_like_one_that_never_was(ada: ApiUser, stranger: ApiUser, provider: str) -> None:
    hers = upload(ada, noise(64, 64))["object_id"]
    own = upload(stranger, noise(65, 65))["object_id"]
    calls: list[Json] = [
        {"attachments": [own, "{id}"]},
        {"edit": "{id}"},
        {"mask": "{id}", "edit": own},
        {"mask": "{id}", "attachments": [own]},
    ]
    for call in calls:
        received = [refusal(stranger, provider, 404, **filled(call, object_id)) for object_id in (hers, NEVER)]
        assert received[0] == received[1]
    assert stranger.http.get("/v1/conversations").json()["data"] == []


@pytest.mark.slow
def test_an_image_deleted_before_its_run_began_ends_the_run(ada: ApiUser, provider: str) -> None:
    sent = upload(ada, noise(64, 64))
    first = ada.start("Draw a green house [offline: slow=1]", agent_key="designer")
    talk = {"conversation_id": first["conversation_id"]}
    waiting = ada.start("Make it red", attachments=ids_of([sent]), if_busy="queue", **talk)
    assert ada.http.delete(f"/v1/attachments/{sent['object_id']}").status_code == 204
    assert ada.events(first["id"])[-1]["type"] == "run.completed"
    asked = posts(provider)
    end = ada.events(waiting["id"])[-1]
    assert (end["type"], end["error"]["code"]) == ("run.failed", "attachment_not_found")
    assert posts(provider) == asked
    assert drawn(ada, "Make it blue", **talk)["parent_object_id"]


def noise(width: int, height: int, *, seed: int = 1, coarse: int = 1) -> Image.Image:
    """Colours at random, in squares of `coarse` pixels: as incompressible, or as plain, as is wanted."""
    size = (width // coarse, height // coarse)
    pixels = Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    return pixels.resize((width, height), Image.Resampling.NEAREST)


def mask_of(kind: str) -> Image.Image:
    """An image that leaves OPEN of SQUARE to be changed."""
    if kind == "alpha":
        mask = Image.new("RGBA", SQUARE, "white")
        mask.paste((0, 0, 0, 0), OPEN)
        return mask
    mask = Image.new("RGB", SQUARE, "white")
    mask.paste("black", OPEN)
    return mask


def upload(user: ApiUser, image: Image.Image) -> Json:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    answer = user.http.post("/v1/attachments", files={"file": ("noise.png", buffer.getvalue())})
    assert answer.status_code == 201, answer.text
    return cast(Json, answer.json())


def drawn(user: ApiUser, text: str, **fields: Any) -> Json:
    """The one image of a designer's turn."""
    events = user.draw(text, **fields)
    run_of(events)
    return cast(Json, one(events, "attachment.created")["attachment"])


def run_of(events: list[Event]) -> Json:
    assert events[-1]["type"] == "run.completed", events[-1].get("error")
    return cast(Json, events[-1]["run"])


def assert_refused(user: ApiUser, provider: str, status: int, field: str | None, **fields: Any) -> Json:
    """The one fault reported; None is a refusal that is nobody's field."""
    received = refusal(user, provider, status, **fields)
    if field is None:
        return {}
    (error,) = received["errors"]
    assert error["field"] == field, error
    return cast(Json, error)


def refusal(user: ApiUser, provider: str, status: int, **fields: Any) -> Json:
    """What a designer's run is refused with, for nothing."""
    asked = posts(provider)
    answer = user.http.post("/v1/runs", json={"input": "Change it", "agent_key": "designer", **fields})
    assert answer.status_code == status, answer.text
    assert posts(provider) == asked
    return {**answer.json(), "request_id": ""}


def filled(call: Json, object_id: str) -> Json:
    return cast(Json, json.loads(json.dumps(call).replace("{id}", object_id)))


def ids_of(images: list[Json]) -> list[str]:
    return [image["object_id"] for image in images]


def opened(image: Json) -> Image.Image:
    return Image.open(BytesIO(httpx.get(image["url"]).content)).convert("RGB")


def data_url_of(image: Json) -> str:
    """As the provider tells of it."""
    length = len(f"data:{image['mime_type']};base64,") + -(-image["size_bytes"] // 3) * 4
    return f"<{length} chars>"


def requests_to(provider: str, path: str) -> list[Json]:
    seen = httpx.get(provider.removesuffix("/v1") + "/offline/requests").json()
    return [request for request in seen if (request["method"], request["path"]) == ("POST", path)]


def posts(provider: str) -> int:
    return len(requests_to(provider, "/v1/responses")) + len(requests_to(provider, "/v1/files"))


def last_request(provider: str, path: str = "/v1/responses") -> Json:
    return cast(Json, requests_to(provider, path)[-1]["body"] or {"body": None})


def images_in(request: Json) -> list[Json]:
    contents = [item["content"] for item in request["input"] if isinstance(item.get("content"), list)]
    return [part for content in contents for part in content if part["type"] == "input_image"]
