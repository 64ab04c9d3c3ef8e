"""What a worker tells of the work that waits, when somebody asks: runs, images, its spool."""

import asyncio
import logging
import time
from collections.abc import Sequence

from sqlalchemy import Row, text
from sqlalchemy.exc import SQLAlchemyError

from app import metrics
from app.attachments.spool import MAX_BYTES
from app.db import IDENTITY_ROLE, SET_RIGHTS, Database
from app.errors import CONNECTION_FAULTS
from app.metrics import Metric
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)

# However many ask, and however often: this worker looks so seldom.
LOOK_SECONDS = 10.0
QUERY_SECONDS = 3.0
MOST_PENDING = 10_000

# Both counts read the partial index of what is unfinished, and no row of what is not.
BACKLOG = text(f"""
SELECT
  (SELECT count(*) FROM (SELECT FROM attachments WHERE status = 'pending' LIMIT {MOST_PENDING}) AS unstored) AS pending,
  (SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM attachments WHERE status = 'pending')
    AS pending_seconds,
  count(*) FILTER (WHERE status = 'queued') AS queued,
  count(*) FILTER (WHERE status = 'running') AS running,
  extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE status = 'queued')) AS queued_seconds
FROM runs WHERE status IN ('queued', 'running')
""")  # noqa: S608 - composed of a constant


class WorkerGauges:
    """A source of families; what was read is shown again for a while."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._families: list[Metric] = []

    async def __call__(self) -> Sequence[Metric]:
        async with self._looking:
            if time.monotonic() > self._looked_at + LOOK_SECONDS:
                self._families = [*await self._spool(), *await self._backlog(), self._slots()]
                self._looked_at = time.monotonic()
        return self._families

    async def _spool(self) -> list[Metric]:
        files, size = await self._ctx.spool.usage()
        return [
            metrics.gauge("easel_spool_files", "Images that wait on this worker's disk for the storage.", files),
            metrics.gauge("easel_spool_bytes", "Their bytes.", size),
            metrics.gauge("easel_spool_limit_bytes", "How many bytes the spool accepts.", MAX_BYTES),
        ]

    async def _backlog(self) -> list[Metric]:
        """None of these families while the database is unavailable: an old number would look like a quiet service."""
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                row = await read_backlog(self._ctx.database)
        except (*CONNECTION_FAULTS, SQLAlchemyError, TimeoutError) as error:
            log.warning("metrics.backlog_not_read", extra={"error": type(error).__name__})
            return []
        text = "Runs of all tenants that have not ended, by status."
        images = f"Images of all tenants that are not stored yet, {MOST_PENDING:,} at most."
        return [
            metrics.gauge("easel_runs_open", text, {"queued": row.queued, "running": row.running}, "status"),
            metrics.gauge("easel_runs_oldest_queued_seconds", "Age of the oldest of them.", row.queued_seconds or 0),
            metrics.gauge("easel_images_pending", images, row.pending),
            metrics.gauge("easel_images_oldest_pending_seconds", "Age of the oldest.", row.pending_seconds or 0),
        ]

    def _slots(self) -> Metric:
        return metrics.gauge("easel_worker_slots", "WORKER_CONCURRENCY.", self._ctx.settings.worker_concurrency)


async def read_backlog(database: Database) -> Row[tuple[float, ...]]:
    """By the connection for checks: the pool is in use just when the numbers matter."""
    async with database.probe.begin() as connection:
        await connection.execute(SET_RIGHTS, {"role": IDENTITY_ROLE, "tenant": ""})
        return (await connection.execute(BACKLOG)).one()
