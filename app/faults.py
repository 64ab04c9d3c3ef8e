"""Faults of the surroundings, each as one sentence with host, setting and fix: what a command prints for a traceback.

What is none of them is a fault of Easel's, and stays one: `explain` returns None.
"""

import errno
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import asyncpg
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from sqlalchemy.exc import InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app import EaselError
from app.database_settings import DatabaseSettings
from app.errors import CONNECTION_FAULTS
from app.settings import load_database_settings, load_settings

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT}
# `NOAUTH` and its kind come as one class, told apart by their first word alone.
_CREDENTIALS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid username-password")

_POOLER = (
    "{where} ({setting}) is a pooler that mixes up sessions, or refuses what Easel sends ({reason}): let it pool"
    " sessions, or name the server itself in {setting}."
)
# What PgBouncer refuses, and what two sessions that share one run into.
_POOLER_FAULTS = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.ProtocolViolationError,
)
# The first that fits. None of the values is a password.
_DATABASE_FAULTS: list[tuple[tuple[type[BaseException], ...], str]] = [
    (
        (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
        "PostgreSQL at {where} refuses the user {user}: correct user and password in {setting}.",
    ),
    (
        (asyncpg.InvalidCatalogNameError,),
        "PostgreSQL at {where} has no database {name}: create it (createdb {name}), or correct {setting}.",
    ),
    (
        (asyncpg.InsufficientPrivilegeError,),
        "PostgreSQL at {where} does not allow this to the user {user} ({reason}): run `easel migrate`, or give"
        " {setting} the user that it made.",
    ),
    (
        (asyncpg.TooManyConnectionsError,),
        "PostgreSQL at {where} ({setting}) has no connection left: raise its max_connections, or lower"
        " DATABASE_POOL_SIZE.",
    ),
    (
        (asyncpg.InsufficientResourcesError,),
        "PostgreSQL at {where} ({setting}) has run out of memory or disk ({reason}): give it more.",
    ),
    (
        (asyncpg.ReadOnlySQLTransactionError,),
        "PostgreSQL at {where} accepts no writes, as a standby does: name its primary in {setting}.",
    ),
    (
        (asyncpg.CannotConnectNowError,),
        "PostgreSQL at {where} ({setting}) does not serve now ({reason}): try again in a moment.",
    ),
    (
        (ssl.SSLError,),
        "PostgreSQL at {where} and TLS do not agree ({reason}): correct sslmode in {setting}.",
    ),
    (
        (*CONNECTION_FAULTS, PoolTimeout),
        "PostgreSQL at {where} does not answer ({reason}): start it, or correct host and port in {setting}.",
    ),
    (
        (asyncpg.InterfaceError, InterfaceError, ValueError),
        "{setting} cannot be read: give postgresql://user:password@host:5432/name, in the password %XX for what is"
        " neither letter nor digit (@ is %40, / is %2F).",
    ),
]


# What opens its connections as the owner of the tables.
_AS_OWNER = {"app.backup", "app.commands.migrate", "app.migrate"}


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
        if "redis" in packages:
            redis_url = load_settings().redis_url
            return broker_fault(error, redis_url.get_secret_value() if redis_url else "")
        settings = load_database_settings()
    except EaselError as unusable:
        return str(unusable)
    if packages & {"asyncpg", "sqlalchemy"}:
        owns = bool(modules & _AS_OWNER)
        url, setting = settings.owner_url if owns else settings.database_url, settings.owner_setting
        return database_fault(error, setting if owns else "DATABASE_URL", url.get_secret_value() if url else "")
    return _system_fault(error, settings) if isinstance(error, OSError) else None


def database_fault(error: BaseException, setting: str, url: str) -> str | None:
    """What keeps the database of `setting` from being used, or None for a fault of Easel's own."""
    found = _driver_error(error)
    if isinstance(found, _POOLER_FAULTS) or "pooling mode" in str(found):
        sentence = _POOLER
    else:
        sentence = next((sentence for kinds, sentence in _DATABASE_FAULTS if isinstance(found, kinds)), None)
    return sentence and sentence.format(
        where=address_of(url, "5432"),
        name=_database_of(url),
        user=_user_of(url),
        setting=setting,
        reason=_reason(found),
    )


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
        return f"Redis at {where} refuses a write ({_said(error)}): give it memory, or name a primary in REDIS_URL."
    if isinstance(error, RedisError | OSError):
        cause = error.__cause__ or error.__context__
        reason = _reason(cause if isinstance(cause, OSError) else error)
        return f"Redis at {where} does not answer ({reason}): start it, or correct host and port in REDIS_URL."
    return None


def address_of(url: str, port: str) -> str:
    """`host:port` of a URL, or its socket's folder; never what else it holds."""
    parts = urlsplit(url)
    folder = next((item[5:] for item in parts.query.split("&") if item.startswith("host=")), "")
    try:
        return unquote(folder) or f"{parts.hostname or 'localhost'}:{parts.port or port}"
    except ValueError:  # the port is none
        return str(parts.hostname)


def _database_of(url: str) -> str:
    return unquote(urlsplit(url).path.lstrip("/")) or _user_of(url)


def _user_of(url: str) -> str:
    return unquote(urlsplit(url).username or "of this process")


def _driver_error(error: BaseException) -> BaseException:
    """What asyncpg raised, below what SQLAlchemy made of it."""
    if isinstance(error, SQLAlchemyError) and (original := getattr(error, "orig", None)) is not None:
        return original.__cause__ if isinstance(original.__cause__, asyncpg.PostgresError) else original
    return error


def _said(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError | PoolTimeout):
        return "no answer in time"
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number and number > 0:
        return os.strerror(number)
    return _said(error) or type(error).__name__


def _system_fault(error: OSError, settings: DatabaseSettings) -> str | None:
    path = str(error.filename) if isinstance(error.filename, str | bytes | Path) else ""
    reason = f"{path}: {error.strerror}" if path else error.strerror or str(error)
    if error.errno in _FULL:
        return f"The disk is full ({reason}): free some of it, or give DATA_DIR={settings.data_dir} another place."
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return "This process may open no more files: raise their number (ulimit -n)."
    if path and error.errno in _REFUSED:
        return (
            f"{reason}. Easel keeps its files in DATA_DIR={settings.data_dir}: give it a folder in which this user may"
            " write."
        )
    return f"The system refuses what Easel needs: {reason}."


def _modules(error: BaseException | None) -> Iterator[str]:
    """The names of the modules in whose code it, or what it came from, was raised or passed on."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            yield str(trace.tb_frame.f_globals.get("__name__", ""))
            trace = trace.tb_next
        error = error.__cause__
