"""However many start at once, at however many processes: nobody passes a limit, and who is refused leaves nothing."""

import re
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app_server import ApiUser, running_server
from tests.cluster import running_cluster
from tests.results import Results
from tests.tables import rows
from tests.usage.books import assert_books_right, nano
from tests.usage.plans import give_plan, limits_of
from tests.usage.test_limits import wait_until

CLIENTS = 40


@dataclass(frozen=True)
class Service:
    """Where the API is, at one process or two, and what lies behind it."""

    urls: list[str]
    database_url: str
    provider_url: str


@pytest.fixture
def service(request: pytest.FixtureRequest, database_url: str, provider_url: str, tmp_path: Path) -> Generator[Service]:
    if request.param == "two processes":
        with running_cluster(database_url, provider_url, tmp_path) as cluster:
            yield Service([url for _, url in cluster.apis], database_url, provider_url)
    else:
        with running_server(database_url, provider_url, tmp_path) as server:
            yield Service([server.base_url], database_url, provider_url)


@pytest.mark.parametrize(
    ("service", "starts", "rounds"),
    [("one process", 60, 1), pytest.param("two processes", 200, 10, marks=pytest.mark.prove)],
    indirect=["service"],
)
@pytest.mark.timeout(600)
def test_so_many_start_as_a_limit_allows_and_no_more(
    service: Service, starts: int, rounds: int, results: Results
) -> None:
    admitted: list[int] = []
    for number in range(rounds):
        ada = ApiUser(service.urls[0])
        colleague = ApiUser(service.urls[0], invited_by=ada, role="member")
        give_plan(service.database_url, ada, images_per_day=10)
        word = f"pictures-{number}"
        answers = race(service, [ada, colleague], starts, {"input": f"Draw a house {word}", "agent_key": "designer"})
        assert answers == {202: 10, 429: starts - 10}
        assert settled(service, ada) == 10
        assert calls(service, word) == 10
        admitted.append(answers[202])
        spender = ApiUser(service.urls[0])
        body = {"input": f"Draw a house money-{number}", "agent_key": "designer"}
        estimate = spender.http.post("/v1/runs/estimate", json=body).json()
        give_plan(service.database_url, spender, spend_per_month_usd=3.5 * nano(estimate["reserved_usd"]) / 10**9)
        # They take longer than all of them need to be judged: what a run has spent is less than was held for it.
        body["input"] += " [offline: stall]"
        assert race(service, [spender], starts, body) == {202: 3, 402: starts - 3}
        stop_all(spender)
        assert settled(service, spender) == 3
        assert calls(service, f"money-{number}") == 3
        admitted.append(3)
        for user in (ada, colleague, spender):
            user.http.close()
    assert_books_right(service.database_url, service.provider_url)
    results(
        7,
        "concurrent starts at a limit",
        tried=f"{2 * rounds} times {starts} starts over two APIs",
        kept=f"{Counter(admitted)[10]} times 10 of 10 pictures, {Counter(admitted)[3]} times 3 of 3.5 reservations",
    )


def race(service: Service, users: Sequence[ApiUser], starts: int, body: dict[str, Any]) -> dict[int, int]:
    """How often each status was answered to the users, who take turns at the APIs."""
    urls = service.urls

    def post(number: int) -> int:
        user = users[number // len(urls) % len(users)]
        headers = {"Authorization": user.http.headers["Authorization"]}
        return httpx.post(f"{urls[number % len(urls)]}/v1/runs", json=body, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        return dict(Counter(pool.map(post, range(starts))))


def stop_all(user: ApiUser) -> None:
    for conversation in user.http.get("/v1/conversations").json()["data"]:
        for message in user.messages(conversation["id"]):
            user.http.put(f"/v1/runs/{message['run_id']}/cancellation")


def settled(service: Service, user: ApiUser) -> int:
    """How many runs there are once all have ended; nothing is held then."""
    tenant = {"tenant": user.signed_up["tenant"]["id"]}
    is_open = "SELECT count(*) FROM runs WHERE tenant_id = :tenant AND status IN ('queued', 'running')"
    wait_until(lambda: rows(service.database_url, is_open, tenant) == [(0,)])
    held = limits_of(user)
    assert held["images_per_day", "tenant"]["reserved"] == 0
    assert held["spend_per_month_usd", "tenant"]["reserved"] == "0"
    counts = "SELECT (SELECT count(*) FROM runs WHERE tenant_id = :tenant), (SELECT count(*) FROM conversations"
    counts += " WHERE tenant_id = :tenant), (SELECT count(*) FROM messages WHERE tenant_id = :tenant AND role = 'user')"
    ((found, conversations, messages),) = rows(service.database_url, counts, tenant)
    assert found == conversations == messages
    return found


def calls(service: Service, word: str) -> int:
    """How many requests of the word the provider has received."""
    seen = httpx.get(f"{service.provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [one for one in seen if (one["method"], one["path"]) == ("POST", "/v1/responses")]
    return sum(bool(re.search(rf"\b{word}\b", str(one["body"]["input"]))) for one in posts)
