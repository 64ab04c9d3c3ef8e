"""Every operation x who may call it: roles, keys with and without the scope, removed members, suspended tenants.

PERMISSIONS says once more what app/identity/permissions.py and the routes say, so that a change of either is seen.
"""

import re
import uuid
from typing import Any, cast

import httpx
import pytest

from tests.app_server import ApiUser, AppServer
from tests.results import Results
from tests.tables import rows

Operation = tuple[str, str]
ROLES = ("viewer", "member", "admin", "owner")

# Operation -> the least role (None: any signed-in user) and the scope of a key (None: no key).
PERMISSIONS: dict[Operation, tuple[str | None, str | None]] = {
    ("GET", "/v1/tokens"): (None, None),
    ("DELETE", "/v1/tokens"): (None, None),
    ("DELETE", "/v1/tokens/current"): (None, None),
    ("DELETE", "/v1/tokens/{sign_in_id}"): (None, None),
    ("GET", "/v1/me"): (None, "account:read"),
    ("PATCH", "/v1/me"): (None, None),
    ("PUT", "/v1/me/password"): (None, None),
    ("DELETE", "/v1/me"): (None, None),
    ("POST", "/v1/tenants"): (None, None),
    ("GET", "/v1/tenants/current"): ("viewer", "account:read"),
    ("PATCH", "/v1/tenants/current"): ("admin", None),
    ("DELETE", "/v1/tenants/current"): ("owner", None),
    ("GET", "/v1/members"): ("viewer", "members:read"),
    ("PATCH", "/v1/members/{user_id}"): ("admin", None),
    ("DELETE", "/v1/members/{user_id}"): ("viewer", None),
    ("POST", "/v1/invitations"): ("admin", None),
    ("GET", "/v1/invitations"): ("admin", None),
    ("DELETE", "/v1/invitations/{invitation_id}"): ("admin", None),
    ("POST", "/v1/api-keys"): ("member", None),
    ("GET", "/v1/api-keys"): ("member", None),
    ("DELETE", "/v1/api-keys/{key_id}"): ("member", None),
    ("POST", "/v1/exports"): ("member", None),
    ("GET", "/v1/exports"): ("member", None),
    ("GET", "/v1/exports/{export_id}"): ("member", None),
    ("GET", "/v1/audit"): ("admin", "audit:read"),
    ("GET", "/v1/limits"): ("viewer", "usage:read"),
    ("GET", "/v1/usage"): ("member", "usage:read"),
    ("GET", "/v1/usage/entries"): ("member", "usage:read"),
    ("GET", "/v1/agents"): ("viewer", "chat:read"),
    ("GET", "/v1/conversations"): ("viewer", "chat:read"),
    ("GET", "/v1/conversations/{conversation_id}"): ("viewer", "chat:read"),
    ("PATCH", "/v1/conversations/{conversation_id}"): ("member", "chat:write"),
    ("DELETE", "/v1/conversations/{conversation_id}"): ("member", "chat:write"),
    ("GET", "/v1/conversations/{conversation_id}/messages"): ("viewer", "chat:read"),
    ("GET", "/v1/conversations/{conversation_id}/messages/{message_id}/attachments"): ("viewer", "chat:read"),
    ("GET", "/v1/runs"): ("viewer", "chat:read"),
    ("POST", "/v1/runs"): ("member", "chat:write"),
    ("POST", "/v1/runs/estimate"): ("member", "chat:write"),
    ("GET", "/v1/runs/{run_id}"): ("viewer", "chat:read"),
    ("GET", "/v1/runs/{run_id}/events"): ("viewer", "chat:read"),
    ("PUT", "/v1/runs/{run_id}/cancellation"): ("member", "chat:write"),
    ("POST", "/v1/attachments"): ("member", "attachments:write"),
    ("GET", "/v1/attachments"): ("viewer", "attachments:read"),
    ("GET", "/v1/attachments/{object_id}"): ("viewer", "attachments:read"),
    ("GET", "/v1/attachments/{object_id}/content"): ("viewer", "attachments:read"),
    ("DELETE", "/v1/attachments/{object_id}"): ("member", "attachments:write"),
}
ALL_SCOPES = sorted({scope for _, scope in PERMISSIONS.values() if scope})
# What ends the sign-in that it is called with.
SIGNS_OUT = (("DELETE", "/v1/tokens"), ("DELETE", "/v1/tokens/current"))


@pytest.fixture
def members(server: AppServer, ada: ApiUser) -> dict[str, ApiUser]:
    """One of each role, of Ada's tenant."""
    invited = {role: server.sign_up_invited(ada, role) for role in ROLES[:-1]}
    return {**invited, "owner": ada}


def test_every_operation_that_needs_a_credential_has_its_line(server: AppServer) -> None:
    paths = server.uvicorn.app.openapi()["paths"]
    needing = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if operation.get("security") and {} not in operation["security"]
    }
    assert needing == PERMISSIONS.keys()


