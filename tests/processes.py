"""Real API and worker processes, forked from one that has loaded everything: a hundred of them start in seconds.

Run as `python -m tests.processes`, it forks a worker for each line `worker` on standard input and an API for each
line `serve PORT`, and answers with the child's process id.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
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


class Processes:
    """Starts and kills; `start` returns a process id."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent
        self.pids: set[int] = set()
        self.urls: set[str] = set()

    def worker(self) -> int:
        return self._start("worker")

    def api(self) -> tuple[int, str]:
        """The process and its base URL, once it answers."""
        port = free_port()
        pid = self._start(f"serve {port}")
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

    def _start(self, line: str) -> int:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(line, file=self._parent.stdin, flush=True)
        pid = int(self._parent.stdout.readline())
        self.pids.add(pid)
        return pid

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(pid, number)
        self.pids.discard(pid)


@contextmanager
def running_processes(directory: Path, variables: dict[str, str]) -> Generator[Processes]:
    """`variables` are the settings; each process logs into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(directory / "data")}
    environment |= {name.upper(): str(value) for name, value in UNLIMITED.items()} | variables
    with (directory / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )
        processes = Processes(parent)
        try:
            yield processes
        finally:
            replies.origins.difference_update(processes.urls)
            for pid in list(processes.pids):
                processes.kill(pid)
            parent.communicate(timeout=10)


def main() -> None:
    settings = load_settings()
    assert settings.database_url is not None
    assert settings.openai_api_key is not None
    assert settings.openai_base_url is not None
    url, key = settings.database_url.get_secret_value(), settings.openai_api_key.get_secret_value()
    parts = Parts(url, settings.openai_base_url, key)
    asyncio.run(warm_up())
    # Nobody waits for the children: the kernel does.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if pid := os.fork():
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        logs.configure(settings.log_level)
        what, _, port = line.strip().partition(" ")
        if what == "serve":
            Server(settings, parts, host="127.0.0.1", port=int(port)).run()
        else:
            asyncio.run(work(settings, parts, asyncio.Event()))
        os._exit(0)


if __name__ == "__main__":
    main()
