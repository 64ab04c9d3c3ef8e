"""What a worker has at hand for every run."""

import asyncio
from dataclasses import dataclass

from app.agents._shared.registry import Registry
from app.attachments.spool import Spool
from app.broker import Broker
from app.db import Database
from app.provider.client import Provider
from app.settings import Settings
from app.storage.store import Store
from app.usage.prices import Prices
from app.worker.image_intake import ImageIntake


@dataclass(frozen=True)
class WorkerContext:
    """`stopping` is set when the worker must end; runs that have not ended are released to another worker then."""

    settings: Settings
    database: Database
    broker: Broker
    store: Store
    spool: Spool
    intake: ImageIntake
    registry: Registry
    provider: Provider
    prices: Prices
    stopping: asyncio.Event
