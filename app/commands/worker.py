"""`easel worker`."""

import asyncio
import signal

from app.commands import start
from app.embedded import Parts, running_parts
from app.observing import observed
from app.settings import Settings, SettingsError
from app.worker.process import work


def run() -> None:
    settings = start()
    if settings.redis_url is None:
        raise SettingsError("`easel worker` needs REDIS_URL: without it, `easel serve` executes runs itself.")
    with observed(settings), running_parts(settings) as parts:
        asyncio.run(_work(settings, parts))


async def _work(settings: Settings, parts: Parts) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await work(settings, parts, stopping)
