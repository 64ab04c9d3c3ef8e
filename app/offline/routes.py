"""HTTP of the offline provider: `/v1/responses` as the SDK calls it, and `/offline/requests` for tests."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.offline import state
from app.offline.directives import Directives
from app.offline.live import Run, Studio, start_run, stop_run
from app.offline.prepare import abbreviated, prepare
from app.offline.wire import Json, Refused, decode, encode, response_not_found

_MAX_BODY_BYTES = 128 * 1024 * 1024
_FLUSH_SECONDS = 0.05
_TEXT_BEFORE_CUT = 3


def create_app(state_dir: Path, pace: float = 1.0) -> FastAPI:
    """The provider, keeping its files under `state_dir`; `pace` scales every artificial delay, 0 removes them."""
    studio = Studio(state_dir, pace)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        state.prepare_directory(state_dir)
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


def _authorize(request: Request) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Refused(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY).",
            status=401,
        )
    if key == "sk-bad":
        message = "Incorrect API key provided: sk-bad. The offline provider takes any other key."
        raise Refused(message, status=401, code="invalid_api_key")


_api = APIRouter(prefix="/v1", dependencies=[Depends(_authorize)])
_for_tests = APIRouter(prefix="/offline")


@_api.post("/responses")
async def create(request: Request) -> Response:
    studio = _studio(request)
    raw = await _read_body(request)
    body = await asyncio.to_thread(decode, raw)
    _note(request, len(raw), await asyncio.to_thread(abbreviated, body))
    ready = await asyncio.to_thread(prepare, body, studio.root)
    directives = ready.said.directives
    if "reset" in directives:
        return await _abort(request)
    run = Run(ready, studio.pace)
    start_run(studio, run)
    if body.get("stream"):
        frames = _spoiled(request, run, directives)
        return _EventStream(frames, on_close=None if run.background else lambda: _give_up(run))
    if run.background:
        return _json(run.response)
    return await _whole(request, run)


@_api.get("/responses/{response_id}")
async def retrieve(request: Request, response_id: str) -> Response:
    studio = _studio(request)
    _note(request, 0, None)
    run = studio.runs.get(response_id)
    if request.query_params.get("stream") == "true":
        after = request.query_params.get("starting_after", "-1")
        if not after.lstrip("-").isdigit():
            raise Refused(f"Invalid 'starting_after': '{after}' is no integer.", param="starting_after")
        return _EventStream(await _resumed(studio, run, response_id, int(after) + 1))
    found = run.response if run else await asyncio.to_thread(state.load_response, studio.root, response_id)
    if found is None:
        raise response_not_found(response_id)
    return _json(found)


@_api.post("/responses/{response_id}/cancel")
async def cancel(request: Request, response_id: str) -> Response:
    studio = _studio(request)
    _note(request, 0, None)
    run = studio.runs.get(response_id)
    if run and run.background:
        await stop_run(run)
    found = run.response if run else await asyncio.to_thread(state.load_response, studio.root, response_id)
    if found is None:
        raise response_not_found(response_id)
    if not found["background"]:
        raise Refused("Cannot cancel a synchronous response.")
    return _json(found)


@_api.delete("/responses/{response_id}")
async def delete(request: Request, response_id: str) -> Response:
    studio = _studio(request)
    _note(request, 0, None)
    if run := studio.runs.pop(response_id, None):
        await stop_run(run)
    stored = await asyncio.to_thread(state.delete_response, studio.root, response_id)
    if not stored and run is None:
        raise response_not_found(response_id)
    return _json({"id": response_id, "object": "response", "deleted": True})


@_for_tests.get("/requests")
async def list_requests(request: Request) -> list[Json]:
    """The latest 1,000 requests to `/v1`, newest last: {method, path, size, body}; base64 is only counted."""
    return list(_studio(request).requests)


@_for_tests.delete("/requests", status_code=204)
async def forget_requests(request: Request) -> None:
    _studio(request).requests.clear()


async def _whole(request: Request, run: Run) -> Response:
    """The finished response in one piece; nobody waiting for it stops it."""
    gone = asyncio.create_task(_disconnected(request))
    done = asyncio.create_task(_ended(run))
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        done.cancel()
    if not run.finished:
        await stop_run(run)
    if "cut" in run.said.directives or "eof" in run.said.directives:
        return await _abort(request)
    return _json(run.response)


async def _spoiled(request: Request, run: Run, directives: Directives) -> AsyncIterator[bytes]:
    """The run's frames to the client that asked for them, broken off where a directive says so."""
    limit = int(directives.number("cut" if "cut" in directives else "eof", 0))
    sent = texts = 0
    async for frame in run.follow():
        if limit and sent == limit:
            break
        if "eof" in directives and frame.startswith((b"event: response.completed", b"event: response.incomplete")):
            break
        yield frame
        sent += 1
        texts += frame.startswith(b"event: response.output_text.delta")
        if "cut" in directives and not limit and texts == _TEXT_BEFORE_CUT:
            break
    if "cut" in directives:
        await _abort(request)


async def _resumed(studio: Studio, run: Run | None, response_id: str, start: int) -> AsyncIterator[bytes]:
    if run and run.background:
        return run.follow(start)
    frames = await asyncio.to_thread(state.load_frames, studio.root, response_id)
    if frames is not None:
        return _replayed(frames[max(0, start) :])
    response = run.response if run else await asyncio.to_thread(state.load_response, studio.root, response_id)
    if response is None:
        raise response_not_found(response_id)
    if not response["background"]:
        raise Refused("This response cannot be streamed because it was not created with background=true.")
    # Its events were lost with the provider that was killed; only how it ended is known.
    event = {"type": f"response.{response['status']}", "response": response, "sequence_number": start}
    return _replayed([f"event: {event['type']}\ndata: ".encode() + encode(event) + b"\n\n"])


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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _abort(request: Request) -> Response:
    """Drop the TCP connection without a goodbye; the answer returned goes nowhere."""
    await asyncio.sleep(_FLUSH_SECONDS)
    cycle: Any = getattr(request.receive, "__self__", None)  # uvicorn's, the only server this runs on
    cast(asyncio.Transport, cycle.transport).abort()
    await _disconnected(request)
    return Response()


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise Refused("Request body too large.", status=413)
    return bytes(body)


def _note(request: Request, size: int, body: Any) -> None:
    entry: Json = {"method": request.method, "path": request.url.path, "size": size, "body": body}
    _studio(request).requests.append(entry)


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
    message = f"Invalid URL ({request.method} {request.url.path})"
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return _json({"error": body}, cast(HTTPException, error).status_code)
