"""What travels: JSON objects, ids, and the errors of the real API."""

import json
import re
import secrets
from typing import Any, cast

# A JSON object as it came or as it will go.
Json = dict[str, Any]

_ID = re.compile(r"^((resp|ig|up)_[0-9a-f]{50}|file-[0-9a-f]{24})$")


class ApiError(Exception):
    """The request is answered with this error: an HTTP status and the real API's error body."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        more: Json | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error: Json = {"message": message, "type": kind, "param": param, "code": code, **(more or {})}
        self.headers = headers or {}


def image_error(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """An error of the image tool: the type is always the same, only `code` tells moderation from a bad size."""
    return ApiError(message, kind="image_generation_user_error", param=param, code=code)


def response_not_found(response_id: str) -> ApiError:
    return ApiError(f"Response with id '{response_id}' not found.", status=404)


def item_not_found(item_id: str) -> ApiError:
    return ApiError(
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false. "
        "Try again with `store` set to true, or remove this item from your input.",
        status=404,
        param="input",
    )


def file_not_found(file_id: str, param: str = "id") -> ApiError:
    return ApiError(f"No such File object: {file_id}", status=404, param=param)


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(25)}"


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def is_id(text: str) -> bool:
    """Whether this is an id as we make them, and so safe as a file's name."""
    return _ID.match(text) is not None


def encode(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def decode(body: bytes) -> Json:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
        )
    return cast(Json, value)


def word_set(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z_]+", text.lower()))


def as_object(value: object) -> Json:
    """The value when it is a JSON object, else an empty one."""
    return cast(Json, value) if isinstance(value, dict) else {}


def as_objects(value: object) -> list[Json]:
    """The objects of a JSON array; anything else is left out."""
    if not isinstance(value, list):
        return []
    return [cast(Json, item) for item in cast(list[object], value) if isinstance(item, dict)]
