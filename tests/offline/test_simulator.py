"""The offline simulator through the real SDK over HTTP: shapes, options, edits, resuming, failures on request."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AsyncStream,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
)
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_output_item import ImageGenerationCall
from PIL import Image, ImageChops
from pydantic import TypeAdapter

from offline.directives import DIRECTIVES
from offline.request_log import RequestLog
from offline.routes import create_app
from offline.usage import image_tokens

Json = dict[str, Any]

CURRENT_TIME: Json = {"type": "function", "name": "current_time", "parameters": {}}
CAT = "draw a gray tabby cat hugging an otter with an orange scarf"
FORCED = {"type": "image_generation"}
FAST = 50.0
STRICT = TypeAdapter[Any](ResponseStreamEvent)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with _served(tmp_path_factory.mktemp("offline"), FAST) as url:
        yield url


@pytest.fixture
async def client(provider: str) -> AsyncGenerator[AsyncOpenAI]:
    async with _client(provider) as opened:
        yield opened


class Caller:
    """The few calls that every test makes, with small images unless asked otherwise."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self.client = client

    async def create(self, said: Any, image: Json | None = None, **more: Any) -> Response:
        return cast(Response, await self.client.responses.create(**self._request(said, image, more)))

    async def stream(self, said: Any, image: Json | None = None, **more: Any) -> list[Any]:
        stream = await self.open(said, image, **more)
        return [event async for event in stream]

    async def open(self, said: Any, image: Json | None = None, **more: Any) -> AsyncStream[Any]:
        return cast(
            AsyncStream[Any], await self.client.responses.create(**self._request(said, image, more), stream=True)
        )

    async def refusal(self, said: Any, image: Json | None = None, **more: Any) -> APIStatusError:
        with pytest.raises(APIStatusError) as caught:
            await self.create(said, image, **more)
        return caught.value

    @staticmethod
    def _request(said: Any, image: Json | None, more: Json) -> Json:
        tools = [] if image is None else [{"type": "image_generation", "quality": "low", **image}]
        return {"model": "gpt-6.1-sol", "input": said, "tools": [*tools, *more.pop("functions", [])], **more}


@pytest.fixture
def call(client: AsyncOpenAI) -> Caller:
    return Caller(client)


# --- What the real API accepts, we accept


def test_an_image_costs_what_the_published_grid_says() -> None:
    assert image_tokens("gpt-image-2", "high", (1024, 1024)) == 7024


# --- Streams


async def test_previews_sharpen_and_the_last_one_is_the_final_image(call: Caller) -> None:
    events = await call.stream(CAT, {"partial_images": 3})
    previews = [event for event in events if event.type == "response.image_generation_call.partial_image"]
    assert [preview.partial_image_index for preview in previews] == [0, 1, 2]
    final = _image_item(events)
    assert previews[-1].partial_image_b64 == final.result == _images(events[-1].response)[0].result
    sharp = _open(final)
    blur = [_difference(sharp, _decode(preview.partial_image_b64)) for preview in previews]
    assert blur[0] > blur[1] > blur[2] == 0
    assert _kinds(events).index("response.image_generation_call.completed") > _kinds(events).index(previews[-1].type)


async def test_without_previews_an_image_is_only_completed(call: Caller) -> None:
    kinds = _kinds(await call.stream(CAT, {}))
    assert "response.image_generation_call.completed" in kinds
    assert "response.image_generation_call.partial_image" not in kinds


async def test_the_third_order_sends_one_unrequested_preview_and_never_completes_the_image(call: Caller) -> None:
    events = await call.stream(f"{CAT} [offline: order=3]", {})
    previews = [event for event in events if event.type == "response.image_generation_call.partial_image"]
    assert len(previews) == 1
    assert "response.image_generation_call.completed" not in _kinds(events)
    assert _image_item(events).status == _images(events[-1].response)[0].status == "generating"
    assert previews[0].partial_image_b64 == _image_item(events).result


WHOLE: list[tuple[str, Json]] = [
    (CAT, {"image": {"partial_images": 1, "output_format": "webp"}}),
    (f"{CAT} [offline: order=3]", {"image": {}}),
    (f"{CAT} [offline: moderation]", {"image": {}}),
    ("draw a frog", {"image": {"output_format": "svg"}, "background": True}),
    ("Hello there", {"reasoning": {"effort": "low", "summary": "auto"}}),
    (
        "Go on [offline: call=current_time]",
        {"functions": [{"type": "function", "name": "current_time", "parameters": {}}]},
    ),
    ("Hello [offline: refusal]", {}),
    ("Hello [offline: incomplete]", {}),
    ("Hello [offline: failed]", {}),
]


@pytest.mark.parametrize(("said", "more"), WHOLE)
async def test_every_event_is_whole_by_the_sdk_s_own_types(call: Caller, said: str, more: Json) -> None:
    events = await call.stream(said, **more)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        if event.type != "keepalive":
            assert type(STRICT.validate_python(event.to_dict())) is type(event)
    assert events[-1].type in ("response.completed", "response.incomplete", "response.failed")


async def test_keepalives_use_up_sequence_numbers_while_drawing_takes_long(call: Caller) -> None:
    events = await call.stream("draw a cat [offline: slow=0.7]", {})
    assert _kinds(events).count("keepalive") >= 2
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_the_text_arrives_word_by_word_and_says_that_it_is_offline(call: Caller) -> None:
    events = await call.stream("Hello there")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 5
    assert "".join(deltas) == events[-1].response.output_text
    assert "offline" in events[-1].response.output_text
    assert "Hello there" in events[-1].response.output_text


