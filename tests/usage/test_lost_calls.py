"""What an earlier attempt has left of a call is booked by the next one: that call's alone, and all of it."""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import httpx
import pytest

from tests import made_streams, timeouts
from tests.agent_folders import write_agents
from tests.app_server import ApiUser, AppServer, one, running_server
from tests.stream_server import StreamServer, serving
from tests.tables import rows
from tests.usage.books import Json, entries, faults
from tests.usage.plans import give_plan

KEY = {"Authorization": "Bearer sk-test"}
# As a worker left it that was killed while the last call of its run was answered.
LOST_CALL = """
UPDATE provider_calls SET state = :state, response_id = CASE WHEN :state = 'named' THEN response_id END,
booked_entries = NULL, characters = 300, model = 'gpt-5', image_model = :image_model
WHERE run_id = :run AND number = (SELECT calling_turn FROM runs WHERE id = :run)
"""
LOST_RUN = """
UPDATE runs SET status = 'running', attempt = :attempt, finished_at = NULL, lease_until = now(),
booked_basis = 'estimated', booked_nano =
(SELECT sum(cost_nano) FROM usage_entries WHERE run_id = :run AND call < calling_turn),
response_id = CASE WHEN :state = 'named' THEN response_id END WHERE id = :run
"""
LOST_ENTRIES = """
DELETE FROM usage_entries WHERE run_id = :run AND call = (SELECT calling_turn FROM runs WHERE id = :run)
"""
DRAWING = {"agent_key": "designer", "image": {"quality": "low", "size": "1024x1024", "partial_images": 2}}
# Of instructions and request; the image tool has its own.
GIVEN, TOOL = 100, 1_500
LOW_SQUARE = 196

Booked = tuple[int, str, int]


def lose_last_call(database_url: str, run_id: str, *, state: str, image_model: str | None, attempt: int = 1) -> None:
    values = {"run": run_id, "state": state, "image_model": image_model, "attempt": attempt}
    for statement in (
        LOST_ENTRIES,
        "DELETE FROM messages WHERE role = 'assistant' AND run_id = :run",
        LOST_CALL,
        LOST_RUN,
    ):
        rows(database_url, statement, {name: value for name, value in values.items() if f":{name}" in statement})


def taken_over(user: ApiUser, run_id: str) -> Json:
    timeouts.wait_until(lambda: user.http.get(f"/v1/runs/{run_id}").json()["finished_at"] is not None)
    return user.http.get(f"/v1/runs/{run_id}").json()


def booked(user: ApiUser, run_id: str) -> list[Booked]:
    return sorted((entry["call"], entry["kind"], entry["quantity"]) for entry in entries(user, run_id=run_id))


def text_of(events: list[Json]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "text.delta")


@contextmanager
def handing_over(database_url: str, directory: Path, *answers: bytes) -> Generator[tuple[ApiUser, StreamServer]]:
    """Somebody whose agent `first` draws and hands over to `second`; the provider answers with these streams."""
    agents = {"first": {"tool_keys": ("image_generation",), "handoff_keys": ("second",)}, "second": {}}
    folder = write_agents(directory / "agents", agents)
    with (
        serving(*answers) as provider,
        running_server(database_url, provider.url, directory / "data", agents=folder) as server,
    ):
        yield server.sign_up(), provider


def test_what_earlier_calls_have_brought_is_not_booked_again(database_url: str, tmp_path: Path) -> None:
    said = "That is enough of it."
    drawn = made_streams.stream_of(
        made_streams.text(["A long text before the picture."]),
        made_streams.image(made_streams.png("red")),
        made_streams.call("transfer_to_second"),
        response_id="resp_first",
    )
    answered = made_streams.stream_of(made_streams.text([said], "msg_second"), response_id="resp_second")
    with handing_over(database_url, tmp_path, drawn, answered) as (ada, provider):
        run_id = one(ada.ask("Draw a house", agent_key="first"), "run.completed")["run"]["id"]
        before = [entry for entry in booked(ada, run_id) if entry[0] == 1]
        lose_last_call(database_url, run_id, state="asked", image_model=None)
        assert taken_over(ada, run_id)["error"]["code"] == "upstream_outcome_unknown"
        assert "image_output_tokens" in {kind for _, kind, _ in before}
        assert booked(ada, run_id) == [*before, (2, "input_tokens", GIVEN), (2, "output_tokens", ceil(len(said) / 3))]
        assert len(provider.posts) == 2
        assert faults(database_url, run_id) == []


