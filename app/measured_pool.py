"""A pool of connections that reports how long a transaction waits for one."""

import time

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from app import metrics


class MeasuredPool(AsyncAdaptedQueuePool):
    """SQLAlchemy has events for connections that are handed out, and none for the wait before."""

    def _do_get(self) -> ConnectionPoolEntry:
        began = time.monotonic()
        try:
            return super()._do_get()
        except PoolTimeout:
            metrics.POOL_TIMEOUTS.inc()
            raise
        finally:
            metrics.POOL_WAIT_SECONDS.observe(time.monotonic() - began)
