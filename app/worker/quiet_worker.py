"""docket's worker without what Easel never asks of it."""

from docket import Worker


class QuietWorker(Worker):
    """Does not look ten times a second, in two threads, whether somebody has cancelled a task: nobody does.

    `_cancellation_listener` is docket's own, and only what it promises to the rest of the worker is left of it.
    """

    async def _cancellation_listener(self) -> None:
        session = self._processing_session
        if session is not None:
            session.cancellation_ready.set()
            await session.stopping.wait()
