"""The model that our agents call, with each of its calls counted and timed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from openai.types.responses import ResponseStreamEvent

from app import metrics, traces
from app.provider.cursor import StreamCursor
from app.provider.errors import ProviderError
from app.provider.model import ImageExtractingModel


class MeasuredModel(ImageExtractingModel):
    """A call begins as its request is sent: what is committed before that is no time of the provider's.

    Deltas do not pass here, so that they cost nothing more.
    """

    _began: float | None = None
    _parent: str | None = None

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        self._began, outcome = None, "cancelled"
        try:
            async with aclosing(super().stream_response(*args, **kwargs)) as events:
                async for event in events:
                    yield event
            outcome = "completed"
        except ProviderError as error:
            outcome = error.code
            raise
        finally:
            if self._began is not None:
                self._tell_end_of_call(outcome, time.monotonic() - self._began)

    def _request(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        self._begin()
        return super()._request(*args, **kwargs)

    def _retrieve(self, cursor: StreamCursor) -> AsyncGenerator[ResponseStreamEvent]:
        if self._began is None:
            self._begin()
        return super()._retrieve(cursor)

    def _begin(self) -> None:
        self._began, self._parent = time.monotonic(), traces.traceparent()

    def _tell_end_of_call(self, outcome: str, seconds: float) -> None:
        metrics.provider_call_ended(self.model, outcome, seconds)
        facts = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": self.model,
            "easel.outcome": outcome,
        }
        # In retrospect: a generator may be closed by whoever, so no span can be current in it.
        traces.record(
            f"chat {self.model}",
            facts,
            kind="client",
            parent=self._parent,
            seconds=seconds,
            error="" if outcome in ("completed", "cancelled") else outcome,
        )