async def test_usage_of_images_is_listed_apart_and_counts_previews(call: Caller) -> None:
    plain = await call.create(CAT, {"quality": "high", "size": "1024x1024"})
    events = await call.stream(CAT, {"quality": "high", "size": "1024x1024", "partial_images": 2})
    assert plain.tool_usage is not None
    assert plain.tool_usage.image_gen.output_tokens == image_tokens("gpt-image-2.6-sunburst", "high", (1024, 1024))
    more = events[-1].response.tool_usage.image_gen.output_tokens
    assert more - plain.tool_usage.image_gen.output_tokens == 200
    assert (await call.create("Hi [offline: no_usage]")).tool_usage is None


# --- Images and options


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
async def test_an_image_has_the_asked_format_and_size(call: Caller, kind: str) -> None:
    item = _images(await call.create(CAT, {"output_format": kind, "size": "1280x720"}))[0]
    image = _open(item)
    assert (image.format, image.size) == (kind.upper(), (1280, 720))
    assert (item.output_format, item.size, item.status) == (kind, "1280x720", "completed")
    assert item.revised_prompt is not None
    assert "tabby cat" in item.revised_prompt


async def test_a_gif_has_the_asked_frames(call: Caller) -> None:
    options = {"output_format": "gif", "frame_count": 5, "frame_duration_ms": 150}
    image = _open(_images(await call.create(CAT, options))[0])
    assert (getattr(image, "n_frames", 1), image.info["duration"]) == (5, 150)


async def test_an_svg_is_made_of_shapes_and_can_be_edited(call: Caller) -> None:
    first = await call.create(CAT, {"output_format": "svg"})
    assert base64.b64decode(_images(first)[0].result or "").startswith(b"<svg xmlns=")
    assert b"<ellipse" in base64.b64decode(_images(first)[0].result or "")
    edited = await call.create("make it blue", {}, previous_response_id=first.id)
    assert _images(edited)[0].action == "edit"


async def test_the_same_prompt_draws_the_same_image_and_another_prompt_another_one(call: Caller) -> None:
    first, second, other = [_images(await call.create(said, {}))[0] for said in (CAT, CAT, "draw a red robot")]
    assert first.result == second.result != other.result


async def test_a_transparent_background_is_see_through_and_an_opaque_one_is_not(call: Caller) -> None:
    clear = _open(_images(await call.create(CAT, {"background": "transparent"}))[0])
    solid = _open(_images(await call.create(CAT, {}))[0])
    assert clear.getchannel("A").getextrema() == (0, 255)
    assert solid.mode == "RGB"


async def test_two_images_of_one_response_differ_in_size(call: Caller) -> None:
    items = _images(await call.create("Draw a fox [offline: two]", {"size": "auto"}))
    assert [item.size for item in items] == ["1024x1024", "1536x1024"]
    assert items[0].id != items[1].id


async def test_many_images_of_one_response_look_alike_and_are_different_files(call: Caller) -> None:
    items = _images(await call.create("Draw a fox [offline: images=5]", {"quality": "low"}))
    assert len({item.id for item in items}) == len({item.result for item in items}) == 5
    assert len({_open(item).tobytes() for item in items}) == 1


REFUSED: list[tuple[Json, str, str]] = [
    ({"format": "png"}, "unknown_parameter", "Unknown parameter: 'tools[0].format'."),
    (
        {"quality": "best"},
        "invalid_value",
        "Supported values are: 'low', 'medium', 'high', 'xhigh', 'max', and 'auto'.",
    ),
    ({"quality": "xhigh", "model": "gpt-image-2"}, "invalid_value", "'low', 'medium', 'high', and 'auto'."),
    ({"size": "3x3"}, "invalid_value", "Invalid size '3x3'."),
    ({"size": "1000x1000"}, "invalid_value", "divisible by 16"),
    ({"size": "3200x1024"}, "invalid_value", "aspect ratio"),
    ({"size": "512x512"}, "invalid_value", "pixels"),
    ({"size": "3856x2160"}, "invalid_value", "longest edge"),
    ({"model": "gpt-image-1"}, "invalid_value", "The model 'gpt-image-1' does not exist."),
    ({"model": "dall-e-3"}, "invalid_value", "The model 'dall-e-3' does not exist."),
    ({"background": "transparent", "output_format": "jpeg"}, "invalid_value", "Transparent background"),
    ({"output_compression": 50}, "invalid_value", "Compression less than 100 is not supported for PNG"),
    ({"output_format": "gif", "partial_images": 1}, "invalid_value", "Partial images"),
    ({"output_format": "svg", "partial_images": 1}, "invalid_value", "Partial images"),
    ({"output_format": "gif", "output_compression": 50}, "invalid_value", "Compression"),
    ({"output_format": "gif", "input_image_mask": {"image_url": "x"}}, "invalid_value", "mask"),
    ({"frame_count": 4}, "invalid_value", "requires output format 'gif'"),
    ({"partial_images": 4}, "integer_above_max_value", "Expected a value <= 3, but got 4 instead."),
    ({"partial_images": "2"}, "invalid_type", "expected an integer, but got a string instead."),
    ({"input_fidelity": "high"}, "invalid_value", "does not support the 'input_fidelity' parameter"),
    ({"svg": {"model": "x"}}, "invalid_value", "requires output format 'svg'"),
    ({"action": "edit"}, "invalid_value", "needs an image"),
]


@pytest.mark.parametrize(("options", "code", "message"), REFUSED)
async def test_an_impossible_option_is_refused(call: Caller, options: Json, code: str, message: str) -> None:
    error = await call.refusal(CAT, options)
    assert (error.status_code, error.code) == (400, code)
    assert message in str(error)


