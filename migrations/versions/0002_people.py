"""Sign-ins, invitations, password resets, counted attempts, the audit log, shared conversations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TENANT_TABLES = ("invitations", "audit_entries")
IDENTITY_TABLES = ("sign_ins", "invitations", "password_resets", "attempt_counts")

APP = (
    *(
        f"CREATE POLICY tenant ON {table} TO easel_app"
        " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))"
        for table in TENANT_TABLES
    ),
    "CREATE POLICY change ON tenants FOR UPDATE TO easel_app"
    " USING (id = (SELECT app.tenant())) WITH CHECK (id = (SELECT app.tenant()))",
    # Who has left is still named in what they did.
    "DROP POLICY tenant ON users",
    "CREATE POLICY tenant ON users FOR SELECT TO easel_app USING ("
    "EXISTS (SELECT FROM memberships m WHERE m.user_id = users.id AND m.tenant_id = (SELECT app.tenant())) OR "
    "EXISTS (SELECT FROM audit_entries a WHERE a.user_id = users.id AND a.tenant_id = (SELECT app.tenant())))",
    "GRANT SELECT (name) ON users TO easel_app",
    "GRANT UPDATE (name, retention_days) ON tenants TO easel_app",
    "GRANT INSERT, UPDATE (role), DELETE ON memberships TO easel_app",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON invitations TO easel_app",
    "GRANT SELECT, INSERT ON audit_entries TO easel_app",
)
IDENTITY = (
    *(
        f"CREATE POLICY identity ON {table} TO easel_identity USING (true) WITH CHECK (true)"
        for table in IDENTITY_TABLES
    ),
    "GRANT SELECT, INSERT, UPDATE (last_used_at, ended_at), DELETE ON sign_ins TO easel_identity",
    "GRANT SELECT, DELETE ON invitations TO easel_identity",
    "GRANT SELECT, INSERT, DELETE ON password_resets TO easel_identity",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON attempt_counts TO easel_identity",
    "GRANT UPDATE (name) ON users TO easel_identity",
    "GRANT UPDATE (plan, suspended_at) ON tenants TO easel_identity",
)


def upgrade() -> None:
    extend_tenants_and_users()
    create_sign_ins()
    create_invitations_and_resets()
    create_attempt_counts()
    create_audit_entries()
    share_conversations()
    for table in (*IDENTITY_TABLES, "audit_entries"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    for statement in (*APP, *IDENTITY):
        op.execute(statement)


def extend_tenants_and_users() -> None:
    op.add_column("tenants", sa.Column("plan", sa.Text(), server_default="unlimited", nullable=False))
    op.add_column("tenants", sa.Column("retention_days", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("users", sa.Column("name", sa.Text(), nullable=True))
    # The secrets of older keys are not known any more.
    op.add_column("api_keys", sa.Column("hint", sa.Text(), server_default="", nullable=False))


def create_sign_ins() -> None:
    op.create_table(
        "sign_ins",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sign_ins_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_ins")),
    )
    op.create_index(op.f("ix_sign_ins_user_id"), "sign_ins", ["user_id"], unique=False)
    # Row security holds for the owner as well, and would hide the rows.
    for table in ("tokens", "users"):
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute(
        "INSERT INTO sign_ins (id, user_id, created_at, ended_at)"
        " SELECT family_id, min(user_id::text)::uuid, min(created_at), max(revoked_at) FROM tokens GROUP BY family_id"
    )
    op.alter_column("tokens", "family_id", new_column_name="sign_in_id")
    op.execute("ALTER INDEX ix_tokens_family_id RENAME TO ix_tokens_sign_in_id")
    op.create_foreign_key(
        op.f("fk_tokens_sign_in_id"), "tokens", "sign_ins", ["sign_in_id"], ["id"], ondelete="CASCADE"
    )
    op.drop_column("tokens", "revoked_at")
    op.drop_column("tokens", "user_id")
    for table in ("tokens", "users"):
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def create_invitations_and_resets() -> None:
    op.create_table(
        "invitations",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_invitations_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_invitations_secret_hash")),
        sa.UniqueConstraint("tenant_id", "email", name=op.f("uq_invitations_tenant_id_email")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_invitations_tenant_id_id")),
    )
    op.create_table(
        "password_resets",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_password_resets_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_resets")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_password_resets_secret_hash")),
        sa.UniqueConstraint("user_id", name=op.f("uq_password_resets_user_id")),
    )


def create_attempt_counts() -> None:
    op.create_table(
        "attempt_counts",
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_attempt_counts")),
    )
    op.create_index(op.f("ix_attempt_counts_expires_at"), "attempt_counts", ["expires_at"], unique=False)


def create_audit_entries() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("actor_type", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target_type", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Uuid(), nullable=False),
        sa.Column("changes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_audit_entries_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    op.create_index("ix_audit_entries_tenant", "audit_entries", ["tenant_id", "id"], unique=False)
    op.create_index("ix_audit_entries_user", "audit_entries", ["tenant_id", "user_id"], unique=False)


def share_conversations() -> None:
    op.add_column("conversations", sa.Column("visibility", sa.Text(), server_default="private", nullable=False))
    op.create_index(
        "ix_conversations_shared",
        "conversations",
        ["tenant_id", "id"],
        unique=False,
        postgresql_where=sa.text("visibility = 'tenant'"),
    )
