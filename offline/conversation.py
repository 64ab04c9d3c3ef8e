"""What a request says: the newest words of the user, the images it brings, the answers of its tools."""

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline import files
from offline.directives import Directives, split_directives
from offline.drawing.painter import open_image
from offline.state import Record, load_editable, load_record
from offline.wire import ApiError, Json, as_object, as_objects, file_not_found, image_error, item_not_found

_MAX_IMAGES = 16
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


@dataclass
class Conversation:
    text: str = ""  # the newest user message, without directives
    directives: Directives = field(default_factory=Directives)
    texts: list[str] = field(default_factory=list[str])  # all user messages up to now, `text` included
    outputs: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (function, output) since `text`
    sources: list[bytes] = field(default_factory=list[bytes])  # what an edit would change, and images to add to it
    brought: bool = False  # the newest message itself brings images
    named: str | None = None  # the id of an image that came as nothing but its id
    uploads: list[bytes] = field(default_factory=list[bytes])  # every input_image of this request
    stored: list[str] = field(default_factory=list[str])  # ids of the images of the responses before this one


@dataclass
class _Reading:
    """What has been seen so far, item by item."""

    texts: list[str] = field(default_factory=list[str])
    fresh: list[bytes] = field(default_factory=list[bytes])  # input images since the last answer
    named: bytes | None = None  # the newest image named by its id
    named_id: str | None = None  # that id, where nothing but the id was sent
    newest: bytes | None = None  # the newest image of any kind
    uploads: list[bytes] = field(default_factory=list[bytes])
    calls: dict[str, str] = field(default_factory=dict[str, str])
    answered: set[str] = field(default_factory=set[str])
    outputs: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def read_conversation(body: Json, root: Path) -> Conversation:
    """Parse `input` and what `previous_response_id` stands for; raises ApiError as the real API does."""
    before = _record_before(body, root)
    reading = _Reading(calls=dict(before.open_calls))
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else as_objects(given)
    for index, item in enumerate(items):
        _read_item(reading, item, f"input[{index}]", root)
    if missing := [call for call in reading.calls if call not in reading.answered]:
        raise ApiError(f"No tool output found for function call {missing[0]}.", param="input")
    text, directives = split_directives(reading.texts[-1] if reading.texts else "")
    earlier = [split_directives(words)[0] for words in reading.texts[:-1]]
    texts = [*before.texts, *earlier, *([text] if reading.texts else [])]
    return Conversation(
        text=text if reading.texts else (before.texts or [""])[-1],
        directives=directives,
        texts=texts,
        outputs=reading.outputs,
        sources=_sources(reading, before, root),
        brought=bool(reading.fresh or reading.named),
        named=reading.named_id,
        uploads=reading.uploads,
        stored=before.images,
    )


def read_image(part: Json, where: str, root: Path) -> bytes:
    """The bytes of an image given by `file_id` or, as a data URL, by `image_url`: Pillow can read them."""
    if not part.get("file_id"):
        return _from_data_url(part.get("image_url"), f"{where}.image_url")
    param = f"{where}.file_id"
    data = files.load_bytes(root, str(part["file_id"]))
    if data is None:
        raise file_not_found(str(part["file_id"]), param)
    return _checked(data, param)


def _from_data_url(url: Any, param: str) -> bytes:
    if not isinstance(url, str) or not (head := _DATA_URL.match(url)):
        got = str(url)[:40]
        message = (
            f"Invalid '{param}'. Expected a base64-encoded data URL with an image MIME type "
            f"(e.g. 'data:image/png;base64,aW1nIGJ5dGVzIGhlcmU='), but got '{got}'. "
            "(The offline simulator downloads nothing.)"
        )
        raise ApiError(message, param=param, code="invalid_value")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error:
        data = b""
    return _checked(data, param)


def _checked(data: bytes, param: str) -> bytes:
    try:
        open_image(data)
    except (OSError, ValueError, SyntaxError):
        raise image_error("Invalid image data.", param=param, code="invalid_image_file") from None
    return data


def _record_before(body: Json, root: Path) -> Record:
    previous = body.get("previous_response_id")
    if not previous:
        return Record({})
    record = load_record(root, str(previous))
    if record is None or record.response["status"] not in ("completed", "incomplete"):
        message = f"Previous response with id '{previous}' not found."
        raise ApiError(message, param="previous_response_id", code="previous_response_not_found")
    return record


def _read_item(reading: _Reading, item: Json, where: str, root: Path) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _read_message(reading, item, where, root)
    elif kind in ("image_generation_call", "item_reference") and str(item.get("id")).startswith("ig_"):
        reading.named = reading.newest = _named_image(item, root)
        reading.named_id = None if item.get("result") else str(item["id"])
    elif kind == "image_generation_call":
        message = f"Invalid '{where}.id': '{item.get('id')}'. Expected an ID that begins with 'ig'."
        raise ApiError(message, param=f"{where}.id", code="invalid_value")
    elif kind == "function_call":
        reading.calls[str(item.get("call_id"))] = str(item.get("name"))
    elif kind == "function_call_output":
        call = str(item.get("call_id"))
        if call not in reading.calls:
            message = f"No tool call found for function call output with call_id {call}."
            raise ApiError(message, param="input")
        reading.answered.add(call)
        reading.outputs.append((reading.calls[call], _words(item.get("output"))))


def _read_message(reading: _Reading, item: Json, where: str, root: Path) -> None:
    if item.get("role") == "assistant":
        reading.fresh, reading.named, reading.outputs = [], None, []
    if item.get("role") != "user":
        return
    if words := _words(item.get("content")):
        reading.texts.append(words)
        reading.outputs = []
    for place, part in enumerate(as_objects(item.get("content"))):
        if part.get("type") == "input_image":
            image = read_image(part, f"{where}.content[{place}]", root)
            reading.fresh.append(image)
            reading.uploads.append(image)
            reading.newest = image
    if len(reading.uploads) > _MAX_IMAGES:
        raise image_error(f"Too many images: at most {_MAX_IMAGES} are accepted.", param="input")


def _sources(reading: _Reading, before: Record, root: Path) -> list[bytes]:
    """Images sent with the newest message win, then one named by id, then the newest there is."""
    if reading.fresh:
        return reading.fresh
    if newest := reading.named or reading.newest:
        return [newest]
    return [image for name in before.images[-1:] if (image := load_editable(root, name))]


def _named_image(item: Json, root: Path) -> bytes:
    if item.get("result"):
        return _from_data_url(f"data:image/png;base64,{item['result']}", "input")
    image = load_editable(root, str(item["id"]))
    if image is None:
        raise item_not_found(str(item["id"]))
    return image


def _words(content: Any) -> str:
    """The text of a message's content or a tool's output, which are strings or lists of parts."""
    if isinstance(content, str):
        return content.strip()
    return " ".join(str(as_object(part).get("text", "")) for part in as_objects(content)).strip()
