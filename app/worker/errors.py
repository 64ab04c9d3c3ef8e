"""Why a run failed: every exception of the agents SDK, the provider and the storage becomes one RunError."""

from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError, UserError

from app.error_codes import ErrorCode
from app.errors import NotFound, OverLimit
from app.images.inspect import UnreadableImage
from app.provider import errors as provider
from app.provider.errors import ProviderError
from app.runs.models import RunError
from app.storage.store import ObjectMissing, StorageError

AGENT_GONE = RunError(
    code=ErrorCode.UNKNOWN_AGENT, message="The agent of this run no longer exists: use another one.", retryable=False
)
EMPTY_ANSWER = RunError(
    code=ErrorCode.EMPTY_ANSWER, message="The model answered with neither text nor image: try again.", retryable=True
)
# After these the provider may still be at work.
PROVIDER_MAY_CONTINUE = frozenset(
    {
        ErrorCode.UPSTREAM_TIMEOUT,
        ErrorCode.UPSTREAM_DISCONNECTED,
        ErrorCode.UPSTREAM_UNAVAILABLE,
        ErrorCode.UPSTREAM_UNREADABLE,
        ErrorCode.UPSTREAM_OUTCOME_UNKNOWN,
        ErrorCode.UNKNOWN_AGENT,
        ErrorCode.INTERNAL_ERROR,
    }
)


def to_run_error(error: BaseException) -> RunError:
    """The first meaning found along the exception and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _meaning_of(seen):
            return found
        seen = seen.__cause__ or seen.__context__
    return RunError(code=ErrorCode.INTERNAL_ERROR, message="Something went wrong on our side.", retryable=True)


def cause_of(error: BaseException | None) -> str | None:
    """The operator's sentence, where the provider or the storage is to blame."""
    seen = error
    while seen is not None:
        if isinstance(seen, ProviderError):
            return seen.cause
        if isinstance(seen, StorageError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return None


def _meaning_of(error: BaseException) -> RunError | None:  # noqa: PLR0911 - a table, one line a kind
    match error:
        case ProviderError():
            return _run_error(error.code, error.message, retryable=error.retryable)
        case OverLimit():
            return _run_error(ErrorCode.BUDGET_EXCEEDED, error.detail, retryable=False)
        case TimeoutError():
            return to_run_error(provider.timed_out())
        case ObjectMissing() | NotFound():
            return _run_error(
                ErrorCode.ATTACHMENT_NOT_FOUND, "An image that this run names was deleted.", retryable=False
            )
        case StorageError():
            message = "The object storage does not answer: try again in a moment."
            return _run_error(ErrorCode.STORAGE_UNAVAILABLE, message, retryable=True)
        case MaxTurnsExceeded():
            return _run_error(ErrorCode.MAX_TURNS_EXCEEDED, "The agent took more turns than it may.", retryable=False)
        case UnreadableImage():
            return _run_error(ErrorCode.IMAGE_UNREADABLE, "The mask of this run cannot be decoded.", retryable=False)
        case ModelBehaviorError():
            message = "The model asked again and again for a tool that this agent does not have."
            return _run_error(ErrorCode.MODEL_MISBEHAVED, message, retryable=True)
        case UserError():
            return _run_error(ErrorCode.AGENT_MISCONFIGURED, "This agent cannot run as it is set up.", retryable=False)
        case _:
            return None


def _run_error(code: ErrorCode, message: str, *, retryable: bool) -> RunError:
    # The message may quote the provider; Postgres does not accept this character in a text.
    return RunError(code=code, message=message.replace("\0", ""), retryable=retryable)
