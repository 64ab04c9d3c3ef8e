"""Right and wrong requests, made by schemathesis from openapi.json: the document names every reply to them."""

import asyncio
import json
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup

from app.db import Database
from app.identity import mails
from app.settings import Settings
from tests.app_server import PASSWORD, ApiUser, AppServer, one
from tests.replies import DOCUMENT, event_faults
from tests.results import Results
from tests.tables import rows

CHECKS = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
}
_checks: Any = vars(checks)["CHECKS"]  # its types are unknown
SCHEMA: Any = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS: list[Any] = [found.ok() for found in SCHEMA.get_all_operations()]


def _png() -> bytes:
    buffer = BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


schemathesis.openapi.media_type("image/png", st.just(_png()), aliases=["image/jpeg", "image/webp"])


@dataclass
class Belongings:
    """A user and what the operations' ids can name; `fresh` makes one anew, for what a case deletes."""

    user: ApiUser
    server: AppServer
    ids: dict[str, str] = field(default_factory=dict[str, str])
    streams: bool = False

    def fresh(self, name: str) -> str:
        make: Callable[[], str] = getattr(self, f"_new_{name}", self._new_run_id)
        return make()

    def _new_key_id(self) -> str:
        return str(self.user.http.post("/v1/api-keys", json={"name": "A key"}).json()["id"])

    def _new_object_id(self) -> str:
        return str(self.user.http.post("/v1/attachments", files={"file": _png()}).json()["object_id"])

    def _new_message_id(self) -> str:
        return str(self.user.messages(self.named("conversation_id"))[0]["id"])

    def _new_token(self) -> str:
        url: str = one(self.user.draw(), "attachment.created")["attachment"]["url"]
        return url.rpartition("/")[2]

    def _new_sign_in_id(self) -> str:
        _tokens(self)
        return str(self.user.sign_ins()[0]["id"])

    def _new_user_id(self) -> str:
        return self.server.sign_up_invited(self.user).id

    def _new_invitation_id(self) -> str:
        return str(self.user.invite(f"{secrets.token_hex(6)}@example.com")["id"])

    def _new_export_id(self) -> str:
        return str(self.user.http.post("/v1/exports", json={"scope": "tenant"}).json()["id"])

    def _new_receipt(self) -> str:
        member = self.server.sign_up_invited(self.user)
        answer = self.user.http.delete(f"/v1/members/{member.id}", params={"data": "erase"})
        return str(answer.json()["receipt"])

    def _new_conversation_id(self) -> str:
        return str(self.user.start("Hello")["conversation_id"])

    def _new_run_id(self) -> str:
        return str(self.user.start("Hello")["id"])

    def require(self, name: str) -> None:
        self.named(name)

    def named(self, name: str) -> str:
        if name not in self.ids:
            self.ids[name] = self.fresh(name)
        return self.ids[name]


def _sign_in(own: Belongings, case: Any) -> None:
    case.body = {"email": own.user.email, "password": PASSWORD}


def _sign_up(own: Belongings, case: Any) -> None:
    case.body["email"] = f"{secrets.token_hex(6)}@example.com"


def _refresh(own: Belongings, case: Any) -> None:
    case.body = {"refresh_token": _tokens(own)["refresh_token"]}


def _sign_out(own: Belongings, case: Any) -> None:
    case.headers["Authorization"] = f"Bearer {_tokens(own)['access_token']}"


def _start_run(own: Belongings, case: Any) -> None:
    case.body = {"input": "Hello", "if_busy": "queue"}
    own.streams = not own.streams
    case.headers["Accept"] = "text/event-stream" if own.streams else "application/json"


def _create_key(own: Belongings, case: Any) -> None:
    case.body = {"name": "A key", "scopes": ["chat:read"]}


def _tokens(own: Belongings) -> dict[str, Any]:
    return own.user.http.post("/v1/tokens", json={"email": own.user.email, "password": PASSWORD}).json()


def _accept_invitation(own: Belongings, case: Any) -> None:
    del case.headers["Authorization"]
    token = own.user.invite(f"{secrets.token_hex(6)}@example.com")["token"]
    case.body = {"token": token, "password": PASSWORD}


def _change_password(own: Belongings, case: Any) -> None:
    # The wrong ones among a hundred would have the right ones refused.
    assert own.server.settings.database_url
    rows(own.server.settings.database_url.get_secret_value(), "DELETE FROM attempt_counts")
    case.body = {"current_password": PASSWORD, "new_password": PASSWORD}


def _reset_password(own: Belongings, case: Any) -> None:
    token = asyncio.run(_new_reset(own.server.settings, own.user.email))
    case.body = {"token": token, "new_password": PASSWORD}


def _erase_tenant(own: Belongings, case: Any) -> None:
    case.headers["Authorization"] = own.server.sign_up("Mine").http.headers["Authorization"]
    case.body = {"confirm": "Mine"}


def _erase_me(own: Belongings, case: Any) -> None:
    case.headers["Authorization"] = own.server.sign_up().http.headers["Authorization"]
    case.body = {"password": PASSWORD}


async def _new_reset(service: Settings, email: str) -> str:
    assert service.database_url
    database = Database(service.database_url.get_secret_value(), pool_size=1)
    try:
        return (await mails.make_reset(database, service, email)).token
    finally:
        await database.close()