@pytest.mark.slow
def test_a_picture_whose_row_comes_late_shows_its_cost(database_url: str, tmp_path: Path) -> None:
    drawn = made_streams.stream_of(
        made_streams.image(made_streams.png("red")), made_streams.call("transfer_to_second"), response_id="resp_first"
    )
    answered = made_streams.stream_of(made_streams.text(["There."], "msg_second"), response_id="resp_second")
    rows(database_url, "CREATE SEQUENCE tries")
    rows(database_url, SLOW_ROW)
    rows(database_url, "CREATE TRIGGER hold BEFORE INSERT ON attachments FOR EACH ROW EXECUTE FUNCTION hold()")
    with handing_over(database_url, tmp_path, drawn, answered) as (ada, _):
        events = ada.ask("Draw a house", agent_key="first")
        run_id = one(events, "run.completed")["run"]["id"]
        (image,) = one(events, "message.completed")["message"]["attachments"]
        of_image = [entry for entry in entries(ada, run_id=run_id) if entry["kind"] == "image_output_tokens"]
        assert [(entry["object_id"], entry["cost_usd"]) for entry in of_image] == [(None, image["cost_usd"])]
        assert ada.http.get(f"/v1/attachments/{image['object_id']}").json()["cost_usd"] == image["cost_usd"]
        assert faults(database_url, run_id) == []


def test_an_answer_that_reports_nothing_and_comes_in_one_piece_is_estimated(database_url: str, tmp_path: Path) -> None:
    item, _ = made_streams.text(["All at once."])
    with (
        serving(made_streams.stream_of((item, []))) as provider,
        running_server(database_url, provider.url, tmp_path) as server,
    ):
        ada = server.sign_up()
        run_id = one(ada.ask("Hello"), "run.completed")["run"]["id"]
        assert [kind for _, kind, _ in booked(ada, run_id)] == ["input_tokens"]
        assert faults(database_url, run_id) == []


@pytest.mark.slow
def test_a_run_of_which_nothing_was_accepted_yet_is_started_again(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    """Its worker stopped while it waited to send a refused request once more."""
    with running_server(database_url, provider_url, tmp_path / "first") as server:
        run = server.sign_up().start("Hello [offline: rate_limit] [offline: retry_after=6]")
        asked = "SELECT count(*) FROM provider_calls WHERE run_id = :run"
        timeouts.wait_until(lambda: rows(database_url, asked, {"run": run["id"]}) == [(1,)])
        time.sleep(0.5)
    assert rows(database_url, "SELECT calling_turn, status FROM runs") == [(0, "running")]
    with running_server(database_url, provider_url, tmp_path / "second"):
        ended = "SELECT error ->> 'code' FROM runs WHERE id = :run AND status = 'failed'"
        timeouts.wait_until(lambda: rows(database_url, ended, {"run": run["id"]}) != [])
    assert rows(database_url, ended, {"run": run["id"]}) == [("upstream_rate_limited",)]
    assert rows(database_url, "SELECT number, state, booked_entries FROM provider_calls") == [(1, "settled", 0)]
    assert rows(database_url, "SELECT id FROM usage_entries") == []
    assert faults(database_url, run["id"]) == []


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path) as server:
        yield server


@pytest.mark.parametrize("stored", [True, False], ids=["the picture came", "only its previews came"])
def test_a_response_that_cannot_be_resumed_is_booked_by_what_came(
    database_url: str, provider_url: str, server: AppServer, stored: bool
) -> None:
    ada = server.sign_up()
    events = ada.ask("Draw a house", **DRAWING)
    run_id = one(events, "run.completed")["run"]["id"]
    previews = sum(event["type"] == "image.partial" for event in events)
    assert previews == 2
    response_id = rows(database_url, "SELECT response_id FROM runs WHERE id = :run", {"run": run_id})[0][0]
    assert httpx.delete(f"{provider_url}/responses/{response_id}", headers=KEY).status_code == 200
    if not stored:
        rows(database_url, "DELETE FROM attachments WHERE run_id = :run", {"run": run_id})
    lose_last_call(database_url, run_id, state="named", image_model="gpt-image-2")
    assert taken_over(ada, run_id)["error"]["code"] == "upstream_outcome_unknown"
    assert booked(ada, run_id) == [
        (1, "image_output_tokens", (LOW_SQUARE if stored else 0) + 100 * previews),
        (1, "input_tokens", GIVEN + TOOL),
        (1, "output_tokens", ceil(len(text_of(events)) / 3)),
    ]
    assert faults(database_url, run_id) == []


