"""Promise 15: a stream that was cut anywhere goes on where it broke, at any process, and is never silent for long."""

import json
import random
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from redis import Redis

from app.runs import reader
from tests.app_server import ApiUser, AppServer, Event, kinds, running_server
from tests.results import Results
from tests.servers import Proxy, redis_server

SETTLED = ("run.completed", "run.failed", "run.cancelled")
KEPT_SECONDS = 600
MOST_SILENT_SECONDS = 15


@dataclass(frozen=True)
class Pair:
    """Two API processes' worth of houses on one Redis; only the first executes runs."""

    first: AppServer
    second: AppServer
    redis_url: str


@pytest.fixture
def pair(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Pair]:
    with redis_server(tmp_path / "redis") as redis:
        shared: dict[str, Any] = {"redis_url": redis.url, "stream_ttl_seconds": KEPT_SECONDS}
        with (
            running_server(database_url, provider_url, tmp_path / "first", **shared) as first,
            running_server(database_url, provider_url, tmp_path / "second", embedded_worker=False, **shared) as second,
        ):
            yield Pair(first, second, redis.url)


@pytest.mark.parametrize("cuts", [5, pytest.param(100, marks=[pytest.mark.prove, pytest.mark.timeout(600)])])
def test_a_stream_cut_anywhere_goes_on_where_it_broke(pair: Pair, cuts: int, results: Results) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    ada = pair.first.sign_up()
    length = sum(len(frame) for frame in frames_of(ada.http, ada.start("Draw a boat", agent_key="designer")["id"]))
    kept = broken = 0
    with (
        Proxy(pair.first.base_url.removeprefix("http://")) as first,
        Proxy(pair.second.base_url.removeprefix("http://")) as second,
    ):
        for number in range(cuts):
            run_id = ada.start(f"Draw house {number}", agent_key="designer")["id"]
            proxies = chance.sample([first, second], 2)
            seen, breaks = read_through_cuts(ada, run_id, proxies, chance, length)
            with ada.at(pair.second.base_url) as client:
                whole = list(events_in(frames_of(client, run_id)))
            broken += breaks > 0
            kept += without_links(seen) == without_links(whole) and [e["seq"] for e in seen] == [
                *range(1, len(seen) + 1)
            ]
    results(15, "streams cut and resumed", tried=f"{cuts} cuts, {broken} before the end", kept=f"{kept}", seed=seed)
    assert kept == cuts, f"seed {seed}"
    assert broken >= cuts * 0.8, f"seed {seed}"


def read_through_cuts(
    ada: ApiUser, run_id: str, proxies: list[Proxy], chance: random.Random, length: int
) -> tuple[list[Event], int]:
    """All events, read through one proxy and then the other until the run's end, and how often the stream broke.

    The first connection is cut after a random number of its bytes: by the network, or by its reader.
    """
    seen: list[Event] = []
    breaks = 0
    cut_at, by_network = chance.randrange(1, length), chance.random() < 0.5
    while not seen or seen[-1]["type"] not in SETTLED:
        proxy = proxies[breaks % 2]
        if by_network and breaks == 0:
            # Both ways count: the question goes by first.
            proxy.reset_after, proxy.resets_left, proxy.mode = 250 + cut_at, 1, "reset_mid"
        with ada.at(f"http://{proxy.endpoint}") as client, suppress(httpx.TransportError):
            limit = cut_at if not by_network and breaks == 0 else None
            # One by one: what came before the break counts.
            for event in events_in(frames_of(client, run_id, after=len(seen), limit=limit)):
                seen.append(event)  # noqa: PERF402
        proxy.mode = "pass"
        breaks += 1
    return seen, breaks - 1


def frames_of(client: httpx.Client, run_id: str, *, after: int = 0, limit: int | None = None) -> Iterator[bytes]:
    """Whole SSE frames, comments too; what was begun when the stream broke, or at `limit` bytes, is left out."""
    buffer, read = b"", 0
    headers = {"Last-Event-ID": str(after)}
    with client.stream("GET", f"/v1/runs/{run_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_raw():
            buffer += chunk[: None if limit is None else max(limit - read, 0)]
            read += len(chunk)
            while b"\n\n" in buffer:
                frame, _, buffer = buffer.partition(b"\n\n")
                yield frame
            if limit is not None and read >= limit:
                return


def events_in(frames: Iterator[bytes]) -> Iterator[Event]:
    for frame in frames:
        if frame.startswith(b":"):
            continue
        fields = dict(line.split(": ", 1) for line in frame.decode().split("\n"))
        event = cast(Event, json.loads(fields["data"]))
        assert (fields["id"], fields["event"]) == (str(event["seq"]), event["type"])
        yield event


LINKS = ("url", "download_url", "url_expires_at")


def without_links(value: Any) -> Any:
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value).items()
        return {name: without_links(one) for name, one in fields if name not in LINKS}
    if isinstance(value, list):
        return [without_links(one) for one in cast(list[Any], value)]
    return value


def test_events_are_kept_for_ten_minutes_after_the_end(pair: Pair) -> None:
    ada = pair.first.sign_up()
    run_id = ada.draw()[-1]["run_id"]
    host, port = pair.redis_url.removeprefix("redis://").removesuffix("/0").split(":")
    redis: Any = Redis(host, int(port))
    with redis:
        left = [redis.pttl(key) / 1000 for key in redis.keys(f"*{run_id}*") if redis.type(key) == b"stream"]
    assert left
    assert min(left) > KEPT_SECONDS - 10
    assert kinds(ada.events(run_id))[-1] == "run.completed"


def test_after_the_last_event_there_is_nothing_more_at_any_process(pair: Pair) -> None:
    ada = pair.first.sign_up()
    last = ada.draw()[-1]
    for server in (pair.first, pair.second):
        with ada.at(server.base_url) as client:
            headers = {"Last-Event-ID": str(last["seq"])}
            assert client.get(f"/v1/runs/{last['run_id']}/events", headers=headers).status_code == 204


@pytest.mark.parametrize(
    ("silence", "at_most", "every"),
    [
        pytest.param(1.5, 0.5, 0.1, id="short"),
        pytest.param(120.0, MOST_SILENT_SECONDS, None, id="long", marks=[pytest.mark.prove, pytest.mark.timeout(300)]),
    ],
)
def test_a_silent_stream_still_says_something(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, silence: float, at_most: float, every: float | None, results: Results
) -> None:
    if every is not None:
        monkeypatch.setattr(reader, "HEARTBEAT_SECONDS", every)
    ada = pair.first.sign_up()
    # Two previews: each takes half of it.
    run_id = ada.start(f"Draw slowly [offline: slow={silence * 3:.0f}]", agent_key="designer")["id"]
    comments, gaps = 0, [0.0]
    with ada.at(pair.second.base_url) as client:
        began = last = 0.0
        for frame in frames_of(client, run_id):
            now = time.monotonic()
            if b"event: tool.started" in frame:
                began = last = now
            if not began:
                continue
            comments += frame.startswith(b":")
            gaps.append(now - last)
            last = now
            if now - began > silence:
                break
        assert client.put(f"/v1/runs/{run_id}/cancellation").status_code == 202
    kept = f"{comments} comments, the longest gap {max(gaps):.2f} s of {at_most:g} s"
    results(15, "heartbeats", tried=f"{silence:g} s of silence", kept=kept)
    assert comments >= silence / at_most
    assert max(gaps) <= at_most
