"""The tapped client gives the events of the plain SDK, with images as bytes, however the stream is cut."""

import base64
import json
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, cast, get_args

import httpx2
import pytest
from agents import Agent, RunConfig, Runner
from openai import APIError, AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.responses import ResponseOutputItemDoneEvent, ResponseStreamEvent
from openai.types.responses.response_output_item import ImageGenerationCall
from pydantic import BaseModel

from app.provider import image_bytes
from app.provider.image_bytes import ImageBytes
from app.provider.model import ImageExtractingModel
from app.provider.observers import GeneratedImage, ModelUse, PartialImage
from app.provider.usage import ResponseReport
from app.provider.wire import IMAGE, MAX_COPIES, WireTapClient, image_of
from tests.stream_server import read_stream

ROOT = Path(__file__).resolve().parents[2]
STREAMS = [
    *sorted((ROOT / "tests" / "streams").glob("*.sse")),
    *sorted((ROOT.parent / "shared" / "recordings").glob("*/response.sse")),
]
BYTE_BY_BYTE_MAX = 20_000
BASE64_FIELDS = ("partial_image_b64", "result", "b64_json")
SAMPLE = random.Random(18).randbytes(3_000)
TEXT = base64.b64encode(SAMPLE).decode()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class _Transport(httpx2.AsyncBaseTransport):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=_Body(self._pieces))


async def read(client: type[AsyncOpenAI], pieces: Iterable[bytes]) -> tuple[list[Any], type[Exception] | None]:
    """The events, and what ended them early."""
    http_client = DefaultAsyncHttpxClient(transport=_Transport(pieces))
    async with client(api_key="none", max_retries=0, http_client=http_client) as openai:
        stream = await openai.responses.create(model="m", input="Hello", stream=True)
        events: list[Any] = []
        try:
            while True:
                events.append(await anext(stream))
        except StopAsyncIteration:
            return events, None
        except (APIError, ValueError) as error:
            return events, type(error)


async def tapped(*pieces: bytes) -> list[Any]:
    events, error = await read(WireTapClient, pieces)
    assert error is None
    return events


async def assert_equal(data: bytes, *cuttings: Iterable[bytes]) -> None:
    plain = await read(AsyncOpenAI, [data])
    expected = [as_sent(event) for event in plain[0]]
    for pieces in ([data], *cuttings):
        events, error = await read(WireTapClient, pieces)
        assert [as_sent(event) for event in events] == expected
        assert error is plain[1]


def as_sent(event: Any) -> tuple[str, Any]:
    """Its class and fields."""
    if isinstance(event, BaseModel):
        return type(event).__name__, _without_images(event.model_dump(warnings=False))
    return "untyped", event


def _without_images(node: Any) -> Any:
    """With base64 again in place of each reference; white space, which the tap drops, is dropped from all of it."""
    if isinstance(node, list):
        return [_without_images(item) for item in cast(list[Any], node)]
    if not isinstance(node, dict):
        return node
    fields = {key: _without_images(value) for key, value in cast(dict[str, Any], node).items() if key != IMAGE}
    # Pydantic dumps what it holds as a dict.
    image: dict[str, Any] = cast(dict[str, Any], node).get(IMAGE, {})
    for key in BASE64_FIELDS:
        if isinstance(fields.get(key), str):
            sent = base64.b64encode(image["data"]).decode() if image else fields[key]
            fields[key] = "".join(sent.split())
    return fields


def images_in(events: list[Any]) -> list[ImageBytes]:
    found: list[ImageBytes] = []
    for event in events:
        holders = [event, getattr(event, "item", None), *getattr(getattr(event, "response", None), "output", ())]
        found += [holder.model_extra[IMAGE] for holder in holders if holder and IMAGE in (holder.model_extra or {})]
    return found


