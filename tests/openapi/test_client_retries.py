"""Promise 5 with a generated client: it sends a broken request again by itself, and buys nothing twice."""

import json
import random
import secrets
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, AppServer, Event
from tests.openapi.clients import running_node
from tests.results import Results
from tests.servers import Proxy
from tests.tables import rows

SIZES = [3, pytest.param(20, marks=[pytest.mark.prove, pytest.mark.timeout(600)])]
# So many events come before the drawing, which goes on until it is stopped.
FIRST_EVENTS = 4
DRAWING = "[offline: slow=60]"


@dataclass(frozen=True)
class Bought:
    """What one call of the client led to: the events it got, the refusal's code, and how many runs there are of it."""

    events: list[Event]
    refused: str | None
    connections: int
    runs: int
    requests: int


@pytest.mark.slow
@pytest.mark.parametrize("cuts", SIZES)
def test_a_client_with_a_key_gets_one_run_through_any_cut(
    server: AppServer, ada: ApiUser, provider_url: str, project: Path, cuts: int, results: Results
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(cuts):
        bought = _buy(
            server, ada, provider_url, project, cut_after=chance.randint(1, FIRST_EVENTS), key=secrets.token_hex(8)
        )
        assert (bought.runs, bought.requests, bought.connections) == (1, 1, 2), f"seed {seed}"
        # The second connection goes on where the first one broke.
        assert [event["seq"] for event in bought.events] == list(range(1, len(bought.events) + 1)), f"seed {seed}"
        assert bought.events[-1]["type"] == "run.cancelled"
    tried = f"{cuts} cut connections, Idempotency-Key"
    results(5, "a generated client retries", tried=tried, kept=f"{cuts} with 1 run and all events", seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", SIZES)
def test_a_client_without_a_key_is_refused_a_second_run(
    server: AppServer, ada: ApiUser, provider_url: str, project: Path, cuts: int, results: Results
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(cuts):
        cut_after = chance.randint(1, FIRST_EVENTS)
        bought = _buy(server, ada, provider_url, project, cut_after=cut_after, key=None)
        assert (bought.runs, bought.requests, bought.connections) == (1, 1, 2), f"seed {seed}"
        assert bought.refused == "idempotency_key_required"
    tried = f"{cuts} cut connections, no key"
    kept = f"{cuts} with 1 run and 409 idempotency_key_required"
    results(5, "a generated client retries, no key", tried=tried, kept=kept, seed=seed)


def _buy(
    server: AppServer, user: ApiUser, provider_url: str, project: Path, *, cut_after: int, key: str | None
) -> Bought:
    """One run by the client, whose connection is reset once it has read so many events; stopped when it is back."""
    word = f"w{secrets.token_hex(8)}"
    token = user.http.headers["Authorization"].removeprefix("Bearer ")
    events: list[Event] = []
    refused = None
    with Proxy(server.base_url.removeprefix("http://")) as proxy:
        program = ("retry.ts", f"http://{proxy.endpoint}", token, f"Draw {word} {DRAWING}", *([key] if key else []))
        with running_node(*program, cwd=project) as printed:
            for line in printed:
                one = json.loads(line)
                if "seq" not in one:
                    refused = str(one["code"])
                    continue
                events.append(one)
                if len(events) == cut_after:
                    proxy.mode = "refuse"
                    proxy.mode = "pass"
                    timeouts.wait_until(lambda: proxy.connections > 1 and _requests(provider_url, word) > 0)
                    assert user.http.put(f"/v1/runs/{one['run_id']}/cancellation").status_code == 202
        connections = proxy.connections
    return Bought(events, refused, connections, _runs(server, word), _requests(provider_url, word))


def _runs(server: AppServer, word: str) -> int:
    assert server.settings.database_url
    count = "SELECT count(*) FROM messages WHERE role = 'user' AND text LIKE :pattern"
    return int(rows(server.settings.database_url.get_secret_value(), count, {"pattern": f"%{word}%"})[0][0])


def _requests(provider_url: str, word: str) -> int:
    """How many responses the provider was asked for."""
    asked = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [one for one in asked if (one["method"], one["path"]) == ("POST", "/v1/responses")]
    return sum(word in json.dumps(one["body"]) for one in posts)
