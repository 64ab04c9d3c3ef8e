"""One turn in the making: what it asks the provider, and its pictures on their way into storage."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import UUID

import openai
from openai import AsyncOpenAI
from openai.types.responses import Response

from app.agents._shared.model import WirePartial, WirePicture
from app.agents._shared.registry import Registry, image_options
from app.agents._shared.tools import IMAGE_TOOL
from app.attachments import service as attachments
from app.attachments import variants
from app.attachments.models import Attachment, AttachmentStatus
from app.attachments.schemas import log_form
from app.attachments.service import Origin, Picture, Refusal
from app.attachments.spool import Spool
from app.broker import Broker
from app.db import Database
from app.images.inspect import UnreadableImage, decode, examine
from app.runs import service
from app.runs.context import Context
from app.runs.log import EventLog
from app.runs.models import Run
from app.runs.told import Told
from app.settings import Settings
from app.storage import keys
from app.storage.store import StorageError, Store

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 2.0
STOP_SECONDS = 5.0
# Pictures get this long after the text has ended. The store has its own bound, far below: this is for a database
# that restarts, and longer than what a worker waits for that one.
SETTLE_SECONDS = 20.0


@dataclass(frozen=True)
class Workshop:
    """What a worker needs at hand."""

    settings: Settings
    database: Database
    broker: Broker
    store: Store
    spool: Spool
    registry: Registry
    client: AsyncOpenAI
    stopping: asyncio.Event


class LeaseLost(Exception):
    """Another attempt holds the run: this one must write nothing more."""


class Turn:
    """The Watch of a run's model calls."""

    def __init__(self, shop: Workshop, run: Run, events: EventLog, told: Told) -> None:
        if run.output_message_id is None:
            raise ValueError("a run has its message's id from the start")
        # Of the calls before the present one: those of a lost attempt are counted there.
        self.usage: Counter[str] = Counter(run.usage or {})
        self.origin = Origin(
            tenant_id=run.tenant_id,
            conversation_id=run.conversation_id,
            run_id=run.id,
            message_id=run.output_message_id,
            user_id=run.user_id,
            agent_key=run.calling_agent or run.agent_key,
            prompt="",
        )
        # Whether the provider has begun an answer, to this attempt or one before.
        self.accepted = told.response_id is not None
        self._told = told
        self._resumes = told.response_id
        self._response_id = told.response_id
        self._open = told.response_id is not None
        # Clear from a request to the name of its answer.
        self.nothing_asked = asyncio.Event()
        self.nothing_asked.set()
        self._asked_options = _asked_options(shop, run, self.origin.agent_key)
        self._parent: UUID | None = None
        self._edits = False
        self._shop = shop
        self._run = run
        self._events = events
        self._calls = run.calling_turn
        self._previews: dict[str, list[asyncio.Task[None]]] = {}
        self._pictures: list[asyncio.Task[None]] = []
        self.drawn: set[str] = set()
        self._kept: set[str] = set()
        self._unreadable: dict[str, str] = {}

    def follow_request(self, context: Context) -> None:
        """Pictures from here on were asked for by these words; an edit among them starts from this parent."""
        self.origin = replace(self.origin, prompt=context.message.text)
        self._parent = context.parent_object_id
        self._edits = self._run.options.get("edit") is not None

    def resumes(self) -> str | None:
        response_id, self._resumes = self._resumes, None
        return response_id

    async def calling(self, agent_key: str, *, background: bool) -> None:
        """Committed before money is spent: a lost worker's successor sees what was asked, and of whom."""
        self._calls += 1
        # Pictures from here on are this agent's.
        self.origin = replace(self.origin, agent_key=agent_key)
        self._asked_options = _asked_options(self._shop, self._run, agent_key)
        self.nothing_asked.clear()
        await self._write(
            calling_turn=self._calls,
            calling_agent=agent_key,
            background=background,
            response_id=None,
            usage=dict(self.usage) or None,
        )
        self._run.background = background

    async def named(self, response_id: str) -> None:
        self.accepted = self._open = True
        self._response_id = response_id
        await self._write(response_id=response_id)
        self.nothing_asked.set()

    @property
    def resumable(self) -> bool:
        """Whether another attempt could go on with the provider's answer."""
        return self._run.background and self._response_id is not None and self.nothing_asked.is_set()

    async def stop_provider(self) -> None:
        """End an answer that the provider would finish, and charge for, without us."""
        if not (self._open and self._run.background and self._response_id):
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._shop.client.responses.cancel(self._response_id)
        except (openai.APIError, TimeoutError) as error:
            log.warning("run.provider_not_stopped", extra={"error": str(error)})

    async def _write(self, **values: Any) -> None:
        if not await service.write(self._shop.database, self._run, **values):
            raise LeaseLost

    def preview(self, partial: WirePartial) -> None:
        if (partial.tool_call_id, partial.index) in self._told.previews:
            return
        tasks = self._previews.setdefault(partial.tool_call_id, [])
        tasks.append(asyncio.create_task(self._show(partial, before=tasks[-1] if tasks else None)))

    def picture(self, picture: WirePicture) -> None:
        self.drawn.add(picture.tool_call_id)
        if picture.tool_call_id in self._told.announced:
            return
        # As they are now: the next call may be another agent's.
        self._pictures.append(asyncio.create_task(self._keep(picture, self.origin, self._asked_options)))

    def ended(self, response: Response) -> None:
        self._open = False
        usage = response.usage
        if usage is not None:
            self.usage["input_tokens"] += usage.input_tokens
            self.usage["cached_input_tokens"] += usage.input_tokens_details.cached_tokens or 0
            self.usage["output_tokens"] += usage.output_tokens
        # Pictures are paid apart; the SDK has no type for it yet.
        extra = cast(dict[str, Any], response.model_dump(include={"tool_usage"}).get("tool_usage") or {})
        image = cast(dict[str, Any], extra.get("image_gen") or {})
        self.usage["image_input_tokens"] += int(image.get("input_tokens") or 0)
        self.usage["image_output_tokens"] += int(image.get("output_tokens") or 0)

    def abandon(self) -> None:
        """Leave what is under way to the next attempt, which will be sent the same pictures."""
        for task in [*self._pictures, *(task for tasks in self._previews.values() for task in tasks)]:
            task.cancel()

    async def settle(self) -> None:
        """Return when every picture is stored, refused or waiting in the spool."""
        tasks = [*self._pictures, *(task for tasks in self._previews.values() for task in tasks)]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=SETTLE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for tool_call_id, detail in self._unreadable.items():
            if tool_call_id not in self._kept:
                self._announce_failure(tool_call_id, None, "image_unreadable", detail, retryable=False)

    async def _show(self, partial: WirePartial, *, before: asyncio.Task[None] | None) -> None:
        """A preview is a small object that expires; one that cannot be stored is only missed."""
        try:
            data = await decode(partial.base64)
            facts = (await examine(data)).facts
            key = keys.preview_key(
                self._run.tenant_id, self._run.id, partial.tool_call_id, partial.index, facts.extension
            )
            async with asyncio.timeout(PREVIEW_SECONDS):
                await self._shop.store.put(key, data, mime_type=facts.mime_type)
        except (UnreadableImage, StorageError, TimeoutError) as error:
            log.warning("image.preview_failed", extra={"tool_call_id": partial.tool_call_id, "error": str(error)})
            return
        if before is not None:
            await asyncio.wait({before})
        self._events.emit(
            "image.partial",
            tool_call_id=partial.tool_call_id,
            index=partial.index,
            storage_key=key,
            mime_type=facts.mime_type,
            width=facts.width,
            height=facts.height,
        )

    async def _keep(self, wire: WirePicture, origin: Origin, asked: dict[str, Any]) -> None:
        try:
            row = await self._store(wire, origin, asked)
        except UnreadableImage as error:
            log.warning("image.unreadable", extra={"tool_call_id": wire.tool_call_id, "error": str(error)})
            # Told at the end of the turn: the provider's last event may yet bring it whole.
            self._unreadable[wire.tool_call_id] = str(error)
            return
        except Exception:
            log.exception("image.ingest_failed", extra={"tool_call_id": wire.tool_call_id})
            detail = "The picture could not be recorded."
            self._announce_failure(wire.tool_call_id, None, "ingest_failed", detail, retryable=True)
            return
        self._kept.add(wire.tool_call_id)
        if previews := self._previews.get(wire.tool_call_id):
            await asyncio.wait(previews, timeout=PREVIEW_SECONDS)
        self._announce(wire.tool_call_id, row)
        if row.status == AttachmentStatus.STORED:
            await variants.request(self._shop.broker, row.tenant_id, row.id)

    async def _store(self, wire: WirePicture, origin: Origin, asked: dict[str, Any]) -> Attachment:
        shop = self._shop
        data = await decode(wire.base64)
        examined = await examine(data)
        wanted = asked.get("output_format")
        if wanted and examined.facts.mime_type != _mime_type(wanted):
            got = {"asked": wanted, "got": examined.facts.mime_type, "tool_call_id": wire.tool_call_id}
            log.warning("image.other_type", extra=got)
        options = {**asked, **wire.options}
        parent = self._parent if self._edits or options.get("action") == "edit" else None
        picture = Picture(
            wire.tool_call_id, data, examined.facts, examined.sha256, wire.revised_prompt, options, parent
        )
        if len(data) > shop.settings.image_output_max_bytes:
            detail = (
                f"The picture has {len(data) / 1024**2:.1f} MB; IMAGE_OUTPUT_MAX_MB allows "
                f"{shop.settings.image_output_max_mb:g} MB."
            )
            return await attachments.refuse(shop.database, origin, picture, Refusal("image_too_large", detail))
        return await attachments.ingest(shop.database, shop.store, shop.spool, origin, picture)

    def _announce(self, tool_call_id: str, row: Attachment) -> None:
        if row.status == AttachmentStatus.STORED:
            self._events.emit("attachment.created", attachment=log_form(row))
        elif row.error is not None:
            error = row.error
            self._announce_failure(tool_call_id, str(row.id), error["code"], error["detail"], retryable=False)
        else:
            detail = "The picture is safe but not stored yet; it will be here once the store answers."
            self._announce_failure(tool_call_id, str(row.id), "storage_unavailable", detail, retryable=True)

    def _announce_failure(
        self, tool_call_id: str, object_id: str | None, code: str, detail: str, *, retryable: bool
    ) -> None:
        if (tool_call_id, code) in self._told.failed:
            return
        self._events.emit(
            "attachment.failed",
            tool_call_id=tool_call_id,
            object_id=object_id,
            code=code,
            detail=detail,
            retryable=retryable,
        )


def _asked_options(shop: Workshop, run: Run, agent_key: str) -> dict[str, Any]:
    """What the agent's image tool is asked for; nothing of an agent that has none."""
    loaded = shop.registry.specs.get(agent_key)
    if loaded is None or IMAGE_TOOL not in loaded.spec.tool_keys:
        return {}
    return image_options(shop.settings, loaded, run.options["image"])


def _mime_type(output_format: str) -> str:
    return "image/svg+xml" if output_format == "svg" else f"image/{output_format}"
