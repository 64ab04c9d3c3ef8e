"""What the operator is told of the books: sums, lines for a billing system, and what is wrong."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.usage import operation
from tests.app_server import ApiUser, AppServer, Easel
from tests.tables import rows
from tests.usage.books import entries, nano

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "019ab3f0-5d1c-7d5e-9a57-0c2f6f1f2b11"
# So that each sum of the others agrees.
LOST = """
WITH entries AS (DELETE FROM usage_entries), runs AS (UPDATE runs SET booked_nano = NULL),
  counters AS (UPDATE usage_counters SET spent_nano = 0), images AS (UPDATE attachments SET cost_nano = NULL)
UPDATE provider_calls SET booked_entries =
"""


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def test_usage_is_summed_up_by_tenant(easel: Easel, ada: ApiUser, stranger: ApiUser) -> None:
    runs = {user: user.ask("Hello")[-1]["run"] for user in (ada, stranger)}
    found = {row["tenant_id"]: row for row in json.loads(easel("usage", "--json"))}
    for user, run in runs.items():
        row = found[user.signed_up["tenant"]["id"]]
        assert (row["cost_usd"], row["runs"], row["month"]) == (run["cost_usd"], 1, f"{datetime.now(UTC):%Y-%m}")
    tenant = ada.signed_up["tenant"]["id"]
    assert [row["tenant_id"] for row in json.loads(easel("usage", "--tenant", tenant, "--json"))] == [tenant]
    assert "There are none." in easel("usage", "--month", "2020-01")
    assert "cost_usd" in easel("usage")


def test_entries_go_to_a_billing_system_once(easel: Easel, ada: ApiUser, stranger: ApiUser, database_url: str) -> None:
    for user in (ada, stranger):
        user.ask("Hello")
    assert easel("usage", "export") == ""
    rows(database_url, "UPDATE usage_entries SET created_at = now() - interval '2 minutes' RETURNING id")
    lines = [json.loads(line) for line in easel("usage", "export").splitlines()]
    expected = {entry["id"]: entry["cost_usd"] for user in (ada, stranger) for entry in entries(user)}
    assert {line["id"]: line["cost_usd"] for line in lines} == expected
    assert {line["tenant_id"] for line in lines} == {user.signed_up["tenant"]["id"] for user in (ada, stranger)}
    assert easel("usage", "export", "--after", lines[-1]["id"]) == ""
    assert easel("usage", "export", "--json") == easel("usage", "export")
    events = [json.loads(line) for line in easel("usage", "export", "--format", "stripe").splitlines()]
    assert {event["identifier"] for event in events} == expected.keys()
    assert {event["payload"]["stripe_customer_id"] for event in events} == {line["tenant_id"] for line in lines}
    assert {event["event_name"] for event in events} == {"input_tokens", "output_tokens"}


@pytest.mark.slow
def test_the_last_line_of_an_export_is_where_the_next_begins(
    easel: Easel, ada: ApiUser, stranger: ApiUser, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tenants' entries alternate, and no tenant's are read at once.
    monkeypatch.setattr(operation, "ENTRIES_AT_ONCE", 1)
    monkeypatch.setattr(operation, "LEAST_ENTRIES_OF_A_TENANT", 2)
    for user in (stranger, ada, stranger, ada, ada):
        user.ask("Hello")
    rows(database_url, "UPDATE usage_entries SET created_at = now() - interval '2 minutes' RETURNING id")
    ids = [json.loads(line)["id"] for line in easel("usage", "export").splitlines()]
    assert ids == sorted(entry["id"] for user in (ada, stranger) for entry in entries(user))
    for number, last in enumerate(ids, 1):
        following = easel("usage", "export", "--after", last).splitlines()
        assert [json.loads(line)["id"] for line in following] == ids[number:]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("export", "--after", UNKNOWN), 1, f"easel: There is no entry {UNKNOWN}: --after is the id of"),
        (("export", "--json", "--format", "stripe"), 2, "easel: .*--json is --format jsonl: leave it or"),
        (("--tenant", UNKNOWN), 1, f"easel: There is no tenant {UNKNOWN}."),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(
    database_url: str, tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "usage", *arguments],
        env={"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "DATA_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert re.match(sentence, line)


def test_right_books_are_told_as_right_with_what_is_estimated(easel: Easel, ada: ApiUser) -> None:
    ada.draw()
    run = ada.draw("Draw a house [offline: no_usage]")[-1]["run"]
    verified = json.loads(easel("ledger", "verify", "--json"))
    assert verified["faults"] == []
    (estimated,) = verified["estimated"]
    booked = [entry for entry in entries(ada, run_id=run["id"]) if entry["basis"] == "estimated"]
    assert (estimated["run_id"], estimated["call"]) == (run["id"], 1)
    assert nano(estimated["cost_usd"]) == sum(nano(entry["cost_usd"]) for entry in booked)
    told = easel("ledger", "verify")
    assert run["id"] in told
    assert told.endswith("\n\nNothing is wrong.\n")


def test_books_without_an_estimate_are_told_in_a_sentence(easel: Easel, ada: ApiUser) -> None:
    ada.ask("Hello")
    assert easel("ledger", "verify") == "Nothing is wrong.\n"


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        ("DELETE FROM usage_entries WHERE kind = 'output_tokens'", "a run's cost is not the sum of its entries"),
        (f"{LOST} booked_entries", "a call has not the entries that were booked with it"),
        (f"{LOST} 0", "a call that was answered has no entries"),
        ("UPDATE usage_entries SET cost_nano = cost_nano + 1", "an entry's cost is not its quantity at its price"),
        ("UPDATE attachments SET cost_nano = cost_nano + 1", "an image's cost is not the sum of its entries"),
        ("UPDATE attachments SET cost_nano = NULL, cost_basis = NULL", "a picture's cost is shown by no image"),
        ("UPDATE provider_calls SET state = 'named'", "a call that was not settled has entries"),
        ("DELETE FROM provider_calls", "a call that was never made has entries"),
        ("UPDATE provider_calls SET state = 'asked'", "an ended run has a call that was not settled"),
        ("UPDATE usage_counters SET spent_nano = 0", "a month's counter is not the sum of its entries"),
        ("UPDATE usage_counters SET images = 2", "a day's counter is not the number of its pictures"),
    ],
)
def test_wrong_books_are_named(easel: Easel, ada: ApiUser, database_url: str, harm: str, fault: str) -> None:
    run = ada.draw()[-1]["run"]
    rows(database_url, f"{harm} RETURNING 1")
    verified = json.loads(easel("ledger", "verify", "--json", code=1))
    assert fault in {one["fault"] for one in verified["faults"]}
    # A counter is of many runs.
    assert {one["run_id"] for one in verified["faults"]} <= {run["id"], None}
    assert fault in easel("ledger", "verify", code=1)
