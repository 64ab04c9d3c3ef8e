"""Plans and their limits: what is counted against them, what open runs hold, which streams are open."""

# ruff: noqa: S608 - composed of constants

import sqlalchemy as sa
from alembic import op

from app.schema_steps import as_identity, build_index, in_each_tenant, run_steps, sql, validate_foreign_key

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNTS = ("runs_per_minute", "runs_at_once", "streams_at_once", "images_per_day")
LIMITS = (
    *COUNTS,
    "spend_per_month_nano",
    "stored_bytes",
    *(f"user_{name}" for name in COUNTS),
    "user_spend_per_month_nano",
)
TRIAL = """
INSERT INTO plans (name, runs_per_minute, runs_at_once, streams_at_once, images_per_day, spend_per_month_nano,
  stored_bytes)
VALUES ('trial', 10, 3, 5, 20, 5000000000, 1000000000)
"""
ADD = """\
  ON CONFLICT (tenant_id, user_id) DO UPDATE SET
    spent_nano = CASE WHEN c.month > excluded.month THEN c.spent_nano
      WHEN c.month = excluded.month THEN c.spent_nano + excluded.spent_nano ELSE excluded.spent_nano END,
    month = greatest(c.month, excluded.month),
    images = CASE WHEN c.day > excluded.day THEN c.images
      WHEN c.day = excluded.day THEN c.images + excluded.images ELSE excluded.images END,
    day = greatest(c.day, excluded.day)"""
# Whatever writes an entry of the ledger has counted it: once for its tenant, which is the user of zeros, once for its
# user. The tenant's row is locked first.
COUNT_USAGE = f"""
CREATE FUNCTION app.count_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO usage_counters AS c (tenant_id, user_id, month, spent_nano, day, images)
  SELECT tenant_id, owner, date_trunc('month', newest)::date,
    coalesce(sum(cost_nano) FILTER (WHERE day >= date_trunc('month', newest)), 0), newest,
    count(DISTINCT (run_id, tool_call_id)) FILTER (WHERE day = newest AND tool_call_id IS NOT NULL)
  FROM (
    SELECT a.*, owner, timezone('UTC', a.created_at)::date AS day,
      max(timezone('UTC', a.created_at)::date) OVER (PARTITION BY a.tenant_id, owner) AS newest
    FROM added a CROSS JOIN LATERAL (VALUES ('00000000-0000-0000-0000-000000000000'::uuid), (a.user_id)) o (owner)
  ) entries
  GROUP BY tenant_id, owner, newest ORDER BY tenant_id, owner
{ADD};
  RETURN NULL;
END $$
"""
COUNT_TRIGGER = """
CREATE TRIGGER count_usage AFTER INSERT ON usage_entries REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION app.count_usage()
"""
# What the trigger has not counted: of one moment, all entries less what is counted. So it may run beside the trigger,
# and again.
COUNTED_BEFORE = f"""
INSERT INTO usage_counters AS c (tenant_id, user_id, month, spent_nano, day, images)
SELECT :tenant, owner, this_month, spent_nano - coalesce((SELECT k.spent_nano FROM usage_counters k
    WHERE k.tenant_id = :tenant AND k.user_id = owner AND k.month = this_month), 0),
  today, images - coalesce((SELECT k.images FROM usage_counters k
    WHERE k.tenant_id = :tenant AND k.user_id = owner AND k.day = today), 0)
FROM (
  SELECT coalesce(user_id, '00000000-0000-0000-0000-000000000000') AS owner, timezone('UTC', now())::date AS today,
    date_trunc('month', timezone('UTC', now()))::date AS this_month, coalesce(sum(cost_nano), 0) AS spent_nano,
    count(DISTINCT (run_id, tool_call_id)) FILTER (
      WHERE tool_call_id IS NOT NULL AND created_at >= date_trunc('day', now(), 'UTC')) AS images
  FROM usage_entries WHERE tenant_id = :tenant AND created_at >= date_trunc('month', now(), 'UTC')
  GROUP BY GROUPING SETS ((), (user_id)) HAVING count(*) > 0
) used ORDER BY owner
{ADD}
"""
# Of an image: with its smaller copies, unless it failed.
STORED_BYTES = """
CREATE FUNCTION app.stored_bytes(status text, size_bytes bigint, variants jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN status = 'failed' THEN 0 ELSE size_bytes + coalesce(
  (SELECT sum((copy ->> 'size_bytes')::bigint) FROM jsonb_array_elements(variants) copy), 0)::bigint END
"""
# By a trigger: to add a generated column writes the whole table anew.
SET_STORED_BYTES = """
CREATE FUNCTION app.set_stored_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.stored_bytes := app.stored_bytes(NEW.status, NEW.size_bytes, NEW.variants);
  RETURN NEW;
END $$
"""
SET_TRIGGER = """
CREATE TRIGGER set_stored_bytes BEFORE INSERT OR UPDATE OF status, size_bytes, variants, stored_bytes ON attachments
FOR EACH ROW EXECUTE FUNCTION app.set_stored_bytes()
"""
OLDER_ATTACHMENTS = """
UPDATE attachments SET stored_bytes = 0
WHERE tenant_id = :tenant AND id > :after AND id <= :upto AND stored_bytes IS NULL
"""
# Any name was possible before.
NAMED_PLANS = "INSERT INTO plans (name) SELECT DISTINCT plan FROM tenants ON CONFLICT DO NOTHING"
TENANT = " TO easel_app USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))"
PLANS = (
    "CREATE POLICY app ON plans FOR SELECT TO easel_app USING (true)",
    "CREATE POLICY identity ON plans TO easel_identity USING (true) WITH CHECK (true)",
    "GRANT SELECT ON plans TO easel_app",
    "GRANT SELECT, INSERT, UPDATE ON plans TO easel_identity",
)
USAGE_COUNTERS = (
    f"CREATE POLICY tenant ON usage_counters{TENANT}",
    "GRANT SELECT, INSERT, UPDATE (full_at, month, spent_nano, day, images) ON usage_counters TO easel_app",
)
STREAMS = (
    f"CREATE POLICY tenant ON streams{TENANT}",
    "GRANT SELECT, INSERT ON streams TO easel_app",
    # An API process tells of all its streams at once.
    "CREATE POLICY identity ON streams TO easel_identity USING (true)",
    "GRANT SELECT (tenant_id, run_id, id, seen_at), UPDATE (seen_at), DELETE ON streams TO easel_identity",
)


