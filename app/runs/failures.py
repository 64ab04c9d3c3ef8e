"""Why a turn failed, in our words: every exception of the SDKs becomes one RunError."""

import asyncio
from typing import Any, cast

import openai
from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError, UserError

from app.agents._shared.model import UpstreamEnded
from app.errors import NotFound
from app.runs.service import RunError
from app.runs.translate import refused_in_words
from app.storage.store import ObjectMissing, StorageError

UNKNOWN_OUTCOME = RunError(
    "upstream_outcome_unknown",
    "The worker was lost while the provider drew; nothing is asked again by itself. Try again if you still want it.",
    True,
)

# The provider's own codes that mean something to the person who asked.
KNOWN_CODES = {
    "moderation_blocked": RunError(
        "moderation_blocked", "The provider's safety system refused this request: change what you ask for.", False
    ),
    "insufficient_quota": RunError(
        "upstream_quota", "The provider account has no quota left: its owner must add to it.", False
    ),
    "rate_limit_exceeded": RunError("upstream_rate_limited", "The provider is busy: try again in a moment.", True),
    "context_length_exceeded": RunError(
        "context_length_exceeded", "This conversation is too long for the model: start a new one.", False
    ),
    "previous_response_not_found": RunError(
        "previous_response_not_found", "The provider no longer has this conversation.", True
    ),
    "upstream_disconnected": RunError("upstream_disconnected", "The provider's answer broke off: try again.", True),
    "upstream_incomplete": RunError("upstream_incomplete", "The provider cut its answer short: try again.", True),
    "upstream_outcome_unknown": UNKNOWN_OUTCOME,
    "server_error": RunError("upstream_failed", "The provider failed while it answered: try again.", True),
}

BY_STATUS = {
    401: RunError("upstream_unauthorized", "The provider refused our key: an operator must set OPENAI_API_KEY.", False),
    403: RunError("upstream_unauthorized", "The provider refused our key: an operator must set OPENAI_API_KEY.", False),
    404: RunError("upstream_not_found", "The provider does not know the model or resource asked for.", False),
    408: RunError("upstream_timeout", "The provider took too long: try again.", True),
    409: RunError("upstream_conflict", "The provider was in conflict with itself: try again.", True),
    429: KNOWN_CODES["rate_limit_exceeded"],
}

STORAGE = RunError("storage_unavailable", "The picture store does not answer: try again in a moment.", True)
PICTURE_GONE = RunError("attachment_not_found", "A picture that this run names was deleted.", False)
AGENT_GONE = RunError("unknown_agent", "The agent of this run is no longer there: ask another one.", False)
TIMEOUT = RunError("upstream_timeout", "The provider stopped answering: try again.", True)


def explain(error: BaseException) -> RunError:
    """The first meaning found along the exception and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _explain_one(seen):
            return found
        seen = seen.__cause__ or seen.__context__
    return RunError("internal_error", "Something went wrong on our side.", True)


def _explain_one(error: BaseException) -> RunError | None:  # noqa: C901, PLR0911 - a table, one line a kind
    match error:
        case UpstreamEnded():
            return KNOWN_CODES.get(error.code) or RunError("upstream_failed", f"The provider failed: {error}", True)
        case openai.APITimeoutError() | TimeoutError() | asyncio.TimeoutError():
            return TIMEOUT
        case openai.APIConnectionError():
            return KNOWN_CODES["upstream_disconnected"]
        case openai.APIStatusError():
            return _by_code(error) or BY_STATUS.get(error.status_code) or _by_status(error)
        case openai.APIError():
            return _by_code(error) or KNOWN_CODES["server_error"]
        case ObjectMissing() | NotFound():
            return PICTURE_GONE
        case StorageError():
            return STORAGE
        case MaxTurnsExceeded():
            return RunError("max_turns_exceeded", "The agent took more turns than it may.", False)
        case ModelBehaviorError():
            return RunError("model_misbehaved", "The model asked for something that this agent does not have.", True)
        case UserError():
            return RunError("agent_misconfigured", "This agent cannot run as it is set up.", False)
        case ValueError() if type(error).__name__ == "JSONDecodeError":
            return RunError("upstream_unreadable", "The provider's answer could not be read: try again.", True)
        case _:
            return None


def _by_code(error: openai.APIError) -> RunError | None:
    body = cast(dict[str, Any], error.body) if isinstance(error.body, dict) else {}
    code = str(error.code or body.get("code"))
    if code == "moderation_blocked":
        return RunError(code, refused_in_words(body.get("moderation_details")), False)
    return KNOWN_CODES.get(code)


def _by_status(error: openai.APIStatusError) -> RunError:
    if error.status_code >= 500:
        return RunError("upstream_unavailable", "The provider is not available: try again in a moment.", True)
    return RunError("upstream_rejected", f"The provider refused the request: {_message(error)}", False)


def _message(error: openai.APIStatusError) -> str:
    body = cast(dict[str, Any], error.body) if isinstance(error.body, dict) else {}
    return str(body.get("message", "no reason given"))[:300]
