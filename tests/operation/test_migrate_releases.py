"""The release before goes on serving while this one migrates, and after it: two checkouts, one database."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic.script import ScriptDirectory

from app.schema import SCRIPTS, head_revision
from tests import made_streams, timeouts
from tests.app_server import PASSWORD, starting_easel
from tests.migrations import ROOT
from tests.results import Results
from tests.tables import rows

USERS = 3
FULL = "EASEL_PROVE" in os.environ
REQUESTS_AROUND = 1000 if FULL else 45
COMMAND = "from app.cli import main; main()"


def release_before() -> bytes:
    """A tar of the last commit that lacked the newest migration; skips where the history is not here, but in CI."""
    script = ScriptDirectory(str(SCRIPTS)).get_revision(head_revision())
    newest = str(Path(script.path).relative_to(ROOT))
    try:
        added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", newest).decode().strip()
        return git("archive", f"{added}^" if added else "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"The history of {newest} is not in this checkout: fetch all of it (git fetch --unshallow)."
        if os.environ.get("CI") == "true":
            raise RuntimeError(message) from error
        pytest.skip(message)


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("release-before")
    subprocess.run(["tar", "--extract", "--directory", tree], input=release_before(), check=True)
    return tree


class Users:
    """What users do, until they are told to stop; every reply that is no success, by phase."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.phase = "before"
        self.requests: Counter[str] = Counter()
        self.failures: list[str] = []
        self.ended = False

    async def reach(self, count: int) -> None:
        """Wait until so many requests were answered in this phase."""
        deadline = time.monotonic() + timeouts.PROCESS_START + count / 10
        while self.requests[self.phase] < count:
            assert time.monotonic() < deadline, f"{self.requests[self.phase]} requests {self.phase}: {self.failures}"
            await asyncio.sleep(0.05)

    async def talk(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.base_url, timeout=60) as http:
            email = f"user-{number}@example.com"
            body = {"email": email, "password": PASSWORD, "tenant_name": "A"}
            signed_up = await self._call(http, "POST", "/v1/signup", json=body)
            http.headers["Authorization"] = f"Bearer {signed_up['access_token']}"
            for turn in itertools.count():
                if self.ended:
                    return
                await self._turn(http, email, drawing=turn % 3 == 0)

    async def _turn(self, http: httpx.AsyncClient, email: str, *, drawing: bool) -> None:
        agent = {"agent_key": "designer", "image": {"quality": "low"}} if drawing else {}
        run = await self._run(http, {"input": "A cat", **agent})
        conversation = f"/v1/conversations/{run['conversation_id']}"
        upload = await self._call(http, "POST", "/v1/attachments", files={"file": ("a.png", PNG, "image/png")})
        for path in (
            "/v1/conversations",
            f"{conversation}/messages",
            "/v1/attachments",
            "/v1/usage",
            "/v1/me",
            "/readyz",
        ):
            await self._call(http, "GET", path)
        await self._call(http, "POST", "/v1/tokens", json={"email": email, "password": PASSWORD})
        await self._call(http, "PATCH", conversation, json={"title": "Cats"})
        await self._call(http, "DELETE", f"/v1/attachments/{upload['object_id']}")
        await self._call(http, "DELETE", conversation)

    async def _run(self, http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Accept": "text/event-stream"}
        text = (await self._reply(http, "POST", "/v1/runs", json=body, headers=headers)).text
        last = json.loads(text.rpartition("data: ")[2])
        if last["type"] != "run.completed":
            self.failures.append(f"{self.phase}: {last}")
        return last["run"]

    async def _call(self, http: httpx.AsyncClient, method: str, path: str, **given: Any) -> Any:
        reply = await self._reply(http, method, path, **given)
        return reply.json() if reply.content else None

    async def _reply(self, http: httpx.AsyncClient, method: str, path: str, **given: Any) -> httpx.Response:
        reply = await http.request(method, path, **given)
        self.requests[self.phase] += 1
        if not reply.is_success:
            self.failures.append(f"{self.phase}: {method} {path}: {reply.status_code} {reply.text[:200]}")
        return reply


PNG = made_streams.png("red")


@asynccontextmanager
async def busy(base_url: str) -> AsyncGenerator[Users]:
    users = Users(base_url)
    async with asyncio.TaskGroup() as tasks:
        for number in range(USERS):
            tasks.create_task(users.talk(number))
        yield users
        users.ended = True


async def easel_migrate(tree: Path, url: str, directory: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tree), "DATABASE_URL": url}
    program = (sys.executable, "-c", COMMAND, "migrate")
    process = await asyncio.create_subprocess_exec(*program, cwd=directory, env=environment)
    assert await process.wait() == 0


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_the_release_before_serves_on_the_newest_schema(
    empty_database_url: str, provider_url: str, old_tree: Path, tmp_path: Path, results: Results
) -> None:
    url = empty_database_url
    await easel_migrate(old_tree, url, tmp_path)
    before = await asyncio.to_thread(rows, url, REVISION)
    assert before != [(head_revision(),)]
    with starting_easel("serve", url, provider_url, tmp_path / "old", {}, tree=old_tree) as old:
        await asyncio.to_thread(old.wait_until_ready)
        async with busy(old.base_url) as users:
            await users.reach(REQUESTS_AROUND)
            users.phase = "while"
            await easel_migrate(ROOT, url, tmp_path)
            users.phase = "after"
            assert await asyncio.to_thread(rows, url, REVISION) == [(head_revision(),)]
            await users.reach(REQUESTS_AROUND)
    assert users.failures == []
    assert users.requests["while"] > 0
    of = users.requests
    results(
        39,
        "the release before on the newest schema",
        tried=f"revision {before[0][0]} serves, {head_revision()} migrates: {of['before']} requests before,"
        f" {of['while']} while, {of['after']} after",
        kept=f"{len(users.failures)} failed",
    )


REVISION = "SELECT version_num FROM alembic_version"
