"""Promise 3: whoever calls with somebody else's id hears what they would hear of an id that never was.

The caller is a stranger, whom row security stops, too, or a colleague of the same tenant, whom only our queries stop.
Every operation of the API has its line in MATRIX; one without a line, or with an id that its line does not name, fails.
"""

import re
import secrets
import uuid
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import httpx
import pytest
from PIL import Image

from tests.app_server import PASSWORD, ApiUser, AppServer, one
from tests.results import Results

Schema = dict[str, Any]
Operation = tuple[str, str]


@dataclass(frozen=True)
class Call:
    """How an operation is called; `{name}` in a value of query or body stands for the id of that name."""

    public: bool = False
    query: tuple[tuple[str, str], ...] = ()
    body: tuple[tuple[str, str | list[str]], ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()


def image(mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


NEW_RUN: tuple[tuple[str, str | list[str]], ...] = (
    ("input", "Hello"),
    ("conversation_id", "{conversation_id}"),
    ("attachments", ["{attachments}"]),
    ("edit", "{edit}"),
    ("mask", "{mask}"),
)
# In an order in which the owner's own calls all succeed: what removes something comes last.
MATRIX: dict[Operation, Call] = {
    ("POST", "/v1/signup"): Call(public=True),
    ("POST", "/v1/tokens"): Call(public=True),
    ("POST", "/v1/tokens/refresh"): Call(public=True),
    ("POST", "/v1/password-resets"): Call(public=True),
    ("PUT", "/v1/password-resets"): Call(public=True),
    ("POST", "/v1/invitations/acceptance"): Call(public=True),
    ("GET", "/livez"): Call(public=True),
    ("GET", "/readyz"): Call(public=True),
    ("GET", "/v1/files/{token}"): Call(public=True),
    ("GET", "/v1/erasures/{receipt}"): Call(public=True),
    ("GET", "/v1/me"): Call(),
    ("PATCH", "/v1/me"): Call(body=(("name", "A name"),)),
    ("GET", "/v1/tokens"): Call(),
    ("GET", "/v1/tenants/current"): Call(),
    ("PATCH", "/v1/tenants/current"): Call(body=(("name", "A tenant"),)),
    ("GET", "/v1/members"): Call(),
    ("PATCH", "/v1/members/{user_id}"): Call(body=(("role", "viewer"),)),
    ("GET", "/v1/invitations"): Call(),
    ("POST", "/v1/invitations"): Call(body=(("email", "grace@example.com"), ("role", "member"))),
    ("GET", "/v1/exports"): Call(),
    ("GET", "/v1/exports/{export_id}"): Call(),
    # Once it is written, it replaces the one before.
    ("POST", "/v1/exports"): Call(body=(("scope", "me"),)),
    ("GET", "/v1/audit"): Call(),
    ("GET", "/v1/usage"): Call(query=(("user_id", "{user_id}"),)),
    ("GET", "/v1/usage/entries"): Call(query=(("run_id", "{run_id}"),)),
    ("GET", "/v1/limits"): Call(),
    ("GET", "/v1/agents"): Call(),
    ("GET", "/v1/api-keys"): Call(),
    ("POST", "/v1/api-keys"): Call(body=(("name", "A key"),)),
    ("GET", "/v1/attachments"): Call(),
    ("POST", "/v1/attachments"): Call(files=(("file", image()),)),
    ("GET", "/v1/attachments/{object_id}"): Call(),
    ("GET", "/v1/attachments/{object_id}/content"): Call(),
    ("GET", "/v1/conversations"): Call(),
    ("GET", "/v1/conversations/{conversation_id}"): Call(),
    ("GET", "/v1/conversations/{conversation_id}/messages"): Call(),
    ("GET", "/v1/conversations/{conversation_id}/messages/{message_id}/attachments"): Call(),
    ("PATCH", "/v1/conversations/{conversation_id}"): Call(body=(("title", "Mine now"),)),
    ("GET", "/v1/runs"): Call(query=(("conversation_id", "{conversation_id}"),)),
    ("GET", "/v1/runs/{run_id}"): Call(),
    ("GET", "/v1/runs/{run_id}/events"): Call(),
    ("PUT", "/v1/runs/{run_id}/cancellation"): Call(),
    ("POST", "/v1/runs/estimate"): Call(body=NEW_RUN),
    ("POST", "/v1/runs"): Call(body=NEW_RUN),
    ("DELETE", "/v1/attachments/{object_id}"): Call(),
    ("DELETE", "/v1/conversations/{conversation_id}"): Call(),
    ("DELETE", "/v1/api-keys/{key_id}"): Call(),
    ("DELETE", "/v1/invitations/{invitation_id}"): Call(),
    ("DELETE", "/v1/members/{user_id}"): Call(),
    ("DELETE", "/v1/tokens/{sign_in_id}"): Call(),
    ("PUT", "/v1/me/password"): Call(body=(("current_password", PASSWORD), ("new_password", PASSWORD))),
    ("DELETE", "/v1/tokens/current"): Call(),
    ("DELETE", "/v1/tenants/current"): Call(body=(("confirm", "A tenant"),)),
    ("POST", "/v1/tenants"): Call(body=(("name", "Another"),)),
    ("DELETE", "/v1/tokens"): Call(),
    ("DELETE", "/v1/me"): Call(body=(("password", PASSWORD),)),
}

# Everything that lists rows, in each of the ways that have a query of their own.
LISTS: dict[str, list[dict[str, str]]] = {
    "/v1/tokens": [{}],
    "/v1/conversations": [{}, {"q": "red house"}],
    "/v1/runs": [{}, {"status": "completed"}],
    "/v1/attachments": [
        {},
        {"q": "red"},
        {"kind": "upload"},
        {"kind": "generated", "agent_key": "designer"},
        {"purpose": "mask"},
    ],
    "/v1/api-keys": [{}],
    "/v1/exports": [{}],
    "/v1/usage": [{"group_by": "user"}],
    "/v1/usage/entries": [{}],
}
# What a colleague may see, too, as far as their role goes: tests/tenants has that.
TENANTS_LISTS: dict[str, list[dict[str, str]]] = {
    "/v1/members": [{}],
    "/v1/invitations": [{}],
    "/v1/audit": [{}, {"action": "api_key.created"}],
}
TENANTS_IDS = {"user_id", "invitation_id"}

# Ids that name nothing: positions of pages, and the tenant, which has tests of its own.
NOT_IDS = {"cursor", "x-tenant-id", "actor_id", "target_id"}
SIGNS_OUT = (("DELETE", "/v1/tokens"), ("DELETE", "/v1/tokens/current"))
MALFORMED = ("not-an-id", "0", f"{uuid.UUID(int=7)}x", "null")


def test_every_operation_is_in_the_matrix_with_every_id_it_takes(server: AppServer) -> None:
    schema = server.uvicorn.app.openapi()
    for method, path in operations(schema):
        call = MATRIX.get((method, path))
        assert call is not None, f"{method} {path} has no line in MATRIX"
        assert ids_of(path, call) == ids_in(schema, method, path), f"MATRIX names other ids than {method} {path} takes"
    assert {path for method, path in MATRIX if is_list(schema, method, path)} == LISTS.keys() | TENANTS_LISTS
    assert MATRIX.keys() == set(operations(schema)), "MATRIX has a line for an operation that is gone"


@pytest.fixture(params=["stranger", "colleague"], ids=["another tenant", "two users of one tenant"])
def other(request: pytest.FixtureRequest) -> ApiUser:
    return cast(ApiUser, request.getfixturevalue(request.param))


@pytest.fixture
def other_tenant(ada: ApiUser, other: ApiUser) -> bool:
    return other.signed_up["tenant"] != ada.signed_up["tenant"]


@pytest.mark.slow
@pytest.mark.proof
def test_another_users_call_with_adas_id_is_answered_like_one_with_an_id_that_never_was(
    request: pytest.FixtureRequest, ada: ApiUser, other: ApiUser, other_tenant: bool, results: Results
) -> None:
    own, theirs = belongings_of(ada), belongings_of(other)
    tried = 0
    for (method, path), call in MATRIX.items():
        for name in sorted(ids_of(path, call) - (set() if other_tenant else TENANTS_IDS)):
            refused = send(other.http, method, path, call, {**theirs, name: own[name]})
            # What was used is empty where its filter finds nothing.
            filters = path.startswith("/v1/usage") and f"{{{name}}}" in dict(call.query).values()
            expected, malformed = (200, ()) if filters else (404, MALFORMED)
            assert refused.status_code == expected, f"{method} {path} with {name}: {refused.text}"
            for unknown in (str(uuid.uuid4()), *malformed):
                absent = send(other.http, method, path, call, {**theirs, name: unknown})
                assert received(absent) == received(refused), f"{method} {path} with {name}={unknown}"
                tried += 1
    assert_untouched(ada, own)
    suite = str(request.node.callspec.id)
    results(3, suite, tried=f"{len(MATRIX)} operations, {tried} pairs of ids", kept=f"{tried} answered alike")


@pytest.mark.slow
def test_what_takes_no_id_shows_another_user_nothing_of_adas(ada: ApiUser, other: ApiUser, other_tenant: bool) -> None:
    own, theirs = belongings_of(ada), belongings_of(other)
    if not other_tenant:
        own = {name: value for name, value in own.items() if name not in TENANTS_IDS}
    seen: set[str] = set()
    for path, queries in (LISTS | (TENANTS_LISTS if other_tenant else {})).items():
        for query in queries:
            hers, others = (user.http.get(path, params=query) for user in (ada, other))
            assert (hers.status_code, others.status_code) == (200, 200)
            found = {name for name, value in own.items() if value in hers.text}
            assert found == {name for name, value in theirs.items() if value in others.text}
            assert not [name for name, value in own.items() if value in others.text], f"{path} {query}"
            seen |= found
    assert seen == own.keys() - {"token", "receipt"}, seen
    for (method, path), call in MATRIX.items():
        if not call.public and not ids_of(path, call) and (other_tenant or path not in TENANTS_LISTS):
            text = send(other.http, method, path, call, theirs).text
            assert not [name for name, value in own.items() if value in text], f"{method} {path}"


@pytest.mark.slow
def test_ada_herself_is_not_refused(ada: ApiUser) -> None:
    own = belongings_of(ada)
    for (method, path), call in MATRIX.items():
        if not call.public:
            answer = send(ada.http, method, path, call, own)
            if (method, path) in SIGNS_OUT:
                ada.sign_in()
            assert answer.is_success or answer.is_redirect, f"{method} {path}: {answer.status_code} {answer.text}"


@pytest.mark.slow
def test_nobody_is_let_in_but_where_the_door_is_public(server: AppServer, ada: ApiUser) -> None:
    own = belongings_of(ada)
    nobody = server.anyone()
    for (method, path), call in MATRIX.items():
        answer = send(nobody, method, path, call, own)
        if call.public:
            assert answer.status_code != 401, f"{method} {path}"
        else:
            assert answer.status_code == 401, f"{method} {path}: {answer.status_code} {answer.text}"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert nobody.get(f"/v1/files/{own['object_id']}").status_code == 404
    assert_untouched(ada, own)


@pytest.mark.slow
def test_another_tenants_name_in_the_header_opens_nothing(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    own, schema = belongings_of(ada), server.uvicorn.app.openapi()
    key = stranger.http.post("/v1/api-keys", json={"name": "Mine"}).json()["key"]
    for bearer in (stranger.signed_up["access_token"], key):
        for (method, path), call in MATRIX.items():
            if call.public or not names_tenant(schema, method, path):
                continue
            answers = [
                send(
                    stranger.http, method, path, call, own, Authorization=f"Bearer {bearer}", **{"X-Tenant-Id": tenant}
                )
                for tenant in (ada.signed_up["tenant"]["id"], str(uuid.uuid4()), *MALFORMED)
            ]
            assert answers[0].status_code == 404, f"{method} {path}: {answers[0].status_code} {answers[0].text}"
            assert len({received(answer) for answer in answers}) == 1, f"{method} {path}"
    assert_untouched(ada, own)


@pytest.mark.parametrize("kind", ["access_token", "key"])
def test_a_tampered_or_truncated_credential_is_refused(server: AppServer, ada: ApiUser, kind: str) -> None:
    real = ada.signed_up["access_token"] if kind == "access_token" else make_key(ada)["key"]
    assert status_with(server, real) == 200
    swapped = "A" if real[-10] != "A" else "B"
    for wrong in (
        f"{real[:-10]}{swapped}{real[-9:]}",
        real[:-1],
        f"{real}A",
        real.swapcase(),
        real.split("_")[-1],
        secrets.token_urlsafe(32),
        "x",
        "ö".encode().decode("latin-1"),
    ):
        assert status_with(server, wrong) == 401, wrong


def test_a_refresh_token_is_no_access_token(server: AppServer, ada: ApiUser) -> None:
    assert status_with(server, ada.signed_up["refresh_token"]) == 401
    assert status_with(server, ada.signed_up["refresh_token"].replace("_rt_", "_at_")) == 401


def test_a_revoked_key_is_refused_with_the_next_request(server: AppServer, ada: ApiUser) -> None:
    made = make_key(ada)
    assert status_with(server, made["key"]) == 200
    assert ada.http.delete(f"/v1/api-keys/{made['id']}").status_code == 204
    assert status_with(server, made["key"]) == 401


def test_a_signed_out_token_is_refused_with_the_next_request(server: AppServer, ada: ApiUser) -> None:
    assert ada.http.delete("/v1/tokens/current").status_code == 204
    assert status_with(server, ada.signed_up["access_token"]) == 401


def operations(schema: Schema) -> list[Operation]:
    return [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]


def ids_of(path: str, call: Call) -> set[str]:
    """The names of the ids that a call is made with."""
    values = [path, *(str(value) for _, value in (*call.query, *call.body))]
    return {name for value in values for name in re.findall(r"\{(\w+)\}", value)} - {"token", "receipt"}


def ids_in(schema: Schema, method: str, path: str) -> set[str]:
    """The names of the ids that an operation takes, by its schema: all that has the format uuid."""
    operation = schema["paths"][path][method.lower()]
    taken = {given["name"] for given in operation.get("parameters", []) if _holds_id(schema, given["schema"])}
    for content in operation.get("requestBody", {}).get("content", {}).values():
        fields = _resolved(schema, content["schema"]).get("properties", {})
        taken |= {name for name, field in fields.items() if _holds_id(schema, field)}
    return {name for name in taken if name.lower() not in NOT_IDS}


def is_list(schema: Schema, method: str, path: str) -> bool:
    """Whether it answers with pages, of rows that no id of the path chooses."""
    parameters = schema["paths"][path][method.lower()].get("parameters", [])
    return "{" not in path and "cursor" in {given["name"] for given in parameters}


def names_tenant(schema: Schema, method: str, path: str) -> bool:
    parameters = schema["paths"][path][method.lower()].get("parameters", [])
    return "X-Tenant-Id" in {given["name"] for given in parameters}


def _holds_id(schema: Schema, part: Schema) -> bool:
    part = _resolved(schema, part)
    inner: list[Schema] = [*part.get("anyOf", []), *([part["items"]] if "items" in part else [])]
    return part.get("format") == "uuid" or any(_holds_id(schema, one_of_them) for one_of_them in inner)


def _resolved(schema: Schema, part: Schema) -> Schema:
    name = part.get("$ref")
    return part if name is None else cast(Schema, schema["components"]["schemas"][name.rpartition("/")[2]])


def belongings_of(user: ApiUser) -> dict[str, str]:
    """The ids of one finished run, its conversation and image, two images sent, an export, and a key."""
    events = user.draw("Draw a red house")
    run = one(events, "run.created")["run"]
    drawn = one(events, "attachment.created")["attachment"]
    return {
        "run_id": run["id"],
        "conversation_id": run["conversation_id"],
        "message_id": one(events, "message.completed")["message"]["id"],
        "object_id": drawn["object_id"],
        "edit": drawn["object_id"],
        "attachments": sent(user, image()),
        "mask": sent(user, image("RGBA", (drawn["width"], drawn["height"]))),
        "key_id": make_key(user)["id"],
        "export_id": exported(user),
        "sign_in_id": other_sign_in(user),
        **invited_by(user),
        "token": "not-a-link",
        "receipt": "not-a-receipt",
    }


def invited_by(user: ApiUser) -> dict[str, str]:
    """A member and an open invitation of the user's tenant; where they may not invite, ids that never were."""
    if user.role not in ("owner", "admin"):
        return {name: str(uuid.uuid4()) for name in TENANTS_IDS}
    invited = user.invite(f"{secrets.token_hex(6)}@example.com")
    member = ApiUser(user.base_url, invited_by=user, role="member")
    member.http.close()
    return {"user_id": member.id, "invitation_id": invited["id"]}


def other_sign_in(user: ApiUser) -> str:
    before = {one["id"] for one in user.sign_ins()}
    httpx.post(f"{user.base_url}/v1/tokens", json={"email": user.email, "password": PASSWORD}).raise_for_status()
    (made,) = {one["id"] for one in user.sign_ins()} - before
    return cast(str, made)


def exported(user: ApiUser) -> str:
    answer = user.http.post("/v1/exports", json={"scope": "me"})
    assert answer.status_code == 202, answer.text
    return cast(str, answer.json()["id"])


def make_key(user: ApiUser) -> dict[str, Any]:
    answer = user.http.post("/v1/api-keys", json={"name": "A key"})
    assert answer.status_code == 201, answer.text
    return cast(dict[str, Any], answer.json())


def sent(user: ApiUser, data: bytes) -> str:
    answer = user.http.post("/v1/attachments", files={"file": ("a.png", data)})
    assert answer.status_code == 201, answer.text
    return cast(str, answer.json()["object_id"])


def send(
    client: httpx.Client, method: str, path: str, call: Call, ids: dict[str, str], **headers: str
) -> httpx.Response:
    query = {name: value.format_map(ids) for name, value in call.query}
    body = {
        name: [one_of_them.format_map(ids) for one_of_them in value]
        if isinstance(value, list)
        else value.format_map(ids)
        for name, value in call.body
    }
    files = {name: ("a.png", data) for name, data in call.files}
    return client.request(
        method, path.format_map(ids), params=query or None, json=body or None, files=files or None, headers=headers
    )


def received(answer: httpx.Response) -> tuple[int, str, bytes]:
    """All of an answer but its request_id."""
    body = re.sub(rb'"request_id":"[^"]*"', b"", answer.content)
    return answer.status_code, answer.headers["content-type"], body


def assert_untouched(user: ApiUser, own: dict[str, str]) -> None:
    assert user.http.get(f"/v1/conversations/{own['conversation_id']}").json()["title"] == "Draw a red house"
    assert len(user.messages(own["conversation_id"])) == 2
    assert user.http.get(f"/v1/attachments/{own['object_id']}").json()["status"] == "stored"
    assert user.http.get(f"/v1/runs/{own['run_id']}").json()["status"] == "completed"
    assert own["key_id"] in [key["id"] for key in user.http.get("/v1/api-keys").json()["data"]]


def status_with(server: AppServer, credential: str) -> int:
    header = b"Bearer " + credential.encode()
    return server.anyone().get("/v1/me", headers={b"Authorization": header}).status_code
