"""The role that reads every row for a backup; nobody but the owner may become it."""

from app.schema_steps import Step, run_steps, sql

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


def upgrade() -> None:
    run_steps(
        sql("make the role", MAKE_ROLE, "GRANT USAGE ON SCHEMA app, public TO easel_backup"),
        *(let_read(table) for table in TABLES),
    )


def let_read(table: str) -> Step:
    return sql(
        f"let backups read {table}",
        f"CREATE POLICY backup ON {table} FOR SELECT TO easel_backup USING (true)",
        f"GRANT SELECT ON {table} TO easel_backup",
    )
