"""What a migration may not do to a table that has rows.

Squawk reads the statements that it sends. What they do not show is asked of the server as they run: which locks one
transaction holds at a time, and whether a table is written anew.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from alembic import op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event, text

from app.migrate import open_for_migration
from app.schema_steps import build_index, in_each_tenant, run_steps, sql
from tests import migrations
from tests.volume import Volume

# Of squawk's rules those on locks, and those on what the release before would miss. The others are on taste.
RULES = {
    "adding-exclusion-constraint",
    "adding-field-with-default",
    "adding-foreign-key-constraint",
    "adding-not-nullable-field",
    "adding-required-field",
    "adding-serial-primary-key-field",
    "ban-concurrent-index-creation-in-transaction",
    "ban-drop-column",
    "ban-drop-table",
    "ban-truncate-cascade",
    "changing-column-type",
    "constraint-missing-not-valid",
    "disallowed-unique-constraint",
    "renaming-column",
    "renaming-table",
    "require-concurrent-index-creation",
    "require-concurrent-index-deletion",
    "require-concurrent-partition-detach",
    "require-concurrent-refresh-materialized-view",
    "require-concurrent-reindex",
    "syntax-error",
}
# (revision, rule or fault) -> why it is right there.
EXCEPTIONS = {
    ("0002", "renaming-column"): "the release before had no users yet: tokens are found by their sign-in from here on",
    ("0002", "ban-drop-column"): "as above",
    ("0006", "renaming-column"): "in the transaction that drops the narrow column of that name",
    ("0006", "ban-drop-column"): "as above",
    ("0006", "adding-not-nullable-field"): "a validated CHECK says so already: nothing is read",
}
# One for the table, and one for that which a foreign key names.
TABLES_AT_A_TIME = 2

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
HELD = """
SELECT c.relname, current_setting('lock_timeout') FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND l.granted AND c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
WATCH = (
    "CREATE SCHEMA watch",
    "CREATE TABLE watch.rewrites (name text)",
    """
CREATE FUNCTION watch.note() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO watch.rewrites SELECT relname FROM pg_class WHERE oid = pg_event_trigger_table_rewrite_oid();
END $$
""",
    "CREATE EVENT TRIGGER note ON table_rewrite EXECUTE FUNCTION watch.note()",
)
# What Alembic and run_steps take down for themselves.
OURS = ("alembic_version", "app.migration_steps")


