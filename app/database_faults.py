"""What keeps a database from being used, as one sentence with host, setting and fix; none of them holds a password."""

import os
import ssl
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import asyncpg
from sqlalchemy.exc import InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import CONNECTION_FAULTS

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
# The first that fits.
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
        reason=reason_of(found),
    )


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


def reason_of(error: BaseException) -> str:
    if isinstance(error, TimeoutError | PoolTimeout):
        return "no answer in time"
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number and number > 0:
        return os.strerror(number)
    return _said(error) or type(error).__name__


def hide_value(error: BaseException | None, *made_of_it: BaseException | None) -> None:
    """PostgreSQL and its driver quote a value that they refuse, and the log would show it."""
    if not isinstance(error, asyncpg.DataError):
        return
    cast(Any, error).detail = None
    for one in filter(None, (error, *made_of_it)):
        one.args = (f"a value was refused: {type(error).__name__}",)