def cut(data: bytes, rng: random.Random, count: int) -> list[bytes]:
    places = sorted(rng.choices(range(len(data) + 1), k=count))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def every_byte(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def done(result: str, *, kind: str = "image_generation_call") -> bytes:
    """The event of a finished item; `result` is the JSON of its value."""
    item = f'{{"id":"ig_1","type":"{kind}","status":"completed","result":{result}}}'
    event = '{"type":"response.output_item.done","note":"image_generation","output_index":0,"sequence_number":1'
    return f'data: {event},"item":{item}}}\n\n'.encode()


@pytest.mark.anyio
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem if path.stem != "response" else path.parent.name)
async def test_the_events_equal_the_sdk_for_any_chunking(path: Path) -> None:
    data = path.read_bytes()
    rng = random.Random(data[:1000])
    cuttings = [cut(data, rng, count) for count in (3, 30, 300)]
    if len(data) <= BYTE_BY_BYTE_MAX:
        cuttings.append(every_byte(data))
    await assert_equal(data, *cuttings)
    with_crlf = data.replace(b"\n", b"\r\n")
    await assert_equal(with_crlf, cut(with_crlf, rng, 100))
    await assert_equal(data[: len(data) * 2 // 3], cut(data[: len(data) * 2 // 3], rng, 100))


ODD_STREAMS = {
    "line ends": b'event: x\rdata: {"a":1}\r\rdata: {"a":2}\r\n\r\ndata: {"a":3}\n\n\n\r\r\n\ndata: {"a":4}\n\n',
    "comments": b': hello\n\n:\ndata: {"a":1}\n: between\n\n',
    "several data lines": b'data: {"type": "a",\ndata:"b": 1}\n\nid: 7\nretry: 10\ndata\ndata:\n\ndata: {}\n\n',
    "byte order mark": b'\xef\xbb\xbfdata: {"a":1}\n\ndata: {"a":2}\n\n',
    "no data": b'event: keepalive\n\ndata: {"a":2}\n\n',
    "done": b'data: {"a":1}\n\ndata: [DONE]\n\n',
    "numbers": b'data: {"a":[-Infinity,1e400,123456789012345678901234567890,0.1,-0.0]}\n\n',
    "a name twice": b'data: {"a":1,"a":2}\n\n',
    "deep": b'data: {"a":' + b"[" * 300 + b"]" * 300 + b"}\n\n",
    "no JSON": b'data: {"a":1\n\ndata: {"a":2}\n\n',
    "not UTF-8": b'data: {"a":"\xff"}\n\n',
    "cut off at the end": b'data: {"a":1}\n\ndata: {"a":2}\n',
    "cut off in a value": done(json.dumps(TEXT))[:2_000],
    "a line end in a value": done(json.dumps(TEXT)).replace(TEXT[900:910].encode(), b"AAAA\nAAAAA"),
    "a control character in a value": done('"' + TEXT[:900] + "\x01" + TEXT[900:] + '"'),
    "a bad escape in a value": done('"' + TEXT[:900] + "\\x" + TEXT[900:] + '"'),
    "half an escape in a value": done('"' + TEXT[:900] + '\\u00"'),
    "an escaped slash": done('"' + TEXT.replace("/", "\\/") + '"'),
    "base64 in lines": done(json.dumps("\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)))),
    "base64 in CRLF lines": done(json.dumps("\r\n".join(TEXT[at : at + 64] for at in range(0, len(TEXT), 64)))),
    "escaped code points": done('"' + TEXT[:900] + "\\u002b\\u000A" + TEXT[901:].replace("+", "\\u002B") + '"'),
    "spaces around the colon": done(json.dumps(TEXT)).replace(b'"result":', b'"result" : '),
    "short": done('"iVBORw0KGgo="'),
    "null": done("null"),
    "not a string": done('["' + TEXT + '"]'),
    "text": done(json.dumps("Two houses, three trees & a river. " * 50)),
    "quotes": done(json.dumps('\\"' * 500 + '"result":"' + TEXT)),
    "JSON in a string": done(json.dumps(json.dumps({"image_generation": 1, "result": TEXT}))),
    "arguments": done("null").replace(
        b"null", b'null,"arguments":' + json.dumps(json.dumps({"result": TEXT})).encode()
    ),
    "another item's result": done(json.dumps(TEXT), kind="mcp_call"),
    "a field of that name elsewhere": done("null").replace(b"null", b'{"result":"' + TEXT.encode() + b'"}'),
    "a key that ends in that name": done(json.dumps(TEXT)).replace(b'"result"', b'"a \\"result"'),
    "a long text before the value": done(json.dumps(TEXT)).replace(b'"note":"', b'"note":"' + b"tree " * 300),
    "a comment like an image": b': image_generation "result":"'
    + TEXT.encode()
    + b'\ndata: {"a":"b"}\n\n'
    + done("null"),
    "the type after the value": b'data: {"type":"response.output_item.done","item":{"result":"'
    + TEXT.encode()
    + b'","type":"image_generation_call"}}\n\n',
}


@pytest.mark.parametrize(
    ("sent", "read_as"),
    [
        (r'"half \ud83d of a pair"', "half \ufffd of a pair"),
        (r'"a whole one \ud83d\ude00, and half \ude00"', "a whole one \U0001f600, and half \ufffd"),
        (r'"a\u0000b"', "ab"),
        (r'[{"\u0000": "a\u0000"}, 1, null]', [{"": "a"}, 1, None]),
        (r'"a backslash, and u0000: \\u0000"', r"a backslash, and u0000: \u0000"),
    ],
)
async def test_what_utf_8_or_postgres_does_not_take_is_left_out(sent: str, read_as: object) -> None:
    events, error = await read(WireTapClient, [f'data: {{"type":"x","a":{sent}}}\n\n'.encode()])
    assert [event.a for event in events] == [read_as]
    assert error is None


@pytest.mark.anyio
@pytest.mark.parametrize("name", ODD_STREAMS)
async def test_an_odd_stream_reads_as_by_the_sdk(name: str) -> None:
    data = ODD_STREAMS[name]
    rng = random.Random(name)
    await assert_equal(data, every_byte(data), *(cut(data, rng, count) for count in (1, 2, 5, 50)))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name",
    [
        "a long text before the value",
        "an escaped slash",
        "base64 in CRLF lines",
        "base64 in lines",
        "spaces around the colon",
    ],
)
async def test_base64_with_escapes_and_white_space_is_decoded(name: str) -> None:
    for pieces in ([ODD_STREAMS[name]], every_byte(ODD_STREAMS[name])):
        (image,) = images_in(await tapped(*pieces))
        assert image.data == SAMPLE


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["mcp_call", "image_generation_call"])
async def test_base64_leaves_only_the_fields_of_images(kind: str) -> None:
    (event,) = await tapped(done(json.dumps(TEXT), kind=kind))
    assert (TEXT in repr(event)) is (kind == "mcp_call")


@pytest.mark.anyio
async def test_what_names_no_image_stays_as_it_was_sent() -> None:
    in_lines = "\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76))
    for sent in (in_lines, TEXT[:-1]):
        (event,) = await tapped(done(json.dumps(sent), kind="mcp_call").replace(b"image_generation", b"nothing"))
        assert event.item.result == sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    "broken", [TEXT[:-1], *(TEXT[:898] + wrong + TEXT[900:] for wrong in ("%%", "==", '"', "\\")), TEXT + "\\"]
)
async def test_broken_base64_is_an_image_without_bytes(broken: str) -> None:
    data = done(json.dumps(broken)) + done(json.dumps(TEXT))
    for pieces in ([data], every_byte(data)):
        image, next_image = images_in(await tapped(*pieces))
        assert (image.data, image.size) == (None, 0)
        assert next_image.data == SAMPLE


@pytest.mark.anyio
async def test_a_copy_is_the_same_image_and_another_one_is_not() -> None:
    other = base64.b64encode(SAMPLE[:-1] + b"!").decode()
    shorter, longer = (base64.b64encode(data).decode() for data in (SAMPLE[:-900], SAMPLE + SAMPLE))
    data = b"".join(done(json.dumps(text)) for text in (TEXT, TEXT, other, shorter, longer, TEXT))
    for pieces in ([data], every_byte(data), cut(data, random.Random(1), 20)):
        events = await tapped(*pieces)
        first, again, *others, last = images_in(events)
        assert first is again is last
        expected = [SAMPLE[:-1] + b"!", SAMPLE[:-900], SAMPLE + SAMPLE]
        assert [image.data for image in others] == expected


@pytest.mark.anyio
async def test_copies_of_many_images_are_dropped_at_the_end_of_their_stream() -> None:
    texts = [base64.b64encode(SAMPLE + bytes([number])).decode() for number in range(30)]
    items = [json.loads(done(json.dumps(text))[6:])["item"] for text in [*texts, "neverSentBefore1" * 20]]
    response = {"id": "resp_1", "output": [{**item, "id": f"ig_{at}"} for at, item in enumerate(items)]}
    completed = json.dumps({"type": "response.completed", "note": "image_generation", "response": response})
    pieces = [*(done(json.dumps(text)) for text in texts), f"data: {completed}\n\n".encode()]
    http_client = DefaultAsyncHttpxClient(transport=_Transport(pieces))
    async with WireTapClient(api_key="none", http_client=http_client) as openai:
        stream = await openai.responses.create(model="m", input="Hello", stream=True)
        found = [[(image.data, image.repeated) for image in images_in([event])] async for event in stream]
    assert [data for images in found[:-1] for data, _ in images] == [base64.b64decode(text) for text in texts]
    *copies, new = found[-1]
    assert len(copies) == len(texts)
    assert new == (base64.b64decode("neverSentBefore1" * 20), False)
    assert sum(data is not None for data, _ in copies) <= MAX_COPIES * 2
    assert all(repeated is (data is None) for data, repeated in copies)


class _Received:
    """An ImageSink, CallObserver and CallMeter."""

    def __init__(self) -> None:
        self.partials: list[PartialImage] = []
        self.images: list[GeneratedImage] = []

    def on_partial(self, partial: PartialImage) -> None:
        self.partials.append(partial)

    def on_image(self, image: GeneratedImage) -> None:
        self.images.append(image)

    def take_resumed(self) -> None:
        pass

    async def on_request(self, agent_key: str, *, background: bool, characters: int) -> None:
        pass

    def on_delta(self, characters: int) -> None:
        pass

    def on_sent(self) -> None:
        pass

    def on_refused(self) -> None:
        pass

    async def on_response_created(self, response_id: str) -> None:
        pass

    def on_response_ended(self, report: ResponseReport | None) -> None:
        pass


@pytest.mark.anyio
async def test_an_image_that_is_sent_three_times_is_handed_over_once() -> None:
    stream = read_stream(ROOT / "tests" / "streams" / "partials.sse")
    received, passed = _Received(), list[str]()
    http_client = DefaultAsyncHttpxClient(transport=_Transport([stream.data]))
    async with WireTapClient(api_key="none", http_client=http_client) as client:
        use = ModelUse(
            "designer", received, _Received(), received, lambda event: passed.append(event.type), background=False
        )
        model = ImageExtractingModel("m", client, use)
        streamed = Runner.run_streamed(
            Agent(name="designer", model=model), "Draw", run_config=RunConfig(tracing_disabled=True)
        )
        events = [repr(event) async for event in streamed.stream_events()]
    assert [partial.content.data for partial in received.partials] == stream.partials
    assert [image.content.data for image in received.images] == stream.images
    # Deltas cost most in the SDK's queue, and mean nothing to it.
    assert passed.count("response.output_text.delta") > 0
    assert passed[-1] == "response.completed"
    assert not any(".delta" in event for event in events)
    assert all(result not in event and "ImageBytes" not in event for event in events for result in stream.results)


@pytest.mark.anyio
async def test_an_image_over_the_bound_is_measured_but_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_bytes, "MAX_IMAGE_BYTES", len(SAMPLE) - 1)
    (image,) = images_in(await tapped(*every_byte(done(json.dumps(TEXT)))))
    assert (image.data, image.size) == (None, len(SAMPLE))


