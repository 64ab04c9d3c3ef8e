"""The whole service on loopback, and the users who call it, for tests that speak HTTP."""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import uvicorn

from app.agents._shared.registry import load_registry
from app.agents._shared.sdk_tools import make_function_tool
from app.embedded import Parts
from app.http_protocol import http_protocol
from app.logins import as_login
from app.server import Server
from app.settings import Settings
from offline.routes import SERVED
from offline.routes import create_app as create_offline
from tests import replies, timeouts
from tests.servers import free_port, redis_server, s3_server

Event = dict[str, Any]
# Hundreds sign up from this one address, and one user of a test does what many would.
UNLIMITED = {
    "anonymous_requests_per_minute": 1_000_000,
    "user_streams": 10_000,
    "tenant_queued_runs": 10_000,
    "tenant_uploads": 1_000,
}
PASSWORD = "correct horse battery"
ROOT = Path(__file__).resolve().parents[1]

Easel = Callable[..., str]
"""The command in this process: its arguments, and `code`, with which it is to exit; what it prints."""


class ApiUser:
    """A signed-up user: of a tenant of their own, or of the one that `invited_by` invites them to, as `role`."""

    def __init__(
        self, base_url: str, tenant_name: str = "Acme", *, invited_by: "ApiUser | None" = None, role: str = "admin"
    ) -> None:
        self.base_url = base_url
        self.http = httpx.Client(base_url=base_url, timeout=30)
        # Closed before its sockets are collected, which would be noticed in whatever test runs then.
        weakref.finalize(self, self.http.close)
        self.email = f"{secrets.token_hex(6)}@example.com"
        if invited_by is None:
            path, body = "/v1/signup", {"email": self.email, "password": PASSWORD, "tenant_name": tenant_name}
        else:
            token = invited_by.invite(self.email, role)["token"]
            path, body = "/v1/invitations/acceptance", {"token": token, "password": PASSWORD}
        answer = self.http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        self.signed_up = cast(dict[str, Any], answer.json())
        self.http.headers["Authorization"] = f"Bearer {self.signed_up['access_token']}"
        self.role = cast(str, self.signed_up.get("role", "owner"))
        self.signed_up.setdefault("user", self.http.get("/v1/me").json()["user"])

    @property
    def id(self) -> str:
        return cast(str, self.signed_up["user"]["id"])

    def invite(self, email: str, role: str = "member") -> dict[str, Any]:
        answer = self.http.post("/v1/invitations", json={"email": email, "role": role})
        assert answer.status_code == 201, answer.text
        return cast(dict[str, Any], answer.json())

    def sign_in(self, password: str = PASSWORD) -> dict[str, Any]:
        """Another sign-in, whose token is used from now on."""
        answer = httpx.post(f"{self.base_url}/v1/tokens", json={"email": self.email, "password": password})
        assert answer.status_code == 201, answer.text
        tokens = cast(dict[str, Any], answer.json())
        self.http.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        return tokens

    def sign_ins(self) -> list[dict[str, Any]]:
        answer = self.http.get("/v1/tokens")
        assert answer.status_code == 200, answer.text
        return cast(list[dict[str, Any]], answer.json()["data"])

    def ask(self, text: str, **fields: Any) -> list[Event]:
        """All events of a new run, to its end."""
        body = {"input": text, **fields}
        with self.http.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer:
            if answer.is_error:
                answer.read()
            assert answer.status_code == 200, answer.text
            return list(events_of(answer))

    def draw(self, text: str = "Draw a red house", **fields: Any) -> list[Event]:
        # The lowest quality is drawn in half the time.
        image = {"quality": "low", **fields.pop("image", {})}
        return self.ask(text, agent_key="designer", image=image, **fields)

    def start(self, text: str, **fields: Any) -> dict[str, Any]:
        """A new run, not waited for."""
        answer = self.http.post("/v1/runs", json={"input": text, **fields})
        assert answer.status_code == 202, answer.text
        return cast(dict[str, Any], answer.json())

    def events(self, run_id: str, *, after: int = 0) -> list[Event]:
        with self.http.stream("GET", f"/v1/runs/{run_id}/events", params={"after": after}) as answer:
            return list(events_of(answer))

    def at(self, base_url: str) -> httpx.Client:
        """The same user at another process."""
        return httpx.Client(
            base_url=base_url, headers={"Authorization": self.http.headers["Authorization"]}, timeout=30
        )

    def messages(self, conversation_id: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v1/conversations/{conversation_id}/messages")
        assert answer.status_code == 200, answer.text
        return cast(list[dict[str, Any]], answer.json()["data"])


def events_of(answer: httpx.Response) -> Iterator[Event]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            replies.findings.extend(replies.event_faults(event))
            yield event


def kinds(events: list[Event]) -> list[str]:
    return [str(event["type"]) for event in events]


def one(events: list[Event], kind: str) -> Event:
    """The only event of its kind."""
    (found,) = [event for event in events if event["type"] == kind]
    return found


class AppServer:
    """A running server and the clients that talk to it."""

    def __init__(self, uvicorn_server: Server, base_url: str, settings: Settings) -> None:
        self.uvicorn = uvicorn_server
        self.base_url = base_url
        self.settings = settings
        self._clients: list[httpx.Client] = []

    def sign_up(self, tenant_name: str = "Acme") -> ApiUser:
        user = ApiUser(self.base_url, tenant_name)
        self._clients.append(user.http)
        return user

    def sign_up_invited(self, by: ApiUser, role: str = "member") -> ApiUser:
        """A new user of the tenant of `by`."""
        user = ApiUser(self.base_url, invited_by=by, role=role)
        self._clients.append(user.http)
        return user

    def anyone(self) -> httpx.Client:
        """A client without credentials."""
        client = httpx.Client(base_url=self.base_url, timeout=30)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def running_server(
    database_url: str,
    provider_url: str,
    directory: Path,
    *,
    agents: Path | None = None,
    login: str | None = None,
    provider_key: str = "sk-test",
    **settings: Any,
) -> Generator[AppServer]:
    """The API with its worker, on a free port of loopback; `agents` is a folder of agents in place of the shipped.

    It serves with the user `login`, while `settings.database_url` stays the tests' own.
    """
    given: dict[str, Any] = {**UNLIMITED, "data_dir": directory}
    given |= {"database_url": database_url, **settings}
    chosen = Settings(_env_file=None, **given)  # pyright: ignore[reportCallIssue]  # pydantic-settings hides it from the types
    port = free_port()
    serving_url = as_login(database_url, login) if login else database_url
    uvicorn_server = Server(chosen, Parts(serving_url, provider_url, provider_key), host="127.0.0.1", port=port)
    if agents is not None:
        uvicorn_server.app.state.registry = load_registry(chosen, agents, make_tool=make_function_tool)
    server = AppServer(uvicorn_server, f"http://127.0.0.1:{port}", chosen)
    with _in_thread(uvicorn_server), replies.served_at(server.base_url):
        try:
            yield server
        finally:
            server.close()


@contextmanager
def shared_parts(directory: Path) -> Generator[dict[str, Any]]:
    """The settings of processes that share one Redis and one S3 server of their own."""
    with redis_server(directory / "redis") as redis, s3_server(directory / "s3") as s3:
        yield {
            "redis_url": redis.url,
            "storage_provider": "minio",
            "minio_endpoint": s3.endpoint,
            "minio_access_key": s3.access_key,
            "minio_secret_key": s3.secret_key,
            "minio_secure": False,
            "secret_key": "signs the links of every process",
        }


@dataclass(frozen=True)
class EaselProcess:
    """A process of the `easel` command; a worker has no `base_url`."""

    process: subprocess.Popen[bytes]
    base_url: str
    log: Path

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + timeouts.PROCESS_START
        while not self._ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "easel took too long to start"
            time.sleep(0.05)

    def _ready(self) -> bool:
        if not self.base_url:
            return "worker.started" in self.log.read_text()
        try:
            return httpx.get(f"{self.base_url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def terminate(self) -> tuple[int, float]:
        """Its exit status, and the seconds from SIGTERM to its end."""
        began = time.monotonic()
        self.process.terminate()
        return self.process.wait(20), time.monotonic() - began


@contextmanager
def starting_easel(
    command: Literal["serve", "worker"],
    database_url: str,
    provider_url: str,
    directory: Path,
    settings: Mapping[str, Any],
    *,
    tree: Path | None = None,
) -> Generator[EaselProcess]:
    """`easel serve` or `easel worker` with these settings and UNLIMITED alone, not waited for; of another `tree`."""
    directory.mkdir(parents=True)
    port = free_port()
    given = {"openai_api_key": "sk-test", **UNLIMITED, **settings}
    environment = {name.upper(): str(value) for name, value in given.items()}
    environment |= {"PATH": os.environ["PATH"], "DATA_DIR": str(directory), "DATABASE_URL": database_url}
    # The tree that is tested may be a copy of the one that is installed.
    environment |= {"OPENAI_BASE_URL": provider_url, "PYTHONPATH": str(tree or ROOT)}
    options = ["--port", str(port)] if command == "serve" else []
    log = directory / "log"
    with log.open("wb") as errors:
        program = str(Path(sys.executable).parent / "easel")
        process = subprocess.Popen([program, command, *options], cwd=directory, env=environment, stderr=errors)
    base_url = f"http://127.0.0.1:{port}" if command == "serve" else ""
    try:
        # Another tree may document other replies.
        with nullcontext() if tree else replies.served_at(base_url):
            yield EaselProcess(process, base_url, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_provider(directory: Path) -> Generator[str]:
    """The offline simulator at fifty times its usual speed; its base URL."""
    port = free_port()
    app = create_offline(directory, speed=50)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False, **SERVED)
    with _in_thread(uvicorn.Server(config)):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def running_alone(app: Any) -> Generator[int]:
    """An ASGI app without the rest of the service, behind the same HTTP protocol; its port."""
    port = free_port()
    protocol = http_protocol(Settings(_env_file=None))  # pyright: ignore[reportCallIssue]
    config = uvicorn.Config(app, host="127.0.0.1", port=port, http=protocol, log_config=None, lifespan="off")
    with _in_thread(uvicorn.Server(config)):
        yield port


@contextmanager
def _in_thread(server: uvicorn.Server) -> Generator[None]:
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + timeouts.SERVER_START
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server took too long to start"
            time.sleep(0.01)
        yield
    finally:
        if isinstance(server, Server):
            server.leave()
        server.should_exit = True
        thread.join(15)
