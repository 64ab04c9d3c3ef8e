"""Several processes of `easel serve` on one port, as platforms ask for by WEB_CONCURRENCY and PORT."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.app_server import UNLIMITED, ApiUser
from tests.servers import free_port, redis_server
from tests.timeouts import wait_until

EASEL = Path(sys.executable).parent / "easel"


@pytest.fixture
def ports() -> tuple[int, int]:
    """The service's, and the first of two for metrics."""
    while True:
        port, metrics = free_port(), free_port()
        if metrics + 1 != port and not _listens(metrics + 1):
            return port, metrics


@pytest.fixture
def serving(
    ports: tuple[int, int], database_url: str, provider_url: str, tmp_path: Path
) -> Generator[subprocess.Popen[bytes]]:
    with redis_server(tmp_path / "redis") as redis:
        given = UNLIMITED | {"openai_api_key": "sk-test", "redis_url": redis.url, "web_concurrency": 2}
        environment = {name.upper(): str(value) for name, value in given.items()}
        environment |= {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "DATABASE_URL": database_url}
        environment |= {"OPENAI_BASE_URL": provider_url, "PORT": str(ports[0]), "METRICS_PORT": str(ports[1])}
        process = subprocess.Popen([EASEL, "serve"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: all(_is_ready(port) for port in (ports[0], ports[1], ports[1] + 1)))
            yield process
        finally:
            for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait()


@pytest.mark.slow
def test_two_processes_serve_one_port_one_that_is_lost_is_replaced_and_they_end_together(
    serving: subprocess.Popen[bytes], ports: tuple[int, int]
) -> None:
    first, second = psutil.Process(serving.pid).children()
    user = ApiUser(f"http://127.0.0.1:{ports[0]}")
    assert user.ask("Hello")[-1]["type"] == "run.completed"
    user.http.close()
    first.kill()
    wait_until(lambda: len({each.pid for each in psutil.Process(serving.pid).children()} - {first.pid}) == 2)
    wait_until(lambda: _is_ready(ports[1]) and _is_ready(ports[1] + 1))
    assert second.is_running()
    children = psutil.Process(serving.pid).children()
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(15) == 0
    assert [child for child in children if child.is_running()] == []


@pytest.mark.slow
def test_they_end_with_their_parent_however_that_ends(serving: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(serving.pid).children()
    serving.kill()
    assert psutil.wait_procs(children, timeout=15)[1] == []


@pytest.mark.slow
def test_one_that_could_not_start_ends_them_all_with_its_sentence(
    ports: tuple[int, int], database_url: str, tmp_path: Path
) -> None:
    taken = ports[1] + 1
    with redis_server(tmp_path / "redis") as redis, socket.create_server(("127.0.0.1", taken)):
        environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "DATABASE_URL": database_url}
        environment |= {"OPENAI_API_KEY": "sk-test", "REDIS_URL": redis.url, "WEB_CONCURRENCY": "2"}
        environment |= {"PORT": str(ports[0]), "METRICS_PORT": str(ports[1])}
        done = _run(tmp_path, environment)
    assert done.returncode == 1
    assert f"easel: METRICS_PORT={taken} on METRICS_HOST=127.0.0.1 cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr


def _run(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [EASEL, "serve"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
