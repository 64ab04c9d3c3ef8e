"""Messages of faulty fields are for people: what a field accepts, under the name that the client sent."""

import json
import re
from collections.abc import Iterator
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import AfterValidator, AwareDatetime, BaseModel, EmailStr, Field, SecretStr, TypeAdapter, ValidationError

from app.bodies import not_blank
from app.embedded import Parts
from app.field_messages import BUILT, FIXED, UNKNOWN, message_of
from app.main import create_app
from app.settings import Settings
from tests.app_server import ApiUser, AppServer
from tests.replies import DOCUMENT, resolved
from tests.test_bad_input import problem

# Words of pydantic, of FastAPI and of Python.
FOREIGN = re.compile(r"should|(?i:input|value)|dictionary|instance|permitted|Field required|parse|integer|JSON decode")
UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Form(BaseModel, extra="forbid"):
    name: str = ""


def text(**limits: Any) -> Any:
    return Annotated[str, Field(**limits)]


# A type of a field, a value that it refuses, the type of pydantic's error, and our message.
MESSAGES: list[tuple[Any, Any, str, str]] = [
    (Form, 7, "model_type", "a JSON object"),
    (Form, {"colour": 1}, "extra_forbidden", "unknown field"),
    (dict[str, Any], "x", "dict_type", "a JSON object"),
    (list[str], "x", "list_type", "a list"),
    (Annotated[list[str], Field(min_length=2)], ["x"], "too_short", "at least 2 items"),
    (Annotated[list[str], Field(max_length=1)], ["x", "y"], "too_long", "at most 1 item"),
    (Annotated[SecretStr, Field(min_length=10)], "x", "too_short", "at least 10 characters"),
    (Annotated[SecretStr, Field(max_length=1)], "xy", "too_long", "at most 1 character"),
    (str, 7, "string_type", "a string"),
    (text(min_length=1), "\ud800", "string_unicode", "a string of valid Unicode"),
    (text(min_length=1), "", "string_too_short", "at least 1 character"),
    (text(max_length=200), "x" * 201, "string_too_long", "at most 200 characters"),
    (text(pattern=r"^[^\x00]*$"), "\0", "string_pattern_mismatch", "leave out the character U+0000"),
    (text(pattern="^a+$"), "b", "string_pattern_mismatch", "a string of the form ^a+$"),
    (
        Annotated[str, AfterValidator(not_blank)],
        " ",
        "value_error",
        "write at least one character that is not white space",
    ),
    (
        EmailStr,
        "ada",
        "value_error",
        "an email address such as ada@example.com (an email address must have an @-sign)",
    ),
    (
        EmailStr,
        "ada@localhost",
        "value_error",
        "an email address such as ada@example.com (the part after the @-sign is not valid. It must have a period)",
    ),
    (bool, [], "bool_type", "true or false"),
    (bool, "perhaps", "bool_parsing", "true or false"),
    (int, [], "int_type", "a whole number"),
    (int, "ten", "int_parsing", "a whole number"),
    (int, "9" * 5000, "int_parsing_size", "a whole number"),
    (int, 1.5, "int_from_float", "a whole number"),
    (int, float("nan"), "finite_number", "a finite number"),
    (float, [], "float_type", "a number"),
    (float, "x", "float_parsing", "a number"),
    (Annotated[int, Field(ge=1)], 0, "greater_than_equal", "at least 1"),
    (Annotated[int, Field(le=100)], 101, "less_than_equal", "at most 100"),
    (Annotated[float, Field(gt=0)], 0, "greater_than", "more than 0.0"),
    (Annotated[float, Field(lt=1)], 1, "less_than", "less than 1.0"),
    (Literal["reject", "queue", "interrupt"], "x", "literal_error", "one of reject, queue, interrupt"),
    (Literal["erase"], "x", "literal_error", "only erase"),
    (Colour, "green", "enum", "one of red, blue"),
    (UUID, 7, "uuid_type", "a UUID"),
    (UUID, "mine", "uuid_parsing", "a UUID"),
    (Annotated[UUID, Field(strict=True)], UNKNOWN_ID, "is_instance_of", UNKNOWN),
    (date, [], "date_type", "a date such as 2026-01-31"),
    (date, "x", "date_from_datetime_parsing", "a date such as 2026-01-31"),
    (date, "2026-01-31T12:00:00Z", "date_from_datetime_inexact", "a date such as 2026-01-31"),
    (Annotated[date, Field(ge=date(2000, 1, 1))], "1999-12-31", "greater_than_equal", "2000-01-01 or later"),
    (Annotated[date, Field(le=date(9000, 1, 1))], "9999-01-01", "less_than_equal", "9000-01-01 or earlier"),
    (datetime, [], "datetime_type", "a moment with its time zone, such as 2026-01-31T12:00:00Z"),
    (datetime, "x", "datetime_from_date_parsing", "a moment with its time zone, such as 2026-01-31T12:00:00Z"),
    (
        datetime,
        float("nan"),
        "datetime_parsing",
        "a moment with its time zone, such as 2026-01-31T12:00:00Z",
    ),
    (
        AwareDatetime,
        "2026-01-31T12:00:00",
        "timezone_aware",
        "a moment with its time zone, such as 2026-01-31T12:00:00Z",
    ),
    (Annotated[int, Field(multiple_of=16)], 17, "multiple_of", UNKNOWN),
]


