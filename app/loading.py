"""Importing what only some processes or commands need: by name, so that the others do not pay for it."""

import gc
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
    defaults["defer_build"] = True
    try:
        return load(name)
    finally:
        del defaults["defer_build"]


def freeze() -> None:
    """Leave what there is so far out of all later collections: it lives as long as the process."""
    gc.collect()
    gc.freeze()
