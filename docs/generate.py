"""Writes openapi.json, docs/api.md, docs/permissions.md and docs/events.md from the code: `./just openapi`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.embedded import Parts
from app.error_codes import ErrorCode
from app.identity.permissions import Permission
from app.main import create_app
from app.openapi import PROBLEM_TYPE
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
GENERATED = "<!-- Written by ./just openapi from the code. -->"

Json = dict[str, Any]

# What a field holds in an example, where its type alone says too little.
EXAMPLES: Json = {
    "AttachmentFailed.code": ErrorCode.IMAGE_MISSING,
    "AttachmentView.error": None,
    "AttachmentView.kind": "generated",
    "AttachmentView.options": {"size": "1024x1024", "quality": "high"},
    "AttachmentView.parent_object_id": None,
    "AttachmentView.status": "stored",
    "MessageView.attachments_next_cursor": None,
    "MessageView.error": None,
    "MessageView.role": "assistant",
    "RunError.code": ErrorCode.UPSTREAM_TIMEOUT,
    "ToolCompleted.status": "completed",
    "ToolProgress.status": "generating",
    "agent_key": "designer",
    "blurhash": "LEHV6nWB2yk8pyo0adR*.7kCMdnj",
    "cached_input_tokens": 0,
    "cost_usd": "0.21342",
    "delta": "Here is ",
    "detail": "The provider began this image and never sent it: try again.",
    "filename": "designer-0c2f6f1f2b11.png",
    "height": 1024,
    "image_input_tokens": 0,
    "image_output_tokens": 7024,
    "input_tokens": 310,
    "message": "The provider stopped answering: try again.",
    "mime_type": "image/png",
    "name": "image_generation",
    "of": 2,
    "output_tokens": 42,
    "revised_prompt": "A gray tabby cat hugging an otter",
    "seq": 7,
    "sha256": "9f86" * 16,
    "size_bytes": 1843200,
    "status": "in_progress",
    "text": "Here is your cat.",
    "tool_call_id": "ig_68f1",
    "truncated": False,
    "url": "https://api.example.com/v1/files/eyJr…",
    "width": 1024,
}
UNTIL_IT_ENDS = ("finished_at", "usage", "cost_usd", "cost_basis")
BY_KIND: Json = {
    "uuid": "019ab3f0-5d1c-7d5e-9a57-0c2f6f1f2b11",
    "date-time": "2026-11-24T12:00:00Z",
    "string": "…",
    "integer": 0,
    "boolean": True,
}


def generated() -> dict[str, str]:
    """Path from the root -> content."""
    app = create_app(Settings(), Parts("postgresql://", None, "none"))
    document = app.openapi()
    return {
        "docs/permissions.md": "\n".join(_permissions(document)) + "\n",
        "openapi.json": json.dumps(document, indent=2) + "\n",
        "docs/api.md": "\n".join(_api(document)) + "\n",
        "docs/events.md": "\n".join(_events(document)) + "\n",
    }


def _permissions(document: Json) -> Iterator[str]:
    yield from ("# Who may do what", "", GENERATED, "")
    yield (
        "A member has a role in each of their tenants: `viewer` < `member` < `admin` < `owner`. An API key acts as the"
        " member who made it, as far as its scopes go: it never does what has no scope. Routes refer to the table in"
        " `app/identity/permissions.py`."
    )
    yield from ("", "| may | least role | scope of a key |", "|---|---|---|")
    for permission in Permission:
        scope = f"`{permission.scope}`" if permission.scope else "a signed-in user only"
        yield f"| {permission.allows} | `{permission.role}` | {scope} |"
    yield "| Do what concerns oneself: name, password, sign-ins, new tenants. | any signed-in user | none |"
    yield from ("", "| operation | least role | scope of a key |", "|---|---|---|")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "x-user-only" in operation:
                role = f"`{operation['x-role']}`" if "x-role" in operation else "any"
                scopes = [f"`{scope}`" for scope in operation["security"][0]["bearer"]]
                yield f"| `{method.upper()} {path}` | {role} | {', '.join(scopes) or 'none'} |"


def _api(document: Json) -> Iterator[str]:
    yield from ("# The API", "", GENERATED, "", document["info"]["description"], "")
    yield "`openapi.json` says the same to programs; [events.md](events.md) describes the stream of a run."
    for tag in document["tags"]:
        yield from ("", f"## {tag['name'].capitalize()}", "", tag["description"])
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(document, f"{method.upper()} {path}", operation)
    yield from ("", "## Types")
    for name, schema in sorted(document["components"]["schemas"].items()):
        # The events have a page of their own.
        if "properties" in schema and "const" not in schema["properties"].get("type", {}):
            yield from ("", f"### {name}", "")
            yield from (" ".join(schema["description"].split()), "") if "description" in schema else ()
            yield from _fields(schema)
    yield from ("", "## Error codes", "", "| code | status | meaning |", "|---|---|---|")
    for code in ErrorCode:
        yield f"| `{code}` | {code.status or 'run or attachment'} | {code.sentence} |"


def _operation(document: Json, title: str, operation: Json) -> Iterator[str]:
    yield from ("", f"### {operation['summary']}", "", f"`{title}` (`{operation['operationId']}`)", "")
    yield operation["description"]
    yield from ("", _needs(operation))
    if parameters := operation.get("parameters"):
        yield from ("", "| parameter | in | type | |", "|---|---|---|---|")
        for one in parameters:
            kind = f"{_type(one['schema'])}{', required' if one['required'] else ''}"
            yield f"| `{one['name']}` | {one['in']} | {kind} | {one.get('description', '')} |"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from ("", f"Body, `{media_type}`:", "", *_fields(_resolved(document, content["schema"])))
    yield from ("", "| reply | |", "|---|---|")
    for status, reply in operation["responses"].items():
        yield f"| {status} | {_reply(document, reply)} |"


def _needs(operation: Json) -> str:
    if "security" not in operation:
        return "Needs no credential."
    if "x-user-only" not in operation:
        return "A credential is optional."
    role = f"the role `{operation['x-role']}` or a higher one" if "x-role" in operation else "a signed-in user"
    if operation["x-user-only"]:
        return f"Needs {role}; no API key may do it."
    (scope,) = operation["security"][0]["bearer"]
    return f"Needs {role}; of an API key the scope `{scope}`."


def _reply(document: Json, reply: Json) -> str:
    reply = _resolved(document, reply)
    if PROBLEM_TYPE in reply.get("content", {}):
        codes = reply["content"][PROBLEM_TYPE]["schema"]["allOf"][1]["properties"]["code"]["enum"]
        return ", ".join(f"`{code}`" for code in codes)
    kinds = (
        f"`{media_type}`{' ' + _type(content['schema']) if content.get('schema') else ''}"
        for media_type, content in reply.get("content", {}).items()
    )
    return f"{reply['description']} {', '.join(kinds)}".strip()


def _events(document: Json) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    yield from ("# The events of a run", "", GENERATED, "")
    yield (
        "`POST /v1/runs` with `Accept: text/event-stream`, and `GET /v1/runs/{run_id}/events`, answer with server-sent"
        " events: `id:` is the event's `seq` (1, 2, 3 … without gaps), `event:` its type, `data:` one JSON object. The"
        " last one is `run.completed`, `run.failed` or `run.cancelled`. `Last-Event-ID` resumes after any event."
    )
    for one in schemas["RunEvent"]["oneOf"]:
        schema = _resolved(document, one)
        yield from ("", f"## `{schema['properties']['type']['const']}`", "", schema["description"], "")
        yield from _fields(schema)
        yield from ("", "```json", json.dumps(_event_example(document, schema), ensure_ascii=False, indent=2), "```")


def _fields(schema: Json) -> Iterator[str]:
    yield from ("| field | type |", "|---|---|")
    for name, field in schema["properties"].items():
        yield f"| `{name}` | {_type(field)}{'' if name in schema.get('required', ()) else ', optional'} |"


def _type(schema: Json) -> str:
    if name := schema.get("$ref"):
        return f"`{name.rpartition('/')[2]}`"
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_type(choice) for choice in choices)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format", schema.get("type", "any")))


def _event_example(document: Json, schema: Json) -> Json:
    event = _example(document, schema)
    if "run" in event:
        _, _, happened = event["type"].partition(".")
        event["run"] |= {"status": {"created": "queued", "started": "running"}.get(happened, happened)}
        unset = {"created": ("started_at", *UNTIL_IT_ENDS), "started": UNTIL_IT_ENDS}
        event["run"] |= dict.fromkeys(unset.get(happened, ()))
        event["run"] |= {} if happened == "failed" else {"error": None}
    return event


def _example(document: Json, schema: Json, field: str = "") -> Any:
    name = field.rpartition(".")[2]
    for key in (field, name):
        if key in EXAMPLES and ("$ref" not in schema or key == field):
            return EXAMPLES[key]
    schema = _resolved(document, schema)
    if choices := schema.get("anyOf"):
        return _example(document, choices[0], field)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "properties" in schema:
        fields = schema["properties"].items()
        return {inner: _example(document, kind, f"{schema['title']}.{inner}") for inner, kind in fields}
    return [] if schema["type"] == "array" else BY_KIND[schema.get("format", schema["type"])]


def _resolved(document: Json, part: Json) -> Json:
    while "$ref" in part:
        _, _, kind, name = part["$ref"].split("/")
        part = document["components"][kind][name]
    return part


if __name__ == "__main__":
    for path, content in generated().items():
        (ROOT / path).write_text(content)