@pytest.mark.parametrize(("annotation", "given", "kind", "message"), MESSAGES)
def test_an_error_of_pydantic_becomes_what_the_field_accepts(
    annotation: Any, given: object, kind: str, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(annotation).validate_python(given)
    (fault,) = caught.value.errors()
    assert (fault["type"], message_of(fault)) == (kind, message)


def test_every_error_that_a_schema_of_a_route_can_raise_has_its_message(tmp_path: Path) -> None:
    """The kinds of schemas are pydantic's own; one that is new here gets a line in `RAISES`."""
    kinds = {kind for schema in _schemas_of_routes(tmp_path) for kind in _kinds(schema)}
    assert kinds - RAISES.keys() == set()
    assert {"model-fields", "uuid", "date", "datetime", "enum", "union"} <= kinds
    raised = {error for kind in kinds for error in RAISES[kind]}
    assert raised - FIXED.keys() - BUILT.keys() == set()
    assert [message for message in FIXED.values() if FOREIGN.search(message)] == []


_WRAPS: set[str] = set()
_COUNTED = {"too_short", "too_long"}
_COMPARED = {"greater_than_equal", "less_than_equal", "greater_than", "less_than"}
# A kind of schema of pydantic -> the errors that a field of it may have.
RAISES: dict[str, set[str]] = {
    "any": _WRAPS,
    "bool": {"bool_type", "bool_parsing"},
    "date": {"date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"} | _COMPARED,
    "datetime": {"datetime_type", "datetime_parsing", "datetime_from_date_parsing", "datetime_object_invalid"}
    | {"timezone_aware"},
    "default": _WRAPS,
    "definition-ref": _WRAPS,
    "definitions": _WRAPS,
    "dict": {"dict_type"} | _COUNTED,
    "enum": {"enum"},
    "function-after": {"value_error"} | _COUNTED,
    "function-before": {"value_error"},
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float", "finite_number"} | _COMPARED,
    # The types of Python that no request can hold stand beside those that it can.
    "is-instance": _WRAPS,
    "json-or-python": _WRAPS,
    "lax-or-strict": _WRAPS,
    "list": {"list_type"} | _COUNTED,
    "literal": {"literal_error"},
    "model": {"model_type"},
    "model-field": _WRAPS,
    "model-fields": {"model_attributes_type", "missing", "extra_forbidden"},
    "no-info": _WRAPS,
    "nullable": _WRAPS,
    "str": {"string_type", "string_unicode", "string_too_short", "string_too_long", "string_pattern_mismatch"},
    "typed-dict": {"dict_type", "missing", "extra_forbidden"},
    "typed-dict-field": _WRAPS,
    "union": _WRAPS,
    "uuid": {"uuid_type", "uuid_parsing", "uuid_version"},
}


def _schemas_of_routes(directory: Path) -> Iterator[Any]:
    settings = Settings.model_validate({"data_dir": directory})
    app = create_app(settings, Parts("postgresql://nowhere/none", "http://127.0.0.1:1/v1", "sk-test"))
    for context in iter_route_contexts(app.routes):
        if isinstance(route := context.original_route, APIRoute):
            yield from _schemas(route.dependant)


def _schemas(dependant: Any) -> Iterator[Any]:
    for kind in ("path", "query", "header", "cookie", "body"):
        for field in getattr(dependant, f"{kind}_params"):
            yield TypeAdapter(field.field_info.annotation).core_schema
    for inner in dependant.dependencies:
        yield from _schemas(inner)


def _kinds(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        fields = cast(dict[str, Any], schema)
        if isinstance(kind := fields.get("type"), str):
            yield kind
        for name, inner in fields.items():
            if name not in ("metadata", "serialization"):
                yield from _kinds(inner)
    elif isinstance(schema, list | tuple):
        for inner in cast(list[Any], schema):
            yield from _kinds(inner)


# Each is sent as every field of every body, and as every parameter of every query.
BAD_VALUES: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "negative": -1,
    "fraction": 1.5,
    "huge": 2**70,
    "not a number": float("nan"),
    "empty": "",
    "blank": " \n",
    "word": "sculptor",
    "nul": "a\0b",
    "long": "x" * 40_000,
    "list": [7],
    "words": ["x"] * 50,
    "object": {"type": "x", "colour": 1},
    "early": "1999-01-01",
    "late": "9999-01-01T00:00:00",
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_no_answer_repeats_the_words_of_pydantic(ada: ApiUser, name: str) -> None:
    value, answers = BAD_VALUES[name], 0
    # Some of these are names that a new tenant may have.
    ada.http.headers["X-Tenant-Id"] = ada.signed_up["tenant"]["id"]
    for method, path, fields, queries in _operations():
        sent: list[dict[str, Any]] = []
        if fields:
            sent += [{"json": body} for body in (dict.fromkeys(fields, value), {"colour": value}, value)]
        if queries and method == "GET" and isinstance(value, str | int | float) and name != "long":
            sent.append({"params": dict.fromkeys(queries, value)})
        for one in sent:
            content = json.dumps(one.pop("json")) if "json" in one else None
            answer = ada.http.request(
                method, path, content=content, headers={"Content-Type": "application/json"}, **one
            )
            if answer.status_code == 422:
                answers += 1
                _assert_for_people(answer.json(), {*fields, *queries, "colour", "type", "body"})
    assert answers > 15


def _operations() -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Method, path with an id that never was, the fields of the body and the parameters of the query."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            fields = [*cast(Any, resolved(content["schema"]))["properties"]] if content else []
            queries = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
            yield method.upper(), re.sub(r"\{\w+\}", UNKNOWN_ID, path), fields, queries


def _assert_for_people(received: dict[str, Any], names: set[str]) -> None:
    assert received["errors"], received
    for fault in received["errors"]:
        assert not FOREIGN.search(fault["message"]), received
        assert fault["message"] != UNKNOWN, received
        assert fault["field"].partition(".")[0] in names, received
        assert "[" not in fault["field"], received
        assert f"{fault['field']}: {fault['message']}" in received["detail"], received
    fields = [fault["field"] for fault in received["errors"]]
    assert len(set(fields)) == len(fields), received


CHOICE = "one of image_generation, auto, or a JSON object"
CHOICES: list[tuple[Any, str, str, str]] = [
    ("web_search", "tool_choice", CHOICE, "'web_search'"),
    (7, "tool_choice", CHOICE, "7"),
    (["image_generation"], "tool_choice", CHOICE, "['image_generation']"),
    ({"type": "web_search"}, "tool_choice.type", "only image_generation", "'web_search'"),
    ({}, "tool_choice.type", "required", ""),
    ({"type": "image_generation", "size": 7}, "tool_choice.size", "unknown field", "7"),
]


@pytest.mark.parametrize(("choice", "field", "message", "given"), CHOICES)
def test_a_union_has_one_fault_under_its_public_name(
    ada: ApiUser, choice: object, field: str, message: str, given: str
) -> None:
    received = problem(ada.http.post("/v1/runs", json={"input": "Hi", "tool_choice": choice}), 422, "invalid_request")
    assert received["errors"] == [{"field": field, "message": message, "given": given}]
    assert received["detail"] == f"Request validation failed. {field}: {message}."


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/usage?from=soon", "from"), ("/v1/conversations?limit=ten", "limit"), ("/v1/audit?actor_id=x", "actor_id")],
)
def test_a_parameter_keeps_the_name_of_the_query(ada: ApiUser, path: str, name: str) -> None:
    (fault,) = problem(ada.http.get(path), 422, "invalid_request")["errors"]
    assert fault["field"] == name


def test_a_faulty_header_hides_no_fault_of_the_body(ada: ApiUser) -> None:
    answer = ada.http.post("/v1/runs", headers={"Idempotency-Key": "two words"})
    faults = problem(answer, 422, "invalid_request")["errors"]
    assert [(fault["field"], fault["message"]) for fault in faults] == [
        ("Idempotency-Key", "allowed: 1 to 255 visible ASCII characters"),
        ("body", "required"),
    ]


@pytest.mark.parametrize("name", ["path", "query", "header", "body"])
def test_a_field_may_have_the_name_of_a_part_of_the_request(ada: ApiUser, name: str) -> None:
    answer = ada.http.post("/v1/runs", json={"input": "Hi", name: 7})
    (fault,) = problem(answer, 422, "invalid_request")["errors"]
    assert (fault["field"], fault["message"]) == (name, "unknown field")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"input": "Hi"', "valid JSON (character 15 is the first that does not fit)"),
        (b"input=Hi", "valid JSON (character 1 is the first that does not fit)"),
        (b"", "required"),
        (b"[]", "a JSON object"),
    ],
)
def test_a_body_that_is_no_json_is_named_as_a_whole(ada: ApiUser, content: bytes, message: str) -> None:
    answer = ada.http.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
    (fault,) = problem(answer, 422, "invalid_request")["errors"]
    assert (fault["field"], fault["message"]) == ("body", message)
    assert fault["given"] == ""


