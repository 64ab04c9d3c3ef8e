"""Who a run's present answer was asked of, and whether the provider finishes it without us."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("calling_agent", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("background", sa.Boolean(), server_default=sa.text("false"), nullable=False))
