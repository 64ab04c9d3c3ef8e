"""Upload, list, look at and delete images."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Query, Request, Response
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.attachments import service, uploads
from app.attachments.links import CurrentStore, ReaderLinks
from app.attachments.models import AttachmentKind, AttachmentPurpose
from app.attachments.schemas import AttachmentPage, AttachmentView, linked
from app.attachments.uploads import FIELD, PURPOSE, UnsupportedType, Upload, upload_fault
from app.broker import Broker
from app.db import CurrentDatabase, from_state
from app.error_codes import ErrorCode
from app.errors import Invalid, TooLarge, id_of
from app.identity.actor import CurrentLimits, CurrentSettings, TenantSession, may, may_apart
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.input_limits import STORABLE
from app.limits import Limits
from app.middleware import ENVELOPE_BYTES
from app.openapi import Router, problems, sends
from app.paging import Paging

router = Router(prefix="/v1", tags=["attachments"])

ObjectId = Annotated[UUID, id_of("attachment")]
SEARCH = "The first letters of words in the images' prompts; all of them must match."
DRAWN_BY = "Only images that this agent has drawn."
FOR = "`mask`: the uploads that say where another image is to be changed, instead of the images."
# More than a form may have, so that the answer names what is wrong with it.
MAX_PARTS = 8


@router.post(
    "/attachments",
    status_code=201,
    openapi_extra=uploads.UPLOAD_FORM,
    responses={201: sends("Location")}
    | problems(
        ErrorCode.BUDGET_EXCEEDED, ErrorCode.IMAGE_UNREADABLE, ErrorCode.LIMIT_EXCEEDED, ErrorCode.UNSUPPORTED_TYPE
    ),
)
async def upload_attachment(
    request: Request,
    response: Response,
    actor: Annotated[Actor, may_apart(Permission.WRITE_ATTACHMENTS)],
    database: CurrentDatabase,
    broker: Annotated[Broker, from_state("broker")],
    settings: CurrentSettings,
    limits: CurrentLimits,
    links: ReaderLinks,
) -> AttachmentView:
    """Upload an image.

    It is decoded, set upright and encoded anew, so that nothing but its pixels is stored. With the form field `purpose`
    `mask` it is kept apart from the images, for `mask` of a run.
    """
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else None
    with _upload_permits(actor, settings.upload_max_bytes if size is None else size, limits):
        # Before the body is received; once it is cleaned, its real size is judged again.
        async with database.tenant(actor.tenant_id) as session:
            await uploads.admit_bytes(session, actor, max((size or 0) - ENVELOPE_BYTES, 1), locks=False)
        async with _form_of(request) as form:
            upload = _upload_of(form, settings.upload_max_bytes)
            row = await uploads.store_upload(database, broker, links.store, settings, actor, upload)
    response.headers["Location"] = f"/v1/attachments/{row.id}"
    (view,) = await linked([row], links)
    return view


@contextmanager
def _upload_permits(actor: Actor, size: int, limits: Limits) -> Generator[None]:
    """One upload of the tenant's, and its bytes; one that does not say how many may have as many as are allowed."""
    with limits.uploads.acquire(actor.tenant_id), limits.upload_bytes.acquire(actor.tenant_id, size):
        yield


