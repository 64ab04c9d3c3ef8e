"""HTTP of the offline provider: `/v1/responses` and `/v1/files` for the SDK, `/offline/requests` for tests."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from offline import files, state
from offline.breaking import abort, disconnected, spoiled
from offline.journal import abbreviated
from offline.live import Run, Studio, start_run, stop_run
from offline.prepare import prepare
from offline.wire import Json, Refused, decode, encode, file_not_found, response_not_found

# For uvicorn: no request may meet a connection that is just being closed for having been idle.
SERVED: dict[str, Any] = {"timeout_graceful_shutdown": 1, "timeout_keep_alive": 75}

_MAX_BODY_BYTES = 128 * 1024 * 1024


def create_app(state_dir: Path, pace: float = 1.0) -> FastAPI:
    """The provider, keeping its files under `state_dir`; `pace` scales every artificial delay, 0 removes them.

    What one API key has stored, another one does not find.
    """
    studio = Studio(state_dir, pace)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        state.fail_interrupted(state_dir)
        yield
        for run in list(studio.runs.values()):
            await stop_run(run)

    app = FastAPI(title="Easel offline provider", lifespan=lifespan, openapi_url=None)
    app.state.studio = studio
    app.include_router(_api)
    app.include_router(_for_tests)
    app.add_exception_handler(Refused, _on_refusal)
    app.add_exception_handler(HTTPException, _on_wrong_address)
    return app


def _account(request: Request) -> Path:
    """Where the caller's own state lies."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Refused(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY).",
            status=401,
        )
    if key == "sk-bad":
        raise Refused("Incorrect API key provided: any other one is taken.", status=401, code="invalid_api_key")
    return state.account_directory(_studio(request).directory, key)


Account = Annotated[Path, Depends(_account)]
_api = APIRouter(prefix="/v1")
_for_tests = APIRouter(prefix="/offline")


@_api.post("/responses")
async def create(request: Request, root: Account) -> Response:
    studio = _studio(request)
    raw = await _read_body(request)
    body = await asyncio.to_thread(decode, raw)
    _note(request, len(raw), await asyncio.to_thread(abbreviated, body))
    ready = await asyncio.to_thread(prepare, body, root)
    directives = ready.said.directives
    if "reset" in directives:
        return await abort(request)
    run = Run(root, ready, studio.pace)
    start_run(studio, run)
    if body.get("stream"):
        frames = spoiled(request, run, directives)
        return _EventStream(frames, on_close=None if run.background else lambda: _give_up(run))
    return _json(run.response) if run.background else await _whole(request, run)


@_api.get("/responses/{response_id}")
async def retrieve(request: Request, response_id: str, root: Account) -> Response:
    _note(request)
    run = _running(request, root, response_id)
    if request.query_params.get("stream") == "true":
        after = request.query_params.get("starting_after", "-1")
        if not after.lstrip("-").isdigit():
            raise Refused(f"Invalid 'starting_after': '{after}' is no integer.", param="starting_after")
        return _EventStream(await _resumed(root, run, response_id, int(after) + 1))
    return _json(await _found(root, run, response_id))


@_api.post("/responses/{response_id}/cancel")
async def cancel(request: Request, response_id: str, root: Account) -> Response:
    _note(request)
    run = _running(request, root, response_id)
    if run and run.background:
        await stop_run(run)
    found = await _found(root, run, response_id)
    if not found["background"]:
        raise Refused("Cannot cancel a synchronous response.")
    return _json(found)


@_api.delete("/responses/{response_id}")
async def delete(request: Request, response_id: str, root: Account) -> Response:
    _note(request)
    if run := _running(request, root, response_id):
        _studio(request).runs.pop(response_id, None)
        await stop_run(run)
    stored = await asyncio.to_thread(state.delete_response, root, response_id)
    if not stored and run is None:
        raise response_not_found(response_id)
    return _json({"id": response_id, "object": "response", "deleted": True})


@_api.post("/files")
async def upload(request: Request, root: Account) -> Response:
    raw = await _read_body(request)
    async with request.form() as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        file = form.get("file")
        name, data = (file.filename, await file.read()) if isinstance(file, UploadFile) else (None, b"")
    _note(request, len(raw), {**fields, "file": name and {"filename": name, "bytes": len(data)}})
    if not name:
        raise Refused("'file' is a required property", param="file")
    purpose, lifetime = files.check_form(fields)
    return _json(await asyncio.to_thread(files.save_file, root, data, name, purpose, lifetime))


