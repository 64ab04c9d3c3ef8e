"""Failures and oddities on request: `[offline: name]` or `[offline: name=value]` in the newest user message.

Several may stand in one message. Each applies to that one request, so the next turn works again.
"""

import re
from dataclasses import dataclass, field

from offline.wire import ApiError, Json

# name -> what it does. Where a value is meant it is named.
DIRECTIVES: dict[str, str] = {
    # Rejected before anything starts
    "http": "=STATUS: answer with that HTTP status and an error body",
    "retry_after": "=SECONDS: with `http` or `rate_limit`, the Retry-After header",
    "rate_limit": "HTTP 429 with Retry-After: 1",
    "moderation_400": "HTTP 400, code moderation_blocked; =STAGE: input (default) or output",
    "needs_reasoning": "an image named by nothing but its id is refused: its reasoning item is missing",
    "max_body": "=BYTES: answer 413 to a request with more",
    "reset": "the connection is aborted before any header",
    "late": "=SECONDS: accepted, and not answered before (default 1)",
    # The stream breaks; a background response goes on behind it
    "cut": "=N: the connection is aborted after N events (default: after the third piece of text)",
    "cut_bytes": "=N: the connection is aborted after N bytes",
    "eof": "=N: the stream ends cleanly after N events (default: right before the last one)",
    "silence": "=N: silence after N events (default: after the third piece of text)",
    "stall": "created, then silence for ever",
    "garbage": "one data line that is not JSON",
    "no_seq": "no sequence numbers",
    "duplicate_seq": "every sequence number is used by two events",
    "keepalive": "a keepalive before every image, however fast it is drawn",
    # The response fails
    "quota": "an error event insufficient_quota, then response.failed",
    "error_event": "an error event and nothing after it",
    "failed": "response.failed with server_error; =late: after all output",
    "incomplete": "response.incomplete, max_output_tokens, with half of the text",
    "refusal": "a refusal instead of text and images",
    # The image fails
    "moderation": "the image's item fails with moderation_blocked; =STAGE: input or output (default)",
    "image_error": "=CODE: the image's item fails at once with that code (default server_error)",
    "no_final": "partials, then the item fails without a result; =quiet: it ends without a result or an error",
    "truncated": "the final image's bytes are cut in half",
    "wrong_type": "a JPEG where a PNG was asked for (a PNG where a JPEG was)",
    "not_an_image": "the result is text in base64",
    "big": "=MB: the final image weighs that much and is still valid (PNG only)",
    # What is made, and how fast
    "order": "=3: one unrequested partial image, no image_generation_call.completed, status generating",
    "slow": "=SECONDS: drawing takes that long, with keepalives",
    "two": "two images in one response",
    "images": "=N: N images in one response, without partials, alike but for a few bytes (PNG only)",
    "words": "=N: the text has N words",
    "call": "=NAME: a call of that function, whether it was offered or not",
    "nul": "the text holds the character U+0000, and so does the revised prompt",
    "text_only": "no image, even when one is forced",
    "no_text": "no message after the image",
    "empty": "neither text nor image",
    # What is reported of its use
    "no_usage": "no `tool_usage`; =all: no `usage` either; =cache_write: only its cache writes are left out",
    "cached": "=N: so many of the input tokens came from the cache",
    "cache_write": "=N: so many of the input tokens were written to the cache; `cache_12h`=N of them for 12 hours",
    "cache_12h": "=N: with `cache_write`",
    "input": "=N: so many input tokens",
    "tier": "=TIER: the service tier that answered (default `default`); =none: it is left out",
    "searches": "=N: so many billable web searches",
    "answers_as": "=MODEL: the model that answered, where it is not the one that was asked",
}

_DIRECTIVE = re.compile(r"\[\s*offline:\s*([a-z0-9_]+)\s*(?:=\s*([\w.-]+)\s*)?\]", re.IGNORECASE)
_NUMBERS = (
    *(
        "http",
        "retry_after",
        "late",
        "cut",
        "cut_bytes",
        "eof",
        "silence",
        "big",
        "slow",
        "words",
        "images",
        "max_body",
    ),
    *("cached", "cache_write", "cache_12h", "input", "searches"),
)
_NUMBER = re.compile(r"\d{1,9}(\.\d+)?")


@dataclass(frozen=True)
class Directives:
    values: dict[str, str] = field(default_factory=dict[str, str])

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str) -> str:
        """The value as written; empty where the directive or its value is missing."""
        return self.values.get(name, "")

    def number(self, name: str, default: float) -> float:
        return float(self.values.get(name) or default)


def split_directives(text: str) -> tuple[str, Directives]:
    """The text without its directives, and those; an unknown one is refused, so that a typing error is not silent."""
    values = {name.lower(): value for name, value in _DIRECTIVE.findall(text)}
    if unknown := sorted(values.keys() - DIRECTIVES.keys()):
        raise ApiError(f"Unknown offline directive '{unknown[0]}'. Known are: {', '.join(DIRECTIVES)}.")
    for name, value in values.items():
        if name in _NUMBERS and value and not _NUMBER.fullmatch(value):
            raise ApiError(f"The directive [offline: {name}=…] accepts a number, not '{value}'.")
    return " ".join(_DIRECTIVE.sub(" ", text).split()), Directives(values)


def raise_requested_error(directives: Directives, model: str, *, stream: bool) -> None:
    """Raise what a directive asks to be refused with before the response starts.

    What a stream tells in an error event is a status without one.
    """
    headers = {"Retry-After": directives.text("retry_after")} if directives.text("retry_after") else {}
    if "rate_limit" in directives:
        raise _rate_limited(model, headers or {"Retry-After": "1"})
    if "moderation_400" in directives:
        raise ApiError(
            "Your request was rejected by the safety system. (offline simulator, on request)",
            kind="image_generation_user_error",
            code="moderation_blocked",
            more=moderation_details(directives.text("moderation_400") or "input"),
        )
    if "quota" in directives and not stream:
        kind = "insufficient_quota"
        raise ApiError(
            "You exceeded your current quota. (offline simulator, on request)", status=429, kind=kind, code=kind
        )
    if "error_event" in directives and not stream:
        raise _http_error(500, model, headers)
    if "http" in directives:
        raise _http_error(int(directives.number("http", 500)), model, headers)


def moderation_details(stage: str) -> Json:
    """What an error of the safety system tells besides its message."""
    return {"moderation_details": {"moderation_stage": stage, "categories": ["violence"]}}


def _rate_limited(model: str, headers: dict[str, str]) -> ApiError:
    return ApiError(
        f"Rate limit reached for {model} in organization org-offline on requests per min (RPM): "
        "Limit 3, Used 3, Requested 1. Please try again in 1s.",
        status=429,
        kind="requests",
        code="rate_limit_exceeded",
        headers=headers,
    )


def _http_error(status: int, model: str, headers: dict[str, str]) -> ApiError:
    if not 400 <= status <= 599:
        raise ApiError("The directive [offline: http=…] accepts a status from 400 to 599.")
    if status == 429:
        return _rate_limited(model, headers)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = {
        401: "Incorrect API key provided.",
        403: "You are not allowed to do this.",
        404: f"The model `{model}` does not exist or you do not have access to it.",
        408: "The request timed out.",
        409: "The request conflicts with another one.",
        500: "The server had an error while processing your request. Sorry about that!",
        503: "The server is currently overloaded with other requests. Sorry about that! Please try again later.",
    }.get(status, "The request failed.")
    code = {401: "invalid_api_key", 404: "model_not_found"}.get(status)
    return ApiError(f"{message} (offline simulator, on request)", status=status, kind=kind, code=code, headers=headers)
