"""Real API and worker processes, forked from one that has loaded everything: a hundred of them start in seconds.

Run as `python -m tests.processes`, it forks a process for each line on standard input, the JSON of a `Start`, and
answers with the child's process id.
"""

import asyncio
import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from app import logs
from app.embedded import Parts
from app.provider.warm_up import warm_up
from app.server import Server
from app.settings import load_settings
from app.worker.process import work
from tests import replies, timeouts
from tests.app_server import UNLIMITED
from tests.servers import free_port


@dataclass(frozen=True)
class Start:
    """A worker, or an API on `port`, with nothing but these variables in its environment; it logs to a file."""

    variables: dict[str, str]
    log: str
    port: int | None = None


class Processes:
    """Starts and kills processes with the same variables and log."""

    def __init__(self, variables: dict[str, str], log: Path) -> None:
        self._variables = variables
        self._log = str(log)
        self.pids: set[int] = set()
        self.urls: set[str] = set()

    def worker(self) -> int:
        """Its process id."""
        return self._start(None)

    def api(self) -> tuple[int, str]:
        """The process and its base URL, once it answers."""
        port = free_port()
        pid = self._start(port)
        url = f"http://127.0.0.1:{port}"
        self.urls.add(url)
        replies.origins.add(url)
        deadline = time.monotonic() + timeouts.SERVER_START
        while True:
            try:
                httpx.get(f"{url}/livez", timeout=1)
                return pid, url
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the API did not start"
                time.sleep(0.02)

    def _start(self, port: int | None) -> int:
        parent = _parent()
        assert parent.stdin is not None
        assert parent.stdout is not None
        print(json.dumps(asdict(Start(self._variables, self._log, port))), file=parent.stdin, flush=True)
        pid = int(parent.stdout.readline())
        self.pids.add(pid)
        return pid

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(pid, number)
        self.pids.discard(pid)


@contextmanager
def running_processes(directory: Path, variables: dict[str, str]) -> Generator[Processes]:
    """`variables` are the settings; the processes log into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(directory / "data")}
    environment |= {name.upper(): str(value) for name, value in UNLIMITED.items()} | variables
    processes = Processes(environment, directory / "log")
    try:
        yield processes
    finally:
        replies.origins.difference_update(processes.urls)
        for pid in list(processes.pids):
            processes.kill(pid)


@functools.cache
def _parent() -> subprocess.Popen[str]:
    """One for all tests of this process: to load everything takes seconds. It ends with its standard input."""
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.processes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(parent.communicate, timeout=10)
    return parent


def main() -> None:
    asyncio.run(warm_up())
    # Nobody waits for the children: the kernel does.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if pid := os.fork():
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
            continue
        _run(Start(**json.loads(line)))
        os._exit(0)


def _run(start: Start) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with Path(start.log).open("a") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(start.variables)
    settings = load_settings()
    assert settings.database_url is not None
    assert settings.openai_api_key is not None
    assert settings.openai_base_url is not None
    url, key = settings.database_url.get_secret_value(), settings.openai_api_key.get_secret_value()
    parts = Parts(url, settings.openai_base_url, key)
    logs.configure(settings.log_level)
    if start.port is None:
        asyncio.run(work(settings, parts, asyncio.Event()))
    else:
        Server(settings, parts, host="127.0.0.1", port=start.port).run()


if __name__ == "__main__":
    main()
