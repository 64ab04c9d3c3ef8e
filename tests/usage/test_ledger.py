"""What was bought is in the ledger once, for every way in which a run can end."""

import hashlib
import logging
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.usage.prices import SHIPPED
from app.worker.housekeeping import LOOK_EVERY
from tests import made_streams, timeouts
from tests.agent_folders import write_agents
from tests.app_server import ApiUser, AppServer, Event, kinds, one, running_server
from tests.tables import rows
from tests.usage import hand
from tests.usage.books import Json, entries, faults, nano

KEY = {"Authorization": "Bearer sk-test"}

# As a worker left it that was killed between its request and the id of the response.
LOST_RUN = """
UPDATE runs SET status = 'running', lease_until = now(), response_id = NULL, booked_nano = NULL, booked_basis = NULL
WHERE id = :run
"""
LOST_CALL = """
UPDATE provider_calls SET state = 'asked', response_id = NULL, model = 'gpt-5', image_model = 'gpt-image-2',
characters = 300 WHERE run_id = :run
"""


def calls(database_url: str, run_id: str) -> list[tuple[int, str, str | None]]:
    """Number, state and response of each."""
    found = "SELECT number, state, response_id FROM provider_calls WHERE run_id = '{}' ORDER BY number"
    return rows(database_url, found.format(run_id))


def response(provider_url: str, response_id: str | None) -> Json:
    return httpx.get(f"{provider_url}/responses/{response_id}", headers=KEY).json()


def ended(events: list[Event]) -> Json:
    return events[-1]["run"]


def run_of(events: list[Event]) -> str:
    return one(events, "run.created")["run"]["id"]


def basis_of(found: list[Json]) -> set[str]:
    return {entry["basis"] for entry in found}


def assert_booked_by_hand(server: AppServer, user: ApiUser, database_url: str, provider_url: str, run_id: str) -> None:
    """The entries of each call sum up to a calculation by hand from what the provider has of it."""
    found = entries(user, run_id=run_id)
    for number, state, response_id in calls(database_url, run_id):
        assert state == "settled"
        booked = sum(nano(entry["cost_usd"]) for entry in found if entry["call"] == number)
        assert booked == hand.response_cost(response(provider_url, response_id))
    run = user.http.get(f"/v1/runs/{run_id}").json()
    assert nano(run["cost_usd"]) == sum(nano(entry["cost_usd"]) for entry in found)


def test_a_text_costs_what_the_provider_reports(
    server: AppServer, ada: ApiUser, database: str, provider_url: str
) -> None:
    events = ada.ask("Hello [offline: cached=5] [offline: cache_write=4] [offline: cache_12h=1] [offline: input=50]")
    run = ended(events)
    assert run["cost_basis"] == "reported"
    found = {entry["kind"]: entry for entry in entries(ada, run_id=run["id"])}
    quantities = {kind: entry["quantity"] for kind, entry in found.items()}
    output = quantities.pop("output_tokens")
    assert quantities == {
        "input_tokens": 41,
        "cached_input_tokens": 5,
        "cache_write_tokens": 3,
        "cache_write_12h_tokens": 1,
    }
    expected = 41 * 2_000 + 5 * 100 + 3 * 2_500 + 5_000 + output * 10_000
    assert nano(run["cost_usd"]) == expected
    assert run["usage"]["input_tokens"] == 50
    assert {entry["agent_key"] for entry in found.values()} == {"assistant"}
    assert_booked_by_hand(server, ada, database, provider_url, run["id"])


