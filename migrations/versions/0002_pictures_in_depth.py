"""Pictures a person sends, smaller copies of stored ones, and search over what was asked for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEARCHED = "to_tsvector('simple', prompt || ' ' || coalesce(revised_prompt, ''))"
UNFINISHED = "status = 'pending' OR (status = 'stored' AND variants IS NULL)"


def upgrade() -> None:
    op.add_column("messages", sa.Column("input_ids", postgresql.ARRAY(sa.Uuid()), server_default="{}", nullable=False))
    op.add_column("attachments", sa.Column("prompt", sa.Text(), server_default="", nullable=False))
    op.add_column(
        "attachments", sa.Column("search", postgresql.TSVECTOR(), sa.Computed(SEARCHED, persisted=True), nullable=True)
    )
    op.add_column("attachments", sa.Column("variants", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("attachments", sa.Column("blurhash", sa.Text(), nullable=True))
    op.drop_index("ix_attachments_pending", "attachments")
    op.create_index(
        "ix_attachments_unfinished",
        "attachments",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text(UNFINISHED),
    )
    op.execute("DROP POLICY sweep ON attachments")
    op.execute(f"CREATE POLICY sweep ON attachments FOR SELECT TO easel_identity USING ({UNFINISHED})")
    op.execute("GRANT SELECT (variants) ON attachments TO easel_identity")
