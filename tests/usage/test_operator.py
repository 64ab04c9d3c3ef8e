"""What the operator is told of the books: sums, lines for a billing system, and what is wrong."""

import json
from datetime import UTC, datetime

import pytest

from tests.app_server import ApiUser, AppServer, Easel
from tests.tables import rows
from tests.usage.books import entries, nano


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
    assert easel("usage", "export", "--after", max(expected)) == ""
    events = [json.loads(line) for line in easel("usage", "export", "--format", "stripe").splitlines()]
    assert {event["identifier"] for event in events} == expected.keys()
    assert {event["payload"]["stripe_customer_id"] for event in events} == {line["tenant_id"] for line in lines}
    assert {event["event_name"] for event in events} == {"input_tokens", "output_tokens"}


def test_right_books_are_told_as_right_with_what_is_estimated(easel: Easel, ada: ApiUser) -> None:
    ada.draw()
    run = ada.draw("Draw a house [offline: no_usage]")[-1]["run"]
    verified = json.loads(easel("ledger", "verify", "--json"))
    assert verified["faults"] == []
    (estimated,) = verified["estimated"]
    booked = [entry for entry in entries(ada, run_id=run["id"]) if entry["basis"] == "estimated"]
    assert (estimated["run_id"], estimated["call"]) == (run["id"], 1)
    assert nano(estimated["cost_usd"]) == sum(nano(entry["cost_usd"]) for entry in booked)
    assert "There are none." in easel("ledger", "verify")


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        ("DELETE FROM usage_entries WHERE kind = 'output_tokens'", "a run's cost is not the sum of its entries"),
        ("UPDATE usage_entries SET cost_nano = cost_nano + 1", "an entry's cost is not its quantity at its price"),
        ("UPDATE attachments SET cost_nano = cost_nano + 1", "an image's cost is not the sum of its entries"),
        ("UPDATE attachments SET cost_nano = NULL, cost_basis = NULL", "a picture's cost is shown by no image"),
        ("UPDATE provider_calls SET state = 'named'", "a call that was not settled has entries"),
        ("DELETE FROM provider_calls", "a call that was never made has entries"),
        ("UPDATE provider_calls SET state = 'asked'", "an ended run has a call that was not settled"),
        ("UPDATE usage_counters SET spent_nano = 0", "a month's counter is not the sum of its entries"),
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