async def test_an_unknown_parameter_and_a_choice_of_no_tool_are_refused(call: Caller) -> None:
    error = await call.refusal("Hi", extra_body={"images": 2})
    assert (error.code, error.param) == ("unknown_parameter", "images")
    assert (await call.refusal("Hi", tool_choice=FORCED)).param == "tool_choice"


async def test_without_a_good_key_nothing_is_answered(provider: str) -> None:
    async with _client(provider, key="sk-bad") as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.responses.create(model="gpt-6.1-sol", input="Hi")
        assert caught.value.code == "invalid_api_key"


# --- Deciding


@pytest.mark.parametrize(
    ("said", "draws"),
    [
        ("a gray tabby cat hugging an otter with an orange scarf", True),
        ("Hello!", False),
        ("What can you do?", False),
        ("Tell me a joke about cats", False),
        (f"{CAT} [offline: text_only]", False),
    ],
)
async def test_an_agent_that_can_only_draw_draws_unless_somebody_chats(call: Caller, said: str, *, draws: bool) -> None:
    assert bool(_images(await call.create(said, {}))) is draws


async def test_a_forced_tool_is_used_whatever_was_said(call: Caller) -> None:
    assert _images(await call.create("Hello", {}, tool_choice=FORCED))
    assert not _images(await call.create(CAT, {}, tool_choice="none"))


async def test_a_function_is_called_and_its_output_quoted(call: Caller) -> None:
    functions = [_function("current_time")]
    asked = await call.create("What time is it? [offline: call=current_time]", functions=functions)
    called = asked.output[-1]
    assert called.type == "function_call"
    assert (called.name, called.arguments) == ("current_time", "{}")
    output = {"type": "function_call_output", "call_id": called.call_id, "output": "12:30"}
    received = await call.create([output], functions=functions, previous_response_id=asked.id)
    assert "12:30" in received.output_text


async def test_a_forced_function_gets_a_value_for_each_required_argument(call: Caller) -> None:
    fields = {"path": {"type": "string"}, "lines": {"type": "integer"}, "kind": {"enum": ["text", "bytes"]}}
    parameters = {"type": "object", "properties": fields, "required": [*fields]}
    functions = [{"type": "function", "name": "read_file", "parameters": parameters}]
    choices: list[Any] = [{"type": "function", "name": "read_file"}, "required"]
    for choice in choices:
        called = (await call.create("a.txt", functions=[*functions], tool_choice=choice)).output[-1]
        assert called.type == "function_call"
        assert json.loads(called.arguments) == {"path": "a.txt", "lines": 1, "kind": "text"}


async def test_a_call_without_its_output_is_refused(call: Caller) -> None:
    functions = [_function("current_time")]
    asked = await call.create("What time is it? [offline: call=current_time]", functions=functions)
    error = await call.refusal("Never mind", previous_response_id=asked.id)
    assert "No tool output found for function call" in str(error)
    unknown = {"type": "function_call_output", "call_id": "call_0", "output": "x"}
    assert "No tool call found" in str(await call.refusal([unknown]))


async def test_an_agent_that_was_handed_the_conversation_draws(call: Caller) -> None:
    functions = [_function("transfer_to_writer"), _function("transfer_to_designer")]
    asked = await call.create(f"{CAT} [offline: call=transfer_to_designer]", functions=functions)
    called = asked.output[-1]
    assert called.type == "function_call"
    assert called.name == "transfer_to_designer"
    answer = {"type": "function_call_output", "call_id": called.call_id, "output": '{"assistant": "Designer"}'}
    assert _images(await call.create([answer], {}, previous_response_id=asked.id))


# --- Editing


async def test_a_follow_up_edits_the_image_of_the_previous_response(call: Caller) -> None:
    first = await call.create(CAT, {})
    second = await call.create("Now make it look realistic", {}, previous_response_id=first.id)
    third = await call.create("Now at night", {}, previous_response_id=second.id)
    images = [_open(_images(response)[0]) for response in (first, second, third)]
    assert [_images(response)[0].action for response in (first, second, third)] == ["generate", "edit", "edit"]
    assert _difference(images[0], images[1]) > 3
    assert _difference(images[1], images[2]) > 3


async def test_an_image_is_edited_by_its_id_alone(call: Caller) -> None:
    older, newer = await call.create(CAT, {}), await call.create("draw a red robot", {})
    named = {"type": "image_generation_call", "id": _images(older)[0].id}
    said = [{"role": "user", "content": [{"type": "input_text", "text": "add a blue hat"}]}, named]
    by_id = _images(await call.create(said, {}))[0]
    chained = _images(await call.create(said, {}, previous_response_id=newer.id))[0]
    assert by_id.result == chained.result
    assert 0 < _difference(_open(by_id), _open(_images(older)[0])) < 20


async def test_an_image_sent_along_wins_and_further_ones_are_set_into_it(call: Caller) -> None:
    first = await call.create(CAT, {})
    white, red = (_data_url(Image.new("RGB", (1024, 1024), color)) for color in ("white", "red"))
    one = await call.create(_with_images("make it dreamy", white), {}, previous_response_id=first.id)
    two = await call.create(_with_images("make it dreamy", white, red), {})
    assert _difference(_open(_images(one)[0]), Image.new("L", (1024, 1024), 255)) < 30
    assert _difference(_open(_images(one)[0]), _open(_images(two)[0])) > 1


