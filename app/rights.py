"""What serves requests must have in the database: two roles to become, their grants and policies, row security.

`migrations/rights.txt` lists what the newest revision gives, one right a line. A test compares it with what the
migrations really leave, so that a changed grant or policy cannot be forgotten here (`./just rights` writes it anew).
"""

from functools import cache

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import APP_ROLE, IDENTITY_ROLE, SET_RIGHTS, uuid7
from app.errors import is_connection_error
from app.schema import SCRIPTS

MANIFEST = SCRIPTS / "rights.txt"

# From the catalogue itself: the views that the standard asks for take seconds, and hide what the login may not use.
_RIGHTS = text("""
WITH tables AS (SELECT oid, relname, relacl, relrowsecurity AND relforcerowsecurity AS secured
                FROM pg_class WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p')),
roles AS (SELECT oid, rolname FROM pg_roles WHERE rolname IN (:app, :identity)),
granted AS (
  SELECT relname AS name, relacl AS rights, '' AS of_column FROM tables
  UNION ALL SELECT relname, attacl, format(' (%s)', attname) FROM pg_attribute JOIN tables ON tables.oid = attrelid
  WHERE attacl IS NOT NULL
  UNION ALL SELECT 'schema ' || nspname, nspacl, '' FROM pg_namespace WHERE nspname IN ('app', 'public'))
SELECT 'row security on ' || relname FROM tables WHERE secured
UNION ALL SELECT format('policy %s on %s to %s', polname, relname, rolname)
FROM pg_policy JOIN tables ON tables.oid = polrelid JOIN roles ON polroles && ARRAY[roles.oid, 0::oid]
UNION ALL SELECT format('%s%s on %s to %s', lower(privilege_type), of_column, name, rolname)
FROM granted, aclexplode(rights) JOIN roles ON roles.oid = grantee
""")


async def rights_faults(connection: AsyncConnection, *, at_head: bool) -> list[str]:
    """A sentence for each role that cannot be entered, for rights that are missing, and for policies too many.

    `at_head` tells that the database has this release's newest revision: only of that one the rights are known.
    """
    faults = [fault for role in (APP_ROLE, IDENTITY_ROLE) if (fault := await _entry_fault(connection, role))]
    if faults or not at_head:  # without a role all of its rights are missing, which says nothing new
        return faults
    expected, found = set(expected_rights()), set(await find_rights(connection))
    if missing := sorted(expected - found):
        faults.append(
            f"The database lacks what its migrations gave ({_first(missing)}): restore it from a whole dump, roles"
            " included, or give it again as migrations/versions does."
        )
    if foreign := sorted(right for right in found - expected if right.startswith("policy ")):
        faults.append(
            f"The database has what no migration made ({_first(foreign)}): it may show one tenant's rows to another,"
            " so drop it (DROP POLICY)."
        )
    return faults


async def find_rights(connection: AsyncConnection) -> list[str]:
    """The rights that are there, each in the words of the manifest."""
    return sorted(await connection.scalars(_RIGHTS, {"app": APP_ROLE, "identity": IDENTITY_ROLE}))


@cache
def expected_rights() -> tuple[str, ...]:
    return tuple(MANIFEST.read_text(encoding="utf-8").splitlines())


def _first(rights: list[str]) -> str:
    return rights[0] + (f", and {len(rights) - 1} more" if len(rights) > 1 else "")


async def _entry_fault(connection: AsyncConnection, role: str) -> str | None:
    """What keeps the login from what every request begins with."""
    try:
        await connection.execute(SET_RIGHTS, {"role": role, "tenant": str(uuid7())})
        await connection.execute(text("SELECT app.tenant()"))
    except DBAPIError as error:
        if is_connection_error(error):
            raise
        reason = str(error.orig).rpartition(">: ")[2]
        return (
            f"The login of DATABASE_URL cannot become the role {role} ({reason}): run `easel migrate`, which gives it."
        )
    finally:
        await connection.rollback()
    return None
