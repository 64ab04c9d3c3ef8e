"""The `easel` command as an operator types it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import psutil
import pytest

from app.cli import main
from app.migrate import migrate
from tests import timeouts
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def _environment(directory: Path, **variables: str) -> dict[str, str]:
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(directory),
        "DATA_DIR": str(directory / "var"),
        **variables,
    }


def _easel(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "easel", *arguments],
        env=_environment(directory, **variables),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def home() -> Generator[Path]:
    """A folder for what starts Postgres: another run of pytest closes pytest's own to the server's user."""
    with tempfile.TemporaryDirectory(prefix="easel-home-") as directory:
        yield Path(directory)


@pytest.mark.slow
def test_demo_saves_an_image_and_leaves_no_process(home: Path) -> None:
    done = _easel(home, "demo", "a", "gray", "tabby cat", "hugging an otter")
    assert done.returncode == 0, done.stderr
    assert "You: a gray tabby cat hugging an otter\n" in done.stdout
    (image,) = (home / "var").glob("designer-*.png")
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "offline simulator" in done.stdout
    # The server has ended, and its links with it.
    assert "http" not in done.stdout.replace("http://127.0.0.1:8000", "")
    assert _processes_of(home) == []


@pytest.mark.slow
def test_sigterm_to_just_dev_leaves_no_process(home: Path) -> None:
    port = free_port()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [ROOT / "just", "dev", "--port", str(port)], env=_environment(home), cwd=ROOT, stdout=log, stderr=log
        )
        _until_ready(f"http://127.0.0.1:{port}/readyz")
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(_processes_of(home)) > 1
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert (len(gone), alive) == (len(started), [])
    assert _processes_of(home) == []


@pytest.mark.slow
def test_after_a_kill_the_next_serve_ends_the_database_with_itself(home: Path) -> None:
    killed = _serving(home)
    killed.kill()
    killed.wait(20)
    assert _postgres_of(home)
    ended = _serving(home)
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(20) == 0
    assert _postgres_of(home) == []


@pytest.mark.slow
def test_the_simulator_runs_on_its_own_until_sigterm(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [BIN / "easel", "offline", "--port", str(port)],
        env=_environment(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _until_ready(f"http://127.0.0.1:{port}/offline/requests")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert _processes_of(tmp_path) == []


def test_help_loads_none_of_the_commands() -> None:
    program = "import sys; from app.cli import cli; cli(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "Serve the API" in done.stdout
    loaded = {name.partition(".")[0] for name in re.findall(r"'([\w.]+)'", done.stdout)}
    assert loaded & {"fastapi", "sqlalchemy", "openai", "agents", "pydantic", "httpx", "uvicorn", "offline"} == set()


@pytest.mark.slow
def test_migrate_works_through_hatch(tmp_path: Path, empty_database_url: str) -> None:
    environment = _environment(tmp_path, DATABASE_URL=empty_database_url)
    for _ in range(2):
        done = subprocess.run(
            [BIN / "hatch", "run", "migrate"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "The database is at revision" in done.stdout


def test_production_lists_every_missing_setting_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = _refusal(monkeypatch, tmp_path, "serve", ENVIRONMENT="production")
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "OPENAI_API_KEY", "PUBLIC_URL", "STORAGE_PROVIDER"):
        assert name in refused


@pytest.mark.slow
def test_doctor_says_what_is_behind(
    tmp_path: Path, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "just migrate" in _refusal(monkeypatch, tmp_path, "doctor", DATABASE_URL=empty_database_url)
    asyncio.run(migrate(empty_database_url))
    _run_here(monkeypatch, tmp_path, "doctor", DATABASE_URL=empty_database_url)
    assert "All parts answer." in capsys.readouterr().out


def test_a_worker_without_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "REDIS_URL" in _refusal(monkeypatch, tmp_path, "worker")


def _refusal(monkeypatch: pytest.MonkeyPatch, directory: Path, command: str, **variables: str) -> str:
    """The sentence that the command ends with."""
    with pytest.raises(SystemExit) as left:
        _run_here(monkeypatch, directory, command, **variables)
    return str(left.value.code)


def _run_here(monkeypatch: pytest.MonkeyPatch, directory: Path, command: str, **variables: str) -> None:
    """In this process, as loading everything anew takes seconds."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["easel", command])
    monkeypatch.setattr("app.logs.configure", str)  # does nothing
    for name, value in {"DATA_DIR": str(directory / "var"), **variables}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _serving(directory: Path) -> subprocess.Popen[bytes]:
    """`easel serve` with everything embedded, once it is ready."""
    port = free_port()
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [BIN / "easel", "serve", "--port", str(port)],
            env=_environment(directory),
            cwd=directory,
            stdout=log,
            stderr=log,
        )
    _until_ready(f"http://127.0.0.1:{port}/readyz")
    return process


def _until_ready(url: str) -> None:
    deadline = time.monotonic() + timeouts.PROCESS_START
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")


def _processes_of(directory: Path) -> list[str]:
    """Processes that still name the directory on their command line."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(directory) in line:
            found.append(line)
    return found


def _postgres_of(directory: Path) -> list[str]:
    return [line for line in _processes_of(directory) if "postgres" in line.partition(" ")[0]]
