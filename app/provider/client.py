"""The connection to the model provider, one for each process; nothing outside this package imports `openai`."""

from typing import cast

import openai
from agents import set_trace_provider
from agents.models.interface import Model
from agents.tracing.provider import DefaultTraceProvider

from app.provider.causes import reject_page
from app.provider.measured_model import MeasuredModel
from app.provider.observers import ModelUse
from app.provider.offered import OfferedModels
from app.provider.requests import ResponsesClient
from app.provider.stored import StoredObjects, reading

CONNECT_SECONDS = 10.0
# As long as the provider keeps a response: a follow-up on it may look at the file again.
FILE_SECONDS = 30 * 24 * 3600

# The SDK's own would make an HTTP client for its exporter, which fails where the environment names a SOCKS proxy.
set_trace_provider(DefaultTraceProvider())


class Provider:
    """An OpenAI-compatible Responses API. Methods raise ProviderError."""

    def __init__(self, *, api_key: str, base_url: str | None, idle_seconds: float) -> None:
        # A POST is paid for, so it is never repeated by the SDK. Why aiohttp reads the streams is in
        # docs/decisions/0025-the-providers-transport.md.
        timeout = openai.Timeout(idle_seconds, connect=CONNECT_SECONDS)
        self._client = ResponsesClient(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAioHttpClient(timeout=timeout, event_hooks={"response": [reject_page]}),
        )
        self.stored = StoredObjects(self._client)
        self.offered = OfferedModels(self._client)

    def model(self, name: str, use: ModelUse) -> Model:
        return MeasuredModel(name, self._client, use)

    async def upload_image(self, filename: str, data: bytes, mime_type: str) -> str:
        """The id of a file that later requests may name as an input image."""
        with reading():
            file = await self._client.files.create(
                file=(filename, data, mime_type),
                purpose="vision",
                expires_after={"anchor": "created_at", "seconds": FILE_SECONDS},
            )
            # The SDK leaves None where a field is missing.
            if (file_id := cast(str | None, file.id)) is None:
                raise TypeError("a file without an id")
            return file_id

    async def close(self) -> None:
        await self._client.close()
