"""The calls that were paid for, and a ledger that says of each what it used and what that cost."""

import sqlalchemy as sa
from alembic import op

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
BLINDED = ("runs", "usage_entries")
# Entries whose kinds overlapped, whose model was the run's first agent's, and which had no price.
OLDER_ENTRIES = (
    # What is on its way while this runs: its worker does not know the table.
    "INSERT INTO provider_calls (tenant_id, run_id, number, user_id, agent_key, model, background, characters,"
    " given_tokens, response_id)"
    " SELECT tenant_id, id, calling_turn, user_id, coalesce(calling_agent, agent_key), 'unknown', background, 0, 0,"
    " response_id FROM runs WHERE status IN ('queued', 'running') AND calling_turn > 0",
    "UPDATE usage_entries e SET agent_key = r.agent_key FROM runs r"
    " WHERE r.tenant_id = e.tenant_id AND r.id = e.run_id",
    "UPDATE usage_entries e SET quantity = e.quantity - c.quantity FROM usage_entries c"
    " WHERE e.kind = 'input_tokens' AND c.kind = 'cached_input_tokens'"
    " AND c.tenant_id = e.tenant_id AND c.run_id = e.run_id",
    "UPDATE runs SET booked_basis = 'unpriced'"
    " WHERE EXISTS (SELECT FROM usage_entries e WHERE e.tenant_id = runs.tenant_id AND e.run_id = runs.id)",
)


def upgrade() -> None:
    create_provider_calls()
    for table, prefix in (("runs", "booked"), ("attachments", "cost")):
        op.add_column(table, sa.Column(f"{prefix}_nano", sa.BigInteger(), nullable=True))
        op.add_column(table, sa.Column(f"{prefix}_basis", sa.Text(), nullable=True))
    extend_usage_entries()
    # Row security holds for the owner as well, and would hide the rows.
    for table in BLINDED:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    for statement in (*OLDER_ENTRIES, *SECURITY):
        op.execute(statement)
    for table in BLINDED:
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


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


def extend_usage_entries() -> None:
    op.alter_column("usage_entries", "quantity", type_=sa.BigInteger(), existing_nullable=False)
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
    op.drop_constraint("uq_usage_entries_tenant_id_run_id_kind", "usage_entries", type_="unique")
    op.create_unique_constraint(
        op.f("uq_usage_entries_tenant_id_run_id_call_kind_tool_call_id"),
        "usage_entries",
        ["tenant_id", "run_id", "call", "kind", "tool_call_id"],
        postgresql_nulls_not_distinct=True,
    )
    op.create_index("ix_usage_entries_time", "usage_entries", ["tenant_id", "created_at", "id"], unique=False)
