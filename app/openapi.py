"""The OpenAPI document: what FastAPI derives from the routes, completed by what holds for every route of a kind.

A route declares what is particular to it: its docstring (a summary, a blank line, a description), `problems(...)` and
`sends(...)`. Replies that follow from a credential, a body or a parameter are added here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter

from app.error_codes import ErrorCode
from app.problems import Problem

Json = dict[str, Any]
Responses = dict[int | str, Json]

PROBLEM_TYPE = "application/problem+json"
EVENT_STREAM = "text/event-stream"
_DECLARED = "x-codes"
NEEDS = "needs"
"""The attribute of a dependency that says what the caller needs."""

DESCRIPTION = (
    "The backend of a multi-tenant agents SaaS whose agents draw. An error is a `Problem` (RFC 9457): its `code` says"
    " what happened, its `request_id` finds it in the log. Before a route is known, any request may be answered with"
    " 400 (no valid HTTP), 408, 431 or 503 (`too_many_connections`)."
)
TAGS = [
    {"name": "accounts", "description": "Sign up, sign in, passwords, and the caller's own page."},
    {"name": "tenants", "description": "The tenant's own affairs: members, invitations, API keys, the audit log."},
    {"name": "agents", "description": "The agents that a run can name."},
    {"name": "conversations", "description": "The user's conversations and their messages."},
    {"name": "runs", "description": "One turn of an agent: start it, follow its events, stop it."},
    {"name": "usage", "description": "What runs have used, and what that cost."},
    {"name": "attachments", "description": "The user's images, generated and uploaded, and their bytes."},
    {"name": "exports", "description": "Archives of what is one's own, or of all that the tenant has."},
    {"name": "operation", "description": "For load balancers and monitoring."},
]
HEADERS = {
    "Accept-Ranges": "`bytes`: `Range` is understood.",
    "Cache-Control": "How long the bytes may be kept.",
    "Content-Disposition": "The image's file name, and whether a browser may show it in place.",
    "Content-Range": "Which of how many bytes these are, or how many there are.",
    "ETag": "Names these very bytes; send it as `If-None-Match` or `If-Range`.",
    "Idempotent-Replayed": "`true` where an earlier request with this `Idempotency-Key` started the run.",
    "Location": "The path or link of what the reply is about.",
    "RateLimit": "How many runs may start now (`r`), and the seconds until all may (`t`), if refused until one may.",
    "RateLimit-Policy": "How many runs the plan lets start (`q`) in so many seconds (`w`); absent while unlimited.",
    "Retry-After": "Seconds to wait before the request is sent again.",
    "WWW-Authenticate": "`Bearer`.",
    "X-Request-Id": "Finds the request in the log.",
    "X-Run-Id": "The run's id.",
}
_SENT_WITH = {
    ErrorCode.UNAUTHENTICATED: "WWW-Authenticate",
    ErrorCode.SIGN_IN_REQUIRED: "WWW-Authenticate",
    ErrorCode.IDEMPOTENCY_IN_FLIGHT: "Retry-After",
    ErrorCode.LIMIT_EXCEEDED: "Retry-After",
    ErrorCode.RANGE_NOT_SATISFIABLE: "Content-Range",
    ErrorCode.MAIL_UNAVAILABLE: "Retry-After",
    ErrorCode.SCHEMA_BEHIND: "Retry-After",
    ErrorCode.TOO_MANY_ATTEMPTS: "Retry-After",
    ErrorCode.UNAVAILABLE: "Retry-After",
}


class Router(APIRouter):
    """A feature's. The document calls each of its routes as its function is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(generate_unique_id_function=_name, **options)


def _name(route: APIRoute) -> str:
    return route.name


def problems(*codes: ErrorCode) -> Responses:
    """For a route's `responses`: the error codes that are particular to it."""
    return {status: {_DECLARED: [str(code) for code in group]} for status, group in _by_status(codes).items()}


def sends(*headers: str) -> Json:
    """For a response of a route: the headers that it comes with."""
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers}}


def streams(event: Any) -> Json:
    """For a response of a route: server-sent events, the `data` of each one of `event`'s types."""
    return {"model": event, "content": {EVENT_STREAM: {}}}


