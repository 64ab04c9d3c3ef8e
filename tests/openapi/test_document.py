"""The OpenAPI document, and the files that are made from it."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.error_codes import ErrorCode
from docs.generate import generated
from tests.replies import DOCUMENT, event_faults, resolved

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = DOCUMENT["components"]["schemas"]
FILES = ("openapi.json", "docs/api.md", "docs/events.md")


@pytest.mark.parametrize("path", FILES)
def test_the_generated_file_is_current(path: str) -> None:
    assert (ROOT / path).read_text() == _generated()[path], (
        "The API has changed: run `./just openapi`, commit its files"
    )


def test_every_event_is_shown_as_it_may_be() -> None:
    page = (ROOT / "docs/events.md").read_text()
    shown = [json.loads(block) for block in re.findall(r"```json\n(\{.*?\n\})\n```", page, re.DOTALL)]
    assert {event["type"] for event in shown} == set(SCHEMAS["RunEvent"]["discriminator"]["mapping"])
    assert [fault for event in shown for fault in event_faults(event)] == []


@pytest.mark.parametrize(
    ("schema", "field", "type_name"),
    [
        ("AgentView", "image", "ImageOptions"),
        ("AttachmentView", "error", "AttachmentError"),
        ("AttachmentView", "options", "AttachmentOptions"),
        ("MessageView", "error", "RunError"),
        ("MessageView", "usage", "Usage"),
        ("NewRun", "image", "ImageRequest"),
        ("RunView", "error", "RunError"),
        ("RunView", "usage", "Usage"),
    ],
)
def test_what_has_fields_has_a_type_with_a_name(schema: str, field: str, type_name: str) -> None:
    found = SCHEMAS[schema]["properties"][field]
    named = {"$ref": f"#/components/schemas/{type_name}"}
    assert named in found.get("anyOf", [{"$ref": found.get("$ref")}])
    assert SCHEMAS[type_name]["properties"]


def test_every_operation_documents_its_errors_with_their_codes() -> None:
    """Each has a way to fail: a wrong id or body, no credential, a database that is away."""
    codes = {code.value for code in ErrorCode}
    for operation in operations():
        failures = [resolved(reply) for status, reply in operation["responses"].items() if status >= "400"]
        assert failures, operation["operationId"]
        for reply in failures:
            assert reply is not None
            schema = json.dumps(reply["content"]["application/problem+json"]["schema"])
            assert codes & set(re.findall(r'"([a-z0-9_]+)"', schema)), (operation["operationId"], reply)


def test_every_operation_has_a_name_a_summary_and_a_tag_with_a_description() -> None:
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    names = [operation["operationId"] for operation in operations()]
    assert len(set(names)) == len(names)
    for operation in operations():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", operation["operationId"])
        assert " " in operation["summary"]
        assert set(operation["tags"]) <= described


def operations() -> list[dict[str, Any]]:
    return [operation for path in DOCUMENT["paths"].values() for operation in path.values()]


@cache
def _generated() -> dict[str, str]:
    return generated()