async def test_an_edit_is_the_same_whichever_way_the_image_came(call: Caller) -> None:
    options: Json = {"size": "1024x1024"}
    first = await call.create(CAT, options)
    image = _images(first)[0]
    data = base64.b64decode(image.result or "")
    file = await call.client.files.create(file=("cat.png", data), purpose="vision")
    text = {"role": "user", "content": "Now at night"}
    by_file = {"type": "input_image", "file_id": file.id, "detail": "auto"}
    ways: list[tuple[Any, Json]] = [
        ([text], {"previous_response_id": first.id}),
        ([text, {"type": "image_generation_call", "id": image.id}], {}),
        (_with_images("Now at night", f"data:image/png;base64,{image.result}"), {}),
        ([{"role": "user", "content": [{"type": "input_text", "text": "Now at night"}, by_file]}], {}),
    ]
    edited = [_images(await call.create(said, options, **more))[0] for said, more in ways]
    assert {item.action for item in edited} == {"edit"}
    assert len({item.result for item in edited}) == 1
    assert _difference(_open(edited[0]), _open(image)) > 3


async def test_the_first_image_is_the_base_and_the_others_keep_their_order(call: Caller) -> None:
    urls = [_data_url(Image.new("RGB", (1024, 1024), color)) for color in ("navy", "red", "lime", "yellow", "aqua")]
    forward = _open(_images(await call.create(_with_images("add a heart", *urls), {}))[0])
    backward = _open(_images(await call.create(_with_images("add a heart", *reversed(urls)), {}))[0])
    assert _colors_along(forward) == [(255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 255, 255)]
    assert _colors_along(backward) == [(255, 255, 0), (0, 255, 0), (255, 0, 0), (0, 0, 128)]
    assert (forward.getpixel((512, 20)), backward.getpixel((512, 20))) == ((0, 0, 128), (0, 255, 255))


async def test_an_action_decides_over_the_words(call: Caller) -> None:
    first = await call.create(CAT, {})
    new = await call.create("make it red", {"action": "generate"}, previous_response_id=first.id)
    alone = await call.create("make it red", {"action": "generate"})
    old = await call.create("draw a red robot", {"action": "edit"}, previous_response_id=first.id)
    assert [_images(response)[0].action for response in (new, old)] == ["generate", "edit"]
    assert _images(new)[0].result == _images(alone)[0].result


async def test_only_what_the_mask_leaves_open_is_changed(call: Caller) -> None:
    plain = Image.new("RGB", (1024, 1024), (90, 140, 200))
    mask = Image.new("RGBA", (1024, 1024), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (256, 256, 768, 768))
    options = {"input_image_mask": {"image_url": _data_url(mask)}}
    changed = _open(_images(await call.create(_with_images("turn it red", _data_url(plain)), options))[0])
    box = ImageChops.difference(plain, changed.convert("RGB")).getbbox()
    assert box == (256, 256, 768, 768)


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (Image.new("RGBA", (512, 512)), "mask size does not match image size"),
        (Image.new("RGB", (1024, 1024)), "mask image missing alpha channel"),
    ],
)
async def test_a_mask_that_does_not_fit_is_refused(call: Caller, mask: Image.Image, fault: str) -> None:
    said = _with_images("turn it red", _data_url(Image.new("RGB", (1024, 1024))))
    error = await call.refusal(said, {"input_image_mask": {"image_url": _data_url(mask)}})
    assert fault in str(error)
    assert cast(Json, error.body)["type"] == "image_generation_user_error"


async def test_a_mask_may_be_a_file(call: Caller) -> None:
    plain, mask = Image.new("RGB", (1024, 1024), (90, 140, 200)), Image.new("RGBA", (1024, 1024), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (512, 0, 1024, 1024))
    file = await call.client.files.create(file=("mask.png", _png(mask)), purpose="vision")
    said = _with_images("turn it red", _data_url(plain))
    changed = _open(_images(await call.create(said, {"input_image_mask": {"file_id": file.id}}))[0])
    box = ImageChops.difference(plain, changed.convert("RGB")).getbbox()
    assert box == (512, 0, 1024, 1024)
    await call.client.files.delete(file.id)
    gone = await call.refusal(said, {"input_image_mask": {"file_id": file.id}})
    assert (gone.status_code, gone.param) == (404, "input_image_mask.file_id")


async def test_broken_images_and_links_are_refused(call: Caller) -> None:
    broken = "data:image/png;base64," + base64.b64encode(b"no image").decode()
    assert (await call.refusal(_with_images("edit this", broken), {})).code == "invalid_image_file"
    assert (await call.refusal(_with_images("edit this", "https://example.com/a.png"), {})).code == "invalid_value"


async def test_an_unknown_image_is_not_found(call: Caller) -> None:
    said = [{"role": "user", "content": "edit it"}, {"type": "image_generation_call", "id": f"ig_{'0' * 50}"}]
    error = await call.refusal(said, {})
    assert error.status_code == 404
    assert "Items are not persisted when `store` is set to false" in str(error)


# --- Storing, resuming, cancelling


async def test_a_conversation_is_remembered_along_its_responses(call: Caller) -> None:
    first = await call.create("My favourite word is pamplemousse")
    second = await call.create("What did I say before?", previous_response_id=first.id)
    assert "pamplemousse" in second.output_text


async def test_what_was_not_stored_is_forgotten(call: Caller) -> None:
    response = await call.create(CAT, {}, store=False)
    with pytest.raises(APIStatusError) as caught:
        await call.client.responses.retrieve(response.id)
    assert caught.value.status_code == 404
    error = await call.refusal("make it red", {}, previous_response_id=response.id)
    assert (error.code, error.param) == ("previous_response_not_found", "previous_response_id")
    named = {"type": "image_generation_call", "id": _images(response)[0].id}
    assert (await call.refusal([{"role": "user", "content": "edit"}, named], {})).status_code == 404