def test_a_picture_costs_its_share_and_shows_it(
    server: AppServer, ada: ApiUser, database: str, provider_url: str
) -> None:
    events = ada.draw("Draw a house [offline: two]", image={"partial_images": 1, "size": "1024x1024"})
    run = ended(events)
    assert_booked_by_hand(server, ada, database, provider_url, run["id"])
    shown = one(events, "message.completed")["message"]["attachments"]
    found = entries(ada, run_id=run["id"])
    for image in shown:
        of_image = [entry for entry in found if entry["object_id"] == image["object_id"]]
        again = ada.http.get(f"/v1/attachments/{image['object_id']}").json()
        assert image["cost_usd"] == again["cost_usd"]
        assert nano(image["cost_usd"]) == sum(nano(entry["cost_usd"]) for entry in of_image) > 0
        assert (image["cost_basis"], {entry["model"] for entry in of_image}) == ("reported", {"gpt-image-2.6-sunburst"})
    of_images = [entry for entry in found if entry["object_id"]]
    assert {entry["object_id"] for entry in of_images} == {image["object_id"] for image in shown}
    assert len(shown) == 2
    assert sum(nano(image["cost_usd"]) for image in shown) == sum(nano(entry["cost_usd"]) for entry in of_images)
    for event in (event for event in events if event["type"] == "attachment.created"):
        assert event["attachment"]["cost_usd"] in (None, *(image["cost_usd"] for image in shown))


def test_an_upload_costs_nothing(server: AppServer, ada: ApiUser) -> None:
    uploaded = ada.http.post("/v1/attachments", files={"file": ("a.png", made_streams.png("red"))}).json()
    assert (uploaded["cost_usd"], uploaded["cost_basis"]) == (None, None)


def test_each_agent_of_a_run_is_booked_on_its_own_model(database_url: str, provider_url: str, tmp_path: Path) -> None:
    specs: dict[str, Json] = {
        "first": {"model_key": "front", "handoff_keys": ("second",)},
        "second": {"model_key": "code", "tool_keys": ("image_generation",)},
    }
    agents = write_agents(tmp_path / "agents", specs)
    models = {"agent_front_model": "gpt-4.1", "agent_code_model": "gpt-5.6-luna"}
    with running_server(database_url, provider_url, tmp_path / "data", agents=agents, **models) as server:
        ada = server.sign_up()
        events = ada.ask("Draw a house [offline: call=transfer_to_second]", agent_key="first")
        run = ended(events)
        assert kinds(events).count("agent.changed") == 1
        found = entries(ada, run_id=run["id"])
        booked = {(entry["call"], entry["agent_key"], entry["model"]) for entry in found}
        assert booked == {
            (1, "first", "gpt-4.1"),
            (2, "second", "gpt-5.6-luna"),
            (2, "second", "gpt-image-2.6-sunburst"),
        }
        assert_booked_by_hand(server, ada, database_url, provider_url, run["id"])


