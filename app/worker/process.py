"""A process that executes runs: `easel worker`, and `easel serve` with its embedded worker."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from app import metrics, metrics_server
from app.agents._shared.registry import Registry, image_options, load_registry
from app.agents._shared.sdk_tools import make_function_tool
from app.agents._shared.tools import IMAGE_TOOL
from app.attachments.spool import Spool
from app.connections import Connections, open_connections
from app.db import now
from app.embedded import Parts
from app.loading import freeze
from app.provider.client import Provider
from app.provider.warm_up import warm_up
from app.settings import Settings
from app.usage.kinds import Kind
from app.usage.prices import Prices, load_prices
from app.worker import dispatcher, housekeeping, tasks
from app.worker.context import WorkerContext
from app.worker.gauges import WorkerGauges
from app.worker.image_intake import ImageIntake

log = logging.getLogger(__name__)


def load_agents(settings: Settings) -> Registry:
    """The agents with their tools as the SDK takes them. Raises SpecError."""
    return load_registry(settings, make_tool=make_function_tool)


def sold_to(settings: Settings, registry: Registry, prices: Prices) -> list[tuple[str, Kind]]:
    """The models that the agents use, and what each makes."""
    found = {(agent.model, Kind.OUTPUT) for agent in registry.specs.values()}
    for agent in registry.specs.values():
        if IMAGE_TOOL in agent.spec.tool_keys:
            options = image_options(settings, agent, {})
            found.add((options.get("model") or prices.default_image_model, Kind.IMAGE_OUTPUT))
            svg: Mapping[str, Any] = options.get("svg") or {}
            if svg.get("model"):
                found.add((svg["model"], Kind.SVG_OUTPUT))
    return sorted(found)


def price_warnings(settings: Settings, registry: Registry, prices: Prices) -> list[str]:
    """A sentence for each model of an agent that has no price."""
    return [
        f"The model {model!r} has no price: what it does is booked as unpriced. Name a PRICES_FILE that has one."
        for model, kind in sold_to(settings, registry, prices)
        if not prices.has(kind, model, now())
    ]


async def work(settings: Settings, parts: Parts, stopping: asyncio.Event) -> None:
    """Execute runs and housekeeping until `stopping` is set."""
    registry = load_agents(settings)
    bound = metrics_server.bind(settings)
    async with (
        open_connections(settings, parts.database_url) as connections,
        working(settings, parts, registry, connections, stopping) as gauges,
        metrics_server.serving(bound, connections, gauges),
    ):
        freeze()
        await stopping.wait()


@asynccontextmanager
async def working(
    settings: Settings, parts: Parts, registry: Registry, connections: Connections, stopping: asyncio.Event
) -> AsyncGenerator[WorkerGauges]:
    """Execute runs and tasks until the block ends; runs that have not ended then are released to another worker.

    `stopping`, which the end of the block sets, ends the work early.
    """
    async with AsyncExitStack() as stack:
        provider = Provider(
            api_key=parts.provider_key, base_url=parts.provider_url, idle_seconds=settings.upstream_idle_seconds
        )
        stack.push_async_callback(provider.close)
        prices = load_prices(settings.prices_file)
        metrics.know(registry.specs, dict(sold_to(settings, registry, prices)))
        for sentence in price_warnings(settings, registry, prices):
            log.warning("price.missing", extra={"detail": sentence})
        intake = ImageIntake(settings.data_dir)
        stack.callback(intake.close)
        ctx = WorkerContext(
            settings,
            connections.database,
            connections.broker,
            connections.store,
            Spool(settings.data_dir / "spool"),
            intake,
            registry,
            provider,
            prices,
            stopping,
        )
        # Between a paid request and the commit of its response's id no run can be resumed: that time must be short.
        await warm_up()
        await stack.enter_async_context(tasks.running(ctx))
        await stack.enter_async_context(dispatcher.running(ctx))
        await stack.enter_async_context(housekeeping.running(ctx))
        yield WorkerGauges(ctx)