async def test_a_background_response_is_resumed_without_a_gap(call: Caller) -> None:
    stream = await call.open(f"{CAT} [offline: slow=0.3]", {"partial_images": 2}, background=True)
    seen = [await anext(stream) for _ in range(5)]
    await stream.close()
    resumed = [e async for e in await _resume(call, seen[0].response.id, seen[-1].sequence_number)]
    assert [event.sequence_number for event in [*seen, *resumed]] == list(range(len(seen) + len(resumed)))
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert resumed[-1].type == "response.completed"
    again = [e async for e in await _resume(call, seen[0].response.id, 0)]
    assert again[-1].sequence_number == resumed[-1].sequence_number
    assert again[0].sequence_number == 1


async def test_a_background_response_is_cancelled_at_once(call: Caller) -> None:
    started = await call.create("draw a cat [offline: slow=30]", {}, background=True)
    assert started.status == "queued"
    await asyncio.sleep(0.1)
    before = time.monotonic()
    cancelled = await call.client.responses.cancel(started.id)
    assert time.monotonic() - before < 0.5
    assert cancelled.status == (await call.client.responses.retrieve(started.id)).status == "cancelled"
    assert (await call.refusal("more", previous_response_id=started.id)).code == "previous_response_not_found"


async def test_an_ordinary_response_cannot_be_cancelled_or_resumed(call: Caller) -> None:
    response = await call.create("Hello")
    with pytest.raises(APIStatusError, match="Cannot cancel a synchronous response"):
        await call.client.responses.cancel(response.id)
    with pytest.raises(APIStatusError, match="background=true"):
        await _resume(call, response.id, 0)


async def test_leaving_an_ordinary_stream_stops_it(call: Caller) -> None:
    stream = await call.open("draw a cat [offline: slow=30]", {})
    created = await anext(stream)
    await stream.close()
    for _ in range(100):
        if await _status(call, created.response.id) == "cancelled":
            return
        await asyncio.sleep(0.02)
    pytest.fail("it is still being made")


async def test_a_deleted_response_is_gone(call: Caller) -> None:
    response = await call.create(CAT, {})
    await call.client.responses.delete(response.id)
    assert await _status(call, response.id) is None
    assert await _status(call, "../../etc") is None


async def test_finished_responses_survive_a_restart_and_running_ones_are_failed(tmp_path: Path) -> None:
    with _served(tmp_path, FAST) as url:
        async with _client(url) as client:
            first = await Caller(client).create(CAT, {})
            background = await Caller(client).stream("Hello", background=True)
    (stored,) = tmp_path.glob(f"*/responses/{first.id}")
    running = stored.parent.parent / "running"
    running.mkdir(exist_ok=True)
    (running / f"resp_{'1' * 50}").write_bytes(stored.read_bytes().replace(first.id.encode(), b"resp_" + b"1" * 50))
    with _served(tmp_path, FAST) as url:
        async with _client(url) as client:
            call = Caller(client)
            assert _images(await client.responses.retrieve(first.id))[0].result == _images(first)[0].result
            edited = await call.create("make it red", {}, previous_response_id=first.id)
            assert _images(edited)[0].action == "edit"
            resumed = [e async for e in await _resume(call, background[0].response.id, 1)]
            assert [e.sequence_number for e in resumed] == [e.sequence_number for e in background[2:]]
            assert await _status(call, f"resp_{'1' * 50}") == "failed"


# --- Files


async def test_a_file_is_kept_until_it_is_deleted(tmp_path: Path) -> None:
    with _served(tmp_path, FAST) as url:
        async with _client(url) as client:
            file = await client.files.create(file=("dot.png", _png(Image.new("RGB", (16, 16)))), purpose="vision")
    with _served(tmp_path, FAST) as url:
        async with _client(url) as client:
            found = await client.files.retrieve(file.id)
            assert found == file
            assert (found.filename, found.purpose, found.expires_at) == ("dot.png", "vision", None)
            assert (await client.files.delete(file.id)).deleted
            for use in (client.files.retrieve, client.files.delete):
                with pytest.raises(NotFoundError, match=f"No such File object: {file.id}") as caught:
                    await use(file.id)
                assert (caught.value.type, caught.value.param) == ("invalid_request_error", "id")
            assert not [path for path in tmp_path.rglob("file-*") if path.is_file()]


