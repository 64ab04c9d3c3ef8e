"""The worker's part of erasures: rows, objects and what the provider has, each in a loop of its own."""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from app.erasure import leftovers, work
from app.provider.errors import ProviderError
from app.runs.provider_objects import ProviderObjectKind
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)


async def erase_rows(ctx: WorkerContext) -> None:
    await _while_due(ctx, lambda: work.erase_rows(ctx.database, ctx.broker, ctx.settings))


async def remove_objects(ctx: WorkerContext) -> None:
    await _while_due(ctx, lambda: leftovers.remove_objects(ctx.database, ctx.store, _lease(ctx)))


async def remove_from_provider(ctx: WorkerContext) -> None:
    async def delete(kind: ProviderObjectKind, provider_id: str) -> bool:
        """False where it has to be tried again."""
        try:
            await ctx.provider.stored.delete(kind, provider_id)
        except ProviderError as error:
            log.warning("provider.not_deleted", extra={"kind": kind, "error": error.cause})
            return False
        return True

    await _while_due(ctx, lambda: leftovers.remove_from_provider(ctx.database, delete, _lease(ctx)))


def _lease(ctx: WorkerContext) -> timedelta:
    return timedelta(seconds=ctx.settings.run_lease_seconds)


async def _while_due(ctx: WorkerContext, step: Callable[[], Awaitable[bool]]) -> None:
    while not ctx.stopping.is_set() and await step():
        pass
