"""The machine under the bench: its name, its cores, and what a process has used of them."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("openai", "openai-agents", "fastapi", "uvicorn", "sqlalchemy", "asyncpg", "pydantic")
# The clock of another process that clock_getcpuclockid(3) answers with on Linux.
_SCHEDULED = 2

CAN_PIN = hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1
_CORES = sorted(os.sched_getaffinity(0)) if CAN_PIN else []


def leave_the_first_core() -> None:
    """For this process and all it starts, but for what is started in `on_the_first_core`."""
    if CAN_PIN and len(_CORES) > 1:
        os.sched_setaffinity(0, _CORES[1:])


@contextmanager
def on_the_first_core() -> Generator[None]:
    """A process that is started inside has that core for itself: children inherit the cores of the starting thread."""
    if not CAN_PIN:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _CORES[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used, all of its threads."""
    if platform.system() == "Linux":
        return time.clock_gettime(~pid << 3 | _SCHEDULED)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def waited(pid: int) -> float:
    """Seconds that the main thread was ready to run and had no core; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def cpu_of_children(pid: int) -> float:
    """Seconds that ended children have used, in steps of 10 ms."""
    times = psutil.Process(pid).cpu_times()
    return times.children_user + times.children_system


def wait_until_idle(pid: int, *, most: float = 20.0) -> None:
    """Until the process and its children use next to nothing, for `most` seconds at most."""
    deadline = time.monotonic() + most
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        before = cpu(pid)
        time.sleep(0.06)
        quiet = quiet + 1 if cpu(pid) - before < 0.004 and not psutil.Process(pid).children() else 0


def rss(pid: int) -> float:
    """Resident memory in MB."""
    return psutil.Process(pid).memory_info().rss / 1e6


def describe() -> str:
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "app"], capture_output=True, text=True, check=False)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip() or '-'}"
        f"{' with changes' if changed.stdout.strip() else ''}. {_model()}, {os.cpu_count()} cores,"
        f" {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}, {versions}. Load before the start: {os.getloadavg()[0]:.1f}."
    )


def _model() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