def test_json_sent_as_text_is_told_its_content_type_and_not_repeated(server: AppServer) -> None:
    body = b'{"password": "a long password"}'
    answer = server.anyone().post("/v1/signup", content=body, headers={"Content-Type": "text/plain"})
    (fault,) = problem(answer, 422, "invalid_request")["errors"]
    assert "Content-Type: application/json" in fault["message"]
    assert (fault["field"], fault["given"]) == ("body", "")
    assert "a long password" not in answer.text


def test_a_password_of_half_a_character_is_refused_by_its_field(ada: ApiUser) -> None:
    half = "half a char \ud800"
    tried = [
        ("POST", "/v1/tokens", {"email": ada.email, "password": half}, "password"),
        ("POST", "/v1/signup", {"email": "new@example.com", "password": half, "tenant_name": "New"}, "password"),
        ("PUT", "/v1/me/password", {"current_password": half, "new_password": "long enough"}, "current_password"),
        ("DELETE", "/v1/me", {"password": half}, "password"),
    ]
    for method, path, body, field in tried:
        sent = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
        answer = ada.http.request(method, path, **cast(Any, sent))
        (fault,) = answer.json()["errors"]
        assert (answer.status_code, fault["field"], fault["given"]) == (422, field, "(hidden)"), path
        assert fault["message"] == "a string of valid Unicode"


def test_what_is_wrong_with_a_whole_body_repeats_nothing_of_it(ada: ApiUser) -> None:
    body = {"password": "correct horse battery", **{f"field_{number}": 0 for number in range(200)}}
    answer = ada.http.post("/v1/tokens", json=body)
    (fault,) = answer.json()["errors"]
    assert (answer.status_code, fault["field"], fault["given"]) == (422, "body", "")
    assert "correct horse" not in answer.text