@asynccontextmanager
async def _form_of(request: Request) -> AsyncGenerator[FormData]:
    """The form, its file on disk; read here and not by FastAPI, which would read it before it knows the actor."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "multipart/form-data":
        message = f"send multipart/form-data with the image in the field {FIELD}"
        raise UnsupportedType(f"{message}.", errors=[upload_fault(message, given, "content-type")])
    try:
        form = await request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS)
    except ClientDisconnect:
        raise Invalid("The connection ended before the body did.") from None
    except HTTPException as error:
        if error.status_code == 413:
            raise
        raise _invalid(f"the form cannot be read as multipart/form-data: {error.detail}", "") from None
    try:
        yield form
    finally:
        await form.close()


def _upload_of(form: FormData, max_bytes: int) -> Upload:
    for field, value in form.multi_items():
        if isinstance(value, str) != (field == PURPOSE) or field not in (FIELD, PURPOSE):
            given = value if isinstance(value, str) else value.filename
            raise _invalid(f"the form has the file {FIELD} and the text {PURPOSE}, nothing else", given or "", field)
    file = _file_of(form, max_bytes)
    return Upload(file.file, file.filename or "", _purpose_of(form))


def _purpose_of(form: FormData) -> AttachmentPurpose:
    given = [str(value) for value in form.getlist(PURPOSE)] or [AttachmentPurpose.IMAGE]
    if len(given) > 1 or given[0] not in [*AttachmentPurpose]:
        raise _invalid(f"one of {', '.join(AttachmentPurpose)}", ", ".join(given), PURPOSE)
    return AttachmentPurpose(given[0])


def _file_of(form: FormData, max_bytes: int) -> UploadFile:
    files = [value for value in form.getlist(FIELD) if isinstance(value, UploadFile)]
    if not files:
        raise _invalid(f"send one whole image in this field: {uploads.ACCEPTED}", "")
    if len(files) > 1:
        raise _invalid("send one image in each request", files[1].filename or "")
    if not files[0].size:
        raise _invalid("the file is empty", files[0].filename or "")
    if files[0].size > max_bytes:
        message = f"at most {max_bytes} bytes are accepted (UPLOAD_MAX_MB)"
        given = f"{files[0].filename}, {files[0].size} bytes"
        raise TooLarge(f"The image is too large: {message}.", errors=[upload_fault(message, given)])
    return files[0]


def _invalid(message: str, given: str, field: str = FIELD) -> Invalid:
    return Invalid(f"{field}: {message}.", errors=[upload_fault(message, given, field[:100] or "body")])


@router.get("/attachments")
async def list_attachments(
    actor: Annotated[Actor, may_apart(Permission.READ_ATTACHMENTS)],
    database: CurrentDatabase,
    links: ReaderLinks,
    query: Paging,
    purpose: Annotated[AttachmentPurpose, Query(description=FOR)] = AttachmentPurpose.IMAGE,
    kind: Annotated[AttachmentKind | None, Query(description="Only these.")] = None,
    q: Annotated[str | None, Query(max_length=200, description=SEARCH)] = None,
    agent_key: Annotated[str | None, Query(max_length=200, pattern=STORABLE, description=DRAWN_BY)] = None,
) -> AttachmentPage:
    """List the user's images.

    Newest first, generated and uploaded, from all conversations; drawn ones that failed are in their messages alone.
    """
    # Its own transaction: no connection is held while the store signs links.
    async with database.tenant(actor.tenant_id) as session:
        rows, cursor = await service.fetch_gallery(
            session, actor, query, purpose=purpose, kind=kind, q=q, agent_key=agent_key
        )
    return AttachmentPage(data=await linked(rows, links), next_cursor=cursor)


@router.get("/attachments/{object_id}")
async def get_attachment(
    object_id: ObjectId,
    actor: Annotated[Actor, may(Permission.READ_ATTACHMENTS)],
    session: TenantSession,
    links: ReaderLinks,
) -> AttachmentView:
    """Get an attachment.

    Its `url` is a fresh link.
    """
    (view,) = await linked([await service.get(session, actor, object_id)], links)
    return view


@router.delete("/attachments/{object_id}", status_code=204, response_class=Response)
async def delete_attachment(
    object_id: ObjectId,
    actor: Annotated[Actor, may(Permission.WRITE_ATTACHMENTS)],
    session: TenantSession,
    store: CurrentStore,
) -> None:
    """Delete an attachment.

    Its bytes and its smaller copies go with it. Its message no longer has it in `attachments`; in `parts` its
    `object_id` is null.
    """
    await service.remove(session, store, actor, object_id)
