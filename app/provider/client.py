"""The connection to the model provider, one for each process; nothing outside this package imports `openai`."""

from collections.abc import AsyncIterator, Awaitable

import openai
from agents.models.interface import Model
from openai.types.responses.response_output_item import ImageGenerationCall

from app.provider.errors import from_openai
from app.provider.model import GeneratedImage, ImageExtractingModel, ModelUse, to_image
from app.provider.wire import WireTapClient

CONNECT_SECONDS = 10.0
DELETE_SECONDS = 10.0
# As long as the provider keeps a response: a follow-up on it may look at the file again.
FILE_SECONDS = 30 * 24 * 3600
# The calls of one run follow each other by `previous_response_id`; an image is seldom far from the last of them.
MAX_RESPONSES_BACK = 10


class Provider:
    """An OpenAI-compatible Responses API. Methods raise ProviderError."""

    def __init__(self, *, api_key: str, base_url: str | None, idle_seconds: float) -> None:
        # A POST is paid for, so it is never repeated by the SDK. Why aiohttp reads the streams is in
        # docs/decisions/0025-the-providers-transport.md.
        timeout = openai.Timeout(idle_seconds, connect=CONNECT_SECONDS)
        self._client = WireTapClient(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAioHttpClient(timeout=timeout),
        )

    def model(self, name: str, use: ModelUse) -> Model:
        return ImageExtractingModel(name, self._client, use)

    async def cancel(self, response_id: str) -> None:
        """Stop a response that the provider would finish, and charge for, in the background."""
        try:
            await self._client.responses.cancel(response_id)
        except openai.APIError as error:
            raise from_openai(error) from error

    async def images_of(self, response_id: str) -> AsyncIterator[GeneratedImage]:
        """The images of a stored response and of those before it, the last response first; none where it is gone."""
        following: str | None = response_id
        for _ in range(MAX_RESPONSES_BACK):
            if following is None:
                return
            try:
                response = await self._client.responses.retrieve(following)
            except openai.NotFoundError:
                return
            except openai.APIError as error:
                raise from_openai(error) from error
            for item in response.output:
                if isinstance(item, ImageGenerationCall) and item.result:
                    yield to_image(item, item.result, "")
            following = response.previous_response_id

    async def upload_image(self, filename: str, data: bytes, mime_type: str) -> str:
        """The id of a file that later requests may name as an input image."""
        try:
            file = await self._client.files.create(
                file=(filename, data, mime_type),
                purpose="vision",
                expires_after={"anchor": "created_at", "seconds": FILE_SECONDS},
            )
        except openai.APIError as error:
            raise from_openai(error) from error
        return file.id

    async def delete_response(self, response_id: str) -> None:
        """With its images; one that is gone is no error."""
        await self._delete(self._client.responses.delete(response_id, timeout=DELETE_SECONDS))

    async def delete_file(self, file_id: str) -> None:
        """One that is gone, or has expired, is no error."""
        await self._delete(self._client.files.delete(file_id, timeout=DELETE_SECONDS))

    async def _delete(self, request: Awaitable[object]) -> None:
        try:
            await request
        except openai.NotFoundError:
            return
        except openai.APIError as error:
            raise from_openai(error) from error

    async def close(self) -> None:
        await self._client.close()