@pytest.mark.anyio
async def test_what_was_not_tapped_is_decoded_alike() -> None:
    # Too short, and without white space or in lines.
    for sent in ("iVBORw0KGgo=", "iVBORw\n0KGgo="):
        (event,) = await tapped(done(json.dumps(sent)))
        assert isinstance(event, ResponseOutputItemDoneEvent)
        assert isinstance(event.item, ImageGenerationCall)
        assert image_of(event.item, event.item.result or "").data == b"\x89PNG\r\n\x1a\n"


def test_each_event_of_the_sdk_has_a_type_of_its_own() -> None:
    event_types: tuple[type[BaseModel], ...] = get_args(get_args(cast(Any, ResponseStreamEvent))[0])
    names = [get_args(event_type.model_fields["type"].annotation) for event_type in event_types]
    assert all(len(name) == 1 for name in names)
    assert len(set(names)) == len(event_types)
    assert all(event_type.model_fields["type"].is_required() for event_type in event_types)


@pytest.mark.anyio
async def test_no_event_is_tried_against_all_types(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("the SDK's own way was taken")

    monkeypatch.setattr(AsyncOpenAI, "_process_response_data", fail)
    delta: dict[str, Any] = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "Hello", "logprobs": []}
    complete = {**delta, "content_index": 0, "output_index": 0, "sequence_number": 4}
    for event in (delta, complete):
        assert len(await tapped(b"data: " + json.dumps(event).encode() + b"\n\n")) == 1
