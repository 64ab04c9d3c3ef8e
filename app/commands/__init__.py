"""The commands of `easel`, one module each with a function `run`; `app/cli.py` loads a module when it is called."""

from app import logs
from app.database_settings import DatabaseSettings
from app.settings import Settings, load_database_settings, load_settings


def start(level: str | None = None) -> Settings:
    """The settings, with logs written from `level` on (unset: LOG_LEVEL)."""
    settings = load_settings()
    logs.configure(level or settings.log_level)
    return settings


def start_beside_database() -> DatabaseSettings:
    """The settings of the database alone: a job that migrates or backs up is given no others."""
    settings = load_database_settings()
    # What an interrupt leaves of a connection that was being made is no news to whoever interrupted it.
    logs.configure(settings.log_level, silent=("asyncio",))
    return settings
