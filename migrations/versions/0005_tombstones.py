"""Objects that belonged to nobody at one look, and go at a later one."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SECURITY = (
    "ALTER TABLE tombstones ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE tombstones FORCE ROW LEVEL SECURITY",
    "CREATE POLICY tenant ON tombstones TO easel_app"
    " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))",
    "GRANT SELECT, INSERT, UPDATE (seen_at), DELETE ON tombstones TO easel_app",
)


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_tombstones_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_tombstones")),
    )
    for statement in SECURITY:
        op.execute(statement)
