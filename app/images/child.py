"""A decoder in a process of its own: what it swells to, hangs on or is taken over by harms nobody else."""

import asyncio
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakKeyDictionary

from app.images.inspect import UnreadableImage

WALL_SECONDS = 30.0
CPU_SECONDS = 25
# What a WebP of the most pixels takes, and a quarter more.
MEMORY_BYTES = 1280 * 1024**2

_ROOT = Path(__file__).resolve().parent.parent.parent

# By module, for each event loop: a semaphore serves a single one.
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()
_pool = ThreadPoolExecutor(thread_name_prefix="children")


async def run(module: str, *arguments: str, given: bytes = b"", at_once: int) -> bytes:
    """What `python -m MODULE ARGUMENTS` prints; it reads `given`, and at most `at_once` of its kind are at work.

    Raises UnreadableImage where it exceeds a bound of `bind`, takes too long or dies.
    """
    loop = asyncio.get_running_loop()
    async with _slots.setdefault(loop, {}).setdefault(module, asyncio.Semaphore(at_once)):
        # In threads, as uvloop's own way to start a process forks, which holds the loop up for tens of milliseconds.
        process = await loop.run_in_executor(_pool, _start, module, arguments)
        try:
            return await loop.run_in_executor(_pool, _finish, process, given)
        finally:
            process.kill()  # where nobody waits for it any more


def _start(module: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=_ROOT,
        env={},  # no secret of ours is in reach of a decoder
        start_new_session=True,  # a Ctrl-C meant for us would look like a picture that breaks its decoder
    )


def _finish(process: subprocess.Popen[bytes], given: bytes) -> bytes:
    try:
        told, _ = process.communicate(given, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise UnreadableImage(f"The picture takes longer than {WALL_SECONDS:.0f} seconds to decode.") from None
    if process.returncode:
        raise UnreadableImage("The picture takes more time or memory to decode than it may.")
    return told


def bind(max_file_bytes: int) -> None:
    """Put the bounds on this process, which is the child."""
    os.umask(0o077)
    os.nice(10)  # requests come first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    if sys.platform == "linux":  # macOS refuses this bound
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