def test_a_run_that_is_given_up_is_booked_by_what_came(database_url: str, server: AppServer) -> None:
    ada = server.sign_up()
    events = ada.ask("Draw a house", **DRAWING)
    run_id = one(events, "run.completed")["run"]["id"]
    before = booked(ada, run_id)
    lose_last_call(database_url, run_id, state="named", image_model="gpt-image-2", attempt=20)
    assert taken_over(ada, run_id)["error"]["code"] == "upstream_outcome_unknown"
    # The provider still has the response, and says what it used.
    assert (booked(ada, run_id), faults(database_url, run_id)) == (before, [])


def test_what_was_asked_when_its_time_ran_out_is_booked(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, run_timeout_seconds=1) as server:
        ada = server.sign_up()
        run = ada.ask("Draw a house [offline: slow=1000]", **DRAWING)[-1]["run"]
        assert (run["error"]["code"], run["cost_basis"]) == ("upstream_timeout", "estimated")
        assert [kind for _, kind, _ in booked(ada, run["id"])] == ["input_tokens"]
        ((response_id,),) = rows(database_url, "SELECT response_id FROM provider_calls")
        assert httpx.get(f"{provider_url}/responses/{response_id}", headers=KEY).json()["status"] == "cancelled"
        assert faults(database_url, run["id"]) == []


def test_a_run_that_goes_without_images_is_named_to_be_resumed_nonetheless(
    database_url: str, server: AppServer
) -> None:
    ada = server.sign_up()
    give_plan(database_url, ada, images_per_day=0)
    run = ada.start("Draw a house [offline: stall]", agent_key="assistant")
    assert run["without"] == ["image_generation"]
    found = "SELECT r.response_id IS NOT NULL AND c.response_id = r.response_id FROM runs r JOIN provider_calls c"
    found += " ON c.run_id = r.id WHERE r.background AND r.id = :run"
    timeouts.wait_until(lambda: rows(database_url, found, {"run": run["id"]}) == [(True,)])
    ada.http.put(f"/v1/runs/{run['id']}/cancellation")


# As behind a database that starts again: longer than a further call waits for the row.
SLOW_ROW = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  IF nextval('public.tries') < 30 THEN RAISE EXCEPTION USING ERRCODE = 'cannot_connect_now'; END IF;
  RETURN NEW;
END $$
"""
# A commit that takes two seconds, and that nobody can stop.
SLOW_COMMIT = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  BEGIN PERFORM pg_sleep(2); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(2); END;
  RETURN NULL;
END $$
"""
AT_COMMIT = """
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON provider_calls DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION hold()
"""


@pytest.mark.slow
def test_a_call_that_was_written_down_and_not_sent_costs_nothing(
    database_url: str, provider_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows(database_url, SLOW_COMMIT)
    rows(database_url, AT_COMMIT)
    with (
        caplog.at_level(logging.ERROR),
        running_server(database_url, provider_url, tmp_path, run_timeout_seconds=1) as server,
    ):
        ada = server.sign_up()
        run = ada.ask("Say something nobody has said")[-1]["run"]
        assert (run["error"]["code"], run["cost_usd"]) == ("upstream_timeout", "0")
        states = rows(database_url, "SELECT state FROM provider_calls WHERE run_id = :run", {"run": run["id"]})
        assert states == [("settled",)]
        assert (entries(ada, run_id=run["id"]), faults(database_url, run["id"])) == ([], [])
    seen = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    assert not any("nobody has said" in str(request.get("body")) for request in seen)
    assert [record.message for record in caplog.records] == []