@dataclass
class Watch:
    """What was sent on one connection, and the faults that the server's locks show."""

    connection: Connection
    existing: set[str] = field(default_factory=set[str])
    statements: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])
    _asking: bool = False

    def __post_init__(self) -> None:
        event.listen(self.connection, "after_cursor_execute", self._see)
        self.existing = set(self._ask(TABLES)) - {"alembic_version"}
        self._ask("DELETE FROM watch.rewrites")

    def _see(self, connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if self._asking or any(table in statement for table in OURS):
            return
        self.statements.append(f"{statement.strip().rstrip(';')};")
        held = {name: timeout for name, timeout in self._rows(HELD) if name in self.existing}
        names = ", ".join(sorted(held))
        if len(held) > TABLES_AT_A_TIME:
            self.faults.append(f"locks {names} in one transaction: {statement}")
        if "0" in held.values():
            self.faults.append(f"waits for a lock without a lock_timeout: {statement}")
        if held and statement.lstrip().startswith(("UPDATE", "DELETE", "INSERT", "SELECT")):
            self.faults.append(f"reads or writes rows while it locks {names}: {statement}")

    def end(self) -> None:
        event.remove(self.connection, "after_cursor_execute", self._see)
        for name in self._ask("SELECT name FROM watch.rewrites"):
            if name in self.existing:
                self.faults.append(f"writes the whole table {name} anew")

    def _ask(self, statement: str) -> list[str]:
        return [row[0] for row in self._rows(statement)]

    def _rows(self, statement: str) -> list[tuple[str, ...]]:
        self._asking = True
        try:
            result = self.connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
        finally:
            self._asking = False


def squawk(directory: Path, statements: list[str]) -> list[str]:
    """`rule: line` for each finding."""
    file = directory / "migration.sql"
    file.write_text("\n".join(statements))
    program = Path(sys.executable).with_name("squawk")
    options = ("--no-error-on-unmatched-pattern", "--pg-version", "16", "--reporter", "json")
    done = subprocess.run([program, *options, file], capture_output=True, text=True, check=False)
    lines = file.read_text().splitlines()
    return [f"{found['rule_name']}: {lines[found['line']]}" for found in json.loads(done.stdout)]


async def sent(url: str, work: Callable[[Connection], None]) -> Watch:
    def run(connection: Connection) -> Watch:
        watch = Watch(connection)
        connection.commit()
        work(connection)
        watch.end()
        return watch

    async with open_for_migration(url) as connection:
        return await connection.run_sync(run)


def faults_of(directory: Path, watch: Watch) -> list[str]:
    found = [finding for finding in squawk(directory, watch.statements) if finding.partition(":")[0] in RULES]
    return [*found, *watch.faults]


async def watch_database(url: str) -> None:
    async with open_for_migration(url) as connection:
        for statement in WATCH:
            await connection.execute(text(statement))
        await connection.commit()


@pytest.mark.slow
async def test_no_migration_locks_a_table_for_long(empty_database_url: str, tmp_path: Path) -> None:
    url = empty_database_url
    first, *others = migrations.revisions()
    await migrations.upgrade(url, first)
    await asyncio.to_thread(migrations.fill, url, Volume(messages=100))
    await watch_database(url)
    found: dict[tuple[str, str], str] = {}
    for revision in others:
        watch = await sent(url, lambda connection, to=revision: migrations.upgrade_to(connection, to))
        assert "COMMIT;" in watch.statements, f"{revision} does not use run_steps"
        for fault in faults_of(tmp_path, watch):
            found.setdefault((revision, fault.partition(":")[0]), fault)
    assert {key: fault for key, fault in found.items() if key not in EXCEPTIONS} == {}
    assert found.keys() == EXCEPTIONS.keys()


def plain(*statements: str) -> Callable[[], None]:
    """In the one transaction that Alembic opens."""

    def change() -> None:
        for statement in statements:
            op.execute(statement)

    return change


def steps(*statements: str) -> Callable[[], None]:
    return lambda: run_steps(sql("change", *statements))


STORED = "ALTER TABLE attachments ADD COLUMN x bigint GENERATED ALWAYS AS (size_bytes * 2) STORED"
LOCKING = {
    "a plain index": (steps("CREATE INDEX x ON messages (role)"), "require-concurrent-index-creation"),
    "a plain drop of an index": (steps("DROP INDEX ix_messages_conversation"), "require-concurrent-index-deletion"),
    "a generated column": (steps(STORED), "writes the whole table attachments anew"),
    "another type": (steps("ALTER TABLE runs ALTER attempt TYPE bigint"), "writes the whole table runs anew"),
    "a random default": (
        steps("ALTER TABLE messages ADD COLUMN x uuid NOT NULL DEFAULT gen_random_uuid()"),
        "writes the whole table messages anew",
    ),
    "a validated foreign key": (
        steps("ALTER TABLE runs ADD CONSTRAINT x FOREIGN KEY (user_id) REFERENCES users (id)"),
        "adding-foreign-key-constraint",
    ),
    "a validated check": (
        steps("ALTER TABLE messages ADD CONSTRAINT x CHECK (role <> '')"),
        "constraint-missing-not-valid",
    ),
    "not null": (steps("ALTER TABLE messages ALTER run_id SET NOT NULL"), "adding-not-nullable-field"),
    "a unique constraint": (
        steps("ALTER TABLE messages ADD CONSTRAINT x UNIQUE (tenant_id, id, role)"),
        "disallowed-unique-constraint",
    ),
    "a dropped column": (steps("ALTER TABLE runs DROP COLUMN usage"), "ban-drop-column"),
    "a renamed column": (steps("ALTER TABLE runs RENAME usage TO used"), "renaming-column"),
    "three tables at once": (
        steps(*(f"ALTER TABLE {table} ADD COLUMN x text" for table in ("messages", "runs", "attachments"))),
        "locks attachments, messages, runs in one transaction",
    ),
    "policies on all tables at once": (
        steps(*(f"CREATE POLICY x ON {table} USING (true)" for table in ("messages", "runs", "users"))),
        "locks messages, runs, users in one transaction",
    ),
    "rows under a lock": (
        steps("ALTER TABLE messages NO FORCE ROW LEVEL SECURITY", "UPDATE messages SET role = role"),
        "reads or writes rows while it locks messages",
    ),
    "no steps": (plain("ALTER TABLE messages ADD COLUMN x text"), "waits for a lock without a lock_timeout"),
}
HARMLESS = (
    sql("add a column", "ALTER TABLE messages ADD COLUMN x text DEFAULT 'a' NOT NULL"),
    build_index("ix_x", "messages (x)"),
    sql("add a check", "ALTER TABLE messages ADD CONSTRAINT x CHECK (x <> '') NOT VALID"),
    sql("validate", "ALTER TABLE messages VALIDATE CONSTRAINT x"),
    in_each_tenant(
        "fill",
        "UPDATE messages SET x = 'b' WHERE tenant_id = :tenant AND id > :after AND id <= :upto",
        batches="messages.id",
    ),
)


async def planted(url: str, change: Callable[[], None]) -> Watch:
    def work(connection: Connection) -> None:
        context = MigrationContext.configure(connection)
        with Operations.context(context), context.begin_transaction(_per_migration=True):
            change()

    return await sent(url, work)


@pytest.mark.parametrize(("change", "fault"), LOCKING.values(), ids=LOCKING.keys())
async def test_a_change_that_locks_is_noticed(
    change: Callable[[], None], fault: str, database_url: str, tmp_path: Path
) -> None:
    await watch_database(database_url)
    found = faults_of(tmp_path, await planted(database_url, change))
    assert any(line.startswith(fault) for line in found), found


async def test_a_change_that_locks_nothing_for_long_is_left_alone(database_url: str, tmp_path: Path) -> None:
    await watch_database(database_url)
    assert faults_of(tmp_path, await planted(database_url, lambda: run_steps(*HARMLESS))) == []