def describe(app: FastAPI) -> Json:
    """For `app.openapi`; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS
        )
        _complete(document, _needs(app))
        app.openapi_schema = document
    return app.openapi_schema


def _needs(app: FastAPI) -> dict[str, Json]:
    """Operation id -> `{role, scope, user}`: what its caller needs, as the route's dependencies tell.

    Not by FastAPI's `Security`, which would authenticate once for each set of scopes in a request.
    """
    found: dict[str, Json] = {}
    for context in iter_route_contexts(app.routes):
        if isinstance(route := context.original_route, APIRoute):
            needs: list[Json] = [getattr(dependency.call, NEEDS, {}) for dependency in route.dependant.dependencies]
            found[route.name] = next((one for one in needs if one), Json())
    return found


def _complete(document: Json, needs: Mapping[str, Json]) -> None:
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    template = "#/components/schemas/{model}"
    problem = TypeAdapter(Problem).json_schema(mode="serialization", ref_template=template)
    components["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
    for schema in components["schemas"].values():
        for name in schema.get("required", ()):
            schema["properties"][name].pop("default", None)  # of a field that is always sent
    components["headers"] = {
        name: {"description": description, "schema": {"type": "string"}} for name, description in HEADERS.items()
    }
    components["responses"] = {}
    for methods in document["paths"].values():
        for method, operation in methods.items():
            _split_docstring(operation)
            if "security" in operation:
                _add_needs(operation, needs[operation["operationId"]])
            _add_problems(method, operation, components["responses"])
            for status, response in operation["responses"].items():
                _complete_response(int(status), response)


def _add_needs(operation: Json, needs: Json) -> None:
    """`x-role`: the least role, where one is needed; `x-user-only`: no API key may do it."""
    if not needs:
        operation["security"] = [{}, {"bearer": []}]  # with or without a credential
        return
    operation["security"] = [{"bearer": [needs["scope"]] if needs["scope"] else []}]
    operation["x-user-only"] = needs["scope"] is None
    if needs["role"]:
        operation["x-role"] = needs["role"]


def _split_docstring(operation: Json) -> None:
    summary, *paragraphs = operation.pop("description", "").split("\n\n")
    operation["summary"] = summary.removesuffix(".")
    operation["description"] = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _add_problems(method: str, operation: Json, shared: Json) -> None:
    """Documents every code; responses whose codes are all general are shared by reference."""
    responses: Json = operation["responses"]
    if _DECLARED not in responses.get("422", {_DECLARED: []}):
        del responses["422"]  # FastAPI's own, which the application never sends
    general = set(_general_codes(operation))
    if method != "get":
        general.add(ErrorCode.TOO_LARGE)  # also where the route reads no body: its size is judged before that is known
    declared = {ErrorCode(code) for response in responses.values() for code in response.pop(_DECLARED, ())}
    for status, codes in _by_status(general | declared).items():
        response = _problem_response(status, codes)
        if len(codes) == 1 or general.issuperset(codes):
            name = "Or".join(code.name.title().replace("_", "") for code in codes)
            shared[name] = response
            response = {"$ref": f"#/components/responses/{name}"}
        responses[str(status)] = response
    operation["responses"] = dict(sorted(responses.items()))


def _general_codes(operation: Json) -> Iterator[ErrorCode]:
    """What any operation of this kind can answer."""
    body, parameters = operation.get("requestBody"), operation.get("parameters", ())
    yield ErrorCode.INTERNAL_ERROR
    if body or parameters or "security" in operation:
        yield ErrorCode.UNAVAILABLE
    if body:
        yield from (ErrorCode.REQUEST_TIMEOUT, ErrorCode.INVALID_REQUEST)
        if "application/json" in body["content"]:
            yield ErrorCode.UNREADABLE_BODY
    if "x-user-only" in operation:
        yield ErrorCode.UNAUTHENTICATED
        yield ErrorCode.USER_REQUIRED if operation["x-user-only"] else ErrorCode.FORBIDDEN
    if "x-role" in operation:
        yield from (ErrorCode.NO_TENANT, ErrorCode.TENANT_REQUIRED, ErrorCode.FORBIDDEN)
    if any(parameter["name"] == "X-Tenant-Id" for parameter in parameters):
        yield from (ErrorCode.NOT_FOUND, ErrorCode.TENANT_SUSPENDED)
    for parameter in parameters:
        if parameter["in"] == "path":
            yield ErrorCode.NOT_FOUND
        elif parameter["name"] != "X-Tenant-Id":
            yield ErrorCode.INVALID_REQUEST


def _by_status(codes: Iterable[ErrorCode]) -> dict[int, list[ErrorCode]]:
    found: defaultdict[int, list[ErrorCode]] = defaultdict(list)
    for code in sorted(codes):
        if code.status is None:
            raise ValueError(f"{code!r} has no HTTP status: no request is answered so")
        found[code.status].append(code)
    return found


def _problem_response(status: int, codes: list[ErrorCode]) -> Json:
    these = {"properties": {"status": {"const": status}, "code": {"enum": [str(code) for code in codes]}}}
    return {
        "description": "\n".join(f"- `{code}`: {code.sentence}" for code in codes),
        **sends("X-Request-Id", *dict.fromkeys(_SENT_WITH[code] for code in codes if code in _SENT_WITH)),
        "content": {PROBLEM_TYPE: {"schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, these]}}},
    }


def _complete_response(status: int, response: Json) -> None:
    if "$ref" in response:
        return
    if response["description"] == "Successful Response":
        response["description"] = HTTPStatus(status).phrase
    content = response.get("content", {})
    if {EVENT_STREAM, "application/json"} <= content.keys():  # FastAPI documents a model as JSON
        content[EVENT_STREAM] = content.pop("application/json")
    response["headers"] = {**sends("X-Request-Id")["headers"], **response.get("headers", {})}
