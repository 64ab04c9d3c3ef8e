"""The index by which a tenant's oldest run is found."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OPEN = sa.text("status IN ('queued', 'running')")


def upgrade() -> None:
    op.drop_index("ix_runs_open", table_name="runs")
    op.create_index("ix_runs_open", "runs", ["tenant_id", "status", "id"], unique=False, postgresql_where=OPEN)
