"""What `easel doctor` does with each part to see whether it works; a check finds facts, faults and warnings."""

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import EaselError
from app.agents._shared.registry import LoadedAgent, Registry, image_options
from app.agents._shared.tools import IMAGE_TOOL
from app.database_faults import address_of, database_fault
from app.db import IDENTITY_ROLE, SET_RIGHTS, Database
from app.faults import broker_fault
from app.logins import explain, login_faults
from app.provider.client import Provider
from app.readiness import BEHIND
from app.redis_event_log import REDIS_TIMEOUT_SECONDS
from app.rights import rights_faults
from app.schema import is_current, require_supported, schema_state
from app.setting_checks import origin_fault, secret_fault
from app.settings import Settings
from app.storage.probe import write_read_delete
from app.storage.service import open_store
from app.usage.plans import require
from app.usage.prices import load_prices
from app.worker.process import price_warnings

OLDEST_REDIS = (6, 2)
ASK_SECONDS = 10.0


@dataclass
class Part:
    name: str
    facts: str = ""
    faults: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])


def check_settings(settings: Settings) -> Part:
    part = Part("settings", f"{settings.environment}, DATA_DIR={settings.data_dir}", warnings=[*settings.warnings])
    secret = secret_fault(settings.signing_keys()) if settings.secret_key else None
    origin = origin_fault(settings.public_url) if settings.public_url else None
    # In development both are as good as unset.
    judged = part.faults if settings.production else part.warnings
    judged.extend(fault for fault in (secret, origin) if fault)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=settings.data_dir).close()
    except OSError as error:
        part.faults.append(
            f"DATA_DIR={settings.data_dir} cannot be written ({error.strerror}): give it a folder in which this user"
            " may write, with room for images that wait for the storage."
        )
    return part


def check_agents(settings: Settings, registry: Registry) -> Part:
    prices = price_warnings(settings, registry, load_prices(settings.prices_file))
    return Part("agents", ", ".join(sorted(registry.specs)), warnings=[*registry.warnings, *prices])


async def check_database(settings: Settings, url: str, setting: str = "DATABASE_URL") -> Part:
    part = Part("database", f"{setting} at {address_of(url, '5432')}")
    database = Database(url, pool_size=1)
    try:
        if setting == "DATABASE_URL":
            await _look_at_database(settings, database, part)
        else:
            async with database.probe.connect() as connection:
                await require_supported(connection)
    except EaselError as error:
        part.faults.append(str(error))
    except Exception as error:
        fault = database_fault(error, setting, url)
        if fault is None:
            raise
        part.faults.append(fault)
    finally:
        await database.close()
    return part


async def _look_at_database(settings: Settings, database: Database, part: Part) -> None:
    async with database.probe.connect() as connection:
        part.facts += f", PostgreSQL {await require_supported(connection)}"
    current, head = await schema_state(database)
    part.facts += f", revision {current}"
    if current != head and not await is_current(database):
        part.faults.append(BEHIND)
        return
    async with database.probe.connect() as connection:
        part.faults.extend(await rights_faults(connection, at_head=current == head))
    if part.faults:
        return
    await _take_turns(database)
    await require(database, settings.default_plan)
    name, powers = await login_faults(database)
    if powers:
        judged = part.faults if settings.production else part.warnings
        judged.append(explain(name, powers) + ("" if settings.production else " Production refuses it."))


async def _take_turns(database: Database) -> None:
    """Two connections at once, then in the other order: a pooler that exchanges their sessions fails on the second."""
    for first, second in ((database.engine, database.probe), (database.probe, database.engine)):
        async with first.connect() as one, second.connect() as other:
            for connection in (one, other):
                await connection.execute(SET_RIGHTS, {"role": IDENTITY_ROLE, "tenant": ""})


async def check_broker(settings: Settings) -> Part:
    url = settings.redis_url.get_secret_value() if settings.redis_url else "memory://"
    if url.startswith("memory:"):
        return Part("broker", "in this process")
    part = Part("broker", f"Redis at {address_of(url, '6379')}")
    client: Any = Redis  # redis-py types neither this nor that its commands are awaited
    limits = {"socket_timeout": REDIS_TIMEOUT_SECONDS, "socket_connect_timeout": REDIS_TIMEOUT_SECONDS}
    try:
        async with client.from_url(url, **limits) as redis:
            version = str((await redis.info("server"))["redis_version"])
            await redis.set("easel:doctor", "1", px=1000)
    except (RedisError, OSError, ValueError) as error:
        part.faults.append(broker_fault(error, url) or str(error))
        return part
    part.facts += f", version {version}"
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST_REDIS:
        part.faults.append(f"{part.facts} is too old: Easel needs Redis 6.2 or newer, or Valkey; see REDIS_URL.")
    return part


async def check_storage(settings: Settings) -> Part:
    bucket = settings.gcs_bucket if settings.storage_provider == "gcs" and settings.gcs_bucket else None
    part = Part("storage", settings.storage_provider)
    if settings.storage_provider != "memory":
        part.facts += f", bucket {bucket or settings.storage_bucket}"
    try:
        store = await asyncio.to_thread(open_store, settings)
    except EaselError as error:
        part.faults.append(str(error))
        return part
    try:
        await write_read_delete(store)
    except EaselError as error:
        part.faults.append(str(error))
    finally:
        await store.close()
    return part


async def check_provider(settings: Settings, registry: Registry, url: str | None, key: str) -> Part:
    models = models_of(settings, registry)
    part = Part("provider", f"{url or 'OpenAI'}, {', '.join(sorted(models)) or 'no model to ask for'}")
    provider = Provider(api_key=key, base_url=url, idle_seconds=ASK_SECONDS)
    try:
        found = await asyncio.gather(*(provider.offered.fault_of(model, chosen) for model, chosen in models.items()))
    finally:
        await provider.close()
    part.faults.extend(dict.fromkeys(fault for fault in found if fault))
    return part


def models_of(settings: Settings, registry: Registry) -> dict[str, str]:
    """Each model that agents use, with the settings that chose it."""
    chosen: dict[str, list[str]] = {}
    for agent in registry.specs.values():
        chosen.setdefault(agent.model, []).append(settings.model_setting(agent.spec.model_key))
        if IMAGE_TOOL in agent.spec.tool_keys:
            for model, setting in _image_models(settings, agent):
                chosen.setdefault(model, []).append(setting)
    return {model: " or ".join(sorted(set(names))) for model, names in chosen.items()}


def _image_models(settings: Settings, agent: LoadedAgent) -> list[tuple[str, str]]:
    options = image_options(settings, agent, {})
    own: Mapping[str, Any] = agent.spec.tool_configs.get(IMAGE_TOOL, {})
    svg: Mapping[str, Any] = options.get("svg") or {}
    spec = f"the spec of the agent {agent.spec.key}"
    named = [(options.get("model"), spec if own.get("model") else "IMAGE_MODEL"), (svg.get("model"), spec)]
    return [(model, setting) for model, setting in named if model]
