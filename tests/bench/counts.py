"""What can be counted: `./just bench --quick`. No times, so that a busy machine changes nothing."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import redis

from app.db import Database
from tests.app_server import ApiUser, AppServer, kinds, one, running_server
from tests.bench.lab import Lab
from tests.bench.report import Row
from tests.bench.requests import CountingProxy
from tests.round_trips import RoundTrips, counting

SPEC = """
from app.agents._shared.specs import AgentSpec


def get_agent_spec() -> AgentSpec:
    return AgentSpec(key="talker", display_name="A", description="An agent.", prompt_path=None, tool_keys=())
"""
TEXT, IMAGE = "[bench text deltas=20]", "[bench image size=400KB]"
# Both connections of the pool have prepared each statement by then.
WARM_UP = 8
# Some of them with a sweep beside them, whose statements count as well.
COUNTED_TURNS = 3
COUNTED = ("statements", "transactions", "round trips")
TEXT_GOALS, IMAGE_GOALS = (12, 4, 24), (20, 7, 40)
HEAVY = ("openai", "agents", "fastapi", "sqlalchemy", "google.cloud.storage", "minio", "alembic", "PIL")
IMPORT_TIME = "PYTHONPROFILEIMPORTTIME"
STORED_SECONDS = 30.0


def rows(lab: Lab) -> Generator[Row]:
    yield from _imports(lab)
    with running(lab) as server:
        yield from _of_postgres(server)
    with CountingProxy(lab.s3.endpoint) as s3, running(lab, minio_endpoint=s3.endpoint) as server:
        yield from _of_images(lab, server, s3)
    with lab.redis() as broker, running(lab, redis_url=broker.url) as server:
        yield from _of_redis(server, broker.url)


@contextmanager
def running(lab: Lab, **settings: Any) -> Generator[AppServer]:
    """In this process: what is counted goes through its objects."""
    directory = lab.new_directory()
    (directory / "agents" / "talker").mkdir(parents=True)
    (directory / "agents" / "talker" / "spec.py").write_text(SPEC)
    given: dict[str, Any] = {**lab.storage(), "database_pool_size": 2, "agents_dir": [directory / "agents"], **settings}
    with running_server(lab.new_database(), f"{lab.provider_url}/v1", directory, **given) as server:
        yield server


def _imports(lab: Lab) -> Generator[Row]:
    command = [str(Path(sys.executable).parent / "easel"), "--help"]
    environment = {**os.environ, IMPORT_TIME: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    found = _modules(done.stderr)
    yield Row("easel --help, modules", len(found), "")
    yield Row(f"easel --help, of {len(HEAVY)} large packages", len(found & set(HEAVY)), "", most=0)
    with lab.redis() as broker:
        settings: dict[str, Any] = {"redis_url": broker.url, "embedded_worker": False, IMPORT_TIME: 1}
        with lab.easel(**settings) as easel:
            found = _modules(easel.log.read_text())
    yield Row("easel serve without a worker, modules", len(found), "")
    yield Row("easel serve without a worker, of openai and agents", len(found & {"openai", "agents"}), "", most=0)


def _modules(log: str) -> set[str]:
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def _of_postgres(server: AppServer) -> Generator[Row]:
    user = server.sign_up()
    for agent_key, text, goals in (("talker", TEXT, TEXT_GOALS), ("designer", IMAGE, IMAGE_GOALS)):
        for _ in range(WARM_UP):
            turn(user, text, agent_key)
        database: Database = server.uvicorn.app.state.database
        trips = min((_counted(database, user, text, agent_key) for _ in range(COUNTED_TURNS)), key=_costs)
        what = "text turn" if text == TEXT else "image turn (0.4 MB, no preview)"
        for name, count, goal in zip(COUNTED, _costs(trips), goals, strict=True):
            yield Row(f"{what}, {name}", count, "", most=goal)


def _counted(database: Database, user: ApiUser, text: str, agent_key: str) -> RoundTrips:
    with counting(database.engine) as trips:
        turn(user, text, agent_key)
    return trips


def _costs(trips: RoundTrips) -> tuple[int, int, int]:
    return len(trips.statements), trips.transactions, len(trips.sent)


def _of_images(lab: Lab, server: AppServer, s3: CountingProxy) -> Generator[Row]:
    user = server.sign_up()
    talk = one(drawn(user), "run.created")["run"]["conversation_id"]
    for _ in range(2):
        drawn(user, conversation_id=talk)
    yield Row("third turn of an image conversation, request to the provider", lab.stop_streams(), "bytes", most=16_384)
    events = drawn(user)
    # Not those of sweeps, which list the store.
    counted = s3.count(one(events, "attachment.created")["attachment"]["object_id"])
    # It has 512 pixels, and so no copy of 1024.
    what = "image of 512x512 and its thumbnails"
    yield Row(f"{what}, PUTs", counted["PUT"], "", most=3)
    yield Row(f"{what}, other requests to the store", counted.total() - counted["PUT"], "", most=1)
    yield Row("image turn (0.4 MB, no preview), events", len(events), "")


def drawn(user: ApiUser, **fields: Any) -> list[dict[str, Any]]:
    """An image's events, once its thumbnails are stored, too."""
    events = turn(user, IMAGE, "designer", **fields)
    object_id = one(events, "attachment.created")["attachment"]["object_id"]
    deadline = time.monotonic() + STORED_SECONDS
    while not user.http.get(f"/v1/attachments/{object_id}").json()["variants"]:
        assert time.monotonic() < deadline, "no thumbnails"
        time.sleep(0.05)
    return events


def _of_redis(server: AppServer, url: str) -> Generator[Row]:
    user = server.sign_up()
    for _ in range(2):
        turn(user, TEXT, "talker")
    with cast(Any, redis.Redis).from_url(url) as client:
        before = _commands(client)
        events = turn(user, TEXT, "talker")
        after = _commands(client)
    used = {name: after[name] - before.get(name, 0) for name in after}
    scripts = sum(used.get(name, 0) for name in ("eval", "evalsha", "fcall"))
    reads = used.get("xread", 0) + used.get("xreadgroup", 0)
    # Each would be as many as the events if those went one by one; how many go together differs.
    most = len(events) // 2
    yield Row(f"text turn of {len(events)} events through Redis, scripts", scripts, "", most=most)
    yield Row(f"text turn of {len(events)} events through Redis, stream reads", reads, "", most=most)
    sent = sum(len(event["delta"]) for event in events if event["type"] == "text.delta")
    yield Row("text turn, letters that arrived", sent, "", least=20 * len("word "))


def _commands(client: Any) -> dict[str, int]:
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): counted["calls"] for name, counted in stats.items()}


def turn(user: ApiUser, text: str, agent_key: str, **fields: Any) -> list[dict[str, Any]]:
    events = user.ask(text, agent_key=agent_key, **fields)
    assert kinds(events)[-1] == "run.completed", events[-1]
    return events
