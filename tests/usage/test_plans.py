"""Plans as an operator sees and sets them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from tests.app_server import ApiUser, AppServer, Easel, running_server
from tests.usage.plans import start

LIMITS = (
    *("runs_per_minute", "user_runs_per_minute", "runs_at_once", "user_runs_at_once", "streams_at_once"),
    *("user_streams_at_once", "images_per_day", "user_images_per_day", "spend_per_month_usd"),
    *("user_spend_per_month_usd", "stored_bytes"),
)


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def shown(easel: Easel, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(easel("plans", *arguments, "--json"))
    return found


def test_a_new_database_has_two_plans(easel: Easel) -> None:
    trial, unlimited = shown(easel, "list")
    assert (trial["name"], unlimited["name"]) == ("trial", "unlimited")
    assert tuple(unlimited)[1:] == LIMITS
    assert {unlimited[limit] for limit in LIMITS} == {None}
    assert (trial["runs_per_minute"], trial["spend_per_month_usd"]) == (10, "5")
    table = easel("plans", "list").splitlines()
    assert table[0].split() == ["limit", "trial", "unlimited"]
    assert table[1].split() == ["runs_per_minute", "10", "unlimited"]
    assert [line.split()[0] for line in table[1:]] == list(LIMITS)


def test_a_plan_is_made_and_changed_limit_by_limit(easel: Easel, ada: ApiUser) -> None:
    (made,) = shown(easel, "set", "pro", "runs_per_minute=60", "spend_per_month_usd=19.99", "user_images_per_day=5")
    assert (made["runs_per_minute"], made["spend_per_month_usd"], made["user_images_per_day"]) == (60, "19.99", 5)
    assert made["runs_at_once"] is None
    easel("tenants", "plan", ada.signed_up["tenant"]["id"], "pro")
    assert start(ada).headers["RateLimit-Policy"] == '"runs_per_minute";q=60;w=60'
    easel("plans", "set", "pro", "runs_per_minute=unlimited", "runs_at_once=7")
    assert "RateLimit" not in start(ada).headers
    (found,) = shown(easel, "show", "pro")
    assert (found["runs_per_minute"], found["runs_at_once"], found["spend_per_month_usd"]) == (None, 7, "19.99")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "pro", "runs_per_minute=-1"), "runs_per_minute: '-1' is no limit: give a whole number from 1 to"),
        (("set", "pro", "runs_per_minute=1000001"), "give a whole number from 1 to 1000000, or unlimited."),
        (("set", "pro", "spend_per_month_usd=1e999999"), "spend_per_month_usd: '1e999999' is no amount"),
        (("set", "pro", "runs_per_minute=0"), "runs_per_minute: '0' is no limit"),
        (("set", "pro", "images_per_day=NaN"), "images_per_day: 'NaN' is no limit"),
        (("set", "pro", "stored_bytes=1e400"), "stored_bytes: '1e400' is no limit"),
        (("set", "pro", "stored_bytes=" + "9" * 40), "is no limit: give a whole number from 1 to 1000000000000000"),
        (("set", "pro", "spend_per_month_usd=-0.01"), "spend_per_month_usd: '-0.01' is no amount: give USD"),
        (("set", "pro", "spend_per_month_usd=0"), "spend_per_month_usd: '0' is no amount"),
        (("set", "pro", "spend_per_month_usd=NaN"), "spend_per_month_usd: 'NaN' is no amount"),
        (("set", "pro", "spend_per_month_usd=1e400"), "spend_per_month_usd: '1e400' is no amount"),
        (("set", "pro", "spend_per_month_usd=1e-10"), "with nine places or fewer"),
        (("set", "pro", "spend_per_month_usd=Infinity"), "is no amount"),
        (("set", "pro", "spend_per_month_usd="), "is no amount"),
        (("set", "pro", "colour=1"), "'colour=1' sets no limit: give key=value, where key is one of runs_per_minute,"),
        (("set", "pro", "user_stored_bytes=1"), "'user_stored_bytes=1' sets no limit"),
        (("set", "pro", "runs_per_minute"), "'runs_per_minute' sets no limit"),
        (("set", "Pro Plan", "runs_per_minute=1"), "'Pro Plan' cannot name a plan: use lower-case letters"),
        (("show", "gold"), "There is no plan 'gold'; there are trial, unlimited."),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence_and_changes_nothing(
    easel: Easel, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    before = shown(easel, "list")
    monkeypatch.setattr(sys, "argv", ["easel", "plans", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = str(ended.value.code)
    assert told.startswith("easel: ")
    assert words in told
    assert "\n" not in told
    assert shown(easel, "list") == before


def test_a_tenant_gets_no_plan_that_is_not_there(easel: Easel, ada: ApiUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["easel", "tenants", "plan", ada.signed_up["tenant"]["id"], "gold"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert "There is no plan 'gold'; there are trial, unlimited. `easel plans set` makes one." in str(ended.value.code)
    assert ada.http.get("/v1/tenants/current").json()["plan"] == "unlimited"


def test_new_tenants_get_the_default_plan(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, default_plan="trial") as server:
        ada = server.sign_up()
        assert ada.http.get("/v1/limits").json()["plan"] == "trial"
        made = ada.http.post("/v1/tenants", json={"name": "Another"}).json()
        assert made["plan"] == "trial"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_default_plan_that_is_not_there_is_told_before_anybody_gets_it(
    easel: Easel, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert shown(easel, "list")
    monkeypatch.setenv("DEFAULT_PLAN", "gold")
    monkeypatch.setattr(sys, "argv", ["easel", command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith("easel: DEFAULT_PLAN: There is no plan 'gold'; there are trial, unlimited.")
