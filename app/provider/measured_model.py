"""The model that our agents call, with each of its calls counted and timed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from openai.types.responses import ResponseStreamEvent

from app import metrics
from app.provider.cursor import StreamCursor
from app.provider.errors import ProviderError
from app.provider.model import ImageExtractingModel


class MeasuredModel(ImageExtractingModel):
    """A call begins as its request is sent: what is committed before that is no time of the provider's.

    Deltas do not pass here, so that they cost nothing more.
    """

    _began: float | None = None

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
                metrics.provider_call_ended(self.model, outcome, time.monotonic() - self._began)

    def _request(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        self._began = time.monotonic()
        return super()._request(*args, **kwargs)

    def _retrieve(self, cursor: StreamCursor) -> AsyncGenerator[ResponseStreamEvent]:
        if self._began is None:
            self._began = time.monotonic()
        return super()._retrieve(cursor)
