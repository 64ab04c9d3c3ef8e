"""What the provider has stored: the images and the use of earlier responses; stopping and deleting them, and files."""

import json
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, suppress

import openai
from openai import AsyncOpenAI
from openai.types.responses.response_output_item import ImageGenerationCall

from app.provider.errors import from_openai
from app.provider.model import to_image
from app.provider.observers import GeneratedImage
from app.provider.usage import ResponseReport, report_of

DELETE_SECONDS = 10.0
# The calls of one run follow each other by `previous_response_id`; an image is seldom far from the last of them.
MAX_RESPONSES_BACK = 10


@contextmanager
def reading() -> Generator[None]:
    """Whatever goes wrong is a ProviderError.

    The SDK gives text where the answer says that it is no JSON, and builds any JSON into a response.
    """
    try:
        yield
    except (openai.APIError, json.JSONDecodeError) as error:
        raise from_openai(error) from error
    except (AttributeError, TypeError) as error:
        raise from_openai(json.JSONDecodeError(f"not what was asked for: {error}", "", 0)) from error


class StoredObjects:
    """Methods raise ProviderError."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def images_of(self, response_id: str) -> AsyncIterator[GeneratedImage]:
        """The images of a stored response and of those before it, the last response first; none where it is gone."""
        following: str | None = response_id
        for _ in range(MAX_RESPONSES_BACK):
            if following is None:
                return
            with reading():
                try:
                    response = await self._client.responses.retrieve(following)
                except openai.NotFoundError:
                    return
                drawn = [one for one in response.output if isinstance(one, ImageGenerationCall) and one.result]
                following = response.previous_response_id
            for item in drawn:
                yield to_image(item, item.result or "", "")

    async def stop(self, response_id: str) -> ResponseReport:
        """Stop a response that the provider would finish, and charge for, in the background; what it used so far."""
        with reading():
            try:
                return report_of(await self._client.responses.cancel(response_id), ())
            except openai.APIStatusError:
                return report_of(await self._client.responses.retrieve(response_id), ())

    async def delete(self, kind: str, provider_id: str) -> None:
        """A `file`, or a response with its images; one that is gone is no error."""
        delete = self._client.files.delete if kind == "file" else self._client.responses.delete
        with reading(), suppress(openai.NotFoundError):
            await delete(provider_id, timeout=DELETE_SECONDS)
