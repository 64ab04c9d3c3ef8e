"""The SDK's client with requests that cost less to write: their items are sent as they are."""

from functools import cached_property
from typing import Any, cast

from openai.resources.responses import AsyncResponses
from typing_extensions import override

from app.provider.wire import WireTapClient

# Lists of JSON, whose every item the SDK would hold against each of dozens of types, only to leave it as it is.
PLAIN = ("input", "tools")


class ResponsesClient(WireTapClient):
    @cached_property
    @override
    def responses(self) -> AsyncResponses:  # pyright: ignore[reportIncompatibleMethodOverride] - a cached one as well
        return _Responses(self)


class _Responses(AsyncResponses):
    @override
    async def create(self, **given: Any) -> Any:
        plain = {name: given.pop(name) for name in PLAIN if _is_plain(given.get(name))}
        if plain:
            given["extra_body"] = {**plain, **(given.get("extra_body") or {})}
        return cast(Any, await super().create(**given))


def _is_plain(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is dict for item in cast(list[object], value))
