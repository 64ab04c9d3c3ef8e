"""However many start at once, at however many processes: nobody passes a limit, and who is refused leaves nothing."""

import re
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app_server import ApiUser
from tests.cluster import Cluster, running_cluster
from tests.results import Results
from tests.tables import rows
from tests.usage.books import assert_books_right, nano
from tests.usage.plans import give_plan, limits_of
from tests.usage.test_limits import wait_until

CLIENTS = 40


@pytest.fixture
def cluster(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Cluster]:
    with running_cluster(database_url, provider_url, tmp_path) as cluster:
        yield cluster


@pytest.mark.parametrize(("starts", "rounds"), [(60, 1), pytest.param(200, 10, marks=pytest.mark.prove)])
@pytest.mark.timeout(600)
def test_so_many_start_as_a_limit_allows_and_no_more(
    cluster: Cluster, starts: int, rounds: int, results: Results
) -> None:
    admitted: list[int] = []
    for number in range(rounds):
        ada = ApiUser(cluster.apis[number % 2][1])
        colleague = ApiUser(cluster.apis[number % 2][1], invited_by=ada, role="member")
        give_plan(cluster.database_url, ada, images_per_day=10)
        word = f"pictures-{number}"
        answers = race(cluster, [ada, colleague], starts, {"input": f"Draw a house {word}", "agent_key": "designer"})
        assert answers == {202: 10, 429: starts - 10}
        assert settled(cluster, ada) == 10
        assert calls(cluster, word) == 10
        admitted.append(answers[202])
        spender = ApiUser(cluster.apis[number % 2][1])
        body = {"input": f"Draw a house money-{number}", "agent_key": "designer"}
        estimate = spender.http.post("/v1/runs/estimate", json=body).json()
        give_plan(cluster.database_url, spender, spend_per_month_usd=3.5 * nano(estimate["reserved_usd"]) / 10**9)
        # They take longer than all of them need to be judged: what a run has spent is less than was held for it.
        body["input"] += " [offline: stall]"
        assert race(cluster, [spender], starts, body) == {202: 3, 402: starts - 3}
        stop_all(spender)
        assert settled(cluster, spender) == 3
        assert calls(cluster, f"money-{number}") <= 3
        admitted.append(3)
        for user in (ada, colleague, spender):
            user.http.close()
    assert_books_right(cluster.database_url, cluster.provider_url)
    results(
        7,
        "concurrent starts at a limit",
        tried=f"{2 * rounds} times {starts} starts over two APIs",
        kept=f"{Counter(admitted)[10]} times 10 of 10 pictures, {Counter(admitted)[3]} times 3 of 3.5 reservations",
    )


def race(cluster: Cluster, users: Sequence[ApiUser], starts: int, body: dict[str, Any]) -> dict[int, int]:
    """How often each status was answered to the users, who take turns at the APIs."""
    urls = [url for _, url in cluster.apis]

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


def settled(cluster: Cluster, user: ApiUser) -> int:
    """How many runs there are once all have ended; nothing is held then."""
    tenant = {"tenant": user.signed_up["tenant"]["id"]}
    is_open = "SELECT count(*) FROM runs WHERE tenant_id = :tenant AND status IN ('queued', 'running')"
    wait_until(lambda: rows(cluster.database_url, is_open, tenant) == [(0,)])
    held = limits_of(user)
    assert held["images_per_day", "tenant"]["reserved"] == 0
    assert held["spend_per_month_usd", "tenant"]["reserved"] == "0"
    counts = "SELECT (SELECT count(*) FROM runs WHERE tenant_id = :tenant), (SELECT count(*) FROM conversations"
    counts += " WHERE tenant_id = :tenant), (SELECT count(*) FROM messages WHERE tenant_id = :tenant AND role = 'user')"
    ((found, conversations, messages),) = rows(cluster.database_url, counts, tenant)
    assert found == conversations == messages
    return found


def calls(cluster: Cluster, word: str) -> int:
    """How many requests of the word the provider has received."""
    seen = httpx.get(f"{cluster.provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [one for one in seen if (one["method"], one["path"]) == ("POST", "/v1/responses")]
    return sum(bool(re.search(rf"\b{word}\b", str(one["body"]["input"]))) for one in posts)
