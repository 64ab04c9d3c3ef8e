"""What a turn costs the database, from POST /v1/runs to its terminal event: the API and the worker together."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from app.db import Database
from tests.agent_folders import write_agents
from tests.app_server import ApiUser, AppServer, Event, kinds, one, running_server
from tests.round_trips import RoundTrips, counting
from tests.usage.plans import give_plan

AGENTS: dict[str, dict[str, Any]] = {"talker": {}, "designer": {"tool_keys": ("image_generation",)}}
# Both connections of the pool have prepared most statements by then, and the cheapest of some turns prepares none. All
# together are fewer messages than the history holds.
WARM_UP = 6
COUNTED = 3

# Statements, transactions and round trips at most.
Costs = tuple[int, int, int]
TEXT: Costs = (11, 4, 24)
# An agent that could draw has the id of its response committed at once: one transaction more.
TEXT_OF_ONE_THAT_DRAWS: Costs = (12, 5, 28)
IMAGE: Costs = (15, 7, 37)
# The lock, the look for the first answer; the answer itself is written with the run.
OF_A_KEY: Costs = (2, 0, 2)
# The lock, what is open, and how long the history is.
OF_LIMITS: Costs = (3, 0, 3)
EVERY_LIMIT = {
    **dict.fromkeys(("runs_per_minute", "runs_at_once", "streams_at_once", "images_per_day"), 1000000),
    **{f"user_{key}": 1_000_000 for key in ("runs_per_minute", "runs_at_once", "streams_at_once", "images_per_day")},
    "spend_per_month_usd": 1_000_000,
    "user_spend_per_month_usd": 1_000_000,
    "stored_bytes": 10**12,
}


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    agents = write_agents(tmp_path / "agents", AGENTS)
    with running_server(database_url, provider_url, tmp_path / "data", agents=agents, database_pool_size=2) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent_key", "text", "most"),
    [("talker", "Hello", TEXT), ("designer", "Hello", TEXT_OF_ONE_THAT_DRAWS), ("designer", "Draw a house", IMAGE)],
    ids=["text", "text of an agent that draws", "image"],
)
def test_a_turn_takes_so_many_round_trips_at_most(
    server: AppServer, ada: ApiUser, agent_key: str, text: str, most: Costs
) -> None:
    """A first turn, a later one, and a later one with an `Idempotency-Key`."""

    def turn(conversation_id: str | None = None, key: str | None = None) -> list[Event]:
        ada.http.headers.pop("Idempotency-Key", None)
        if key is not None:
            ada.http.headers["Idempotency-Key"] = key
        return ada.ask(text, agent_key=agent_key, conversation_id=conversation_id)

    talk = one(turn(), "run.created")["run"]["conversation_id"]
    for number in range(WARM_UP):
        turn()
        turn(talk)
        turn(talk, f"warm-up-{number}")
    first = counted(server, lambda number: turn())
    later = counted(server, lambda number: turn(talk))
    keyed = counted(server, lambda number: turn(talk, f"counted-{number}"))
    assert_at_most(first, most)
    assert_at_most(later, most)
    assert_at_most(keyed, tuple(map(sum, zip(most, OF_A_KEY, strict=True))))


def test_limits_take_few_statements_and_no_further_transaction(
    server: AppServer, ada: ApiUser, database_url: str
) -> None:
    give_plan(database_url, ada, **EVERY_LIMIT)

    def turn(conversation_id: str | None = None) -> list[Event]:
        return ada.ask("Hello", agent_key="talker", conversation_id=conversation_id)

    talk = one(turn(), "run.created")["run"]["conversation_id"]
    for _ in range(WARM_UP):
        turn(talk)
    found = counted(server, lambda number: turn(talk))
    assert_at_most(found, tuple(map(sum, zip(TEXT, OF_LIMITS, strict=True))))
    # Not one of them is left out.
    assert any("usage_counters" in sql for sql in found.statements)


def counted(server: AppServer, turn: Callable[[int], list[Event]]) -> RoundTrips:
    """Those of the cheapest of some turns, which are numbered."""
    database: Database = server.uvicorn.app.state.database
    found: list[RoundTrips] = []
    for number in range(COUNTED):
        with counting(database.engine) as trips:
            events = turn(number)
        assert kinds(events)[-1] == "run.completed"
        found.append(trips)
    return min(found, key=costs)


def costs(trips: RoundTrips) -> Costs:
    return len(trips.statements), trips.transactions, len(trips.sent)


def assert_at_most(trips: RoundTrips, most: tuple[int, ...]) -> None:
    found = costs(trips)
    assert all(one <= limit for one, limit in zip(found, most, strict=True)), (found, trips.sent)
