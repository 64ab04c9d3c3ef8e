"""The catalogue of error codes."""

from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """Every code on the wire: of problems (with their HTTP status), of failed runs and of attachments that failed."""

    status: int | None
    sentence: str

    def __new__(cls, code: str, status: int | None, sentence: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.status, member.sentence = status, sentence
        return member

    UNREADABLE_BODY = "http_400", 400, "The body cannot be read as JSON, or the request not as HTTP."
    UNAUTHENTICATED = "unauthenticated", 401, "The credential is missing, wrong, expired or revoked."
    SIGN_IN_REQUIRED = "sign_in_required", 401, "The address has an account: sign in with it, and send this again."
    BUDGET_EXCEEDED = (
        "budget_exceeded",
        402,
        "The plan's limit on spending or storage, in a run also on images, is reached.",
    )
    UNPRICED_MODEL = "unpriced_model", 402, "A model of the agent has no price while the plan limits spending."
    FORBIDDEN = "forbidden", 403, "The role or the key's scopes do not allow this: see `needs_role`, `needs_scope`."
    NO_TENANT = "no_tenant", 403, "The caller is not a member of any tenant."
    SIGNUP_CLOSED = "signup_closed", 403, "Nobody can sign up here without an invitation."
    TENANT_SUSPENDED = "tenant_suspended", 403, "The tenant is suspended by whoever runs the service."
    USER_REQUIRED = "user_required", 403, "No API key may do this: sign in."
    WRONG_ACCOUNT = "wrong_account", 403, "The invitation is for another address."
    WRONG_PASSWORD = "wrong_password", 403, "The current password is wrong."  # pragma: allowlist secret
    NOT_FOUND = "not_found", 404, "There is no such thing, or not for this caller; a malformed id answers alike."
    METHOD_NOT_ALLOWED = "http_405", 405, "This path has no such method."
    REQUEST_TIMEOUT = "http_408", 408, "The request's head or body arrived too slowly; the connection is closed."
    ALREADY_MEMBER = "already_member", 409, "The address is a member's."
    ATTACHMENT_NOT_STORED = "not_stored", 409, "The attachment is not stored; its `status` and `error` say why."
    CONVERSATION_BUSY = "conversation_busy", 409, "A run of this conversation, named by `run_id`, has not ended yet."
    EMAIL_TAKEN = "email_taken", 409, "This e-mail address has an account already."
    IDEMPOTENCY_IN_FLIGHT = "idempotency_in_flight", 409, "A request with this key is being answered; send it again."
    IDEMPOTENCY_KEY_REQUIRED = (
        "idempotency_key_required",
        409,
        "`Last-Event-ID` without `Idempotency-Key`: nothing was started, as it is unknown which run is meant.",
    )
    LAST_OWNER = "last_owner", 409, "The tenant would have no owner: make another one first."
    RECONCILE_RUNNING = "reconcile_running", 409, "Another reconcile run has not ended yet."
    TOO_LARGE = "too_large", 413, "The body is larger than a setting allows."
    UNSUPPORTED_TYPE = "unsupported_type", 415, "The body is no form, or its file is no PNG, JPEG or WebP."
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable", 416, "`Range` starts after the last byte."
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused", 422, "This key was used with another body."
    IMAGE_UNREADABLE = "image_unreadable", 422, "The image's bytes are damaged, or of a form that is not accepted."
    INVALID_OPTION = "invalid_option", 422, "An option is impossible; `errors` says what is allowed."
    INVALID_REQUEST = "invalid_request", 422, "Request validation failed; `errors` names each field."
    TENANT_REQUIRED = "tenant_required", 422, "The caller belongs to several tenants and `X-Tenant-Id` names none."
    UNKNOWN_AGENT = "unknown_agent", 422, "There is no agent with this key."
    LIMIT_EXCEEDED = (
        "limit_exceeded",
        429,
        "Too much at once: `limit` names what, `Retry-After` says when to try again.",
    )
    TOO_MANY_ATTEMPTS = "too_many_attempts", 429, "Too many passwords or tokens were tried; `Retry-After` says when to."
    HEAD_TOO_LARGE = "http_431", 431, "The request's line and headers are larger than 64 KiB."
    INTERNAL_ERROR = "internal_error", 500, "Easel failed; its log has the reason under the `request_id`."
    MAIL_UNAVAILABLE = "mail_unavailable", 503, "This service is set up without mail."
    SCHEMA_BEHIND = "schema_behind", 503, "The database's schema is older than the program."
    TOO_MANY_CONNECTIONS = "too_many_connections", 503, "The process serves `CONNECTIONS_MAX` connections already."
    UNAVAILABLE = "unavailable", 503, "A dependency (database, Redis or storage) is unavailable; try again."

    AGENT_MISCONFIGURED = "agent_misconfigured", None, "The agent cannot run as it is set up."
    ATTACHMENT_NOT_FOUND = "attachment_not_found", None, "An image that the run names was deleted."
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded", None, "The conversation is too long for the model."
    EMPTY_ANSWER = "empty_answer", None, "The model ended its answer without a text or an image; try again."
    MAX_TURNS_EXCEEDED = "max_turns_exceeded", None, "The agent called the model more often than it may."
    MODEL_MISBEHAVED = "model_misbehaved", None, "The model repeatedly called tools that the agent lacks."
    MODERATION_BLOCKED = "moderation_blocked", None, "The provider's safety system rejected the request or the image."
    PREVIOUS_RESPONSE_NOT_FOUND = "previous_response_not_found", None, "The provider has deleted the conversation."
    STORAGE_UNAVAILABLE = "storage_unavailable", None, "The storage is unavailable; a finished image is stored later."
    UPSTREAM_CONFLICT = "upstream_conflict", None, "The provider answered 409."
    UPSTREAM_DISCONNECTED = "upstream_disconnected", None, "The connection to the provider broke."
    UPSTREAM_FAILED = "upstream_failed", None, "The provider failed while it answered."
    UPSTREAM_INCOMPLETE = "upstream_incomplete", None, "The provider ended its response early."
    UPSTREAM_NOT_FOUND = "upstream_not_found", None, "The provider does not know the model or resource."
    UPSTREAM_OUTCOME_UNKNOWN = "upstream_outcome_unknown", None, "A worker was lost; the provider may have answered."
    UPSTREAM_QUOTA = "upstream_quota", None, "The provider account has no quota left."
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited", None, "The provider receives too many requests."
    UPSTREAM_REJECTED = "upstream_rejected", None, "The provider rejected the request."
    UPSTREAM_TIMEOUT = "upstream_timeout", None, "The provider stopped answering."
    UPSTREAM_TOO_LARGE = "upstream_too_large", None, "The request has too many bytes for the provider."
    UPSTREAM_UNAUTHORIZED = "upstream_unauthorized", None, "The provider rejected the operator's API key."
    UPSTREAM_UNAVAILABLE = "upstream_unavailable", None, "The provider is unavailable."
    UPSTREAM_UNREADABLE = "upstream_unreadable", None, "The provider's response could not be parsed."

    IMAGE_GENERATION_FAILED = "image_generation_failed", None, "The provider could not draw the image."
    IMAGE_MISSING = "image_missing", None, "The provider began the image and never sent it."
    IMAGE_NOT_DRAWN = "image_not_drawn", None, "The model answered without drawing the image that was requested."
    IMAGE_TOO_LARGE = "image_too_large", None, "The image is larger than `IMAGE_OUTPUT_MAX_MB` allows."
    INGEST_FAILED = "ingest_failed", None, "The image could not be recorded."
    OBJECT_MISSING = "object_missing", None, "The storage no longer has the image."
    UPLOAD_LOST = "lost", None, "The upload ended before its image was stored; send it again."