async def test_a_file_expires(tmp_path: Path) -> None:
    with _served(tmp_path, FAST) as url:
        async with _client(url) as client:
            data = _png(Image.new("RGB", (1024, 1024)))
            lasting: Any = {"anchor": "created_at", "seconds": 3600}
            file = await client.files.create(file=("a.png", data), purpose="user_data", expires_after=lasting)
            assert file.expires_at == file.created_at + 3600
            (about,) = tmp_path.glob(f"*/files/{file.id}.json")
            about.write_text(about.read_text().replace(str(file.expires_at), str(file.created_at)))
            assert (await Caller(client).refusal(_with_file("make it red", file.id), {})).status_code == 404
            with pytest.raises(NotFoundError):
                await client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"purpose": "vision", "expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds"),
        ({"purpose": "vision", "expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
    ],
)
async def test_a_file_s_form_is_checked(client: AsyncOpenAI, form: Json, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        await client.files.create(file=("a.png", b"x"), **form)
    assert caught.value.param == param


async def test_a_file_that_is_unknown_or_no_image_is_refused(call: Caller) -> None:
    unknown = await call.refusal(_with_file("make it red", f"file-{'0' * 24}"), {})
    assert (unknown.status_code, unknown.param) == (404, "input[0].content[1].file_id")
    text = await call.client.files.create(file=("a.txt", b"no image"), purpose="user_data")
    assert (await call.refusal(_with_file("make it red", text.id), {})).code == "invalid_image_file"


async def test_another_key_finds_nothing(call: Caller, provider: str) -> None:
    first = await call.create(CAT, {})
    running = await call.create("draw a cat [offline: slow=30]", {}, background=True)
    file = await call.client.files.create(file=("a.png", _png(Image.new("RGB", (16, 16)))), purpose="vision")
    async with _client(provider, key="sk-other") as client:
        other = Caller(client)
        follow_up = await other.refusal("make it red", {}, previous_response_id=first.id)
        assert (follow_up.status_code, follow_up.code) == (400, "previous_response_not_found")
        named = {"type": "image_generation_call", "id": _images(first)[0].id}
        missing = await other.refusal([{"role": "user", "content": "make it red"}, named], {})
        assert (missing.status_code, missing.code, missing.param) == (404, None, "input")
        assert (await other.refusal(_with_file("make it red", file.id), {})).status_code == 404
        assert [await _status(other, response.id) for response in (first, running)] == [None, None]
        with pytest.raises(NotFoundError):
            await client.responses.delete(running.id)
    assert (await call.client.responses.cancel(running.id)).status == "cancelled"


async def test_requests_are_counted_with_their_base64_abbreviated(call: Caller, provider: str) -> None:
    url = _data_url(Image.new("RGB", (1024, 1024)))
    async with httpx.AsyncClient(base_url=provider) as reader:
        assert (await reader.delete("/offline/requests")).status_code == 204
        await call.create(_with_images("make it red", url), {})
        await call.refusal(CAT, {"format": "png"})
        listed = cast(list[Json], (await reader.get("/offline/requests")).json())
        await call.client.files.create(file=("a.png", b"x" * 5000), purpose="vision")
        (*_, uploaded) = cast(list[Json], (await reader.get("/offline/requests")).json())
    assert [(entry["method"], entry["path"]) for entry in listed] == [("POST", "/v1/responses")] * 2
    assert uploaded["body"] == {"purpose": "vision", "file": {"filename": "a.png", "bytes": 5000}}
    assert 5000 < uploaded["body_bytes"] < 6000
    shown = listed[0]["body"]["input"][0]["content"][1]["image_url"]
    assert shown == f"<{len(url)} chars>"
    assert listed[0]["body_bytes"] > len(url)


def test_the_record_of_requests_keeps_the_newest_in_bounded_memory() -> None:
    log = RequestLog()
    for number in range(10_500):
        log.add("POST", "/v1/responses", number, None)
    kept = [entry["body_bytes"] for entry in json.loads(log.listed())]
    assert kept == list(range(500, 10_500))
    for number in range(50):
        log.add("POST", "/v1/responses", number, {"input": "words " * 200_000})
    assert len(log.listed()) < 33_000_000
    assert json.loads(log.listed())[-1]["body_bytes"] == 49


# --- Failures on request


async def test_a_moderated_image_fails_alone_and_the_text_still_arrives(call: Caller) -> None:
    events = await call.stream(f"{CAT} [offline: moderation]", {})
    item = _image_item(events)
    assert (item.status, item.result) == ("failed", None)
    assert item.error is not None
    assert item.error.code == "moderation_blocked"
    assert item.error.moderation_details is not None
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text


async def test_the_stage_of_the_safety_check_can_be_chosen(call: Caller) -> None:
    for directive, stage in (("moderation", "output"), ("moderation=input", "input")):
        error = _images(await call.create(f"{CAT} [offline: {directive}]", {}))[0].error
        assert error is not None
        assert error.moderation_details is not None
        assert (error.moderation_details.moderation_stage, error.moderation_details.categories) == (stage, ["violence"])
    body = cast(Json, (await call.refusal(f"{CAT} [offline: moderation_400]", {})).body)
    assert body["moderation_details"] == {"moderation_stage": "input", "categories": ["violence"]}


async def test_an_image_fails_with_the_code_that_was_asked_for(call: Caller) -> None:
    error = _images(await call.create(f"{CAT} [offline: image_error=invalid_value]", {}))[0].error
    assert error is not None
    assert (error.type, error.code) == ("image_generation_user_error", "invalid_value")


async def test_an_image_named_by_its_id_can_lack_its_reasoning(call: Caller) -> None:
    image = _images(await call.create(CAT, {}))[0]
    said = [{"role": "user", "content": "make it red [offline: needs_reasoning]"}]
    named = {"type": "image_generation_call", "id": image.id}
    error = await call.refusal([*said, named], {})
    assert error.status_code == 400
    assert "without its required 'reasoning' item" in str(error)
    assert (await call.create([*said, {**named, "result": image.result}], {})).status == "completed"


@pytest.mark.parametrize(
    ("directive", "status", "code"),
    [
        ("moderation_400", 400, "moderation_blocked"),
        ("rate_limit", 429, "rate_limit_exceeded"),
        ("quota", 429, "insufficient_quota"),
        ("error_event", 500, None),
        ("http=408", 408, None),
        ("http=409", 409, None),
        ("http=500", 500, None),
        ("http=503", 503, None),
        ("nonsense", 400, None),
        ("slow=fast", 400, None),
    ],
)
async def test_a_request_is_refused_on_request(call: Caller, directive: str, status: int, code: str | None) -> None:
    error = await call.refusal(f"{CAT} [offline: {directive}]", {})
    assert (error.status_code, error.code) == (status, code)


async def test_a_refusal_says_when_to_come_back(call: Caller) -> None:
    limited = await call.refusal("Hi [offline: rate_limit]")
    overloaded = await call.refusal("Hi [offline: http=503] [offline: retry_after=7]")
    assert [error.response.headers["retry-after"] for error in (limited, overloaded)] == ["1", "7"]


async def test_a_failure_is_over_with_the_next_message(call: Caller) -> None:
    first = await call.create("Hi")
    await call.refusal("Hi [offline: http=500]", previous_response_id=first.id)
    said = [{"role": "user", "content": "Hi [offline: http=500]"}, {"role": "assistant", "content": "?"}]
    assert (await call.create([*said, {"role": "user", "content": "Again"}])).status == "completed"


async def test_an_error_event_ends_the_stream_with_or_without_a_failed_response(call: Caller) -> None:
    kinds: dict[str, list[str]] = {}
    for directive in ("quota", "error_event"):
        said = f"Hi [offline: {directive}]"
        raw = call.client.responses.with_streaming_response
        async with raw.create(model="gpt-6.1-sol", input=said, stream=True) as stream:
            lines = [line async for line in stream.iter_lines()]
        kinds[directive] = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert kinds["quota"] == ["response.created", "response.in_progress", "error", "response.failed"]
    assert kinds["error_event"] == ["response.created", "response.in_progress", "error"]


@pytest.mark.parametrize(
    ("directive", "last", "status"),
    [
        ("failed", "response.failed", "failed"),
        ("failed=late", "response.failed", "failed"),
        ("incomplete", "response.incomplete", "incomplete"),
    ],
)
async def test_a_response_fails_on_request(call: Caller, directive: str, last: str, status: str) -> None:
    events = await call.stream(f"{CAT} [offline: {directive}]", {})
    assert (events[-1].type, events[-1].response.status) == (last, status)
    assert bool(_images(events[-1].response)) is (directive != "failed")
    assert await _status(call, events[-1].response.id) == status


async def test_a_connection_breaks_before_the_headers_or_in_the_middle(call: Caller) -> None:
    with pytest.raises(APIConnectionError):
        await call.create("Hi [offline: reset]")
    seen: list[str] = []
    stream = await call.open("Hello [offline: cut]")
    with pytest.raises(APIConnectionError):
        await _collect(stream, seen)
    assert seen.count("response.output_text.delta") == 3
    assert "response.completed" not in seen
    with pytest.raises(APIConnectionError):
        await _collect(await call.open(f"{CAT} [offline: cut=4]", {}), seen := [])
    assert len(seen) == 4


async def test_a_background_response_outlives_its_broken_stream(call: Caller) -> None:
    stream = await call.open("Hello [offline: cut]", background=True)
    created = await anext(stream)
    with pytest.raises(APIConnectionError):
        await _collect(stream, [])
    resumed = [e async for e in await _resume(call, created.response.id, 0)]
    assert resumed[-1].type == "response.completed"


async def test_a_stream_falls_silent_while_the_background_response_goes_on(call: Caller) -> None:
    quick = Caller(call.client.with_options(timeout=0.3))
    stream = await quick.open("Hello [offline: silence]", background=True)
    created = await anext(stream)
    with pytest.raises(APITimeoutError):
        await _collect(stream, [])
    resumed = [e async for e in await _resume(call, created.response.id, 0)]
    assert resumed[-1].type == "response.completed"


async def test_a_character_that_databases_refuse_is_in_the_text_and_the_revised_prompt(call: Caller) -> None:
    events = await call.stream(f"{CAT} [offline: nul]", {})
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    response = events[-1].response
    (image,) = [item for item in response.output if item.type == "image_generation_call"]
    assert "\0" in text
    assert "\0" in image.revised_prompt


async def test_a_stream_ends_cleanly_without_its_last_event(call: Caller) -> None:
    kinds = _kinds(await call.stream("Hello [offline: eof]"))
    assert kinds[-1] == "response.output_item.done"
    assert len(await call.stream("Hello [offline: eof=3]")) == 3


async def test_a_late_answer_is_accepted_before_it_begins(call: Caller) -> None:
    began = time.monotonic()
    answer = await call.create("Hello [offline: late=0.3]")
    assert (answer.status, time.monotonic() - began > 0.3) == ("completed", True)


async def test_a_stalled_stream_says_nothing_after_created(call: Caller) -> None:
    seen: list[str] = []
    quick = Caller(call.client.with_options(timeout=0.3))
    with pytest.raises(APITimeoutError):
        await _collect(await quick.open("Hello [offline: stall]"), seen)
    assert seen == ["response.created"]


async def test_a_line_that_is_no_json_breaks_the_reader(call: Caller) -> None:
    with pytest.raises(ValueError, match=r"Expecting|JSON|property"):
        await call.stream("Hello [offline: garbage]")


async def test_sequence_numbers_are_left_out_or_used_twice_on_request(call: Caller) -> None:
    bare = await call.stream("Hello [offline: no_seq]")
    assert all("sequence_number" not in event.to_dict() for event in bare)
    twice = [event.sequence_number for event in await call.stream("Hello [offline: duplicate_seq]")]
    assert twice[:4] == [0, 0, 1, 1]


async def test_a_spoiled_image_is_what_was_asked_for(call: Caller) -> None:
    big = base64.b64decode(_images(await call.create(f"{CAT} [offline: big=2]", {}))[0].result or "")
    assert len(big) == 2 * 1024 * 1024
    with Image.open(io.BytesIO(big)) as image:
        image.load()
    half = base64.b64decode(_images(await call.create(f"{CAT} [offline: truncated]", {}))[0].result or "")
    with Image.open(io.BytesIO(half)) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    wrong = _images(await call.create(f"{CAT} [offline: wrong_type]", {}))[0]
    assert (wrong.output_format, _open(wrong).format) == ("png", "JPEG")
    none = _images(await call.create(f"{CAT} [offline: not_an_image]", {}))[0]
    assert base64.b64decode(none.result or "").startswith(b"This is not an image")


async def test_an_image_without_a_final_or_without_words(call: Caller) -> None:
    events = await call.stream(f"{CAT} [offline: no_final]", {"partial_images": 2})
    assert "response.image_generation_call.partial_image" in _kinds(events)
    assert (_image_item(events).status, _image_item(events).result) == ("failed", None)
    quiet = await call.stream(f"{CAT} [offline: no_final=quiet]", {"partial_images": 2})
    assert "response.image_generation_call.partial_image" in _kinds(quiet)
    item = _image_item(quiet)
    assert (item.status, item.result, item.error) == ("generating", None, None)
    silent = await call.create(f"{CAT} [offline: no_text]", {})
    assert _images(silent)
    assert silent.output_text == ""


async def test_an_answer_may_be_empty(call: Caller) -> None:
    empty = await call.create(f"{CAT} [offline: empty]", {})
    assert (_images(empty), empty.output_text) == ([], "")


async def test_a_request_may_be_too_large(call: Caller) -> None:
    assert (await call.refusal(f"{CAT} [offline: max_body=20]")).status_code == 413
    assert (await call.create("Hello [offline: max_body=20000]", store=False)).output_text


async def test_the_text_has_as_many_words_as_asked(call: Caller) -> None:
    assert len((await call.create("Hello [offline: words=500]", store=False)).output_text.split()) == 500


def test_every_directive_is_tried_here() -> None:
    source = Path(__file__).read_text()
    tried = {name for name in DIRECTIVES if f"offline: {name}" in source or f'"{name}' in source}
    assert sorted(DIRECTIVES.keys() - tried) == []


async def test_what_is_reported_of_its_use_is_what_was_asked_for(call: Caller) -> None:
    said = "Hi [offline: input=90] [offline: cached=20] [offline: cache_write=30] [offline: cache_12h=10]"
    answer = await call.create(
        f"{said} [offline: tier=flex] [offline: searches=2] [offline: answers_as=gpt-5-2025-08-07]"
    )
    assert answer.usage is not None
    details = answer.usage.input_tokens_details.to_dict()
    assert answer.usage.input_tokens == 90
    assert (details["cached_tokens"], details["cache_write_tokens"]) == (20, 30)
    assert details["cache_write_tokens_details"] == {"ttl_30m_tokens": 20, "ttl_12h_tokens": 10}
    assert (answer.service_tier, answer.model) == ("flex", "gpt-5-2025-08-07")
    assert answer.tool_usage is not None
    assert answer.tool_usage.web_search.num_requests == 2
    silent = await call.create("Hi [offline: no_usage=all]")
    assert (silent.usage, silent.tool_usage) == (None, None)
    old = await call.create("Hi [offline: no_usage=cache_write] [offline: tier=none]")
    assert old.usage is not None
    assert old.usage.input_tokens_details.to_dict() == {"cached_tokens": 0}
    assert (old.service_tier, old.tool_usage is None) == (None, False)


async def test_a_stream_can_break_off_after_so_many_bytes(call: Caller) -> None:
    with pytest.raises(APIConnectionError):
        await call.stream("Hello there [offline: cut_bytes=9000]")


async def test_a_keepalive_and_a_second_image_come_on_request(call: Caller) -> None:
    events = await call.stream("draw a cat [offline: keepalive] [offline: two]", {})
    following = [after for before, after in pairwise(_kinds(events)) if before.endswith("call.generating")]
    assert following == ["keepalive", "keepalive"]
    assert len(_images(events[-1].response)) == 2


def _function(name: str) -> Json:
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}


