"""Which runs a worker executes: tenant after tenant the oldest run, so that no tenant's queue keeps another waiting."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import CONNECTION_FAULTS
from app.logs import tag
from app.runs.models import Run
from app.runs.run_log import tags_of
from app.runs.run_trace import run_span
from app.worker import lease, model_input
from app.worker.context import WorkerContext
from app.worker.executor import RunReleased, execute, resumed_response
from app.worker.model_input import RunInput

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


@asynccontextmanager
async def running(ctx: WorkerContext) -> AsyncGenerator[None]:
    """Execute runs until `ctx.stopping` is set: none begins after that, and the block's end waits for those that did.

    The block's end sets `ctx.stopping`.
    """
    dispatching = asyncio.create_task(Dispatcher(ctx).dispatch())
    log.info("worker.started")
    try:
        yield
    finally:
        ctx.stopping.set()
        await dispatching


class Dispatcher:
    """Claims a run wherever it has a slot and a tenant is ready.

    A worker claims one run at a time, so that the limit of a tenant is exact for one worker; several that claim at the
    same moment may exceed it by one each.
    """

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        # One tenant never has all slots of a worker.
        self._most = min(ctx.settings.tenant_concurrency, max(ctx.settings.worker_concurrency - 1, 1))
        self._stopping = asyncio.create_task(ctx.stopping.wait())
        self._executing: set[asyncio.Task[None]] = set()

    async def dispatch(self) -> None:
        """Return when `ctx.stopping` is set and what has begun has ended."""
        while not self._ctx.stopping.is_set():
            try:
                await self._begin_next()
            except Exception:
                # The sweep will find the tenant again.
                log.warning("run.not_claimed", exc_info=True)
                await asyncio.sleep(RETRY_SECONDS)
        await asyncio.gather(*self._executing)

    async def _begin_next(self) -> None:
        while len(self._executing) >= self._ctx.settings.worker_concurrency:
            await asyncio.wait(self._executing, return_when=asyncio.FIRST_COMPLETED)
        tenant_id = await self._next_tenant()
        if tenant_id is None:
            return
        claimed = await self._claim(tenant_id)
        if claimed is None:
            return
        run, request, more = claimed
        task = asyncio.create_task(self._execute(run, request))
        self._executing.add(task)
        task.add_done_callback(self._executing.discard)
        if more:
            await self._ctx.broker.ready.put(tenant_id)

    async def _next_tenant(self) -> UUID | None:
        """None once the worker is to stop."""
        getting = asyncio.create_task(self._ctx.broker.ready.get())
        await asyncio.wait({getting, self._stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.done():
            return getting.result()
        getting.cancel()
        await asyncio.gather(getting, return_exceptions=True)
        return None

    async def _claim(self, tenant_id: UUID) -> tuple[Run, RunInput | Exception, bool] | None:
        ctx = self._ctx
        async with ctx.database.tenant(tenant_id) as session:
            claimed = await lease.claim(
                session, tenant_id, most=self._most, lease_seconds=ctx.settings.run_lease_seconds
            )
            if claimed is None:
                return None
            run = claimed.run
            loaded = ctx.registry.specs.get(run.agent_key)
            stores, already_sent = loaded is not None and loaded.spec.store, resumed_response(run) is not None
            request = await _load(session, run, stores=stores, already_sent=already_sent)
        return run, request, claimed.more

    async def _execute(self, run: Run, request: RunInput | Exception) -> None:
        """To the end, or the loss, of the lease; then the tenant's next run may begin. In a task of its own."""
        tag(**tags_of(run))
        waiting = True
        try:
            with run_span(run):
                ended = await execute(self._ctx, run, request)
            waiting = ended is None or ended.waiting
        except RunReleased:
            pass
        except Exception:
            # Nobody renews the lease any more, so another attempt follows.
            log.exception("run.broken_off")
        if waiting:
            try:
                await self._ctx.broker.ready.put(run.tenant_id)
            except Exception:
                log.warning("tenant.not_ready", exc_info=True)


async def _load(session: AsyncSession, run: Run, *, stores: bool, already_sent: bool) -> RunInput | Exception:
    """A fault is returned and fails this run: raised, it would undo the claim and hold up the tenant's other runs."""
    try:
        return await model_input.load(session, run, stores=stores, already_sent=already_sent)
    except (*CONNECTION_FAULTS, SQLAlchemyError):
        raise
    except Exception as error:
        return error
