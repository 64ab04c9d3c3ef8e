"""`easel doctor`: every part is tried, and all faults are listed in one go, each with its setting and its fix."""

import asyncio
import sys
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import typer

from app import EaselError
from app.agents._shared.registry import Registry
from app.commands import start
from app.commands.parts import (
    Part,
    check_agents,
    check_broker,
    check_database,
    check_provider,
    check_settings,
    check_storage,
)
from app.embedded import serving_database, starting_provider
from app.settings import Settings
from app.worker.process import load_agents

T = TypeVar("T")


def run() -> None:
    settings = start("critical")
    parts = [check_settings(settings)]
    registry = Registry({}, [])
    try:
        registry = load_agents(settings)
        parts.append(check_agents(settings, registry))
    except EaselError as error:
        parts.append(Part("agents", faults=[str(error)]))
    parts.extend(_check_outside(settings, registry))
    _report(parts)


def _check_outside(settings: Settings, registry: Registry) -> list[Part]:
    unopened: list[Part] = []
    with ExitStack() as stack:

        def open_part(name: str, part: AbstractContextManager[T]) -> T | None:
            try:
                return stack.enter_context(part)
            except EaselError as error:
                unopened.append(Part(name, faults=[str(error)]))
                return None

        provider = open_part("provider", starting_provider(settings))
        url = open_part("database", serving_database(settings))

        async def check_all() -> list[Part]:
            checks = [check_broker(settings), check_storage(settings)]
            if url is not None:
                checks.insert(0, check_database(settings, url))
            if settings.migration_database_url is not None:
                migration_url = settings.migration_database_url.get_secret_value()
                checks.append(check_database(settings, migration_url, "MIGRATION_DATABASE_URL"))
            if provider is not None:
                checks.append(check_provider(settings, registry, *provider()))
            return list(await asyncio.gather(*checks))

        return [*unopened, *asyncio.run(check_all())]


def _report(parts: list[Part]) -> None:
    for part in parts:
        typer.echo(f"{part.name}: {part.facts or 'not looked at'}")
        for warning in part.warnings:
            typer.echo(f"warning: {warning}")
    faults = [fault for part in parts for fault in part.faults]
    if faults:
        sys.exit("\n".join(f"easel: {fault}" for fault in faults))
    typer.echo("All parts answer.")
