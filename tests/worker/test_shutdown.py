"""Promise 14: a process that is received to end says so to its readers, hands over its runs, and is gone in seconds."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, EaselProcess, Event, kinds, one, running_server, shared_parts, starting_easel
from tests.results import Results

# For 10 or 50 streams and runs at a time.
ROOM: dict[str, Any] = {"tenant_concurrency": 60, "worker_concurrency": 60, "log_level": "info"}
DRAINING = ": draining"
CLUSTER: list[tuple[Literal["serve", "worker"], str]] = [
    ("serve", "one"),
    ("serve", "two"),
    ("worker", "three"),
    ("worker", "four"),
]


@pytest.mark.parametrize(
    ("streams", "drawing_seconds"),
    [(6, 4), pytest.param(50, 30, marks=[pytest.mark.prove, pytest.mark.timeout(300)])],
)
async def test_the_streams_and_runs_of_an_api_that_ends_go_on_at_another(
    database_url: str, provider_url: str, tmp_path: Path, streams: int, drawing_seconds: int, results: Results
) -> None:
    with ExitStack() as stack:
        shared: dict[str, Any] = {**stack.enter_context(shared_parts(tmp_path)), **ROOM}
        ending, staying = (
            stack.enter_context(starting_easel("serve", database_url, provider_url, tmp_path / name, shared))
            for name in ("ending", "staying")
        )
        ending.wait_until_ready()
        staying.wait_until_ready()
        ada = stack.enter_context(signed_up_at(ending.base_url))
        words = [f"w{secrets.token_hex(16)}" for _ in range(streams)]
        inputs = [f"Draw {word} [offline: slow={drawing_seconds}]" for word in words]
        seen, drained, status, seconds = await cut_by_the_end(ending, ada, inputs)
        with ada.at(staying.base_url) as client:
            whole = [seen_part + list(resumed(client, seen_part)) for seen_part in seen]
            again = [list(resumed(client, [], run_id=events[0]["run_id"])) for events in whole]
        intact = sum(
            numbered(events) and kinds(events) == kinds(other) for events, other in zip(whole, again, strict=True)
        )
        completed = sum(kinds(events)[-1] == "run.completed" for events in whole)
        paid = [posts_with(provider_url, word) for word in words]
        handed = ending.log.read_text().count("run.released")
        idle_status, idle_seconds = staying.terminate()
    results(
        14,
        "SIGTERM of an API",
        tried=f"{streams} streams, {handed} runs handed over",
        kept=f"{drained} drained, {intact} resumed whole, {completed} completed, {sum(paid)} paid requests, "
        f"exit {status} after {seconds:.2f} s, idle {idle_status} after {idle_seconds:.2f} s",
    )
    assert (status, drained, intact, completed) == (0, streams, streams, streams)
    assert paid == [1] * streams
    assert handed > 0
    assert seconds <= timeouts.DRAINED
    assert (idle_status, idle_seconds <= timeouts.IDLE_EXIT) == (0, True)


@contextmanager
def signed_up_at(base_url: str) -> Generator[ApiUser]:
    user = ApiUser(base_url)
    try:
        yield user
    finally:
        user.http.close()


async def cut_by_the_end(
    ending: EaselProcess, ada: ApiUser, inputs: list[str]
) -> tuple[list[list[Event]], int, int, float]:
    """What each stream sent until SIGTERM ended it, how many ended as they should; the exit status and its seconds."""
    headers = {"Authorization": ada.http.headers["Authorization"], "Accept": "text/event-stream"}
    limits = httpx.Limits(max_connections=None)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=ending.base_url, headers=headers, limits=limits, timeout=30)
        )
        sources: list[AsyncIterator[str]] = []
        for text in inputs:
            body = {"input": text, "agent_key": "designer"}
            answer = await stack.enter_async_context(client.stream("POST", "/v1/runs", json=body))
            assert answer.status_code == 200
            sources.append(answer.aiter_lines())
        seen: list[list[Event]] = [[] for _ in inputs]
        await asyncio.gather(
            *(listen(source, received, until="tool.started") for source, received in zip(sources, seen, strict=True))
        )
        leaving = asyncio.create_task(asyncio.to_thread(ending.terminate))
        lasts = await asyncio.gather(
            *(listen(source, received) for source, received in zip(sources, seen, strict=True))
        )
        status, seconds = await leaving
    return seen, lasts.count(DRAINING), status, seconds


async def listen(source: AsyncIterator[str], received: list[Event], *, until: str | None = None) -> str:
    """Add what comes to `received`, to the stream's end or the first event `until`; the last comment."""
    comment = ""
    async for line in source:
        if line.startswith(":"):
            comment = line
        if line.startswith("data: "):
            received.append(json.loads(line.removeprefix("data: ")))
            if received[-1]["type"] == until:
                break
    return comment


