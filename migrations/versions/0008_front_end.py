"""What front ends show: where a message's images belong in its text, images that failed, masks, the newest activity."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SHARED = sa.text("visibility = 'tenant'")


def upgrade() -> None:
    # In the order in which requests lock the tables: conversations, runs, messages, attachments.
    op.drop_index("ix_conversations_owner", table_name="conversations")
    op.create_index("ix_conversations_owner", "conversations", ["tenant_id", "user_id", "updated_at", "id"])
    op.drop_index("ix_conversations_shared", table_name="conversations")
    op.create_index(
        "ix_conversations_shared", "conversations", ["tenant_id", "updated_at", "id"], postgresql_where=SHARED
    )
    op.create_index("ix_runs_owner", "runs", ["tenant_id", "user_id", "id"])
    op.add_column("messages", sa.Column("image_places", JSONB(), nullable=True))
    # An image that failed may have no bytes.
    op.alter_column("attachments", "size_bytes", existing_type=sa.BigInteger(), nullable=True)
    op.alter_column("attachments", "sha256", existing_type=sa.Text(), nullable=True)
    op.add_column("attachments", sa.Column("purpose", sa.Text(), server_default="image", nullable=False))
