"""The database role that serves requests and executes runs: no superuser, owner of nothing.

It has no rights but to become one of the two roles of app/db.py, so that an injected `set_config('role', 'none')` ends
with none. `easel migrate` makes it; production refuses to start with a login that may do more.
"""

import base64
import hashlib
import hmac
import re
import secrets
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg
from sqlalchemy import text

from app.database_faults import reason_of
from app.db import Database, retry_while_unavailable
from app.loading import load
from app.pool import connected, is_pooled
from app.schema import SCRIPTS, require_version, schema_state
from app.settings import SettingsError

EMBEDDED_LOGIN = "easel_service"
SCRAM_ITERATIONS = 4096
ROLES_KEY = int.from_bytes(b"easel ro")

POOLED = (
    "{setting} leads to a connection pooler, behind which nothing can be migrated, backed up or restored: set"
    " MIGRATION_DATABASE_URL to the address of the server itself."
)
IS_PUBLIC = (
    "warning: every user of the server may connect to this database, and the user of another Easel on the server could"
    " read it: have the database's owner run REVOKE CONNECT ON DATABASE … FROM PUBLIC, or give Easel a database of its"
    " own."
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*").fullmatch
_OWNER, _LOGIN, _PASSWORD = "'easel_owner'", "'easel'", "text := NULL"  # as migrations/roles.sql names them
_FAULTS = text("""
SELECT session_user,
  EXISTS (SELECT FROM pg_roles WHERE rolsuper AND pg_has_role(session_user, oid, 'MEMBER')),
  EXISTS (SELECT FROM pg_roles WHERE rolbypassrls AND pg_has_role(session_user, oid, 'MEMBER')),
  EXISTS (SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
          AND pg_has_role(session_user, relowner, 'MEMBER'))
""")


async def migrate_embedded(url: str) -> str:
    """Bring an embedded database to the newest revision; the URL with which it serves."""
    serving_url = as_login(url, EMBEDDED_LOGIN)
    await make_roles(url, serving_url)
    database = Database(url, pool_size=1)
    try:
        current, newest = await schema_state(database)
    finally:
        await database.close()
    if current != newest:
        # Alembic takes 0.2 s, at each start of an embedded database that is up to date.
        await load("app.migrate").migrate(url)
    return serving_url


async def make_roles(url: str, serving_url: str) -> bool:
    """As the login of `url`, make the roles and the login of `serving_url` where they are missing.

    A login that exists keeps its password. Returns whether every user of the server may connect to the database.
    Raises SettingsError where `url`'s login may not make what is missing, or leads to a pooler.
    """
    setting = "DATABASE_URL" if url == serving_url else "MIGRATION_DATABASE_URL"
    password = _login_of(serving_url)[1]
    statement = roles_sql(url, serving_url, scram_verifier(password, secrets.token_bytes(16)) if password else None)
    async with connected(url, setting) as connection:
        require_version(connection.get_settings().server_version)
        if await is_pooled(connection):
            raise SettingsError(POOLED.format(setting=setting))
        try:
            async with connection.transaction():
                # Two that grant in one database at once would fail.
                await connection.execute(f"SELECT pg_advisory_xact_lock({ROLES_KEY})")
                await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError as error:
            raise SettingsError(
                f"{setting} logs in as {_login_of(url)[0]}, which may not make the roles that Easel needs"
                f" ({reason_of(error)}): have a DBA run once, in this database and as a superuser, what"
                " `easel migrate --roles` prints."
            ) from None
        return await connection.fetchval("SELECT has_database_privilege('public', current_database(), 'CONNECT')")


def roles_sql(url: str, serving_url: str, verifier: str | None = None) -> str:
    """`migrations/roles.sql` for the logins of the two URLs; `verifier` is the password of a login that it makes."""
    name = _login_of(url)[0]
    owner = login = _quoted(name) if name else "current_user"
    if url != serving_url:
        login = _quoted(_serving_name(serving_url))
    filled = {_OWNER: owner, _LOGIN: login}
    if verifier is not None:
        filled[_PASSWORD] = f"text := {_quoted(verifier)}"
    sql = (SCRIPTS / "roles.sql").read_text()
    for placeholder, value in filled.items():
        sql = sql.replace(placeholder, value, 1)
    return sql


def _serving_name(serving_url: str) -> str:
    name = _login_of(serving_url)[0]
    if not _NAME(name):
        raise SettingsError("DATABASE_URL names no user, or one with signs besides letters, digits, _ and -.")
    return name


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@retry_while_unavailable
async def login_faults(database: Database) -> tuple[str, list[str]]:
    """The login's name, and what it may do although it serves."""
    async with database.probe.connect() as connection:
        name, is_superuser, passes_policies, owns_tables = (await connection.execute(_FAULTS)).one()
    faults = {"is a superuser": is_superuser, "has BYPASSRLS": passes_policies, "owns tables": owns_tables}
    return name, [fault for fault, found in faults.items() if found]


async def require_limited_login(database: Database) -> None:
    """Raises SettingsError where the login may do more than become one of the two roles."""
    name, faults = await login_faults(database)
    if faults:
        raise SettingsError(explain(name, faults))


def explain(name: str, faults: list[str]) -> str:
    return (
        f"DATABASE_URL logs in as {name}, which {' and '.join(faults)}: set MIGRATION_DATABASE_URL to this URL, give"
        " DATABASE_URL another user, which owns nothing, and run `easel migrate`, which makes it."
    )


def as_login(url: str, name: str) -> str:
    """The URL with another user, without a password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    # Not urlunsplit: it drops the empty host that a unix socket's URL has.
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{quote(name, safe='')}@{host}{parts.path}{query}"


def scram_verifier(password: str, salt: bytes) -> str:
    """As Postgres keeps it, so that the password itself is in no statement that its log could show (RFC 5803)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    keys = (hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))
    stored, server = (base64.b64encode(key).decode() for key in keys)
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{base64.b64encode(salt).decode()}${stored}:{server}"


def _login_of(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    name = parts.username or query.get("user", [""])[0]
    return unquote(name), unquote(parts.password or query.get("password", [""])[0])