def resumed(client: httpx.Client, seen: list[Event], *, run_id: str | None = None) -> list[Event]:
    """What there is to a run after the events that were seen."""
    headers = {"Last-Event-ID": str(len(seen))}
    with client.stream("GET", f"/v1/runs/{run_id or seen[0]['run_id']}/events", headers=headers) as answer:
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]


def numbered(events: list[Event]) -> bool:
    return [event["seq"] for event in events] == list(range(1, len(events) + 1))


@pytest.mark.prove
def test_the_runs_of_a_worker_that_ends_go_on_at_another(
    database_url: str, provider_url: str, tmp_path: Path, results: Results
) -> None:
    with ExitStack() as stack:
        shared: dict[str, Any] = {**stack.enter_context(shared_parts(tmp_path)), **ROOM}
        workers = [
            stack.enter_context(starting_easel("worker", database_url, provider_url, tmp_path / name, shared))
            for name in ("ending", "staying")
        ]
        server = stack.enter_context(
            running_server(database_url, provider_url, tmp_path / "api", embedded_worker=False, **shared)
        )
        for worker in workers:
            worker.wait_until_ready()
        ada = server.sign_up()
        words = [f"w{secrets.token_hex(16)}" for _ in range(10)]
        runs = [ada.start(f"Draw {word} [offline: slow=6]", agent_key="designer")["id"] for word in words]
        for run_id in runs:
            wait_for_start(ada, run_id)
        status, seconds = workers[0].terminate()
        received = [ada.events(run_id) for run_id in runs]
        handed = workers[0].log.read_text().count("run.released")
        idle_status, idle_seconds = workers[1].terminate()
    results(
        14,
        "SIGTERM of a worker",
        tried=f"{len(runs)} runs, {handed} handed over",
        kept=f"exit {status} after {seconds:.2f} s, idle {idle_status} after {idle_seconds:.2f} s",
    )
    assert handed > 0
    assert (status, seconds <= timeouts.DRAINED) == (0, True)
    assert (idle_status, idle_seconds <= timeouts.IDLE_EXIT) == (0, True)
    assert [kinds(events)[-1] for events in received] == ["run.completed"] * len(runs)
    assert all(numbered(events) for events in received)
    assert [posts_with(provider_url, word) for word in words] == [1] * len(words)


def wait_for_start(user: ApiUser, run_id: str) -> None:
    with user.http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
        assert "event: tool.started" in answer.iter_lines()


@pytest.mark.prove
@pytest.mark.timeout(300)
def test_two_apis_and_two_workers_share_everything(
    database_url: str, provider_url: str, tmp_path: Path, results: Results
) -> None:
    with ExitStack() as stack:
        shared: dict[str, Any] = {**stack.enter_context(shared_parts(tmp_path)), **ROOM, "tenant_concurrency": 8}
        cluster = [
            stack.enter_context(starting_easel(command, database_url, provider_url, tmp_path / name, shared))
            for command, name in CLUSTER
        ]
        for easel in cluster:
            easel.wait_until_ready()
        ada = stack.enter_context(signed_up_at(cluster[0].base_url))
        words = [f"w{secrets.token_hex(16)}" for _ in range(40)]
        with ada.at(cluster[1].base_url) as elsewhere:
            clients = [ada.http, elsewhere]
            runs = [start_at(clients[number % 2], f"Draw {word}") for number, word in enumerate(words)]
            received = [resumed(clients[(number + 1) % 2], [], run_id=run) for number, run in enumerate(runs)]
        images = [one(events, "attachment.created")["attachment"] for events in received]
        whole = sum(hashlib.sha256(httpx.get(one["url"]).content).hexdigest() == one["sha256"] for one in images)
        paid = [posts_with(provider_url, word) for word in words]
        exits = [easel.terminate() for easel in cluster]
    kept = f"{whole} images whole, {sum(paid)} paid requests, exits after {max(end for _, end in exits):.2f} s"
    results(14, "two APIs and two workers", tried=f"{len(runs)} runs", kept=kept)
    assert [kinds(events)[-1] for events in received] == ["run.completed"] * len(runs)
    assert all(numbered(events) for events in received)
    assert (whole, paid) == (len(runs), [1] * len(runs))
    assert [status for status, _ in exits] == [0] * 4


def start_at(client: httpx.Client, text: str) -> str:
    answer = client.post("/v1/runs", json={"input": text, "agent_key": "designer"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def posts_with(provider_url: str, word: str) -> int:
    requests: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [request for request in requests if (request["method"], request["path"]) == ("POST", "/v1/responses")]
    return sum(word in json.dumps(post["body"]) for post in posts)
