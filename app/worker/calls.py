"""A run's calls to the provider: what is committed around each of them, so that no purchase is repeated."""

import asyncio
import logging
from collections import Counter
from typing import Any

from app.agents._shared.registry import Registry
from app.agents._shared.tools import IMAGE_TOOL
from app.db import Database
from app.provider.client import Provider
from app.provider.errors import ProviderError
from app.runs.models import Run
from app.runs.provider_objects import ProviderObjectKind
from app.worker import lease

log = logging.getLogger(__name__)

CANCEL_SECONDS = 5.0


class ProviderCalls:
    """Observes the calls of one attempt (a CallObserver); `resumed` is the response that an earlier one requested."""

    def __init__(
        self, database: Database, provider: Provider, registry: Registry, run: Run, resumed: str | None
    ) -> None:
        # Of the calls before the present one: an earlier attempt's are counted there.
        self.usage: Counter[str] = Counter(run.usage or {})
        # Whether the provider has accepted a request of this run, of this attempt or an earlier one.
        self.already_sent = resumed is not None
        # Cleared while a request is in flight whose response id is not known yet.
        self.no_request_in_flight = asyncio.Event()
        self.no_request_in_flight.set()
        self._database = database
        self._provider = provider
        self._registry = registry
        self._run = run
        self._resumed = resumed
        # The response that was named last, committed with the end of the run at the latest.
        self.response_id = run.response_id
        # What the provider has kept for this run and no statement has recorded yet.
        self.kept: dict[str, ProviderObjectKind] = {}
        self._draws = False
        self._open = resumed is not None
        self.turn = run.calling_turn

    def take_resumed(self) -> str | None:
        response_id, self._resumed = self._resumed, None
        return response_id

    async def on_request(self, agent_key: str, *, background: bool) -> None:
        """Committed before money is spent, so that a later attempt sees what was requested, and by which agent."""
        self.turn += 1
        self._draws = IMAGE_TOOL in self._registry.specs[agent_key].spec.tool_keys
        self.response_id = None
        self.no_request_in_flight.clear()
        await self._write(
            calling_turn=self.turn,
            calling_agent=agent_key,
            background=background,
            response_id=None,
            usage=dict(self.usage) or None,
        )
        self._run.background = background

    async def on_response_created(self, response_id: str) -> None:
        self.already_sent = self._open = True
        self.response_id = response_id
        self.kept[response_id] = ProviderObjectKind.RESPONSE
        if self._draws:
            # What was paid for is resumed, and its images are recovered, by this id alone.
            await self._write(response_id=response_id)
        self.no_request_in_flight.set()

    async def upload_image(self, filename: str, data: bytes, mime_type: str) -> str:
        file_id = await self._provider.upload_image(filename, data, mime_type)
        self.kept[file_id] = ProviderObjectKind.FILE
        return file_id

    def on_response_ended(self, usage: dict[str, int]) -> None:
        self._open = False
        self.usage.update(usage)

    @property
    def resumable(self) -> bool:
        """Whether another attempt could resume the provider's response."""
        return self._run.background and self.response_id is not None and self.no_request_in_flight.is_set()

    async def lose(self) -> None:
        """This worker holds the run no more: what it knows alone is recorded, to be deleted at the provider."""
        if self.kept:
            await lease.write(self._database, self._run, self.kept, lease_until=Run.lease_until)
        if await lease.is_deleted(self._database, self._run):
            await self.cancel()

    async def cancel(self) -> None:
        """Stop a response that the provider would finish, and charge for, without a reader."""
        if not (self._open and self._run.background and self.response_id):
            return
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._provider.cancel(self.response_id)
        except (ProviderError, TimeoutError) as error:
            log.warning("run.provider_not_stopped", extra={"error": str(error)})

    async def _write(self, **values: Any) -> None:
        kept = dict(self.kept)
        is_held = await lease.write(self._database, self._run, kept, **values)
        self.kept = {provider_id: kind for provider_id, kind in self.kept.items() if provider_id not in kept}
        if not is_held:
            raise lease.LeaseLost
