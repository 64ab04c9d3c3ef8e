"""The provider's refusals and failures, as our errors: the only place that knows its exceptions and its codes.

A user reads our own sentence for each code, and what they can do. The cause and what the provider said go to the log:
they are the operator's to mend.
"""

import json
import logging
from typing import Any, cast

import aiohttp
import openai
from pydantic import BaseModel

from app.error_codes import ErrorCode
from app.provider.causes import Fault, PageReceived, chain, fault_in_stream, fault_of, page_of


class ProviderError(Exception):
    """The provider refused the request, failed or broke off.

    `message` is a sentence for the user, `cause` one for the operator, which the log and `easel doctor` show.
    """

    def __init__(self, code: ErrorCode, message: str, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.cause = message


class ProviderForgot(ProviderError):
    """Refused before anything was accepted: the provider no longer has a response or an image that was named."""


class ProviderOverfull(ProviderError):
    """Refused before anything was accepted: the request has too many bytes."""


class ProviderUnreachable(ProviderError):
    """The provider could not be reached, its connection broke, or it answered that it cannot serve now (HTTP 5xx)."""


class ProviderSilent(ProviderUnreachable):
    """The provider sent nothing for as long as it may."""


class ProviderUnreadable(ProviderError):
    """What the provider sent is not what its API describes."""


_Row = tuple[ErrorCode, str, bool]

log = logging.getLogger(__name__)
# The SDK's line about a fault says less than ours.
logging.getLogger("openai.agents").addFilter(lambda line: not line.getMessage().startswith("Error streaming"))

# What only the operator can mend, and what passes.
_OUT_OF_ORDER = "The service cannot draw or answer right now: tell whoever runs it."
_NOT_NOW = "The service cannot draw or answer right now: try again in a moment."

_BUSY: _Row = (ErrorCode.UPSTREAM_RATE_LIMITED, "The provider is busy: try again in a moment.", True)
_CONTENT_FILTER: _Row = (
    ErrorCode.UPSTREAM_INCOMPLETE,
    "The provider's content filter cut the answer short: change what you ask for.",
    False,
)
_CUT_OFF: _Row = (ErrorCode.UPSTREAM_DISCONNECTED, "The provider's answer broke off: try again.", True)
_FAILED: _Row = (ErrorCode.UPSTREAM_FAILED, "The provider failed while it answered: try again.", True)
_FORGOTTEN: _Row = (ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND, "The provider no longer has this conversation.", True)
_INCOMPLETE: _Row = (ErrorCode.UPSTREAM_INCOMPLETE, "The provider cut its answer short: try again.", True)
_NO_KEY: _Row = (ErrorCode.UPSTREAM_UNAUTHORIZED, _OUT_OF_ORDER, False)
_NO_QUOTA: _Row = (ErrorCode.UPSTREAM_QUOTA, _OUT_OF_ORDER, False)
_NOT_THE_API: _Row = (ErrorCode.UPSTREAM_UNREADABLE, _OUT_OF_ORDER, False)
_OUT_OF_TOKENS: _Row = (
    ErrorCode.UPSTREAM_INCOMPLETE,
    "The answer reached the model's limit of length: try again, or ask for less.",
    True,
)
_OVERFULL: _Row = (
    ErrorCode.UPSTREAM_TOO_LARGE,
    "The request has too many bytes for the provider: send fewer or smaller images, or start a new conversation.",
    False,
)
_REJECTED: _Row = (
    ErrorCode.UPSTREAM_REJECTED,
    "The provider rejected the request: change what you ask for, or tell whoever runs the service.",
    False,
)
_TIMEOUT: _Row = (ErrorCode.UPSTREAM_TIMEOUT, "The provider stopped answering: try again.", True)
_TOO_LONG: _Row = (
    ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    "This conversation is too long for the model: start a new one.",
    False,
)
_UNAVAILABLE: _Row = (ErrorCode.UPSTREAM_UNAVAILABLE, _NOT_NOW, True)
_UNKNOWN_MODEL: _Row = (ErrorCode.UPSTREAM_NOT_FOUND, _OUT_OF_ORDER, False)
_UNKNOWN_OUTCOME: _Row = (
    ErrorCode.UPSTREAM_OUTCOME_UNKNOWN,
    "The worker was lost while the provider drew; no request is repeated automatically. Try again if you still want"
    " the image.",
    True,
)

# The provider's own codes that mean something to the user.
_BY_CODE: dict[str, _Row] = {
    "billing_hard_limit_reached": _NO_QUOTA,
    "billing_not_active": _NO_QUOTA,
    "context_length_exceeded": _TOO_LONG,
    "insufficient_quota": _NO_QUOTA,
    "invalid_api_key": _NO_KEY,
    "invalid_image_file": (ErrorCode.UPSTREAM_REJECTED, "The provider cannot read an image that was sent.", False),
    "invalid_mask_image_format": (
        ErrorCode.UPSTREAM_REJECTED,
        "The provider does not accept the mask: it needs transparency, and the size of the image.",
        False,
    ),
    "model_not_found": _UNKNOWN_MODEL,
    "previous_response_not_found": _FORGOTTEN,
    "rate_limit_exceeded": _BUSY,
    "server_error": _FAILED,
}

_BY_STATUS: dict[int, _Row] = {
    401: _NO_KEY,
    403: _NO_KEY,
    404: _UNKNOWN_MODEL,
    408: (ErrorCode.UPSTREAM_TIMEOUT, "The provider took too long: try again.", True),
    409: (ErrorCode.UPSTREAM_CONFLICT, "The provider reported a conflict: try again.", True),
    429: _BUSY,
}
_BY_REASON = {"content_filter": _CONTENT_FILTER, "max_output_tokens": _OUT_OF_TOKENS}
# Of the provider's moderation; its own names beyond these are not shown.
_CATEGORIES = frozenset({"harassment", "hate", "illicit", "self-harm", "sexual", "violence"})


def from_openai(error: openai.APIError | json.JSONDecodeError, model: str | None = None) -> ProviderError:
    """`model` is what the request named."""
    return _reported(_from_openai(error), fault_of(error, model, unreachable=_was_unreachable(error)))


def _from_openai(error: openai.APIError | json.JSONDecodeError) -> ProviderError:
    match error:
        case openai.APIConnectionError():
            return _from_connection(error)
        case openai.APIStatusError():
            return _from_status(error)
        case openai.APIError():
            return _from_body(error) or ProviderError(*_FAILED)
        case json.JSONDecodeError():
            return ProviderUnreadable(
                ErrorCode.UPSTREAM_UNREADABLE, "The provider's answer could not be read: try again.", True
            )


def _from_connection(error: openai.APIConnectionError) -> ProviderError:
    if page_of(error):
        return ProviderUnreadable(*_NOT_THE_API)
    if _was_unreachable(error):
        return ProviderUnreachable(*_UNAVAILABLE)
    if isinstance(error, openai.APITimeoutError) and not _was_cut_off(error):
        return ProviderSilent(*_TIMEOUT)
    return ProviderUnreachable(*_CUT_OFF)


def was_refused(error: Exception) -> bool:
    """Whether a request with which this ended was not accepted for certain: refused, or never sent."""
    if isinstance(error, openai.APIStatusError):
        return True
    return _was_unreachable(error) or any(isinstance(cause, PageReceived) for cause in chain(error))


def is_last_event(error: Exception) -> bool:
    """Whether the provider itself ended the stream with it, by an `error` event."""
    return isinstance(error, openai.APIError) and not isinstance(
        error, openai.APIStatusError | openai.APIConnectionError
    )


def _was_unreachable(error: Exception) -> bool:
    """Whether there was no connection at all."""
    never = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    return any(isinstance(cause, never) for cause in chain(error))


def _was_cut_off(error: Exception) -> bool:
    """The SDK's transport reports every lost connection of aiohttp as a timeout."""
    lost = next((cause for cause in chain(error) if isinstance(cause, aiohttp.ClientConnectionError)), None)
    return lost is not None and not isinstance(lost, TimeoutError)


def response_failed(code: str, message: str, model: str) -> ProviderError:
    """The error of a response that ended as `failed`; `code` and `message` are the provider's."""
    found = moderation_blocked(None) if code == "moderation_blocked" else ProviderError(*_BY_CODE.get(code, _FAILED))
    return _reported(found, fault_in_stream(f"{code}: {message}", model))


def response_incomplete(reason: str | None, model: str) -> ProviderError:
    found = ProviderError(*_BY_REASON.get(reason or "", _INCOMPLETE))
    return _reported(found, fault_in_stream(reason or "no reason given", model))


def image_failed(fault: object) -> ProviderError:
    """The error of an image that was not drawn; `fault` is the item's `error`, a dict or a model, or None."""
    plain = fault.model_dump() if isinstance(fault, BaseModel) else fault
    told = cast(dict[str, Any], plain if isinstance(plain, dict) else {})
    if told.get("code") == "moderation_blocked":
        found = moderation_blocked(told.get("moderation_details"))
    # The type says whose fault it is: after a user's error the same request would fail again.
    elif told.get("type") == "image_generation_user_error":
        found = ProviderError(
            ErrorCode.IMAGE_GENERATION_FAILED,
            "The provider could not draw this image as it was asked for: change what you ask for.",
            False,
        )
    else:
        found = ProviderError(
            ErrorCode.IMAGE_GENERATION_FAILED, "The provider could not draw this image: try again.", True
        )
    return _reported(found, fault_in_stream(f"{told.get('code')}: {told.get('message')}"))


def _reported(found: ProviderError, fault: Fault) -> ProviderError:
    """The one place that every fault of the provider passes, once: for the operator alone."""
    found.cause = fault.cause(found.code)
    facts = {name: value for name, value in vars(fault).items() if value}
    log.warning("provider.error", extra={**facts, "code": found.code, "cause": found.cause})
    return found


def stream_cut_off(model: str) -> ProviderError:
    """The stream ended without a final event."""
    return _reported(ProviderError(*_CUT_OFF), fault_in_stream("the stream ended without a final event", model))


def unknown_outcome() -> ProviderError:
    """A request was sent, and nobody knows whether it was accepted."""
    found = ProviderError(*_UNKNOWN_OUTCOME)
    found.cause = "A worker was lost before it knew the response to its request, which may have been paid for."
    return found


def timed_out() -> ProviderError:
    found = ProviderSilent(*_TIMEOUT)
    found.cause = "The run took longer than RUN_TIMEOUT_SECONDS allows."
    return found


def moderation_blocked(details: object) -> ProviderError:
    return ProviderError(ErrorCode.MODERATION_BLOCKED, moderation_message(details), False)


def moderation_message(details: object) -> str:
    """What the provider's safety system refused and why; `details` is `{moderation_stage, categories}` or None."""
    known = cast(dict[str, Any], details if isinstance(details, dict) else {})
    stage = str(known.get("moderation_stage") or known.get("stage"))
    what = {"input": "what was asked for", "output": "the image that was drawn"}.get(stage, "this request")
    names = (
        str(name).replace("_", "-").partition("/")[0] for name in cast(list[object], known.get("categories") or [])
    )
    categories = ", ".join(dict.fromkeys(name for name in names if name in _CATEGORIES))
    why = f" ({categories})" if categories else ""
    return f"The provider's safety system refused {what}{why}: change what you ask for."


def _from_status(error: openai.APIStatusError) -> ProviderError:
    if _is_forgotten(error):
        return ProviderForgot(*_FORGOTTEN)
    found = _from_body(error)
    if error.status_code >= 500:
        return ProviderUnreachable(*_FAILED if found else _UNAVAILABLE)
    if error.status_code == 413:
        return ProviderOverfull(*_OVERFULL)
    if page_of(error) and error.status_code not in (401, 403, 429):
        return ProviderUnreadable(*_NOT_THE_API)
    return found or ProviderError(*_BY_STATUS.get(error.status_code, _REJECTED))


def _from_body(error: openai.APIError) -> ProviderError | None:
    code = str(error.code or _body(error).get("code"))
    if code == "moderation_blocked":
        return moderation_blocked(_body(error).get("moderation_details"))
    row = _BY_CODE.get(code)
    return ProviderError(*row) if row else None


def _is_forgotten(error: openai.APIStatusError) -> bool:
    if error.code == "previous_response_not_found":
        return True
    # The provider has no code for these two: an image that is gone, and one that it accepts only together with the
    # reasoning that led to it.
    gone, incomplete = "Item with id" in str(error), "without its required 'reasoning' item" in str(error)
    return (error.status_code == 404 and gone) or (error.status_code == 400 and incomplete)


def _body(error: openai.APIError) -> dict[str, Any]:
    return cast(dict[str, Any], error.body) if isinstance(error.body, dict) else {}
