"""What a plan allows to a tenant and to each of its people: judged before a run, and before each further call."""

import asyncio
import io
import json
import secrets
import time
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from tests import made_streams, timeouts
from tests.agent_folders import write_agents
from tests.app_server import ApiUser, AppServer, kinds, one, running_server
from tests.tables import rows
from tests.usage.books import Json, entries, nano
from tests.usage.plans import give_plan, limits_of, start, used

AGENTS: dict[str, dict[str, Any]] = {
    "talker": {},
    "designer": {"tool_keys": ("image_generation",)},
    "assistant": {"tool_keys": ("image_generation",), "handoff_keys": ("designer", "talker")},
    "forced": {"tool_keys": ("image_generation", "web_search"), "tool_choice": "image_generation"},
    "front": {"handoff_keys": ("designer", "unpriced")},
    "unpriced": {"model_key": "unpriced"},
}
PLAN_KEYS = ("runs_per_minute", "runs_at_once", "streams_at_once", "images_per_day", "spend_per_month_usd")
LEFT = {
    "": "SELECT count(*) FROM {} WHERE tenant_id = :tenant",
    "messages": "SELECT count(*) FROM {} WHERE tenant_id = :tenant AND role = 'user'",
}
HELD = "[offline: stall]"
SOON = 30.0


