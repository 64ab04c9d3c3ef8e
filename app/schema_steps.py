"""Steps of a migration, beside traffic: each holds its locks shortly, is done once, and waits for locks in short turns.

A migration calls `run_steps`. Each step is a transaction of its own, or a statement that runs outside of one and may be
repeated. A migration that was killed goes on at the step that it was in. CONTRIBUTING.md tells which step does what.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from alembic import op
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from app import EaselError
from app.db import APP_ROLE, IDENTITY_ROLE, SET_RIGHTS

log = logging.getLogger(__name__)

# While a statement waits for a lock on a table, whoever asks for that table after it waits as well. A step that creates
# a foreign key waits for two tables, one after the other.
LOCK_TIMEOUT_MS = 300
# Requests that have queued up behind the statement pass in this time.
LOCK_PAUSE_SECONDS = 0.5
LOCK_GIVE_UP_SECONDS = 600.0
# A request that writes a row of a batch waits for the batch.
BATCH_ROWS = 1000
SLOW_STEP_SECONDS = 1.0

_LOCK_NOT_AVAILABLE = ("55P03", "40P01")  # lock_timeout, deadlock
_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)
# In a schema that the service's roles see nothing in; it is gone once the revision is written.
_PROGRESS = "CREATE TABLE IF NOT EXISTS app.migration_steps (step text PRIMARY KEY)"
_TENANTS = """
SELECT id FROM tenants UNION SELECT tenant_id FROM erasures WHERE kind = 'tenant' AND tenant_id IS NOT NULL ORDER BY 1
"""
_TENANTS_BEFORE_ERASURES = "SELECT id FROM tenants ORDER BY 1"

Work = Callable[[Connection], None]
T = TypeVar("T")


class MigrationError(EaselError):
    """The migration cannot go on now; the message says what to do before it is run again."""


@dataclass(frozen=True)
class Step:
    """`work` in one transaction; or, where `transactional` is false, work that may be repeated at any point."""

    name: str
    work: Work
    transactional: bool = True


def run_steps(*steps: Step | Callable[[], None]) -> None:
    """For `upgrade()`: a plain function is one transaction, named after the function."""
    try:
        with op.get_context().autocommit_block():
            _run_those_left(op.get_bind(), [_as_step(step) for step in steps])
    except PendingRollbackError as error:
        message = "The database closed the connection: run `easel migrate` again, which goes on at the same step."
        raise MigrationError(message) from error
    # In the transaction that writes the revision.
    op.execute("DROP TABLE app.migration_steps")


def _run_those_left(connection: Connection, steps: list[Step]) -> None:
    # The login may have timeouts of its own. An index, a validation and what they wait for may take any time.
    for name in ("lock_timeout", "statement_timeout"):
        connection.exec_driver_sql(f"SET {name} = 0")
    connection.exec_driver_sql(_PROGRESS)
    done = set(connection.scalars(text("SELECT step FROM app.migration_steps")))
    for step in steps:
        if step.name not in done:
            run_step(connection, step)


def sql(name: str, *statements: str) -> Step:
    """The statements, as the owner of the tables."""
    return Step(name, lambda connection: _execute(connection, statements))


def build_index(name: str, on: str, *, unique: bool = False) -> Step:
    """`on` is what follows ON. Nobody waits for it, while it waits for each transaction that is open."""
    kind = "UNIQUE INDEX" if unique else "INDEX"

    def build(connection: Connection) -> None:
        is_valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        found = connection.scalar(is_valid, {"name": name})
        if found is False:
            # What an attempt has left that was killed.
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
        if not found:
            connection.exec_driver_sql(f"CREATE {kind} CONCURRENTLY {name} ON {on}")

    return Step(f"build {name}", build, transactional=False)


def drop_index(name: str) -> Step:
    def drop(connection: Connection) -> None:
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    return Step(f"drop {name}", drop, transactional=False)


def replace_index(name: str, on: str) -> tuple[Step, Step, Step]:
    """The index is there under its name or as `<name>_new` all the time."""
    rename = sql(f"rename {name}", f"ALTER INDEX {name}_new RENAME TO {name}")
    return build_index(f"{name}_new", on), drop_index(name), rename


def as_identity(name: str, *statements: str) -> Step:
    """The statements with the rights and the rows of easel_identity: row security hides every row from the owner."""

    def work(connection: Connection) -> None:
        _enter(connection, IDENTITY_ROLE, None)
        _execute(connection, statements)
        _leave(connection)

    return Step(name, work)


def validate_foreign_key(table: str, name: str, orphan: str) -> Step:
    """Validate what was added as NOT VALID; `orphan` selects a row, as easel_identity, that has no counterpart.

    Under FORCE ROW LEVEL SECURITY Postgres' own check sees no rows where the owner is no superuser.
    """

    def work(connection: Connection) -> None:
        _enter(connection, IDENTITY_ROLE, None)
        if connection.execute(text(orphan)).first() is not None:
            raise MigrationError(f"Rows of {table} break {name}: find them with `{orphan}`, and mend them.")
        _leave(connection)
        connection.exec_driver_sql(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")

    return Step(f"validate {name}", work)


def in_each_tenant(name: str, statement: str, *, batches: str | None = None, grant: str | None = None) -> Step:
    """The statement as easel_app, in one tenant after the other, each in a transaction; it may be repeated.

    `:tenant` is the tenant. `batches` ("runs.id", with an index on tenant_id and it) cuts a tenant's rows by that key:
    the statement is to take those with `> :after` and `<= :upto`. `grant` ("UPDATE (cost) ON runs") is what easel_app
    may not do otherwise; nobody sees that right, as it is revoked before the commit.
    """
    table, _, key = (batches or "").partition(".")
    rows = f"FROM {table} WHERE tenant_id = :tenant AND {key} > :after"
    end = f"SELECT {key} {rows} ORDER BY {key} OFFSET :rows LIMIT 1"

    def batch(connection: Connection, tenant: UUID, after: UUID) -> UUID:
        if grant:
            connection.exec_driver_sql(f"GRANT {grant} TO {APP_ROLE}")
        _enter(connection, APP_ROLE, tenant)
        values: dict[str, object] = {"tenant": tenant}
        upto = _LAST
        if batches:
            values |= {"after": after}
            upto = connection.scalar(text(end), values | {"rows": BATCH_ROWS - 1}) or _LAST
            values |= {"upto": upto}
        connection.execute(text(statement), values)
        _leave(connection)
        if grant:
            connection.exec_driver_sql(f"REVOKE {grant} FROM {APP_ROLE}")
        return upto

    def work(connection: Connection) -> None:
        for tenant in _in_transaction(connection, name, _tenants):
            after = _FIRST
            while after != _LAST:
                after = _in_transaction(connection, name, partial(batch, tenant=tenant, after=after))

    return Step(name, work, transactional=False)


def _as_step(step: Step | Callable[[], None]) -> Step:
    return step if isinstance(step, Step) else Step(step.__name__, lambda _: step())


def run_step(connection: Connection, step: Step) -> None:
    began = time.monotonic()
    if step.transactional:
        _in_transaction(connection, step.name, partial(_work_and_record, step=step))
    else:
        _again_while_locked(step.name, partial(step.work, connection))
        record_step(connection, step)
    if (seconds := time.monotonic() - began) > SLOW_STEP_SECONDS:
        log.info("migration.step", extra={"step": step.name, "seconds": round(seconds, 1)})


def _work_and_record(connection: Connection, step: Step) -> None:
    step.work(connection)
    record_step(connection, step)


def record_step(connection: Connection, step: Step) -> None:
    connection.execute(text("INSERT INTO app.migration_steps (step) VALUES (:step)"), {"step": step.name})


def _in_transaction(connection: Connection, name: str, work: Callable[[Connection], T]) -> T:
    # The connection is in autocommit mode, as CREATE INDEX CONCURRENTLY needs it.
    def attempt() -> T:
        connection.exec_driver_sql("BEGIN")
        try:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
            result = work(connection)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            # Of a connection that is lost nothing is left to roll back.
            with suppress(DBAPIError):
                connection.exec_driver_sql("ROLLBACK")
            raise
        return result

    return _again_while_locked(name, attempt)


def _again_while_locked(name: str, attempt: Callable[[], T]) -> T:
    deadline = time.monotonic() + LOCK_GIVE_UP_SECONDS
    waits = False
    while True:
        try:
            return attempt()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _LOCK_NOT_AVAILABLE:
                raise
            if not waits:
                log.info("migration.waits_for_lock", extra={"step": name})
            waits = True
        if time.monotonic() > deadline:
            raise MigrationError(
                f"The migration's step {name!r} got no lock within {LOCK_GIVE_UP_SECONDS:g} seconds: end the"
                " oldest transactions of pg_stat_activity (by xact_start) and run `easel migrate` again."
            )
        time.sleep(LOCK_PAUSE_SECONDS)


def _execute(connection: Connection, statements: tuple[str, ...]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)


def _enter(connection: Connection, role: str, tenant: UUID | None) -> None:
    # With `row_security = off`, as the session has it, a policy is an error.
    connection.exec_driver_sql("SET LOCAL row_security = on")
    connection.execute(SET_RIGHTS, {"role": role, "tenant": str(tenant or "")})


def _leave(connection: Connection) -> None:
    connection.exec_driver_sql("SET LOCAL ROLE NONE")


def _tenants(connection: Connection) -> list[UUID]:
    """Those whose erasure has left entries in the ledger as well."""
    _enter(connection, IDENTITY_ROLE, None)
    knows_erasures = connection.scalar(text("SELECT to_regclass('erasures') IS NOT NULL"))
    return list(connection.scalars(text(_TENANTS if knows_erasures else _TENANTS_BEFORE_ERASURES)))
