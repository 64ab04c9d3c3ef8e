"""Puts the service together; the only file that knows every feature."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Literal, cast

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.types import ASGIApp
from typing_extensions import TypedDict

from app import __version__, metrics
from app.accounts import routes as accounts
from app.agents import routes as agents
from app.agents._shared.registry import Registry, load_registry
from app.api_docs import install_docs
from app.attachments import content
from app.attachments import routes as attachments
from app.attachments.links import LinkCache
from app.attachments.reconcile import Report, reconcile
from app.attachments.spool import Spool
from app.broker import BROKER_UNAVAILABLE, Broker
from app.connections import open_connections
from app.conversations import routes as conversations
from app.cors import LOCAL_ORIGINS, report_refused
from app.db import Database
from app.embedded import Parts
from app.erasure import routes as erasure
from app.error_codes import ErrorCode
from app.exports import routes as exports
from app.exports.service import owned_keys
from app.identity.actor import check_credential
from app.limits import Limits
from app.loading import freeze, load
from app.middleware import RequestMiddleware
from app.openapi import Router, describe, problems
from app.problems import install_handlers
from app.readiness import Readiness, StorageState
from app.runs import routes as runs
from app.runs.access import AccessWatch
from app.runs.rate import tell_rate
from app.runs.streams import OpenStreams
from app.schema import is_current
from app.settings import Settings, SettingsError
from app.storage import keys
from app.storage.service import open_store
from app.storage.store import StorageError
from app.tenants import routes as tenants
from app.usage import routes as usage
from app.usage.prices import load_prices

EXPOSED_HEADERS = [
    *("X-Run-Id", "Location", "Retry-After", "ETag", "X-Request-Id", "Idempotent-Replayed"),
    *("RateLimit-Policy", "RateLimit"),
]
"""The headers a browser's script may read."""

ALLOWED_HEADERS = [
    *("Authorization", "Content-Type", "X-Tenant-Id", "Idempotency-Key", "Last-Event-ID"),
    *("X-Request-Id", "traceparent"),
]
"""The headers that a browser's script may send."""

probes = Router(tags=["operation"])


class Alive(TypedDict):
    status: Literal["alive"]


class Ready(TypedDict):
    """`storage` is reported only: without it texts and reads work, and images wait until it is back."""

    status: Literal["ready"]
    storage: StorageState


def create_app(settings: Settings, parts: Parts, registry: Registry | None = None) -> FastAPI:
    """The API; with `EMBEDDED_WORKER` it executes runs as well."""
    app = FastAPI(
        title="Easel",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.openapi = partial(describe, app)
    app.state.settings = settings
    app.state.parts = parts
    app.state.worker = load("app.worker.process") if settings.embedded_worker else None
    app.state.prices = load_prices(settings.prices_file)
    app.state.registry = registry or (app.state.worker.load_agents if app.state.worker else load_registry)(settings)
    metrics.know(app.state.registry.specs)
    app.state.draining = asyncio.Event()
    app.state.limits = Limits.of(settings)
    app.state.link_cache = LinkCache()
    app.state.worker_gauges = []
    install_handlers(app, (*BROKER_UNAVAILABLE, StorageError))
    app.add_middleware(RequestMiddleware, settings=settings, check_credential=check_credential, tell_rate=tell_rate)
    if settings.cors_origins or not settings.production:
        _allow_origins(app, settings)
    features = (accounts, tenants, agents, conversations, runs, attachments, content, usage, exports, erasure)
    for feature in features:
        _add_routes(app, feature.router)
    _add_routes(app, probes)
    if settings.api_docs_shown:
        install_docs(app)
    return app


def _add_routes(app: FastAPI, router: Router) -> None:
    # `include_router` would make all that each route has a second time, at the first request: 60 ms and 1.6 MB.
    app.router.routes.extend(router.routes)


def _allow_origins(app: FastAPI, settings: Settings) -> None:
    app.add_middleware(
        _ReportingCors,
        reports=not settings.production,
        allow_origins=settings.cors_origins,
        allow_origin_regex=None if settings.cors_origins else LOCAL_ORIGINS,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
    )


class _ReportingCors(CORSMiddleware):
    """Reports the origin of a preflight that it refuses: the browser tells a front end's developer little."""

    def __init__(self, app: ASGIApp, *, reports: bool, **options: Any) -> None:
        super().__init__(app, **options)
        self._reports = reports

    def preflight_response(self, request_headers: Headers) -> Response:
        origin = request_headers["origin"]
        if self._reports and not self.is_allowed_origin(origin):
            report_refused(origin, self.allow_origins)
        return super().preflight_response(request_headers)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    state = app.state
    async with open_connections(state.settings, state.parts.database_url) as connections, AsyncExitStack() as stack:
        state.database, state.broker, state.store = connections.database, connections.broker, connections.store
        state.access_watch = AccessWatch(connections.database, connections.broker.events)
        state.streams = OpenStreams(connections.database)
        state.readiness = Readiness(connections.database, connections.broker, connections.store)
        ending = asyncio.create_task(_end_streams(connections.broker, state.draining))
        watching = asyncio.create_task(state.access_watch.run())
        telling = asyncio.create_task(state.streams.run())
        if state.worker is not None:
            working = state.worker.working(state.settings, state.parts, state.registry, connections, state.draining)
            state.worker_gauges = [await stack.enter_async_context(working)]
        freeze()
        yield
        ending.cancel()
        watching.cancel()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _end_streams(broker: Broker, draining: asyncio.Event) -> None:
    await draining.wait()
    broker.events.wake_readers()


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
        return await reconcile(database, store, spool, settings, {keys.EXPORTS: owned_keys}, apply=apply)


@probes.get("/livez")
async def check_liveness() -> Alive:
    """Ask whether the process answers.

    It says nothing of the parts that Easel needs: `/readyz` does.
    """
    return {"status": "alive"}


@probes.get("/readyz", responses=problems(ErrorCode.SCHEMA_BEHIND, ErrorCode.UNAVAILABLE))
async def check_readiness(request: Request) -> Ready:
    """Ask whether requests can be served.

    503 while the database's schema is behind, one of its roles or rights is missing, or the database or Redis is
    unavailable.
    """
    return {"status": "ready", "storage": await cast(Readiness, request.app.state.readiness).check()}
