"""Faults of the surroundings, each as one sentence with host, setting and fix: what a command prints for a traceback.

What is none of them is a fault of Easel's, and stays one: `explain` returns None.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from app import EaselError
from app.database_faults import address_of, database_fault, reason_of
from app.settings import load_database_settings, load_settings

OWNERS = {"app.commands.backup", "app.commands.migrate"}
"""The commands that log in as the owner of the tables."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT}
# `NOAUTH` and its kind come as one class, told apart by their first word alone.
_CREDENTIALS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid username-password")


def explain(error: BaseException) -> str | None:
    """The sentence for what a command ended with; None for a fault of Easel's own."""
    if isinstance(error, BaseExceptionGroup):
        sentences = [explain(one) for one in cast("BaseExceptionGroup[BaseException]", error).exceptions]
        return None if None in sentences else sentences[0]
    if isinstance(error, EaselError):
        return str(error)
    modules = set(_modules(error))
    packages = {module.partition(".")[0] for module in modules}
    try:
        if packages & {"asyncpg", "sqlalchemy"}:
            return database_fault(error, *_database_of(modules))
        if "redis" in packages:
            url = load_settings().redis_url
            return broker_fault(error, url.get_secret_value() if url else "")
        return _system_fault(error, load_database_settings().data_dir) if isinstance(error, OSError) else None
    except EaselError as unusable:
        return str(unusable)


def _database_of(modules: set[str]) -> tuple[str, str]:
    """The setting of the database that a command works with, and its URL; it may be given no other settings."""
    settings = load_database_settings()
    if modules & OWNERS:
        name, url = settings.owner_setting, settings.owner_url
    else:
        name, url = "DATABASE_URL", settings.database_url
    return name, url.get_secret_value() if url else ""


def broker_fault(error: BaseException, url: str) -> str | None:
    """What keeps Redis from being used, or None for a fault of Easel's own."""
    where = address_of(url, "6379")
    if isinstance(error, AuthenticationError | NoPermissionError) or (
        isinstance(error, ResponseError) and str(error).startswith(_CREDENTIALS)
    ):
        return (
            f"Redis at {where} refuses the credentials: correct user and password in REDIS_URL (redis://:PASSWORD@…)."
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return (
            "REDIS_URL cannot be read: give redis://user:password@host:6379/0, in the password %XX for what is neither"
            " letter nor digit (@ is %40, / is %2F)."
        )
    if isinstance(error, ResponseError):
        return f"Redis at {where} refuses a write ({reason_of(error)}): give it memory, or name a primary in REDIS_URL."
    if isinstance(error, RedisError | OSError):
        cause = error.__cause__ or error.__context__
        reason = reason_of(cause if isinstance(cause, OSError) else error)
        return f"Redis at {where} does not answer ({reason}): start it, or correct host and port in REDIS_URL."
    return None


def _system_fault(error: OSError, data_dir: Path) -> str | None:
    path = str(error.filename) if isinstance(error.filename, str | bytes | Path) else ""
    reason = f"{path}: {error.strerror}" if path else error.strerror or str(error)
    if error.errno in _FULL:
        return f"The disk is full ({reason}): free some of it, or give DATA_DIR={data_dir} another place."
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return "This process may open no more files: raise their number (ulimit -n)."
    if path and error.errno in _REFUSED:
        return f"{reason}. Easel keeps its files in DATA_DIR={data_dir}: give it a folder in which this user may write."
    return f"The system refuses what Easel needs: {reason}."


def _modules(error: BaseException | None) -> Iterator[str]:
    """The names of the modules in whose code it, or what it came from, was raised or passed on."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            yield str(trace.tb_frame.f_globals.get("__name__", ""))
            trace = trace.tb_next
        error = error.__cause__
