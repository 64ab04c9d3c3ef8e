"""Image decoders in child processes with limits: a decoder that hangs, grows or is exploited harms only its child."""

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
# A WebP of MAX_PIXELS needs four fifths of it.
MEMORY_BYTES = 1280 * 1024**2

_ROOT = Path(__file__).resolve().parent.parent.parent

# Per event loop, because a semaphore belongs to one; then by name.
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()
_pool = ThreadPoolExecutor(thread_name_prefix="children")


async def run(module: str, *arguments: str, stdin: bytes = b"", concurrency: int) -> bytes:
    """The standard output of `python -m MODULE ARGUMENTS`; at most `concurrency` children of a module run at a time.

    Raises UnreadableImage when the child exceeds a limit of `limit_process` or WALL_SECONDS, or crashes.
    """
    loop = asyncio.get_running_loop()
    async with slots(module, concurrency):
        # Popen in a thread: uvloop would fork in the event loop and stop it for tens of milliseconds.
        process = await loop.run_in_executor(_pool, _start, module, arguments)
        try:
            return await loop.run_in_executor(_pool, _finish, process, stdin)
        finally:
            process.kill()  # the caller may have been cancelled


def slots(name: str, count: int) -> asyncio.Semaphore:
    """This event loop's semaphore of that name, made with `count` places when it is first asked for."""
    return _slots.setdefault(asyncio.get_running_loop(), {}).setdefault(name, asyncio.Semaphore(count))


def _start(module: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=_ROOT,
        env={},  # no secret in reach of the decoder
        start_new_session=True,  # else a Ctrl-C at the terminal would look like an unreadable image
    )


def _finish(process: subprocess.Popen[bytes], stdin: bytes) -> bytes:
    try:
        output, _ = process.communicate(stdin, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise UnreadableImage(f"Decoding the image takes longer than {WALL_SECONDS:.0f} seconds.") from None
    if process.returncode:
        raise UnreadableImage("Decoding the image needs more time or memory than allowed.")
    return output


def limit_process(max_file_bytes: int) -> None:
    """Limit the current process; called by the child."""
    os.umask(0o077)
    os.nice(10)  # the processes that serve requests go first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    if sys.platform == "linux":  # macOS rejects this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
