"""Whether the provider has the models that agents name. Asking for a model's name buys nothing."""

import os
from typing import Any, cast

import openai
from openai import AsyncOpenAI
from openai.types import Model

from app.provider.causes import page_of

ASK_SECONDS = 10.0
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_NO_QUOTA = "insufficient_quota"


class OfferedModels:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self.address = f"{client.base_url.host}:{client.base_url.port or 443}"

    async def fault_of(self, model: str, settings: str) -> str | None:
        """What an operator must mend so that runs with the model work; `settings` names what chose it."""
        try:
            found = cast(Any, await self._client.models.retrieve(model, timeout=ASK_SECONDS))
        except openai.APIStatusError as error:
            return await self._status_fault(error, model, settings)
        except openai.APIConnectionError as error:
            if page_of(error):
                return self._no_api("sends a page of HTML")
            return self._unreachable(error)
        except (ValueError, openai.APIError):
            return self._no_api("sends what is not the API's")
        # A page is handed through as text.
        return None if isinstance(found, Model) else self._no_api("sends a page")

    async def _status_fault(self, error: openai.APIStatusError, model: str, settings: str) -> str | None:
        status = error.status_code
        if status == 401:
            return f"The provider at {self.address} refuses the key (HTTP 401): correct OPENAI_API_KEY."
        if status == 403:
            return (
                f"The provider at {self.address} does not let this key use the model {model} (HTTP 403): correct"
                f" OPENAI_API_KEY or its rights, or name another model in {settings}."
            )
        if status == 404:
            if error.code != "model_not_found" and not await self._lists_models():
                return self._no_api("knows no /models")
            return f"The provider at {self.address} has no model {model}: name one that it has in {settings}."
        if error.code == _NO_QUOTA:
            return f"The provider's account at {self.address} has no quota left: its owner must add to it."
        # Too many requests just now are no fault of the set-up.
        return None if status == 429 else f"The provider at {self.address} fails (HTTP {status}): ask who runs it."

    async def _lists_models(self) -> bool:
        """Whether this is the API at all: where a path is wrong, every model seems to be missing."""
        try:
            return not isinstance(await self._client.models.list(timeout=ASK_SECONDS), str)
        except (openai.APIError, ValueError):
            return False

    def _unreachable(self, error: openai.APIConnectionError) -> str:
        proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
        by = f", or the proxy that {proxies[0]} names" if proxies else ""
        return (
            f"The provider at {self.address} does not answer ({_reason(error)}): let this machine reach it, or correct"
            f" OPENAI_BASE_URL{by}."
        )

    def _no_api(self, what: str) -> str:
        return f"The provider at {self.address} {what}: correct OPENAI_BASE_URL, which of most providers ends in /v1."


def _reason(error: BaseException) -> str:
    """What the system said, below what the SDK and its transport made of it."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
            return os.strerror(cause.errno)
    return "no answer in time" if isinstance(error, openai.APITimeoutError) else str(causes[-1]) or "no connection"
