"""Why a run failed: every exception of the agents SDK, the provider and the storage becomes one RunError."""

from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError, UserError

from app.errors import NotFound
from app.provider import errors as provider
from app.provider.errors import ProviderError
from app.runs.models import RunError
from app.storage.store import ObjectMissing, StorageError

AGENT_GONE = RunError(
    code="unknown_agent", message="The agent of this run no longer exists: use another one.", retryable=False
)
# After these the provider may still be at work.
PROVIDER_MAY_CONTINUE = frozenset(
    {
        "upstream_timeout",
        "upstream_disconnected",
        "upstream_unreadable",
        "upstream_outcome_unknown",
        "unknown_agent",
        "internal_error",
    }
)
OUR_FAULT = frozenset({"internal_error", "agent_misconfigured"})


def to_run_error(error: BaseException) -> RunError:
    """The first meaning found along the exception and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _meaning_of(seen):
            return found
        seen = seen.__cause__ or seen.__context__
    return RunError(code="internal_error", message="Something went wrong on our side.", retryable=True)


def _meaning_of(error: BaseException) -> RunError | None:  # noqa: PLR0911 - a table, one line a kind
    match error:
        case ProviderError():
            return _run_error(error.code, error.message, retryable=error.retryable)
        case TimeoutError():
            return to_run_error(provider.timed_out())
        case ObjectMissing() | NotFound():
            return _run_error("attachment_not_found", "An image that this run names was deleted.", retryable=False)
        case StorageError():
            message = "The object storage does not answer: try again in a moment."
            return _run_error("storage_unavailable", message, retryable=True)
        case MaxTurnsExceeded():
            return _run_error("max_turns_exceeded", "The agent took more turns than it may.", retryable=False)
        case ModelBehaviorError():
            message = "The model asked for a tool that this agent does not have."
            return _run_error("model_misbehaved", message, retryable=True)
        case UserError():
            return _run_error("agent_misconfigured", "This agent cannot run as it is set up.", retryable=False)
        case _:
            return None


def _run_error(code: str, message: str, *, retryable: bool) -> RunError:
    # The message may quote the provider; Postgres does not accept this character in a text.
    return RunError(code=code, message=message.replace("\0", ""), retryable=retryable)
