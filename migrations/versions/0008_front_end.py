"""What front ends show: where a message's images belong in its text, images that failed, masks, the newest activity."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from app.schema_steps import build_index, replace_index, run_steps

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_steps(
        *replace_index("ix_conversations_owner", "conversations (tenant_id, user_id, updated_at, id)"),
        *replace_index(
            "ix_conversations_shared", "conversations (tenant_id, updated_at, id) WHERE visibility = 'tenant'"
        ),
        build_index("ix_runs_owner", "runs (tenant_id, user_id, id)"),
        extend_messages,
        extend_attachments,
    )


def extend_messages() -> None:
    op.add_column("messages", sa.Column("image_places", JSONB(), nullable=True))


def extend_attachments() -> None:
    # An image that failed may have no bytes.
    op.alter_column("attachments", "size_bytes", existing_type=sa.BigInteger(), nullable=True)
    op.alter_column("attachments", "sha256", existing_type=sa.Text(), nullable=True)
    op.add_column("attachments", sa.Column("purpose", sa.Text(), server_default="image", nullable=False))
