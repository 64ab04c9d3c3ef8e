"""A call knows how many entries were booked with it, so that one that is lost is noticed."""

import sqlalchemy as sa
from alembic import op

from app.schema_steps import run_steps, sql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_steps(
        extend_provider_calls,
        sql("grant booked entries", "GRANT UPDATE (booked_entries) ON provider_calls TO easel_app"),
    )


def extend_provider_calls() -> None:
    op.add_column("provider_calls", sa.Column("booked_entries", sa.Integer(), nullable=True))
