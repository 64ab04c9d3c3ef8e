"""What outlives a request: finished responses, their images and, for background ones, their event streams.

Everything is a file under one directory for each API key, written whole or not at all. A file under `running/` that
is still there at the next start belonged to a response that a killed provider never finished.
"""

import base64
import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from offline.wire import Json, as_objects, decode, encode, is_id


@dataclass
class Record:
    """A response at rest; the base64 of its images lies in their own files."""

    response: Json
    images: list[str] = field(default_factory=list[str])  # ids of all images of the conversation, newest last
    texts: list[str] = field(default_factory=list[str])  # what the user said in it, newest last
    open_calls: dict[str, str] = field(default_factory=dict[str, str])  # call id -> function not yet answered


@dataclass(frozen=True)
class StoredImage:
    sent: bytes  # what the client got, broken or not
    editable: bytes  # the same image as pixels


def account_directory(directory: Path, key: str) -> Path:
    """Where one API key's state lies: another key finds nothing there."""
    return directory / hashlib.sha256(key.encode()).hexdigest()[:32]


def fail_interrupted(directory: Path) -> None:
    """Responses that were running when the provider was killed, under whichever key, are failed from now on."""
    for path in directory.glob("*/running/*"):
        record = Record(**decode(path.read_bytes()))
        error = {
            "code": "server_error",
            "message": "The offline simulator was stopped while this response was running.",
        }
        record.response |= {"status": "failed", "error": error}
        save_record(path.parent.parent, record)


def mark_running(root: Path, record: Record) -> None:
    write_bytes(root / "running" / record.response["id"], encode(asdict(record)))


def unmark_running(root: Path, response_id: str) -> None:
    (root / "running" / response_id).unlink(missing_ok=True)


def save_record(root: Path, record: Record) -> None:
    """Store the response without its base64 and take its mark from `running/`."""
    output = [_without_result(item) for item in as_objects(record.response["output"])]
    slim = Record({**record.response, "output": output}, record.images, record.texts, record.open_calls)
    write_bytes(root / "responses" / record.response["id"], encode(asdict(slim)))
    unmark_running(root, record.response["id"])


def load_record(root: Path, response_id: str) -> Record | None:
    body = read_bytes(root / "responses", response_id)
    return None if body is None else Record(**decode(body))


def load_response(root: Path, response_id: str) -> Json | None:
    """The response as it was answered, with its base64."""
    record = load_record(root, response_id)
    if record is None:
        return None
    for item in as_objects(record.response["output"]):
        if item["type"] == "image_generation_call" and (sent := read_bytes(root / "images", item["id"])):
            item["result"] = base64.b64encode(sent).decode()
    return record.response


def delete_response(root: Path, response_id: str) -> bool:
    record = load_record(root, response_id)
    if record is None:
        return False
    for item in as_objects(record.response["output"]):
        for name in (item["id"], f"{item['id']}.editable"):
            (root / "images" / name).unlink(missing_ok=True)
    (root / "events" / response_id).unlink(missing_ok=True)
    (root / "responses" / response_id).unlink()
    return True


def save_image(root: Path, image_id: str, image: StoredImage) -> None:
    write_bytes(root / "images" / image_id, image.sent)
    if image.editable is not image.sent:
        write_bytes(root / "images" / f"{image_id}.editable", image.editable)


def load_editable(root: Path, image_id: str) -> bytes | None:
    """The pixels of a stored image, or None where it was never stored."""
    sent = read_bytes(root / "images", image_id)
    editable = root / "images" / f"{image_id}.editable"
    return editable.read_bytes() if sent is not None and editable.exists() else sent


def save_frames(root: Path, response_id: str, frames: list[bytes]) -> None:
    write_bytes(root / "events" / response_id, b"".join(frames))


def load_frames(root: Path, response_id: str) -> list[bytes] | None:
    """The SSE frames of a finished background response; the n-th has sequence number n."""
    body = read_bytes(root / "events", response_id)
    return None if body is None else [frame + b"\n\n" for frame in body.split(b"\n\n")[:-1]]


def _without_result(item: Json) -> Json:
    return {**item, "result": None} if item["type"] == "image_generation_call" else item


def read_bytes(folder: Path, name: str) -> bytes | None:
    try:
        return (folder / name).read_bytes() if is_id(name) else None
    except FileNotFoundError:
        return None


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)  # noqa: PTH105 - Path.replace says less clearly that it overwrites
