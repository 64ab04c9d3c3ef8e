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

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.db import APP_ROLE, IDENTITY_ROLE, Database, retry_while_unavailable
from app.migrate import migrate, open_for_migration
from app.settings import SettingsError

EMBEDDED_LOGIN = "easel_service"
SCRAM_ITERATIONS = 4096

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*").fullmatch
# Roles belong to the whole server: the migration of another database may make the same one right now.
_MAKE = """
DO $make$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
    BEGIN
      CREATE ROLE "{name}" LOGIN{password};
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
    END;
  END IF;
  IF NOT (pg_has_role('{name}', '{app}', 'SET') AND pg_has_role('{name}', '{identity}', 'SET')) THEN
    BEGIN
      GRANT {app}, {identity} TO "{name}" WITH SET TRUE, INHERIT FALSE;
    EXCEPTION WHEN unique_violation THEN
    END;
  END IF;
  IF NOT has_database_privilege('{name}', current_database(), 'CONNECT') THEN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO "{name}"', current_database());
  END IF;
END $make$
"""
_FAULTS = text("""
SELECT session_user,
  EXISTS (SELECT FROM pg_roles WHERE rolsuper AND pg_has_role(session_user, oid, 'MEMBER')),
  EXISTS (SELECT FROM pg_roles WHERE rolbypassrls AND pg_has_role(session_user, oid, 'MEMBER')),
  EXISTS (SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
          AND pg_has_role(session_user, relowner, 'MEMBER'))
""")


async def migrate_embedded(url: str) -> str:
    """Bring an embedded database to the newest revision; the URL with which it serves."""
    await migrate(url)
    await make_login(url, as_login(url, EMBEDDED_LOGIN))
    return as_login(url, EMBEDDED_LOGIN)


async def make_login(url: str, serving_url: str) -> None:
    """As the login of `url`, make that of `serving_url` where it is missing, and let it become the two roles.

    A role that exists keeps its password. Raises SettingsError where `url`'s login may not do so.
    """
    name, password = _login_of(serving_url)
    if name == _login_of(url)[0]:
        return
    if not _NAME(name):
        raise SettingsError("DATABASE_URL names no user, or one with signs besides letters, digits, _ and -.")
    clause = f" PASSWORD '{scram_verifier(password, secrets.token_bytes(16))}'" if password else ""
    statement = _MAKE.format(name=name, password=clause, app=APP_ROLE, identity=IDENTITY_ROLE)
    async with open_for_migration(url) as connection:
        try:
            await connection.exec_driver_sql(statement)
            await connection.commit()
        except ProgrammingError as error:
            reason = str(error.orig).rpartition(">: ")[2]
            raise SettingsError(
                f"The user of MIGRATION_DATABASE_URL may not make the role {name} ({reason}): give it CREATEROLE, or"
                f" make the role yourself: CREATE ROLE {name} LOGIN; GRANT {APP_ROLE}, {IDENTITY_ROLE} TO {name}"
                " WITH SET TRUE, INHERIT FALSE."
            ) from None


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
