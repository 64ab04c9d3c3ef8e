"""Importing what only some processes or commands need: by name, so that the others do not pay for it."""

import gc
import os
from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """The module of that name."""
    # Nothing that is loaded is ever garbage: looking for it would take a fifth of the time, and later a pause of 100 ms
    # at each full collection.
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def load_unbuilt(name: str) -> Any:
    """The module of that name; pydantic builds each model of it, and of what it imports, when that is first used."""
    defaults = import_module("pydantic").BaseModel.model_config
    before = {**defaults}
    defaults["defer_build"] = True
    try:
        return load(name)
    finally:
        defaults.clear()
        defaults.update(before)


def load_command(command: str) -> Any:
    """Its module. With every command's imports `easel --help` would take seconds."""
    if command in ("serve", "worker", "demo"):
        _lighten_service()
    return load(f"app.commands.{command}")


def _lighten_service() -> None:
    # Before the modules that serve: what they bring and few use is left undone.
    # docket's store of results, which nobody uses, loads in half the time when its functions do not check types.
    os.environ.setdefault("PY_KEY_VALUE_DISABLE_BEARTYPE", "true")
    # Its largest models are those of an OpenAPI document, which few ask for.
    load_unbuilt("fastapi")


def freeze() -> None:
    """Leave what there is so far out of all later collections: it lives as long as the process."""
    gc.collect()
    gc.freeze()