@pytest.fixture(scope="module")
def limited_server(
    postgres: Any, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    directory = tmp_path_factory.mktemp("limits")
    agents = write_agents(directory / "agents", AGENTS)
    with (
        postgres.database(migrated_template) as database_url,
        running_server(
            database_url, provider_url, directory / "data", agents=agents, agent_unpriced_model="nobody-knows"
        ) as server,
    ):
        yield server


@pytest.fixture
def server(limited_server: AppServer) -> AppServer:
    return limited_server


def refused(answer: httpx.Response, limit: str, scope: str = "tenant", code: str = "limit_exceeded") -> Json:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (429 if code == "limit_exceeded" else 402, code), answer.text
    assert (problem["limit"], problem["scope"]) == (limit, scope)
    assert {"allowed", "used", "reserved", "resets_at"} <= problem.keys()
    assert ("Retry-After" in answer.headers) == (answer.status_code == 429)
    return problem


def stop(user: ApiUser, run: Json) -> None:
    user.http.put(f"/v1/runs/{run['id']}/cancellation")
    wait_until(lambda: user.http.get(f"/v1/runs/{run['id']}").json()["finished_at"])


def wait_until(found: Any) -> Any:
    deadline = time.monotonic() + SOON
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def left_behind(database: str, user: ApiUser) -> tuple[int, ...]:
    """Rows of the user's tenant that a start writes."""
    tables = ("conversations", "messages", "runs", "idempotency_keys")
    given = {"tenant": user.signed_up["tenant"]["id"]}
    return tuple(rows(database, LEFT.get(one, LEFT[""]).format(one), given)[0][0] for one in tables)


def test_without_limits_everything_is_told_and_nothing_refused(ada: ApiUser) -> None:
    answer = start(ada)
    assert answer.status_code == 202
    assert "RateLimit" not in answer.headers
    found = ada.http.get("/v1/limits").json()
    assert found["plan"] == "unlimited"
    scopes = [(one["limit"], one["scope"]) for one in found["data"]]
    assert scopes == [*((key, scope) for key in PLAN_KEYS for scope in ("tenant", "user")), ("stored_bytes", "tenant")]
    assert {one["allowed"] for one in found["data"]} == {None}
    assert limits_of(ada)["spend_per_month_usd", "tenant"].keys() == {
        *("limit", "scope", "allowed", "used", "reserved", "resets_at")
    }


def test_a_bucket_of_runs_is_refilled_evenly_and_every_answer_tells_how_full_it_is(
    server: AppServer, ada: ApiUser, database: str
) -> None:
    viewer = server.sign_up_invited(ada, "viewer")
    give_plan(database, ada, runs_per_minute=3)
    for left, seconds in ((2, 20), (1, 40), (0, 60)):
        answer = start(ada)
        assert answer.status_code == 202
        assert answer.headers["RateLimit-Policy"] == '"runs_per_minute";q=3;w=60'
        rate, _, until_full = answer.headers["RateLimit"].partition(";t=")
        assert rate == f'"runs_per_minute";r={left}'
        assert seconds - 5 <= int(until_full) <= seconds
    before = left_behind(database, ada)
    problem = refused(answer := start(ada), "runs_per_minute")
    assert (problem["allowed"], problem["used"]) == (3, 3)
    assert 15 <= int(answer.headers["Retry-After"]) <= 20
    # Until one may be started, not until all may.
    assert answer.headers["RateLimit"] == f'"runs_per_minute";r=0;t={answer.headers["Retry-After"]}'
    unknown = start(ada, agent_key="nobody")
    assert (unknown.status_code, unknown.headers["RateLimit"][:21]) == (422, '"runs_per_minute";r=0')
    invalid = ada.http.post("/v1/runs", json={"input": ""})
    assert (invalid.status_code, invalid.headers["RateLimit"][:21]) == (422, '"runs_per_minute";r=0')
    unreadable = ada.http.post("/v1/runs", content=b"{", headers={"Content-Type": "application/json"})
    assert (unreadable.status_code, unreadable.headers["RateLimit"][:21]) == (422, '"runs_per_minute";r=0')
    too_large = ada.http.post("/v1/runs", content=b"{" * (2 << 20))
    assert (too_large.status_code, too_large.headers["RateLimit"][:21]) == (413, '"runs_per_minute";r=0')
    unknown_tenant = ada.http.post("/v1/runs", json={"input": "Hello"}, headers={"X-Tenant-Id": str(uuid4())})
    assert (unknown_tenant.status_code, "RateLimit" in unknown_tenant.headers) == (404, False)
    forbidden = start(viewer)
    assert (forbidden.status_code, forbidden.headers["RateLimit"][:21]) == (403, '"runs_per_minute";r=0')
    assert left_behind(database, ada) == before
    # A third of a minute later there is one more.
    rows(database, "UPDATE usage_counters SET full_at = full_at - interval '20 seconds'")
    assert start(ada).status_code == 202
    refused(start(ada), "runs_per_minute")


def test_a_refusal_does_not_wait_for_a_rate_that_cannot_be_read(
    ada: ApiUser, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_plan(database, ada, runs_per_minute=3)

    async def hang(*_: object) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr("app.usage.counters.read_rate", hang)
    began = time.monotonic()
    answer = ada.http.post("/v1/runs", json={"input": ""})
    assert (answer.status_code, "RateLimit" in answer.headers) == (422, False)
    assert time.monotonic() - began < timeouts.ANSWER


def test_the_headers_tell_of_the_tighter_scope(ada: ApiUser, colleague: ApiUser, database: str) -> None:
    give_plan(database, ada, runs_per_minute=3, user_runs_per_minute=2)
    assert start(ada).headers["RateLimit-Policy"] == '"runs_per_minute";q=2;w=60'
    assert start(ada).headers["RateLimit"].startswith('"runs_per_minute";r=0')
    refused(start(ada), "runs_per_minute", "user")
    assert start(colleague).headers["RateLimit-Policy"] == '"runs_per_minute";q=3;w=60'
    refused(start(colleague), "runs_per_minute", "tenant")


def test_runs_that_are_open_count_until_they_end(ada: ApiUser, colleague: ApiUser, database: str) -> None:
    give_plan(database, ada, runs_at_once=2, user_runs_at_once=1)
    run = start(ada, f"Draw a house {HELD}", agent_key="designer").json()
    problem = refused(answer := start(ada), "runs_at_once", "user")
    assert (problem["allowed"], problem["used"], problem["resets_at"]) == (1, 1, None)
    assert answer.headers["Retry-After"] == "5"
    queued = start(ada, conversation_id=run["conversation_id"], if_busy="queue")
    refused(queued, "runs_at_once", "user")
    other = start(colleague, f"Draw a house {HELD}", agent_key="designer").json()
    refused(start(colleague), "runs_at_once", "tenant")
    stop(ada, run)
    assert start(ada).status_code == 202
    stop(colleague, other)


def test_a_repeated_key_takes_nothing_and_is_never_refused(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, runs_per_minute=1, user_images_per_day=1)
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    body = {"input": "Draw a house", "agent_key": "designer", "image": {"quality": "low"}}
    first = ada.http.post("/v1/runs", json=body, headers=headers)
    assert first.status_code == 202
    wait_until(lambda: ada.http.get(f"/v1/runs/{first.json()['id']}").json()["finished_at"])
    assert used(ada, "images_per_day", "user") == (1, 0)
    rate = first.headers["RateLimit"].partition(";t=")[0]
    for accept in ("application/json", "text/event-stream"):
        again = ada.http.post("/v1/runs", json=body, headers={**headers, "Accept": accept})
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (first.status_code, "true") or (
            accept != "application/json" and again.status_code == 200
        )
        assert again.headers["RateLimit"].partition(";t=")[0] == rate
    refused(start(ada), "runs_per_minute")


def test_a_repeated_request_takes_no_stream(ada: ApiUser, colleague: ApiUser, database: str) -> None:
    give_plan(database, ada, streams_at_once=1)
    headers = {"Idempotency-Key": secrets.token_hex(8), "Accept": "text/event-stream"}
    body = {"input": f"Draw a house {HELD}", "agent_key": "designer"}
    with ada.http.stream("POST", "/v1/runs", json=body, headers=headers) as first:
        run = {"id": first.headers["X-Run-Id"]}
        with ada.http.stream("POST", "/v1/runs", json=body, headers=headers) as again:
            assert (again.status_code, again.headers["X-Run-Id"]) == (200, run["id"])
            assert used(colleague, "streams_at_once") == (1, 0)
            stop(ada, run)


def test_pictures_of_a_day_are_counted_as_they_are_booked_and_held_while_a_run_is_open(
    ada: ApiUser, colleague: ApiUser, database: str
) -> None:
    give_plan(database, ada, images_per_day=2, user_images_per_day=1)
    run = start(ada, f"Draw a house {HELD}", agent_key="designer").json()
    assert used(ada, "images_per_day") == (0, 1)
    problem = refused(answer := start(ada, agent_key="designer"), "images_per_day", "user")
    assert (problem["allowed"], problem["used"], problem["reserved"]) == (1, 0, 1)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert datetime.fromisoformat(problem["resets_at"]) == midnight
    seconds = (midnight - datetime.now(UTC)).total_seconds()
    assert seconds - 5 <= int(answer.headers["Retry-After"]) <= seconds + 5
    stop(ada, run)
    assert used(ada, "images_per_day", "user") == (0, 0)
    ada.draw()
    assert used(ada, "images_per_day", "user") == (1, 0)
    refused(start(ada, agent_key="designer"), "images_per_day", "user")
    colleague.draw()
    assert (used(ada, "images_per_day"), used(colleague, "images_per_day", "user")) == ((2, 0), (1, 0))
    refused(start(colleague, agent_key="designer"), "images_per_day", "tenant")
    assert start(ada, agent_key="talker").status_code == 202
    # Of a worker whose clock is ahead.
    rows(database, "UPDATE usage_counters SET day = day + 1")
    assert used(ada, "images_per_day") == (2, 0)
    rows(database, "UPDATE usage_counters SET day = day - 2")
    assert used(ada, "images_per_day") == (0, 0)


def test_an_agent_that_can_do_more_goes_on_without_drawing_and_says_so(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, images_per_day=1)
    assert one(ada.draw(), "run.completed")["run"]["without"] == []
    events = ada.ask("Draw a house", agent_key="assistant")
    assert one(events, "run.created")["run"]["without"] == ["image_generation"]
    ended = one(events, "run.completed")["run"]
    assert ended["without"] == ["image_generation"]
    assert "attachment.created" not in kinds(events)
    found = ada.http.get(f"/v1/runs/{ended['id']}").json()
    assert found["without"] == ["image_generation"]
    assert {entry["kind"] for entry in entries(ada, run_id=ended["id"])} == {"input_tokens", "output_tokens"}
    assert used(ada, "images_per_day") == (1, 0)
    # It hands over to who can do something else, not to who only draws.
    handed = ada.ask("Say something [offline: call=transfer_to_talker]", agent_key="assistant")
    assert kinds(handed).count("agent.changed") == 1
    not_handed = ada.ask("Draw a house [offline: call=transfer_to_designer]", agent_key="assistant")
    assert "agent.changed" not in kinds(not_handed)


def test_who_must_draw_is_refused_when_no_picture_is_left(ada: ApiUser, database: str) -> None:
    image = ada.draw()
    object_id = one(image, "attachment.created")["attachment"]["object_id"]
    give_plan(database, ada, images_per_day=1)
    before = left_behind(database, ada)
    forced = (
        {"agent_key": "designer"},
        {"agent_key": "forced"},
        {"agent_key": "assistant", "tool_choice": "image_generation"},
        {"agent_key": "assistant", "edit": object_id},
    )
    for fields in forced:
        refused(start(ada, "Draw a house", **fields), "images_per_day")
    assert left_behind(database, ada) == before


def test_spending_is_refused_before_it_is_spent(ada: ApiUser, colleague: ApiUser, database: str) -> None:
    estimate = ada.http.post("/v1/runs/estimate", json={"input": "Hello", "agent_key": "talker"}).json()
    reserved = nano(estimate["reserved_usd"])
    give_plan(
        database, ada, spend_per_month_usd=2.5 * reserved / 10**9, user_spend_per_month_usd=1.5 * reserved / 10**9
    )
    run = start(ada, f"Hello {HELD}", agent_key="talker").json()
    held = limits_of(ada)["spend_per_month_usd", "user"]
    assert nano(held["reserved"]) >= reserved
    problem = refused(start(ada, agent_key="talker"), "spend_per_month_usd", "user", "budget_exceeded")
    assert (problem["allowed"], problem["used"]) == (held["allowed"], "0")
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert datetime.fromisoformat(problem["resets_at"]) == (month + timedelta(days=32)).replace(day=1)
    stop(ada, run)
    ended = one(ada.ask("Hello", agent_key="talker"), "run.completed")["run"]
    spent = sum(nano(entry["cost_usd"]) for entry in entries(ada))
    assert spent >= nano(ended["cost_usd"]) > 0
    now = limits_of(ada)
    assert (
        nano(now["spend_per_month_usd", "user"]["used"]) == nano(now["spend_per_month_usd", "tenant"]["used"]) == spent
    )
    assert now["spend_per_month_usd", "user"]["reserved"] == "0"
    assert limits_of(colleague)["spend_per_month_usd", "user"]["used"] == "0"
    # Settled spending may pass the limit; what it was last month does not count.
    give_plan(database, ada, spend_per_month_usd=0.000000001)
    refused(start(ada, agent_key="talker"), "spend_per_month_usd", "tenant", "budget_exceeded")
    rows(database, "UPDATE usage_counters SET month = month - 40")
    assert limits_of(ada)["spend_per_month_usd", "tenant"]["used"] == "0"


def test_a_model_without_a_price_is_refused_while_spending_is_limited(ada: ApiUser, database: str) -> None:
    assert start(ada, agent_key="unpriced").status_code == 202
    give_plan(database, ada, user_spend_per_month_usd=1_000)
    before = left_behind(database, ada)
    refused(start(ada, agent_key="unpriced"), "spend_per_month_usd", "user", "unpriced_model")
    assert left_behind(database, ada) == before
    assert start(ada, agent_key="talker").status_code == 202


def test_a_further_call_enlarges_what_is_held_or_ends_the_run(ada: ApiUser, database: str) -> None:
    said = {"input": "Draw a house [offline: call=transfer_to_designer]", "agent_key": "front"}
    reserved = nano(ada.http.post("/v1/runs/estimate", json=said).json()["reserved_usd"])
    give_plan(database, ada, spend_per_month_usd=1.001 * reserved / 10**9)
    events = ada.ask(text=said["input"], agent_key="front")
    failed = one(events, "run.failed")["run"]
    assert (failed["error"]["code"], failed["error"]["retryable"]) == ("budget_exceeded", False)
    assert {entry["call"] for entry in entries(ada, run_id=failed["id"])} == {1}
    assert nano(failed["cost_usd"]) > 0
    assert used(ada, "spend_per_month_usd")[1] == "0"
    give_plan(database, ada, spend_per_month_usd=100, images_per_day=1)
    completed = one(ada.ask(text=said["input"], agent_key="front"), "run.completed")["run"]
    assert {entry["call"] for entry in entries(ada, run_id=completed["id"])} == {1, 2}
    assert used(ada, "images_per_day") == (1, 0)
    exhausted = one(ada.ask(text=said["input"], agent_key="front"), "run.failed")["run"]
    assert exhausted["error"]["code"] == "budget_exceeded"
    unpriced = ada.ask("Say something [offline: call=transfer_to_unpriced]", agent_key="front")
    assert one(unpriced, "run.failed")["run"]["error"]["code"] == "budget_exceeded"


def test_a_call_of_a_deleted_run_is_held_until_it_is_settled(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, spend_per_month_usd=100, images_per_day=100)
    run = one(ada.draw(), "run.completed")["run"]
    asked = "SELECT reserved_images, reserved_nano FROM provider_calls WHERE run_id = :run"
    ((images, reserved),) = rows(database, asked, {"run": run["id"]})
    assert (images, reserved > 0) == (1, True)
    assert used(ada, "images_per_day") == (1, 0)
    # As the moment after a deletion leaves it.
    rows(database, "DELETE FROM runs WHERE id = :run", {"run": run["id"]})
    rows(
        database, "UPDATE provider_calls SET state = 'named', asked_at = now() WHERE run_id = :run", {"run": run["id"]}
    )
    assert used(ada, "images_per_day") == used(ada, "images_per_day", "user") == (1, 1)
    assert nano(used(ada, "spend_per_month_usd")[1]) == reserved
    assert used(ada, "runs_at_once") == (0, 0)
    rows(database, "UPDATE provider_calls SET state = 'settled' WHERE run_id = :run", {"run": run["id"]})
    assert used(ada, "images_per_day") == (1, 0)


def test_what_a_call_has_used_is_held_no_more(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, spend_per_month_usd=100, images_per_day=100)
    said = "Draw a house [offline: call=transfer_to_designer]"
    reserved = ada.http.post("/v1/runs/estimate", json={"input": said, "agent_key": "assistant"}).json()["reserved_usd"]
    run = one(ada.ask(said, agent_key="assistant"), "run.completed")["run"]
    first = sum(nano(entry["cost_usd"]) for entry in entries(ada, run_id=run["id"]) if entry["call"] == 1)
    # As its last call left it: that was settled with the run's end, from which on nothing is held.
    held = "SELECT reserved_nano, reserved_images FROM runs WHERE id = :run"
    assert rows(database, held, {"run": run["id"]}) == [(nano(reserved) - first, 1)]
    assert first > 0
    assert (used(ada, "spend_per_month_usd")[1], used(ada, "images_per_day")) == ("0", (1, 0))


def png(edge: int) -> bytes:
    buffer = io.BytesIO()
    noise = Image.effect_noise((edge, edge), 100)
    noise.save(buffer, "PNG")
    return buffer.getvalue()


def upload(user: ApiUser, data: bytes) -> httpx.Response:
    return user.http.post("/v1/attachments", files={"file": ("a.png", data)})


def test_what_is_stored_counts_with_its_copies_and_refuses_uploads_and_drawing(
    server: AppServer, ada: ApiUser, database: str
) -> None:
    object_id = upload(ada, png(600)).json()["object_id"]

    def copies() -> list[Json]:
        return ada.http.get(f"/v1/attachments/{object_id}").json()["variants"]

    wait_until(copies)
    own = "SELECT size_bytes, variants, stored_bytes FROM attachments WHERE id = :id"
    ((size, variants, stored),) = rows(database, own, {"id": object_id})
    assert stored == size + sum(one["size_bytes"] for one in variants) > size
    assert limits_of(ada)["stored_bytes", "tenant"]["used"] == stored
    give_plan(database, ada, stored_bytes=stored + 10_000)
    problem = refused(upload(ada, png(600)), "stored_bytes", code="budget_exceeded")
    assert (problem["allowed"], problem["used"], problem["resets_at"]) == (stored + 10_000, stored, None)
    assert upload(ada, made_streams.png("red")).status_code == 201
    assert start(ada, agent_key="designer").status_code == 202
    give_plan(database, ada, stored_bytes=stored)
    before = left_behind(database, ada)
    for agent_key in ("designer", "assistant"):
        refused(start(ada, agent_key=agent_key), "stored_bytes", code="budget_exceeded")
    refused(upload(ada, made_streams.png("red")), "stored_bytes", code="budget_exceeded")
    assert left_behind(database, ada) == before
    assert start(ada, agent_key="talker").status_code == 202
    ada.http.delete(f"/v1/attachments/{object_id}")
    assert upload(ada, made_streams.png("red")).status_code == 201


def test_an_upload_that_is_too_large_is_refused_before_its_body_is_received(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, stored_bytes=1_000_000)
    where = urlsplit(ada.base_url)
    with closing(HTTPConnection(where.hostname or "", where.port, timeout=SOON)) as connection:
        connection.putrequest("POST", "/v1/attachments")
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "2000000"}
        for name, value in {**headers, "Authorization": ada.http.headers["Authorization"]}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (402, "budget_exceeded")


def test_open_streams_are_judged_before_a_run_is_started(ada: ApiUser, colleague: ApiUser, database: str) -> None:
    give_plan(database, ada, streams_at_once=2, user_streams_at_once=1)
    stream = {"Accept": "text/event-stream"}
    body = {"input": f"Draw a house {HELD}", "agent_key": "designer"}
    with ada.http.stream("POST", "/v1/runs", json=body, headers=stream) as followed:
        run_id = followed.headers["X-Run-Id"]
        assert used(ada, "streams_at_once", "user") == (1, 0)
        before = left_behind(database, ada)
        problem = refused(ada.http.post("/v1/runs", json=body, headers=stream), "streams_at_once", "user")
        assert (problem["allowed"], problem["used"]) == (1, 1)
        refused(ada.http.get(f"/v1/runs/{run_id}/events"), "streams_at_once", "user")
        assert left_behind(database, ada) == before
        other = start(ada, said=body["input"], agent_key="designer")
        assert other.status_code == 202
        with colleague.http.stream("POST", "/v1/runs", json=body, headers=stream) as theirs:
            refused(colleague.http.post("/v1/runs", json=body, headers=stream), "streams_at_once", "tenant")
            stop(colleague, {"id": theirs.headers["X-Run-Id"]})
    # Whoever leaves gives it back soon, though the run goes on.
    wait_until(lambda: used(ada, "streams_at_once", "user") == (0, 0))
    stop(ada, {"id": run_id})
    stop(ada, other.json())
    count = "SELECT count(*) FROM streams WHERE tenant_id = :tenant"
    wait_until(lambda: rows(database, count, {"tenant": ada.signed_up["tenant"]["id"]}) == [(0,)])


def test_a_stream_counts_for_as_long_as_it_is_open(
    ada: ApiUser, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.streams.TELL_SECONDS", 0.2)
    body = {"input": f"Draw a house {HELD}", "agent_key": "designer"}
    with ada.http.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as followed:
        # As if it had been open for so long.
        longer = "UPDATE streams SET seen_at = now() - interval '26 seconds' WHERE tenant_id = :tenant"
        rows(database, longer, {"tenant": ada.signed_up["tenant"]["id"]})
        wait_until(lambda: used(ada, "streams_at_once") == (1, 0))
        stop(ada, {"id": followed.headers["X-Run-Id"]})


def test_the_streams_of_a_lost_process_are_free_again_within_half_a_minute(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, user_streams_at_once=1)
    run = start(ada, f"Draw a house {HELD}", agent_key="designer").json()
    lost = (
        "INSERT INTO streams (tenant_id, run_id, id, user_id, seen_at)"
        " VALUES (:tenant, :run, gen_random_uuid(), :user, now() - interval '{} seconds')"
    )
    given = {"tenant": ada.signed_up["tenant"]["id"], "run": run["id"], "user": ada.id}
    rows(database, lost.format(0), given)
    refused(ada.http.get(f"/v1/runs/{run['id']}/events"), "streams_at_once", "user")
    rows(database, "UPDATE streams SET seen_at = now() - interval '26 seconds'")
    with ada.http.stream("GET", f"/v1/runs/{run['id']}/events") as followed:
        assert followed.status_code == 200
        stop(ada, run)
    # Nor does what a run that has ended has left.
    rows(database, lost.format(0), given)
    assert used(ada, "streams_at_once", "user") == (0, 0)


def test_a_refusal_takes_nothing_from_any_other_limit(ada: ApiUser, database: str) -> None:
    give_plan(database, ada, runs_per_minute=5, runs_at_once=5, images_per_day=1, spend_per_month_usd=0.000000001)
    unchanged = limits_of(ada)
    answer = start(ada, agent_key="designer")
    refused(answer, "spend_per_month_usd", code="budget_exceeded")
    assert answer.headers["RateLimit"] == '"runs_per_minute";r=5;t=0'
    assert limits_of(ada) == unchanged
    assert left_behind(database, ada) == (0, 0, 0, 0)


def test_the_first_limit_in_order_is_named_the_tenants_before_the_persons(ada: ApiUser, database: str) -> None:
    tight = {"runs_at_once": 1, "images_per_day": 1, "spend_per_month_usd": 0.000000001, "stored_bytes": 1}
    give_plan(database, ada, images_per_day=1, user_images_per_day=1)
    run = start(ada, f"Draw a house {HELD}", agent_key="designer").json()
    for limit in ("runs_at_once", "images_per_day"):
        give_plan(database, ada, **tight, user_images_per_day=1)
        refused(start(ada, agent_key="designer"), limit)
        tight.pop(limit)
    give_plan(database, ada, **tight, user_images_per_day=1)
    refused(start(ada, agent_key="designer"), "images_per_day", "user")
    give_plan(database, ada, **tight)
    refused(start(ada, agent_key="designer"), "spend_per_month_usd", code="budget_exceeded")
    stop(ada, run)


def test_a_viewer_sees_the_limits_alone(server: AppServer, ada: ApiUser) -> None:
    viewer = server.sign_up_invited(ada, "viewer")
    assert viewer.http.get("/v1/limits").status_code == 200
    assert viewer.http.get("/v1/usage").status_code == 403
    assert viewer.http.get("/v1/usage/entries").status_code == 403


def test_a_plan_holds_from_the_next_request_on(ada: ApiUser, database: str) -> None:
    name = give_plan(database, ada, images_per_day=1)
    assert ada.http.get("/v1/limits").json()["plan"] == name
    rows(database, "UPDATE plans SET runs_at_once = 1 WHERE name = :name", {"name": name})
    run = start(ada, f"Draw a house {HELD}", agent_key="designer").json()
    refused(start(ada), "runs_at_once")
    stop(ada, run)
