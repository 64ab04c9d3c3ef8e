"""Several processes that serve on the same sockets (`WEB_CONCURRENCY`): the kernel hands each connection to one.

They are forked before any thread or event loop begins. One that ends by itself is replaced; SIGTERM and SIGINT end all.
"""

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable

from app import EaselError
from app.exits import exit_with_fault

log = logging.getLogger(__name__)

# What fails sooner could not start: another one would do no better. A signal, as of a system out of memory, is no such
# failure.
STARTED_SECONDS = 30.0
PAUSE_SECONDS = 0.5

Serve = Callable[[int], None]
"""Serves as the process of this number, from 0 on, until a signal ends it."""


def serve_in_processes(count: int, serve: Serve) -> None:
    """Returns never: raises SystemExit once all have ended, with the status of one that could not start."""
    running: dict[int, tuple[int, float]] = {}
    # Whoever holds its other end is told when this process is gone, however it ended.
    alive, held = os.pipe()

    def start(number: int) -> None:
        running[_fork(serve, number, alive, held)] = (number, time.monotonic())

    try:
        for number in range(count):
            start(number)
        while True:
            pid, status = os.wait()
            if pid not in running:
                continue  # a part that this command has started
            number, began = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code > 0 and time.monotonic() - began < STARTED_SECONDS:
                sys.exit(code)
            log.error("process.ended", extra={"pid": pid, "number": number, "status": code})
            time.sleep(PAUSE_SECONDS)
            start(number)
    finally:
        _end(list(running))


def _end(pids: list[int]) -> None:
    # Whoever asks again must not leave some of them behind.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)


def _fork(serve: Serve, number: int, alive: int, held: int) -> int:
    if pid := os.fork():
        return pid
    # What this process got from its parent must not be ended by it: so it leaves without unwinding.
    os.close(held)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    random.seed()
    code = 1
    try:
        code = _status_of(serve, number)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _status_of(serve: Serve, number: int) -> int:
    try:
        try:
            serve(number)
        except EaselError as error:
            sys.exit(f"easel: {error}")
        except Exception as error:
            exit_with_fault(error)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    except KeyboardInterrupt:
        return 0
    return 0
