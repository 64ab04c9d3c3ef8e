"""Compares every reply that a test gets from Easel with openapi.json; `findings` says what that does not name."""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema_rs
import pytest

Json = dict[str, Any]

DOCUMENT: Json = json.loads((Path(__file__).resolve().parents[1] / "openapi.json").read_text())
# Served beside the API, for users who read its documentation.
PAGES = ("/docs", "/openapi.json")

findings: list[str] = []
origins: set[str] = set()
"""Where Easel is served; replies from anywhere else are not compared."""


@contextmanager
def served_at(base_url: str) -> Generator[None]:
    """Replies from this address are Easel's."""
    origins.add(base_url)
    try:
        yield
    finally:
        origins.discard(base_url)


@contextmanager
def watching() -> Generator[None]:
    """Whatever client of httpx a test uses, its replies are compared."""
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def watched(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        return _watch(send(client, request, **options), options)

    async def watched_async(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        return _watch(await send_async(client, request, **options), options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "send", watched)
        patch.setattr(httpx.AsyncClient, "send", watched_async)
        yield


def _watch(response: httpx.Response, options: Json) -> httpx.Response:
    for reply in (*response.history, response):
        url = reply.request.url
        if f"{url.scheme}://{url.netloc.decode()}" in origins:
            findings.extend(faults_of(reply, body=not options.get("stream")))
    return response


def faults_of(reply: httpx.Response, *, body: bool) -> list[str]:
    """What the document does not name: the status, the media type, or (with `body`) something of the body."""
    method, path = reply.request.method, reply.request.url.path
    said = f"{method} {path} answered {reply.status_code}"
    media_type = reply.headers.get("content-type", "").partition(";")[0]
    operation = operation_of(method, path)
    if operation is None:
        is_named = (reply.status_code in (404, 405) and media_type == "application/problem+json") or method == "OPTIONS"
        return [] if is_named or path.startswith(PAGES) else [f"{said}, and the document has no such operation"]
    response = resolved(operation["responses"].get(str(reply.status_code)))
    if response is None:
        return [f"{said}, which the document does not name"]
    content = response.get("content", {})
    if media_type not in content and (media_type or content):
        return [f"{said} as {media_type or 'nothing'}; the document names {', '.join(content) or 'nothing'}"]
    if not body or method == "HEAD" or not media_type.endswith("json"):
        return []
    return [f"{said}: {fault}" for fault in schema_faults(json.dumps(content[media_type]["schema"]), reply.json())]


def event_faults(event: Json) -> list[str]:
    mapping = DOCUMENT["components"]["schemas"]["RunEvent"]["discriminator"]["mapping"]
    reference = mapping.get(event.get("type"))
    if reference is None:
        return [f"the document has no event {event.get('type')}"]
    return [f"event {event['type']}: {fault}" for fault in schema_faults(json.dumps({"$ref": reference}), event)]


def operation_of(method: str, path: str) -> Json | None:
    """HEAD is documented as GET: the same reply without its body."""
    wanted = {"head": "get"}.get(method.lower(), method.lower())
    for pattern, methods in _paths():
        if pattern.fullmatch(path) and wanted in methods:
            return cast(Json, methods[wanted])
    return None


@cache
def _paths() -> list[tuple[re.Pattern[str], Json]]:
    # Paths without parameters first, as they are more particular.
    ordered = sorted(DOCUMENT["paths"].items(), key=lambda item: "{" in item[0])
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), methods) for path, methods in ordered]


def resolved(part: Json | None) -> Json | None:
    if part is None or "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    return cast(Json, DOCUMENT["components"][kind][name])


def schema_faults(schema: str, value: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in _validator(schema).iter_errors(value)
    ]


@cache
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    whole = {**json.loads(schema), "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
