"""HTTP of the offline simulator: `/v1/responses`, `/v1/files` and `/v1/models`; `/offline/requests` for tests."""

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
from offline.faults import abort, disconnected, with_faults
from offline.generation import Generation, Server, start_generation, stop_generation
from offline.models import describe_model
from offline.request import parse_request
from offline.request_log import abbreviated
from offline.wire import ApiError, Json, decode, encode, file_not_found, response_not_found

# For uvicorn: no request may meet a connection that is just being closed for having been idle.
SERVED: dict[str, Any] = {"timeout_graceful_shutdown": 1, "timeout_keep_alive": 75}

_MAX_BODY_BYTES = 128 * 1024 * 1024


def create_app(state_dir: Path, speed: float = 1.0) -> FastAPI:
    """The simulator, with its files under `state_dir`; every artificial delay is divided by `speed`.

    What one API key has stored, another one does not find.
    """
    server = Server(state_dir, speed)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        state.fail_interrupted(state_dir)
        yield
        for generation in list(server.generations.values()):
            await stop_generation(generation)

    app = FastAPI(title="Easel offline simulator", lifespan=lifespan, openapi_url=None)
    app.state.server = server
    app.include_router(_api)
    app.include_router(_for_tests)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


def _account(request: Request) -> Path:
    """Where the caller's own state lies."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY).",
            status=401,
        )
    if key == "sk-bad":
        raise ApiError("Incorrect API key provided: every other key is accepted.", status=401, code="invalid_api_key")
    return state.account_directory(_server(request).directory, key)


Account = Annotated[Path, Depends(_account)]
_api = APIRouter(prefix="/v1")
_for_tests = APIRouter(prefix="/offline")


@_api.post("/responses")
async def create(request: Request, root: Account) -> Response:
    server = _server(request)
    raw = await _read_body(request)
    body = await asyncio.to_thread(decode, raw)
    _log_request(request, len(raw), await asyncio.to_thread(abbreviated, body))
    parsed = await asyncio.to_thread(parse_request, body, root)
    directives = parsed.conversation.directives
    if len(raw) > directives.number("max_body", _MAX_BODY_BYTES):
        raise ApiError("Request body too large.", status=413)
    if "reset" in directives:
        return await abort(request)
    generation = Generation(root, parsed, server.speed)
    start_generation(server, generation)
    if "late" in directives:
        await asyncio.sleep(directives.number("late", 1))
    if body.get("stream"):
        frames = with_faults(request, generation, directives)
        return _EventStream(
            frames, on_close=None if generation.background else lambda: _cancel_unless_finished(generation)
        )
    return _json(generation.response) if generation.background else await _finished_response(request, generation)


@_api.get("/responses/{response_id}")
async def retrieve(request: Request, response_id: str, root: Account) -> Response:
    _log_request(request)
    generation = _running(request, root, response_id)
    if request.query_params.get("stream") == "true":
        after = request.query_params.get("starting_after", "-1")
        if not after.lstrip("-").isdigit():
            raise ApiError(f"Invalid 'starting_after': '{after}' is no integer.", param="starting_after")
        return _EventStream(await _resumed(root, generation, response_id, int(after) + 1))
    return _json(await _found(root, generation, response_id))


@_api.post("/responses/{response_id}/cancel")
async def cancel(request: Request, response_id: str, root: Account) -> Response:
    _log_request(request)
    generation = _running(request, root, response_id)
    if generation and generation.background:
        await stop_generation(generation)
    found = await _found(root, generation, response_id)
    if not found["background"]:
        raise ApiError("Cannot cancel a synchronous response.")
    return _json(found)


@_api.delete("/responses/{response_id}")
async def delete(request: Request, response_id: str, root: Account) -> Response:
    _log_request(request)
    if generation := _running(request, root, response_id):
        _server(request).generations.pop(response_id, None)
        await stop_generation(generation)
    stored = await asyncio.to_thread(state.delete_response, root, response_id)
    if not stored and generation is None:
        raise response_not_found(response_id)
    return _json({"id": response_id, "object": "response", "deleted": True})


@_api.post("/files")
async def upload(request: Request, root: Account) -> Response:
    raw = await _read_body(request)
    async with request.form() as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        file = form.get("file")
        name, data = (file.filename, await file.read()) if isinstance(file, UploadFile) else (None, b"")
    _log_request(request, len(raw), {**fields, "file": name and {"filename": name, "bytes": len(data)}})
    if not name:
        raise ApiError("'file' is a required property", param="file")
    purpose, lifetime = files.check_form(fields)
    return _json(await asyncio.to_thread(files.save_file, root, data, name, purpose, lifetime))


@_api.get("/files/{file_id}")
async def retrieve_file(request: Request, file_id: str, root: Account) -> Response:
    _log_request(request)
    found = await asyncio.to_thread(files.load_file, root, file_id)
    if found is None:
        raise file_not_found(file_id)
    return _json(found)


@_api.delete("/files/{file_id}")
async def delete_file(request: Request, file_id: str, root: Account) -> Response:
    _log_request(request)
    if not await asyncio.to_thread(files.delete_file, root, file_id):
        raise file_not_found(file_id)
    return _json({"id": file_id, "object": "file", "deleted": True})


@_api.get("/models/{model:path}", dependencies=[Depends(_account)])
async def retrieve_model(request: Request, model: str) -> Response:
    _log_request(request)
    return _json(describe_model(model))


@_for_tests.get("/requests")
async def list_requests(request: Request) -> Response:
    """The latest requests to `/v1`, newest last: {method, path, body_bytes, body}; base64 is only counted."""
    return Response(_server(request).requests.listed(), media_type="application/json")


@_for_tests.delete("/requests", status_code=204)
async def forget_requests(request: Request) -> None:
    _server(request).requests.clear()


async def _finished_response(request: Request, generation: Generation) -> Response:
    """The finished response in one piece; nobody waiting for it stops it."""
    gone = asyncio.create_task(disconnected(request))
    done = asyncio.create_task(_ended(generation))
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        done.cancel()
    if not generation.finished:
        await stop_generation(generation)
    if generation.conversation.directives.values.keys() & {"cut", "cut_bytes", "eof"}:
        return await abort(request)
    return _json(generation.response)


async def _resumed(root: Path, generation: Generation | None, response_id: str, start: int) -> AsyncIterator[bytes]:
    if generation and generation.background:
        return generation.follow(start)
    frames = await asyncio.to_thread(state.load_frames, root, response_id)
    if frames is not None:
        return _replayed(frames[max(0, start) :])
    response = await _found(root, generation, response_id)
    if not response["background"]:
        raise ApiError("This response cannot be streamed because it was not created with background=true.")
    # Its events were lost with the provider that was killed; only how it ended is known.
    event = {"type": f"response.{response['status']}", "response": response, "sequence_number": start}
    return _replayed([f"event: {event['type']}\ndata: ".encode() + encode(event) + b"\n\n"])


async def _found(root: Path, generation: Generation | None, response_id: str) -> Json:
    response = generation.response if generation else await asyncio.to_thread(state.load_response, root, response_id)
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


def _cancel_unless_finished(generation: Generation) -> None:
    """The client has gone, or has heard everything: an ordinary response ends with its stream."""
    if generation.task and not generation.finished:
        generation.task.cancel()


async def _ended(generation: Generation) -> None:
    async for _ in generation.follow(len(generation.frames)):
        pass


async def _read_body(request: Request) -> bytes:
    if int(request.headers.get("content-length", 0)) > _MAX_BODY_BYTES:
        raise ApiError("Request body too large.", status=413)
    return await request.body()


def _log_request(request: Request, body_bytes: int = 0, body: Json | None = None) -> None:
    _server(request).requests.add(request.method, request.url.path, body_bytes, body)


def _running(request: Request, root: Path, response_id: str) -> Generation | None:
    generation = _server(request).generations.get(response_id)
    return generation if generation and generation.root == root else None


def _server(request: Request) -> Server:
    return request.app.state.server


def _json(body: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(body), status, {**_request_id(), **(headers or {})}, media_type="application/json")


def _request_id() -> dict[str, str]:
    return {"x-request-id": f"req_{secrets.token_hex(16)}", "openai-version": "2020-10-01"}


async def _on_api_error(_: Request, error: Exception) -> Response:
    refused = cast(ApiError, error)
    return _json({"error": refused.error}, refused.status, refused.headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = cast(HTTPException, error).status_code
    wrong = "Could not parse multipart form" if status == 400 else f"Invalid URL ({request.method} {request.url.path})"
    return _json({"error": ApiError(wrong).error}, status)