def upgrade() -> None:
    run_steps(
        create_plans,
        create_usage_counters,
        create_streams,
        as_identity("fill plans", "INSERT INTO plans (name) VALUES ('unlimited')", TRIAL, NAMED_PLANS),
        sql(
            "refer to plans",
            "ALTER TABLE tenants ADD CONSTRAINT fk_tenants_plan FOREIGN KEY (plan) REFERENCES plans (name) NOT VALID",
        ),
        as_identity("fill newer plans", NAMED_PLANS),
        validate_foreign_key(
            "tenants",
            "fk_tenants_plan",
            "SELECT 1 FROM tenants WHERE NOT EXISTS (SELECT FROM plans WHERE plans.name = tenants.plan)",
        ),
        sql("count usage", COUNT_USAGE, COUNT_TRIGGER),
        in_each_tenant("count older usage", COUNTED_BEFORE),
        extend_runs,
        extend_provider_calls,
        extend_attachments,
        in_each_tenant("count older attachments", OLDER_ATTACHMENTS, batches="attachments.id"),
        build_index("ix_attachments_stored_bytes", "attachments (tenant_id) INCLUDE (stored_bytes)"),
    )


def secure(table: str, statements: tuple[str, ...]) -> None:
    for statement in (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        *statements,
    ):
        op.execute(statement)


def extend_runs() -> None:
    reserve("runs")
    op.add_column("runs", sa.Column("without", sa.ARRAY(sa.Text()), server_default="{}", nullable=False))


def extend_provider_calls() -> None:
    reserve("provider_calls")


def reserve(table: str) -> None:
    op.add_column(table, sa.Column("reserved_images", sa.BigInteger(), nullable=True))
    op.add_column(table, sa.Column("reserved_nano", sa.BigInteger(), nullable=True))


def extend_attachments() -> None:
    op.execute(STORED_BYTES)
    op.execute(SET_STORED_BYTES)
    op.add_column("attachments", sa.Column("stored_bytes", sa.BigInteger(), nullable=True))
    op.execute(SET_TRIGGER)


def create_plans() -> None:
    op.create_table(
        "plans",
        sa.Column("name", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in LIMITS),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_plans")),
    )
    secure("plans", PLANS)


def create_usage_counters() -> None:
    op.create_table(
        "usage_counters",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("month", sa.Date(), nullable=True),
        sa.Column("spent_nano", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("day", sa.Date(), nullable=True),
        sa.Column("images", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_usage_counters")),
    )
    secure("usage_counters", USAGE_COUNTERS)


def create_streams() -> None:
    op.create_table(
        "streams",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["runs.tenant_id", "runs.id"],
            name=op.f("fk_streams_tenant_id_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", "id", name=op.f("pk_streams")),
    )
    secure("streams", STREAMS)
