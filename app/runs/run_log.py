"""The two lines that a run has in the log: one at its start, one at its end."""

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from app import traces
from app.agents._shared.registry import Registry
from app.attachments.models import Attachment, AttachmentStatus
from app.db import Database
from app.error_codes import ErrorCode
from app.logs import tag
from app.request_context import current_request, trace_id_of
from app.runs.models import Run

log = logging.getLogger(__name__)

# Where we are to blame the reason is an exception that nobody foresaw, so its traceback is logged.
OUR_FAULT = frozenset({ErrorCode.INTERNAL_ERROR, ErrorCode.AGENT_MISCONFIGURED})
_TOKENS = ("input_tokens", "output_tokens", "image_input_tokens", "image_output_tokens")


def tags_of(run: Run) -> dict[str, object]:
    """Of every line that a worker logs about the run: the request's are those of the one that started it."""
    return {
        "tenant_id": run.tenant_id,
        "user_id": run.user_id,
        "run_id": run.id,
        "request_id": run.options.request_id,
        "trace_id": trace_id_of(run.options.traceparent),
    }


async def tags_of_run(database: Database, tenant_id: UUID, run_id: UUID) -> dict[str, object]:
    """For what is logged of a run later, elsewhere."""
    async with database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
    return tags_of(run) if run else {"tenant_id": tenant_id, "run_id": run_id}


async def tags_of_image(database: Database, tenant_id: UUID, object_id: UUID) -> dict[str, object]:
    """Those of the run that drew it, if one did."""
    async with database.tenant(tenant_id) as session:
        run_id = await session.scalar(select(Attachment.run_id).where(Attachment.id == object_id))
    return await tags_of_run(database, tenant_id, run_id) if run_id else {"tenant_id": tenant_id}


def tag_run(run: Run) -> Run:
    """For a request about a run: its lines name the request that started the run, where it is not that one itself."""
    started_by = run.options.request_id
    tag(run_id=run.id, run_request_id=None if started_by == current_request().request_id else started_by)
    return run


def log_start(run: Run, registry: Registry) -> None:
    """Of each attempt; `queued_ms` is how long the run has waited for its first."""
    facts = {"agent": run.agent_key, "model": _model_of(run, registry), "attempt": run.attempt}
    if run.attempt == 1:
        facts["queued_ms"] = _milliseconds(run.created_at, run.started_at)
    log.info("run.start", extra=facts)


def log_end(
    run: Run,
    registry: Registry | None = None,
    images: Iterable[Attachment] = (),
    cause: str | None = None,
    exception: BaseException | None = None,
) -> None:
    """Of a run that has ended; `ms` counts from its first start, `tokens` sums up what `usage` tells apart.

    `cause` is a sentence for the operator.
    """
    error = run.error.code if run.error else ""
    traces.annotate({"easel.outcome": run.status.value}, error=error)
    usage, by_status = run.usage or {}, Counter(image.status for image in images)
    facts = {
        "outcome": run.status.value,
        "agent": run.calling_agent or run.agent_key,
        "model": registry and _model_of(run, registry),
        "calls": run.calling_turn,
        "tokens": sum(usage.get(name, 0) for name in _TOKENS),
        **usage,
        "images": by_status[AttachmentStatus.STORED],
        "images_pending": by_status[AttachmentStatus.PENDING],
        "images_failed": by_status[AttachmentStatus.FAILED],
        "cost_usd": run.cost_usd,
        "attempt": run.attempt,
        "ms": _milliseconds(run.started_at, run.finished_at),
    }
    if run.error is None:
        log.info("run.end", extra=facts)
        return
    unforeseen = exception if run.error.code in OUR_FAULT else None
    level = logging.ERROR if unforeseen else logging.WARNING
    failure = {"code": run.error.code, **({"cause": cause} if cause else {})}
    log.log(level, "run.end", extra={**facts, **failure}, exc_info=unforeseen)


def _model_of(run: Run, registry: Registry) -> str | None:
    """None of an agent that is gone."""
    loaded = registry.specs.get(run.calling_agent or run.agent_key)
    return loaded and loaded.model


def _milliseconds(since: datetime | None, until: datetime | None) -> int:
    """0 where it never began; the clocks of two machines may differ a little."""
    return max(round((until - since).total_seconds() * 1000), 0) if since and until else 0
