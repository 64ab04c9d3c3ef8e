"""Rejects a new run before anything is written or paid."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.agents._shared.registry import LoadedAgent, Registry, check_tool_choice, image_options
from app.agents._shared.tools import IMAGE_TOOL
from app.attachments import service as attachments
from app.attachments.models import Attachment, AttachmentStatus
from app.error_codes import ErrorCode
from app.errors import Conflict, Invalid
from app.identity.service import Actor
from app.images.options import OptionError, check_mask
from app.runs.schemas import MAX_INPUTS, NewRun
from app.settings import Settings


def check_options(settings: Settings, registry: Registry, agent_key: str, request: NewRun) -> None:
    """Raise Invalid where the agent is unknown or its image tool cannot do what is requested."""
    agent = registry.specs.get(agent_key)
    if agent is None:
        known = ", ".join(sorted(registry.specs))
        raise Invalid(
            f"There is no agent {agent_key!r}; there are {known}.",
            code=ErrorCode.UNKNOWN_AGENT,
            errors=[{"field": "agent_key", "message": f"one of {known}", "given": repr(agent_key)[:100]}],
        )
    try:
        options = image_options(settings, agent, request.image)
        if request.forced_tool:
            check_tool_choice(agent, request.forced_tool)
    except OptionError as error:
        name = error.field if error.field == "tool_choice" else f"image.{error.field}"
        raise _impossible(name, error.given, error.allowed) from None
    _check_edit(agent, request, options)


def _check_edit(agent: LoadedAgent, request: NewRun, options: Mapping[str, Any]) -> None:
    for name, given in (("edit", request.edit), ("mask", request.mask)):
        if given is not None and IMAGE_TOOL not in agent.spec.tool_keys:
            raise _impossible(name, given, f"nothing: the agent {agent.spec.key} does not draw")
    if (request.edit or request.mask) and request.image.get("action") == "generate":
        raise _impossible("image.action", "generate", "edit or auto beside `edit` or `mask`")
    if request.edit is not None and len(request.attachments) == MAX_INPUTS:
        raise _impossible("attachments", f"{MAX_INPUTS} images", f"at most {MAX_INPUTS - 1} beside `edit`")
    if request.mask is None:
        return
    if request.edit is None and not request.attachments:
        raise _impossible("mask", request.mask, "a mask beside `edit` or `attachments`, whose first image it covers")
    try:
        check_mask(options)
    except OptionError as error:
        raise _impossible("mask", error.given, error.allowed) from None


async def check_images(session: AsyncSession, actor: Actor, request: NewRun) -> None:
    """Raise NotFound for an image that is not there or not theirs, Conflict or Invalid for one that cannot be used."""
    wanted = [*request.attachments, *filter(None, (request.edit, request.mask))]
    if not wanted:
        return
    rows = await attachments.own_of_ids(session, actor, wanted)
    for place, object_id in enumerate(request.attachments):
        _check_input(f"attachments.{place}", rows[object_id])
    if request.edit is not None:
        _check_input("edit", rows[request.edit])
    if request.mask is not None:
        _check_mask_of(rows, request.mask, request.edit or request.attachments[0])


def _check_input(name: str, row: Attachment) -> None:
    if row.status != AttachmentStatus.STORED:
        raise Conflict(
            f"{name}: this image is not stored; its `status` and `error` say why.", code=ErrorCode.ATTACHMENT_NOT_STORED
        )
    if not attachments.is_input(row):
        raise _impossible(name, row.mime_type, "a PNG, JPEG or WebP image")


def _check_mask_of(rows: Mapping[UUID, Attachment], mask_id: UUID, covered_id: UUID) -> None:
    mask, covered = rows[mask_id], rows[covered_id]
    _check_input("mask", mask)
    if mask.options.get("mask") not in ("alpha", "black_and_white"):
        rule = "an uploaded image with transparent pixels where the change may be, or one that is black there and white"
        raise _impossible("mask", mask.filename, rule)
    if (mask.width, mask.height) != (covered.width, covered.height):
        given = f"{mask.width}x{mask.height}"
        raise _impossible("mask", given, f"{covered.width}x{covered.height}, the size of the image it covers")


def _impossible(name: str, given: object, allowed: str) -> Invalid:
    shown = str(given)[:100]
    return Invalid(
        f"{name}: {shown} is not possible; allowed: {allowed}.",
        code=ErrorCode.INVALID_OPTION,
        errors=[{"field": name, "message": f"allowed: {allowed}", "given": shown}],
    )
