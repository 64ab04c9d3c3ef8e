"""Sign-ins, invitations, password resets, counted attempts, the audit log, shared conversations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.schema_steps import as_identity, build_index, run_steps, sql, validate_foreign_key

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TENANT = " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))"
ALL = " USING (true) WITH CHECK (true)"
TENANTS = (
    "CREATE POLICY change ON tenants FOR UPDATE TO easel_app"
    " USING (id = (SELECT app.tenant())) WITH CHECK (id = (SELECT app.tenant()))",
    "GRANT UPDATE (name, retention_days) ON tenants TO easel_app",
    "GRANT UPDATE (plan, suspended_at) ON tenants TO easel_identity",
)
USERS = (
    # Who has left is still named in what they did.
    "DROP POLICY tenant ON users",
    "CREATE POLICY tenant ON users FOR SELECT TO easel_app USING ("
    "EXISTS (SELECT FROM memberships m WHERE m.user_id = users.id AND m.tenant_id = (SELECT app.tenant())) OR "
    "EXISTS (SELECT FROM audit_entries a WHERE a.user_id = users.id AND a.tenant_id = (SELECT app.tenant())))",
    "GRANT SELECT (name) ON users TO easel_app",
    "GRANT UPDATE (name) ON users TO easel_identity",
)
SIGN_INS = (
    f"CREATE POLICY identity ON sign_ins TO easel_identity{ALL}",
    "GRANT SELECT, INSERT, UPDATE (last_used_at, ended_at), DELETE ON sign_ins TO easel_identity",
)
INVITATIONS = (
    f"CREATE POLICY tenant ON invitations TO easel_app{TENANT}",
    f"CREATE POLICY identity ON invitations TO easel_identity{ALL}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON invitations TO easel_app",
    "GRANT SELECT, DELETE ON invitations TO easel_identity",
)
PASSWORD_RESETS = (
    f"CREATE POLICY identity ON password_resets TO easel_identity{ALL}",
    "GRANT SELECT, INSERT, DELETE ON password_resets TO easel_identity",
)
ATTEMPT_COUNTS = (
    f"CREATE POLICY identity ON attempt_counts TO easel_identity{ALL}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON attempt_counts TO easel_identity",
)
AUDIT_ENTRIES = (
    f"CREATE POLICY tenant ON audit_entries TO easel_app{TENANT}",
    "GRANT SELECT, INSERT ON audit_entries TO easel_app",
)
# A family of tokens is what a sign-in is now.
FAMILIES = """
INSERT INTO sign_ins (id, user_id, created_at, ended_at)
SELECT sign_in_id, min(user_id::text)::uuid, min(created_at), max(revoked_at) FROM tokens GROUP BY 1
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    run_steps(
        extend_tenants,
        extend_users,
        extend_api_keys,
        create_sign_ins,
        create_invitations,
        create_password_resets,
        create_attempt_counts,
        create_audit_entries,
        sql("name those who left", *USERS),
        sql("manage members", "GRANT INSERT, UPDATE (role), DELETE ON memberships TO easel_app"),
        share_conversations,
        build_index("ix_conversations_shared", "conversations (tenant_id, id) WHERE visibility = 'tenant'"),
        # From here on the release before can sign nobody in.
        sql(
            "rename families",
            "ALTER TABLE tokens RENAME COLUMN family_id TO sign_in_id",
            "ALTER INDEX ix_tokens_family_id RENAME TO ix_tokens_sign_in_id",
        ),
        as_identity("copy sign-ins", FAMILIES),
        sql(
            "refer to sign-ins",
            "ALTER TABLE tokens ADD CONSTRAINT fk_tokens_sign_in_id FOREIGN KEY (sign_in_id)"
            " REFERENCES sign_ins (id) ON DELETE CASCADE NOT VALID",
        ),
        validate_foreign_key(
            "tokens",
            "fk_tokens_sign_in_id",
            "SELECT 1 FROM tokens t WHERE NOT EXISTS (SELECT FROM sign_ins s WHERE s.id = t.sign_in_id)",
        ),
        sql("leave to sign-ins", "ALTER TABLE tokens DROP COLUMN revoked_at, DROP COLUMN user_id"),
    )


def secure(table: str, statements: tuple[str, ...]) -> None:
    for statement in (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        *statements,
    ):
        op.execute(statement)


def extend_tenants() -> None:
    op.add_column("tenants", sa.Column("plan", sa.Text(), server_default="unlimited", nullable=False))
    op.add_column("tenants", sa.Column("retention_days", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))
    for statement in TENANTS:
        op.execute(statement)


def extend_users() -> None:
    op.add_column("users", sa.Column("name", sa.Text(), nullable=True))


def extend_api_keys() -> None:
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
    secure("sign_ins", SIGN_INS)


def create_invitations() -> None:
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
    secure("invitations", INVITATIONS)


def create_password_resets() -> None:
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
    secure("password_resets", PASSWORD_RESETS)


def create_attempt_counts() -> None:
    op.create_table(
        "attempt_counts",
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_attempt_counts")),
    )
    op.create_index(op.f("ix_attempt_counts_expires_at"), "attempt_counts", ["expires_at"], unique=False)
    secure("attempt_counts", ATTEMPT_COUNTS)


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
    secure("audit_entries", AUDIT_ENTRIES)


def share_conversations() -> None:
    op.add_column("conversations", sa.Column("visibility", sa.Text(), server_default="private", nullable=False))