@pytest.mark.slow
def test_each_role_may_do_what_the_table_says_and_no_more(members: dict[str, ApiUser], results: Results) -> None:
    tried = 0
    for operation, (least, _) in PERMISSIONS.items():
        for role, user in members.items():
            answer = call(user.http, operation)
            tried += 1
            if least is not None and ROLES.index(role) < ROLES.index(least):
                assert refusal(answer) == (403, "forbidden", least, None), (operation, role)
            else:
                assert_allowed(answer, operation, role)
            if operation in SIGNS_OUT:
                user.sign_in()
    results(3, "roles", tried=f"{tried} calls", kept=f"{len(PERMISSIONS)} operations x {len(ROLES)} roles")


def test_a_key_may_do_what_its_scope_opens_and_never_what_needs_a_user(
    server: AppServer, ada: ApiUser, results: Results
) -> None:
    anyone, tried = server.anyone(), 0
    keys = {scope: make_key(ada, [scope]) for scope in ALL_SCOPES}
    without = {scope: make_key(ada, [other for other in ALL_SCOPES if other != scope]) for scope in ALL_SCOPES}
    unlimited = make_key(ada, None)
    for operation, (_, scope) in PERMISSIONS.items():
        tried += 2
        if scope is None:
            assert refusal(call(anyone, operation, unlimited))[:2] == (403, "user_required"), operation
            continue
        assert refusal(call(anyone, operation, without[scope])) == (403, "forbidden", None, scope), operation
        assert_allowed(call(anyone, operation, keys[scope]), operation, scope)
        assert_allowed(call(anyone, operation, unlimited), operation, "a key without scopes")
    results(22, "scopes of keys", tried=f"{tried} calls", kept=f"{len(PERMISSIONS)} operations, {len(keys)} scopes")


def test_a_key_has_no_more_rights_than_the_role_of_its_maker(ada: ApiUser, members: dict[str, ApiUser]) -> None:
    member = members["member"]
    key = make_key(member, None)
    assert refusal(call(member.http, ("GET", "/v1/audit"), key)) == (403, "forbidden", "admin", None)
    assert ada.http.patch(f"/v1/members/{member.id}", json={"role": "viewer"}).status_code == 200
    assert refusal(call(member.http, ("POST", "/v1/runs"), key)) == (403, "forbidden", "member", None)


def test_without_a_credential_there_is_no_way_in(server: AppServer) -> None:
    for operation in PERMISSIONS:
        assert call(server.anyone(), operation).status_code == 401, operation


def test_a_removed_member_may_do_nothing_in_the_tenant(ada: ApiUser, members: dict[str, ApiUser]) -> None:
    removed = members["admin"]
    key = make_key(removed, None)
    assert ada.http.delete(f"/v1/members/{removed.id}").status_code == 204
    for operation, (least, _) in PERMISSIONS.items():
        assert call(removed.http, operation, key).status_code == 401, operation
        if least is not None:
            assert refusal(call(removed.http, operation))[:2] == (403, "no_tenant"), operation


def test_a_suspended_tenant_is_closed_to_its_members_and_keys(own_server: AppServer, database_url: str) -> None:
    owner = own_server.sign_up()
    key = make_key(owner, None)
    rows(database_url, "UPDATE tenants SET suspended_at = now()")
    for operation, (least, scope) in PERMISSIONS.items():
        if least is not None:
            assert refusal(call(owner.http, operation))[:2] == (403, "tenant_suspended"), operation
        if least is not None and scope is not None:
            assert refusal(call(owner.http, operation, key))[:2] == (403, "tenant_suspended"), operation
    rows(database_url, "UPDATE tenants SET suspended_at = NULL")
    assert owner.http.get("/v1/me").status_code == 200


def test_the_documented_permissions_are_those(server: AppServer) -> None:
    paths = server.uvicorn.app.openapi()["paths"]
    for (method, path), (least, scope) in PERMISSIONS.items():
        operation = paths[path][method.lower()]
        assert operation.get("x-role") == least
        assert operation["x-user-only"] == (scope is None)
        assert operation["security"] == [{"bearer": [scope] if scope else []}]


def call(client: httpx.Client, operation: Operation, credential: str | None = None) -> httpx.Response:
    """With ids that name nothing, and an empty body: who may not call it is told before either is looked at."""
    method, path = operation
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    url = re.sub(r"\{\w+\}", lambda _: str(uuid.uuid4()), path)
    return client.request(method, url, json={} if method in ("POST", "PUT", "PATCH") else None, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, Any, Any, Any]:
    body = cast(dict[str, Any], answer.json() if answer.content else {})
    return answer.status_code, body.get("code"), body.get("needs_role"), body.get("needs_scope")


def assert_allowed(answer: httpx.Response, operation: Operation, who: str) -> None:
    assert answer.status_code not in (401, 403, 500), f"{operation} by {who}: {answer.status_code} {answer.text}"


def make_key(user: ApiUser, scopes: list[str] | None) -> str:
    answer = user.http.post("/v1/api-keys", json={"name": "A key", "scopes": scopes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])
