"""The calls that were paid for, and a ledger that says of each what it used and what that cost."""

import sqlalchemy as sa
from alembic import op

from app.schema_steps import build_index, in_each_tenant, run_steps, sql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SECURITY = (
    "ALTER TABLE provider_calls ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE provider_calls FORCE ROW LEVEL SECURITY",
    "CREATE POLICY tenant ON provider_calls TO easel_app"
    " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))",
    "GRANT SELECT, INSERT, UPDATE (response_id, state, settled_at) ON provider_calls TO easel_app",
    # Which calls nobody has settled.
    "CREATE POLICY sweep ON provider_calls FOR SELECT TO easel_identity USING (state <> 'settled')",
    "GRANT SELECT (tenant_id, run_id, number, asked_at, response_id, state) ON provider_calls TO easel_identity",
)
# `quantity` becomes a bigint: in place that would write the whole table anew.
WIDEN = (
    "ALTER TABLE usage_entries ADD COLUMN wide_quantity bigint",
    "CREATE FUNCTION app.widen_quantity() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.wide_quantity := NEW.quantity; RETURN NEW; END $$",
    "CREATE TRIGGER widen_quantity BEFORE INSERT ON usage_entries FOR EACH ROW EXECUTE FUNCTION app.widen_quantity()",
)
# Entries whose kinds overlapped, whose model was the run's first agent's, and which had no price.
OLDER_ENTRIES = """
UPDATE usage_entries e SET
  agent_key = coalesce((SELECT agent_key FROM runs r WHERE r.tenant_id = e.tenant_id AND r.id = e.run_id), ''),
  wide_quantity = quantity - CASE kind WHEN 'input_tokens' THEN coalesce((SELECT c.quantity FROM usage_entries c
    WHERE c.tenant_id = e.tenant_id AND c.run_id = e.run_id AND c.kind = 'cached_input_tokens'), 0) ELSE 0 END
WHERE tenant_id = :tenant AND run_id > :after AND run_id <= :upto AND wide_quantity IS NULL
"""
OLDER_RUNS = """
UPDATE runs SET booked_basis = 'unpriced'
WHERE tenant_id = :tenant AND id > :after AND id <= :upto AND booked_basis IS NULL
  AND EXISTS (SELECT FROM usage_entries e WHERE e.tenant_id = runs.tenant_id AND e.run_id = runs.id)
"""
# What is on its way while this runs: its worker does not know the table.
OPEN_CALLS = """
INSERT INTO provider_calls (tenant_id, run_id, number, user_id, agent_key, model, background, characters, given_tokens,
  response_id)
SELECT tenant_id, id, calling_turn, user_id, coalesce(calling_agent, agent_key), 'unknown', background, 0, 0,
  response_id FROM runs WHERE tenant_id = :tenant AND status IN ('queued', 'running') AND calling_turn > 0
ON CONFLICT DO NOTHING
"""
BOOKED_ONCE = "uq_usage_entries_tenant_id_run_id_call_kind_tool_call_id"


def upgrade() -> None:
    run_steps(
        create_provider_calls,
        extend_runs,
        extend_attachments,
        extend_usage_entries,
        sql("widen quantities", *WIDEN),
        in_each_tenant(
            "correct older entries",
            OLDER_ENTRIES,
            batches="usage_entries.run_id",
            grant="UPDATE (agent_key, wide_quantity) ON usage_entries",
        ),
        sql(
            "require wide quantities",
            "ALTER TABLE usage_entries ADD CONSTRAINT wide CHECK (wide_quantity IS NOT NULL) NOT VALID",
        ),
        sql("validate wide quantities", "ALTER TABLE usage_entries VALIDATE CONSTRAINT wide"),
        sql(
            "use wide quantities",
            "DROP TRIGGER widen_quantity ON usage_entries",
            "DROP FUNCTION app.widen_quantity()",
            "ALTER TABLE usage_entries DROP COLUMN quantity",
            "ALTER TABLE usage_entries RENAME COLUMN wide_quantity TO quantity",
            "ALTER TABLE usage_entries ALTER COLUMN quantity SET NOT NULL, DROP CONSTRAINT wide",
        ),
        build_index(
            BOOKED_ONCE,
            "usage_entries (tenant_id, run_id, call, kind, tool_call_id) NULLS NOT DISTINCT",
            unique=True,
        ),
        sql(
            "book each call once",
            f"ALTER TABLE usage_entries ADD CONSTRAINT {BOOKED_ONCE} UNIQUE USING INDEX {BOOKED_ONCE}",
            "ALTER TABLE usage_entries DROP CONSTRAINT uq_usage_entries_tenant_id_run_id_kind",
        ),
        build_index("ix_usage_entries_time", "usage_entries (tenant_id, created_at, id)"),
        in_each_tenant("mark runs without a price", OLDER_RUNS, batches="runs.id"),
        in_each_tenant("take over open calls", OPEN_CALLS),
    )


def create_provider_calls() -> None:
    op.create_table(
        "provider_calls",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("agent_key", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("image_model", sa.Text(), nullable=True),
        sa.Column("background", sa.Boolean(), nullable=False),
        sa.Column("characters", sa.Integer(), nullable=False),
        sa.Column("given_tokens", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("response_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="asked", nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", "number", name=op.f("pk_provider_calls")),
    )
    op.create_index(
        "ix_provider_calls_open",
        "provider_calls",
        ["asked_at"],
        unique=False,
        postgresql_where=sa.text("state <> 'settled'"),
    )
    for statement in SECURITY:
        op.execute(statement)


def extend_runs() -> None:
    op.add_column("runs", sa.Column("booked_nano", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("booked_basis", sa.Text(), nullable=True))


def extend_attachments() -> None:
    op.add_column("attachments", sa.Column("cost_nano", sa.BigInteger(), nullable=True))
    op.add_column("attachments", sa.Column("cost_basis", sa.Text(), nullable=True))


def extend_usage_entries() -> None:
    for name, kind, default in (
        ("call", sa.Integer(), "1"),
        ("agent_key", sa.Text(), ""),
        ("basis", sa.Text(), "unpriced"),
    ):
        op.add_column("usage_entries", sa.Column(name, kind, server_default=default, nullable=False))
    op.add_column("usage_entries", sa.Column("nano_each", sa.Numeric(), nullable=True))
    op.add_column("usage_entries", sa.Column("cost_nano", sa.BigInteger(), nullable=True))
    op.add_column("usage_entries", sa.Column("tool_call_id", sa.Text(), nullable=True))
    op.add_column("usage_entries", sa.Column("object_id", sa.Uuid(), nullable=True))
