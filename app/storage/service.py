"""The store that the settings name."""

import importlib

from app.settings import Settings
from app.storage.store import Store


def open_store(settings: Settings) -> Store:
    """Raises SettingsError; reaches no server, `prepare` does.

    `STORAGE_PROVIDER` is the name of a module of `app.storage`. Only that one is imported: the clients of the others
    cost memory and time.
    """
    return importlib.import_module(f"app.storage.{settings.storage_provider}").open_store(settings)
