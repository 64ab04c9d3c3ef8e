"""Exports of a tenant, or of one of its users."""

import sqlalchemy as sa
from alembic import op

from app.schema_steps import run_steps

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

OPEN = "status IN ('queued', 'running')"
RIGHTS = (
    "ALTER TABLE exports ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE exports FORCE ROW LEVEL SECURITY",
    "CREATE POLICY tenant ON exports TO easel_app"
    " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON exports TO easel_app",
    # What is to be done: archives to write, and those to delete.
    f"CREATE POLICY sweep ON exports FOR SELECT TO easel_identity USING ({OPEN} OR expires_at <= now())",
    "GRANT SELECT (id, tenant_id, status, created_at, lease_until, expires_at) ON exports TO easel_identity",
)


def upgrade() -> None:
    run_steps(create_exports)


def create_exports() -> None:
    op.create_table(
        "exports",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_exports_tenant_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_exports_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
    )
    op.create_index(
        "uq_exports_open",
        "exports",
        ["tenant_id", "user_id", "scope"],
        unique=True,
        postgresql_where=sa.text(OPEN),
    )
    for statement in RIGHTS:
        op.execute(statement)