def _kinds(events: list[Any]) -> list[str]:
    return [event.type for event in events]


def _images(response: Response) -> list[ImageGenerationCall]:
    return [item for item in response.output if item.type == "image_generation_call"]


def _image_item(events: list[Any]) -> ImageGenerationCall:
    done = [event.item for event in events if event.type == "response.output_item.done"]
    return next(item for item in done if item.type == "image_generation_call")


def _open(item: ImageGenerationCall) -> Image.Image:
    return _decode(item.result or "")


def _decode(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def _difference(first: Image.Image, second: Image.Image) -> float:
    """How far two images are apart, 0 to 255."""
    parts = ImageChops.difference(first.convert("L"), second.convert("L")).histogram()
    return sum(value * count for value, count in enumerate(parts)) / (first.width * first.height)


def _colors_along(image: Image.Image) -> list[Any]:
    """What is set into the lower edge, from left to right: framed in white, of other colours than the image."""
    base = image.getpixel((512, 20))
    row = [image.getpixel((x, image.height - 100)) for x in range(image.width)]
    runs = [color for color, _ in groupby(row)]
    return [color for color in runs if color not in (base, (255, 255, 255))]


def _data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _with_images(text: str, *urls: str) -> list[Json]:
    images = [{"type": "input_image", "image_url": url, "detail": "auto"} for url in urls]
    return [{"role": "user", "content": [{"type": "input_text", "text": text}, *images]}]


def _with_file(text: str, file_id: str) -> list[Json]:
    image = {"type": "input_image", "file_id": file_id, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": text}, image]}]


async def _collect(stream: AsyncIterator[Any], kinds: list[str]) -> None:
    async for event in stream:
        kinds.append(event.type)  # noqa: PERF401 - what came before a failure must be kept


async def _resume(call: Caller, response_id: str, after: int) -> Any:
    return await call.client.responses.retrieve(response_id, stream=True, starting_after=after)


async def _status(call: Caller, response_id: str) -> str | None:
    try:
        return (await call.client.responses.retrieve(response_id)).status
    except APIError:
        return None


def _client(url: str, key: str = "sk-offline") -> AsyncOpenAI:
    return AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=20)


@contextmanager
def _served(directory: Path, speed: float) -> Generator[str]:
    """The provider on a free loopback port, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(directory, speed), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run([listener]))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
