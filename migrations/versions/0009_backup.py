"""The role that reads every row for a backup; nobody but the owner may become it."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# As in revision 0001.
MAKE_ROLE = """
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'easel_backup') THEN
    BEGIN
      CREATE ROLE easel_backup NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
    END;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'easel_backup' AND (rolsuper OR rolbypassrls)) THEN
    RAISE 'The role easel_backup must be neither SUPERUSER nor BYPASSRLS.';
  END IF;
  IF NOT pg_has_role(current_user, 'easel_backup', 'SET') THEN
    BEGIN
      GRANT easel_backup TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;
    EXCEPTION WHEN unique_violation THEN
    END;
  END IF;
END $$
"""
TABLES = (
    *("api_keys", "attachment_words", "attachments", "attempt_counts", "audit_entries", "conversations", "erasures"),
    *("exports", "idempotency_keys", "invitations", "memberships", "messages", "object_removals", "orphan_candidates"),
    *("password_resets", "plans", "provider_calls", "provider_objects", "runs", "sign_ins", "streams", "tenants"),
    *("tokens", "usage_counters", "usage_entries", "users"),
)
# A policy is made under the table's heaviest lock: for each table anew, and not again where it is there.
MAY_READ = """
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = '{table}'::regclass AND polname = 'backup') THEN
    CREATE POLICY backup ON {table} FOR SELECT TO easel_backup USING (true);
  END IF;
  GRANT SELECT ON {table} TO easel_backup;
END $$
"""


def upgrade() -> None:
    op.execute(MAKE_ROLE)
    op.execute("GRANT USAGE ON SCHEMA app, public TO easel_backup")
    # What waits for one table's lock must not hold the lock of another.
    with op.get_context().autocommit_block():
        for table in TABLES:
            op.execute(MAY_READ.format(table=table))
