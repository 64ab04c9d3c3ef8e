"""Puts the service together; the only file that knows every feature."""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import TypedDict

from app.accounts import routes as accounts
from app.agents import routes as agents
from app.agents._shared.registry import Registry, SpecError, load_registry
from app.attachments import content
from app.attachments import routes as attachments
from app.attachments.reconcile import Report, reconcile
from app.attachments.spool import Spool
from app.broker import BROKER_UNAVAILABLE, Broker, open_broker
from app.conversations import routes as conversations
from app.db import Database, database
from app.embedded import Parts
from app.error_codes import ErrorCode
from app.errors import Unavailable, install_handlers
from app.middleware import RequestMiddleware
from app.migrate import is_current
from app.openapi import describe, problems
from app.provider.client import Provider
from app.runs import routes as runs
from app.settings import Settings, SettingsError
from app.storage.service import open_store
from app.storage.store import StorageError
from app.worker import tasks
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)

EXPOSED_HEADERS = ["X-Run-Id", "Location", "Retry-After", "ETag", "X-Request-Id", "Idempotent-Replayed"]
"""The headers a browser's script may read."""

probes = APIRouter(tags=["operation"])


class Alive(TypedDict):
    status: Literal["alive"]


class Ready(TypedDict):
    status: Literal["ready"]


def create_app(settings: Settings, parts: Parts, registry: Registry | None = None) -> FastAPI:
    """The API; with `EMBEDDED_WORKER` it executes runs as well."""
    app = FastAPI(
        title="Easel",
        version="0.1.0",
        lifespan=_lifespan,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.openapi = partial(describe, app)
    app.state.settings = settings
    app.state.parts = parts
    app.state.registry = registry or agents_of(settings)
    app.state.draining = asyncio.Event()
    install_handlers(app, (*BROKER_UNAVAILABLE, StorageError))
    app.add_middleware(RequestMiddleware, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Tenant-Id", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=EXPOSED_HEADERS,
        )
    for feature in (accounts, agents, conversations, runs, attachments, content):
        app.include_router(feature.router)
    app.include_router(probes)
    return app


def agents_of(settings: Settings) -> Registry:
    """The agents, checked: a fault in a spec is a SettingsError, a replaced agent or a deprecated model a warning."""
    try:
        registry = load_registry(settings)
    except SpecError as error:
        raise SettingsError(str(error)) from None
    for warning in registry.warnings:
        log.warning("agents.warning", extra={"warning": warning})
    return registry


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    settings = cast(Settings, app.state.settings)
    parts, registry = cast(Parts, app.state.parts), cast(Registry, app.state.registry)
    stopping = cast(asyncio.Event, app.state.draining)
    async with open_context(settings, parts, registry, stopping) as ctx:
        app.state.database, app.state.broker, app.state.store = ctx.database, ctx.broker, ctx.store
        ending = asyncio.create_task(_end_streams(ctx))
        async with AsyncExitStack() as stack:
            if settings.embedded_worker:
                await stack.enter_async_context(tasks.working(ctx))
            _freeze()
            yield
        ending.cancel()


async def _end_streams(ctx: WorkerContext) -> None:
    await ctx.stopping.wait()
    ctx.broker.events.wake_readers()


def _freeze() -> None:
    # The modules loaded so far live as long as the process: no full collection, nor its exit, need look at them again.
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def open_context(
    settings: Settings, parts: Parts, registry: Registry, stopping: asyncio.Event
) -> AsyncGenerator[WorkerContext]:
    """Everything a process of the service holds open, closed again in reverse; `stopping` ends its work early."""
    async with AsyncExitStack() as stack:
        database = Database(parts.database_url, pool_size=settings.database_pool_size)
        stack.push_async_callback(database.close)
        store = open_store(settings)
        stack.push_async_callback(store.close)
        await store.prepare(create_bucket=not settings.production)
        broker = await stack.enter_async_context(open_broker(settings))
        provider = Provider(
            api_key=parts.provider_key, base_url=parts.provider_url, idle_seconds=settings.upstream_idle_seconds
        )
        stack.push_async_callback(provider.close)
        spool = Spool(settings.data_dir / "spool")
        ctx = WorkerContext(settings, database, broker, store, spool, registry, provider, stopping)
        tasks.register(ctx)
        yield ctx


async def work(settings: Settings, parts: Parts, stopping: asyncio.Event) -> None:
    """Execute runs and housekeeping until `stopping` is set."""
    async with open_context(settings, parts, agents_of(settings), stopping) as ctx, tasks.working(ctx):
        _freeze()
        await stopping.wait()


async def reconcile_store(settings: Settings, database_url: str, *, apply: bool) -> Report:
    """Raises SettingsError where there is nothing to compare, else what `reconcile` raises."""
    if settings.storage_provider == "memory" and settings.database_url is not None:
        raise SettingsError(
            "Beside DATABASE_URL, STORAGE_PROVIDER=memory keeps images in the serving process alone, where this"
            " command cannot look: set STORAGE_PROVIDER to minio or gcs."
        )
    async with AsyncExitStack() as stack:
        database = Database(database_url, pool_size=2)
        stack.push_async_callback(database.close)
        store = open_store(settings)
        stack.push_async_callback(store.close)
        if not await is_current(database):
            raise SettingsError("The database's schema is behind: run `just migrate`.")
        await store.prepare(create_bucket=False)
        spool = Spool(settings.data_dir / "spool")
        return await reconcile(database, store, spool, settings, apply=apply)


@probes.get("/livez")
async def check_liveness() -> Alive:
    """Ask whether the process answers.

    It says nothing of the parts that Easel needs: `/readyz` does.
    """
    return {"status": "alive"}


@probes.get("/readyz", responses=problems(ErrorCode.SCHEMA_BEHIND, ErrorCode.UNAVAILABLE))
async def check_readiness(
    request: Request, database: Annotated[Database, Depends(database, scope="function")]
) -> Ready:
    """Ask whether requests can be served.

    503 while the database's schema is behind, or the database or Redis is unavailable.
    """
    if not await is_current(database):
        raise Unavailable("The database's schema is behind: run `just migrate`.", code=ErrorCode.SCHEMA_BEHIND)
    await cast(Broker, request.app.state.broker).ping()
    return {"status": "ready"}


@probes.get("/metrics", response_class=PlainTextResponse)
async def get_metrics() -> Response:
    """Read the process's metrics.

    In Prometheus' text format.
    """
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