# What makes a case succeed, beyond ids that exist.
PREPARE: dict[str, Callable[[Belongings, Any], None]] = {
    "sign_up": _sign_up,
    "sign_in": _sign_in,
    "refresh_tokens": _refresh,
    "sign_out": _sign_out,
    "start_run": _start_run,
    "create_api_key": _create_key,
    "end_sign_ins": _sign_out,
    "accept_invitation": _accept_invitation,
    "change_password": _change_password,
    "reset_password": _reset_password,
    "erase_tenant": _erase_tenant,
    "erase_me": _erase_me,
    # A list that holds something.
    "list_api_keys": lambda own, _: own.require("key_id"),
    "list_exports": lambda own, _: own.require("export_id"),
    "list_invitations": lambda own, _: own.require("invitation_id"),
    "list_attachments": lambda own, _: own.require("object_id"),
    "list_conversations": lambda own, _: own.require("conversation_id"),
}


def prepare(own: Belongings, case: Any) -> None:
    """Let the case name what is there."""
    case.headers.pop("X-Tenant-Id", None)
    case.headers["Authorization"] = own.user.http.headers["Authorization"]
    if case.operation.method == "delete":
        own.ids.clear()
    for name in list(case.path_parameters):
        case.path_parameters[name] = own.named(name)
    case.query.pop("cursor", None)
    if action := PREPARE.get(operation_id(case.operation)):
        action(own, case)


def operation_id(operation: Any) -> str:
    return str(operation.definition.raw["operationId"])


@dataclass
class Outcome:
    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter[int]))
    findings: Counter[str] = field(default_factory=Counter[str])


# The server's threads draw random numbers, too, while hypothesis looks whether a strategy does.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("each", "least"),
    [(5, 200), pytest.param(150, 3000, marks=[pytest.mark.prove, pytest.mark.timeout(1800)])],
    ids=["few", "many"],
)
def test_no_request_gets_a_reply_that_the_document_does_not_name(
    server: AppServer, each: int, least: int, results: Results
) -> None:
    number = random.randrange(2**32)
    outcome = Outcome()
    for operation in OPERATIONS:
        own = Belongings(server.sign_up(), server)
        try_operation(outcome, own, operation, each, number)
    cases = sum(sum(counts.values()) for counts in outcome.statuses.values())
    failed = sum(count for counts in outcome.statuses.values() for status, count in counts.items() if status >= 500)
    kept = f"{failed} x 5xx, {sum(outcome.findings.values())} undocumented replies"
    results(29, "schemathesis", tried=f"{cases} requests, {len(OPERATIONS)} operations", kept=kept, seed=number)
    assert outcome.findings == {}
    assert cases >= least
    assert list(unreached(outcome)) == []


def try_operation(outcome: Outcome, own: Belongings, operation: Any, each: int, number: int) -> None:
    """A quarter of the cases is wrong on purpose, where the operation takes anything that can be wrong."""
    wrong = each // 4
    if operation.definition.raw.get("parameters") or operation.definition.raw.get("requestBody"):
        try:
            _attempt(outcome, own, operation, GenerationMode.NEGATIVE, wrong, number)
        except Unsatisfiable:
            wrong = 0
    else:
        wrong = 0
    _attempt(outcome, own, operation, GenerationMode.POSITIVE, each - wrong, number)


def _attempt(outcome: Outcome, own: Belongings, operation: Any, mode: GenerationMode, cases: int, number: int) -> None:
    turns = count()

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=operation.as_strategy(mode))
    def attempt(case: Any) -> None:
        call(outcome, own, case, next(turns), mode)

    attempt()


def call(outcome: Outcome, own: Belongings, case: Any, turn: int, mode: GenerationMode) -> None:
    # Every seventh goes with the credential that schemathesis made up.
    if turn % 7 != 3:
        case.headers["Authorization"] = own.user.http.headers["Authorization"]
    if mode == GenerationMode.POSITIVE and turn % 2 == 0:
        prepare(own, case)
    response = case.call(base_url=own.user.base_url, timeout=60, allow_redirects=False)
    name = operation_id(case.operation)
    outcome.statuses[name][response.status_code] += 1
    outcome.findings.update(f"{name}: {fault}" for fault in faults_of(case, response))


def faults_of(case: Any, response: Any) -> list[str]:
    wanted = CHECKS
    faults: list[str] = []
    if "text/event-stream" in response.headers.get("content-type", [""])[0]:
        # The document describes the `data` of each event, schemathesis expects `event` and `id` beside it.
        wanted = CHECKS - {"response_schema_conformance"}
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        faults = [fault for line in lines for fault in event_faults(json.loads(line))]
    try:
        case.validate_response(response, checks=_checks.get_by_names(list(wanted)))
    except FailureGroup as failures:
        faults += [str(failure) for failure in failures.exceptions]
    return faults


def unreached(outcome: Outcome) -> Iterator[str]:
    """Operations without a success or, where one is documented, without a 4xx."""
    for operation in OPERATIONS:
        name = operation_id(operation)
        seen = outcome.statuses[name]
        documented = operation.definition.raw["responses"]
        for kind in ("23", "4"):
            if any(status[0] in kind for status in documented) and not any(str(status)[0] in kind for status in seen):
                yield f"{name}: {dict(seen)}"