def test_the_model_that_answered_is_booked_and_not_the_one_that_was_asked(server: AppServer, ada: ApiUser) -> None:
    run = ended(ada.ask("Hello [offline: answers_as=gpt-5-2025-08-07] [offline: tier=flex]"))
    found = entries(ada, run_id=run["id"])
    assert {entry["model"] for entry in found} == {"gpt-5-2025-08-07"}
    assert {nano(entry["cost_usd"]) // entry["quantity"] for entry in found} == {625, 5_000}


@pytest.mark.parametrize("oddity", ["answers_as=gpt-9-nova", "tier=scale"])
def test_what_has_no_price_is_told_as_unpriced_everywhere(server: AppServer, ada: ApiUser, oddity: str) -> None:
    run = ended(ada.ask(f"Hello [offline: {oddity}]"))
    assert (run["cost_usd"], run["cost_basis"]) == (None, "unpriced")
    found = entries(ada, run_id=run["id"])
    assert {(entry["cost_usd"], entry["basis"]) for entry in found} == {(None, "unpriced")}
    total = ada.http.get("/v1/usage").json()["total"]
    assert (total["cost_usd"], total["unpriced"]) == ("0", len(found))


Ending = tuple[str, Json, set[str], set[str]]
IMAGE = {"agent_key": "designer", "image": {"quality": "low", "size": "1024x1024"}}
DRAWN = {"image_text_input_tokens", "image_output_tokens"}
ENDINGS: dict[str, Ending] = {
    # What is said, with what options; the bases of its entries, and their kinds.
    "incomplete": ("Hello [offline: incomplete]", {}, {"reported"}, {"input_tokens", "output_tokens"}),
    "refusal": ("Hello [offline: refusal]", {}, {"reported"}, {"input_tokens", "output_tokens"}),
    "empty": ("Hello [offline: empty]", {}, {"reported"}, {"input_tokens", "output_tokens"}),
    "failed after all output": (
        "Draw a house [offline: failed=late]",
        IMAGE,
        {"estimated"},
        {"input_tokens", "output_tokens", "image_output_tokens"},
    ),
    "failed at once": ("Hello [offline: failed]", {}, set(), set()),
    "quota": ("Hello [offline: quota]", {}, set(), set()),
    "error event": ("Hello [offline: error_event]", {}, set(), set()),
    "image moderated": ("Draw a house [offline: moderation]", IMAGE, {"reported"}, {"input_tokens", "output_tokens"}),
    "image that is none": (
        "Draw a house [offline: not_an_image]",
        IMAGE,
        {"reported"},
        {"input_tokens", "output_tokens"} | DRAWN,
    ),
    "half an image": (
        "Draw a house [offline: truncated]",
        IMAGE,
        {"reported"},
        {"input_tokens", "output_tokens"} | DRAWN,
    ),
    "no tool usage": (
        "Draw a house [offline: no_usage]",
        IMAGE,
        {"reported", "estimated"},
        {"input_tokens", "output_tokens", "image_output_tokens"},
    ),
    "no usage": (
        "Draw a house [offline: no_usage=all]",
        IMAGE,
        {"estimated"},
        {"input_tokens", "output_tokens", "image_output_tokens"},
    ),
    "neither cache writes nor a tier": (
        "Hello [offline: no_usage=cache_write] [offline: tier=none]",
        {},
        {"reported"},
        {"input_tokens", "output_tokens"},
    ),
    "http 400": ("Hello [offline: http=400]", {}, set(), set()),
    "http 500": ("Hello [offline: http=500]", {}, set(), set()),
    "rate limit": ("Hello [offline: rate_limit]", {}, set(), set()),
    "reset": ("Hello [offline: reset]", {}, {"estimated"}, {"input_tokens"}),
}
# Where nobody but the worker listens, and it hears no end.
UNHEARD: dict[str, Ending] = {
    "cut off": ("Hello [offline: cut]", {}, {"estimated"}, {"input_tokens", "output_tokens"}),
    "cut off within an event": (
        "Hello [offline: cut_bytes=9000]",
        {},
        {"estimated"},
        {"input_tokens", "output_tokens"},
    ),
    "eof": ("Hello [offline: eof]", {}, {"estimated"}, {"input_tokens", "output_tokens"}),
    "garbage": ("Hello [offline: garbage]", {}, {"estimated"}, {"input_tokens"}),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_end_books_what_was_bought(server: AppServer, ada: ApiUser, database: str, ending: str) -> None:
    assert_booked(ada, database, *ENDINGS[ending])


@pytest.mark.parametrize("ending", UNHEARD)
def test_an_end_that_nobody_hears_is_estimated_by_what_came(
    database_url: str, provider_url: str, tmp_path: Path, ending: str
) -> None:
    with running_server(database_url, provider_url, tmp_path, upstream_background=False) as server:
        assert_booked(server.sign_up(), database_url, *UNHEARD[ending])


@pytest.mark.parametrize("ending", UNHEARD)
def test_an_end_that_comes_later_is_reported(server: AppServer, ada: ApiUser, database: str, ending: str) -> None:
    """The provider goes on in the background, and is asked again."""
    said, options, _, _ = UNHEARD[ending]
    assert_booked(ada, database, said, options, {"reported"}, {"input_tokens", "output_tokens"})


def assert_booked(
    ada: ApiUser, database_url: str, said: str, options: Json, bases: set[str], expected: set[str]
) -> None:
    run = ended(ada.ask(said, **options))
    found = entries(ada, run_id=run["id"])
    assert (basis_of(found), {entry["kind"] for entry in found}) == (bases, expected)
    assert {state for _, state, _ in calls(database_url, run["id"])} == {"settled"}
    assert nano(run["cost_usd"]) == sum(nano(entry["cost_usd"]) for entry in found)
    assert run["cost_basis"] == ("estimated" if "estimated" in bases else "reported")
    assert all(entry["quantity"] for entry in found)
    shown = ada.messages(run["conversation_id"])[-1]["attachments"]
    of_images = [nano(entry["cost_usd"]) for entry in found if entry["kind"].startswith("image_")]
    assert sum(nano(image["cost_usd"]) for image in shown) == sum(of_images)
    assert faults(database_url, run["id"]) == []


def test_a_provider_that_is_not_there_costs_nothing(database_url: str, tmp_path: Path) -> None:
    with running_server(database_url, "http://127.0.0.1:9/v1", tmp_path) as server:
        ada = server.sign_up()
        run = ended(ada.ask("Hello"))
        assert (run["status"], run["cost_usd"], run["cost_basis"]) == ("failed", "0", "reported")
        assert entries(ada, run_id=run["id"]) == []


def test_a_run_that_was_stopped_before_it_began_costs_nothing(server: AppServer, ada: ApiUser) -> None:
    first = ada.start("Draw a house [offline: slow=5]", agent_key="designer")
    second = ada.start("Hello", conversation_id=first["conversation_id"], if_busy="queue")
    stopped = ada.http.put(f"/v1/runs/{second['id']}/cancellation").json()
    assert (stopped["status"], stopped["cost_usd"], stopped["cost_basis"]) == ("cancelled", "0", "reported")
    ada.http.put(f"/v1/runs/{first['id']}/cancellation")


def until(condition: Callable[[], Any]) -> None:
    timeouts.wait_until(lambda: bool(condition()))


@pytest.mark.parametrize("background", [True, False], ids=["background", "listening"])
def test_a_stopped_run_is_booked_as_far_as_it_came(
    database_url: str, provider_url: str, tmp_path: Path, background: bool
) -> None:
    with running_server(database_url, provider_url, tmp_path, upstream_background=background) as server:
        ada = server.sign_up()
        run = ada.start("Draw a house [offline: slow=1000]", **IMAGE)
        until(lambda: [state for _, state, _ in calls(database_url, run["id"])] == ["named"])
        ada.http.put(f"/v1/runs/{run['id']}/cancellation")
        stopped = ada.events(run["id"])[-1]["run"]
        assert (stopped["status"], stopped["cost_basis"]) == ("cancelled", "estimated")
        found = entries(ada, run_id=run["id"])
        assert [(entry["kind"], entry["basis"]) for entry in found] == [("input_tokens", "estimated")]
        assert nano(stopped["cost_usd"]) == nano(found[0]["cost_usd"]) > 0


def test_what_is_stopped_before_the_provider_has_named_it_is_stopped_there(
    server: AppServer, ada: ApiUser, database: str, provider_url: str
) -> None:
    run = ada.start("Draw a house [offline: late=1] [offline: slow=1000]", **IMAGE)
    until(lambda: is_sent(provider_url, ada))
    ada.http.put(f"/v1/runs/{run['id']}/cancellation")
    assert ada.events(run["id"])[-1]["type"] == "run.cancelled"
    ((_, state, response_id),) = calls(database, run["id"])
    assert (state, response(provider_url, response_id)["status"]) == ("settled", "cancelled")


def test_a_run_that_is_stopped_while_the_provider_is_busy_costs_nothing(
    server: AppServer, ada: ApiUser, provider_url: str
) -> None:
    run = ada.start("Hello [offline: rate_limit] [offline: retry_after=15]")
    until(lambda: is_sent(provider_url, ada))
    time.sleep(0.5)
    ada.http.put(f"/v1/runs/{run['id']}/cancellation")
    stopped = ada.events(run["id"])[-1]["run"]
    assert (stopped["status"], stopped["cost_usd"]) == ("cancelled", "0")
    assert entries(ada, run_id=run["id"]) == []


def is_sent(provider_url: str, user: ApiUser) -> bool:
    """Whether a request of this user has reached the provider."""
    seen: list[Json] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    tenant = user.signed_up["tenant"]["id"]
    caller = hashlib.sha256(f"{tenant}:{user.id}".encode()).hexdigest()
    bodies: list[Json] = [request["body"] for request in seen if request["body"]]
    return any(body.get("safety_identifier") == caller for body in bodies)


def test_what_a_deleted_conversation_was_drawing_is_booked(server: AppServer, ada: ApiUser, database: str) -> None:
    run = ada.start("Draw a house [offline: slow=1000]", **IMAGE)
    until(lambda: [state for _, state, _ in calls(database, run["id"])] == ["named"])
    assert ada.http.delete(f"/v1/conversations/{run['conversation_id']}").status_code == 204
    # By the worker that drew it: the sweep would come a lease later.
    timeouts.wait_until(lambda: bool(entries(ada, run_id=run["id"])), seconds=timeouts.STOP)
    assert basis_of(entries(ada, run_id=run["id"])) == {"estimated"}
    assert [state for _, state, _ in calls(database, run["id"])] == ["settled"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "gone"),
    [
        ("DELETE FROM conversations USING runs WHERE conversations.id = conversation_id AND runs.id = :run", True),
        ("UPDATE runs SET booked_nano = NULL, booked_basis = NULL WHERE id = :run", False),
    ],
    ids=["its conversation is deleted", "its run has ended without it"],
)
def test_what_nobody_has_settled_is_settled_by_a_sweep(
    database_url: str, provider_url: str, tmp_path: Path, left: str, gone: bool
) -> None:
    """No run is left for another worker to take over. The provider keeps the response, which says what was used."""
    with running_server(database_url, provider_url, tmp_path, run_lease_seconds=2) as server:
        ada = server.sign_up()
        run_id = run_of(ada.draw())
        booked = entries(ada, run_id=run_id)
        ((_, _, response_id),) = calls(database_url, run_id)
        for statement in (
            "DELETE FROM usage_entries WHERE run_id = :run",
            "UPDATE provider_calls SET state = 'named', asked_at = now() - interval '1 hour' WHERE run_id = :run",
            left,
        ):
            rows(database_url, statement, {"run": run_id})
        # A worker that lives would be given the time to settle what it knows more of.
        time.sleep(2 * LOOK_EVERY.total_seconds())
        assert response(provider_url, response_id)["status"] == "completed"
        assert entries(ada, run_id=run_id) == []
        until(lambda: entries(ada, run_id=run_id))
        again = entries(ada, run_id=run_id)
        shown = ("call", "kind", "model", "quantity", "cost_usd", "basis")
        assert sorted(tuple(entry[name] for name in shown) for entry in again) == sorted(
            tuple(entry[name] for name in shown) for entry in booked
        )
        if gone:
            until(lambda: response(provider_url, response_id).get("error"))
        else:
            run = ada.http.get(f"/v1/runs/{run_id}").json()
            assert nano(run["cost_usd"]) == sum(nano(entry["cost_usd"]) for entry in again)


@pytest.mark.slow
def test_a_sweep_stops_what_nobody_waits_for(database_url: str, provider_url: str, tmp_path: Path) -> None:
    """The provider would go on drawing, and charge for it."""
    with running_server(database_url, provider_url, tmp_path / "first", run_lease_seconds=2) as server:
        ada = server.sign_up()
        run = ada.start("Draw a house [offline: slow=1000]", **IMAGE)
        until(lambda: [state for _, state, _ in calls(database_url, run["id"])] == ["named"])
    ((_, _, response_id),) = calls(database_url, run["id"])
    assert response(provider_url, response_id)["status"] == "in_progress"
    rows(database_url, "DELETE FROM conversations")
    # It is to be deleted there as well, which must not hide whether it was stopped.
    rows(database_url, "DELETE FROM provider_objects")
    with running_server(database_url, provider_url, tmp_path / "second", run_lease_seconds=2):
        until(lambda: [state for _, state, _ in calls(database_url, run["id"])] == ["settled"])
    assert response(provider_url, response_id)["status"] == "cancelled"


@pytest.mark.slow
def test_a_run_whose_worker_was_lost_is_booked_by_the_one_that_takes_it_over(
    server: AppServer, ada: ApiUser, database: str
) -> None:
    """The next one knows what was asked, and what text had come."""
    events = ada.ask("Hello")
    run_id, text = run_of(events), one(events, "message.completed")["message"]["text"]
    for statement in (
        "DELETE FROM usage_entries WHERE run_id = :run",
        "DELETE FROM messages WHERE role = 'assistant' AND run_id = :run",
        LOST_CALL,
        LOST_RUN,
    ):
        rows(database, statement, {"run": run_id})
    until(lambda: ada.http.get(f"/v1/runs/{run_id}").json()["status"] == "failed")
    failed = ada.http.get(f"/v1/runs/{run_id}").json()
    assert failed["error"]["code"] == "upstream_outcome_unknown"
    assert [(entry["kind"], entry["quantity"], entry["basis"]) for entry in entries(ada, run_id=run_id)] == [
        ("input_tokens", 100 + 1500, "estimated"),
        ("output_tokens", ceil(len(text) / 3), "estimated"),
    ]
    assert nano(failed["cost_usd"]) == 1600 * 1250 + ceil(len(text) / 3) * 10_000
    assert failed["cost_basis"] == "estimated"


@pytest.mark.parametrize("model", ["gpt-9-nova", "gpt-image-2"], ids=["of no price", "that has the price of a picture"])
def test_a_model_without_a_price_is_warned_of_at_the_start(
    database_url: str, provider_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        running_server(database_url, provider_url, tmp_path, agent_default_model=model),
    ):
        pass
    told = [record.__dict__["detail"] for record in caplog.records if record.message == "price.missing"]
    assert told == [
        f"The model {model!r} has no price: what it does is booked as unpriced. Name a PRICES_FILE that has one."
    ]


def test_the_writer_of_drawings_is_warned_of_as_well(
    database_url: str, provider_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    svg = {"output_format": "svg", "svg": {"model": "gpt-9-nova"}}
    specs = {"artist": {"tool_keys": ("image_generation",), "tool_configs": {"image_generation": svg}}}
    agents = write_agents(tmp_path / "agents", specs)
    with caplog.at_level(logging.WARNING), running_server(database_url, provider_url, tmp_path, agents=agents):
        pass
    (told,) = [record.__dict__["detail"] for record in caplog.records if record.message == "price.missing"]
    assert "'gpt-9-nova'" in told


def test_an_operators_prices_are_those_that_are_booked(database_url: str, provider_url: str, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(SHIPPED.read_text().replace("output = 10.00", "output = 1000.00"))
    with running_server(database_url, provider_url, tmp_path / "data", prices_file=prices) as server:
        ada = server.sign_up()
        run = ended(ada.ask("Hello"))
        (output,) = [entry for entry in entries(ada, run_id=run["id"]) if entry["kind"] == "output_tokens"]
        assert nano(output["cost_usd"]) == output["quantity"] * 1_000_000