@_api.get("/files/{file_id}")
async def retrieve_file(request: Request, file_id: str, root: Account) -> Response:
    _note(request)
    found = await asyncio.to_thread(files.load_file, root, file_id)
    if found is None:
        raise file_not_found(file_id)
    return _json(found)


@_api.delete("/files/{file_id}")
async def delete_file(request: Request, file_id: str, root: Account) -> Response:
    _note(request)
    if not await asyncio.to_thread(files.delete_file, root, file_id):
        raise file_not_found(file_id)
    return _json({"id": file_id, "object": "file", "deleted": True})


@_for_tests.get("/requests")
async def list_requests(request: Request) -> Response:
    """The latest requests to `/v1`, newest last: {method, path, body_bytes, body}; base64 is only counted."""
    return Response(_studio(request).requests.listed(), media_type="application/json")


@_for_tests.delete("/requests", status_code=204)
async def forget_requests(request: Request) -> None:
    _studio(request).requests.clear()


async def _whole(request: Request, run: Run) -> Response:
    """The finished response in one piece; nobody waiting for it stops it."""
    gone = asyncio.create_task(disconnected(request))
    done = asyncio.create_task(_ended(run))
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        done.cancel()
    if not run.finished:
        await stop_run(run)
    if "cut" in run.said.directives or "eof" in run.said.directives:
        return await abort(request)
    return _json(run.response)


async def _resumed(root: Path, run: Run | None, response_id: str, start: int) -> AsyncIterator[bytes]:
    if run and run.background:
        return run.follow(start)
    frames = await asyncio.to_thread(state.load_frames, root, response_id)
    if frames is not None:
        return _replayed(frames[max(0, start) :])
    response = await _found(root, run, response_id)
    if not response["background"]:
        raise Refused("This response cannot be streamed because it was not created with background=true.")
    # Its events were lost with the provider that was killed; only how it ended is known.
    event = {"type": f"response.{response['status']}", "response": response, "sequence_number": start}
    return _replayed([f"event: {event['type']}\ndata: ".encode() + encode(event) + b"\n\n"])


async def _found(root: Path, run: Run | None, response_id: str) -> Json:
    response = run.response if run else await asyncio.to_thread(state.load_response, root, response_id)
    if response is None:
        raise response_not_found(response_id)
    return response


async def _replayed(frames: list[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


class _EventStream(StreamingResponse):
    def __init__(self, frames: AsyncIterator[bytes], on_close: Callable[[], None] | None = None) -> None:
        super().__init__(frames, media_type="text/event-stream; charset=utf-8", headers=_request_id())
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._on_close:
                self._on_close()


def _give_up(run: Run) -> None:
    """The client has gone, or has heard everything: an ordinary response ends with its stream."""
    if run.task and not run.finished:
        run.task.cancel()


async def _ended(run: Run) -> None:
    async for _ in run.follow(len(run.frames)):
        pass


async def _read_body(request: Request) -> bytes:
    if int(request.headers.get("content-length", 0)) > _MAX_BODY_BYTES:
        raise Refused("Request body too large.", status=413)
    return await request.body()


def _note(request: Request, body_bytes: int = 0, body: Json | None = None) -> None:
    _studio(request).requests.add(request.method, request.url.path, body_bytes, body)


def _running(request: Request, root: Path, response_id: str) -> Run | None:
    run = _studio(request).runs.get(response_id)
    return run if run and run.root == root else None


def _studio(request: Request) -> Studio:
    return request.app.state.studio


def _json(body: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(body), status, {**_request_id(), **(headers or {})}, media_type="application/json")


def _request_id() -> dict[str, str]:
    return {"x-request-id": f"req_{secrets.token_hex(16)}", "openai-version": "2020-10-01"}


async def _on_refusal(_: Request, error: Exception) -> Response:
    refused = cast(Refused, error)
    return _json({"error": refused.error}, refused.status, refused.headers)


async def _on_wrong_address(request: Request, error: Exception) -> Response:
    status = cast(HTTPException, error).status_code
    wrong = "Could not parse multipart form" if status == 400 else f"Invalid URL ({request.method} {request.url.path})"
    return _json({"error": Refused(wrong).error}, status)
