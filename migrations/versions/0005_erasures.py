"""Erasures, and what a deletion leaves to do in the store and at the provider."""

import sqlalchemy as sa
from alembic import op

from app.schema_steps import build_index, run_steps, sql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

OF_TENANT = "(SELECT FROM erasures e WHERE e.kind = 'tenant' AND e.tenant_id = {} AND e.completed_at IS NULL)"
OF_ACCOUNT = "(SELECT FROM erasures e WHERE e.kind = 'account' AND e.user_id = users.id AND e.completed_at IS NULL)"
LEFT = "action IN ('member.removed', 'member.left')"

TENANT = " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))"
ERASURES = (
    f"CREATE POLICY tenant ON erasures TO easel_app{TENANT}",
    "CREATE POLICY identity ON erasures TO easel_identity USING (true) WITH CHECK (true)",
    "GRANT SELECT, INSERT, UPDATE (status, lease_until, rows_gone_at, completed_at, rows) ON erasures TO easel_app",
    "GRANT SELECT, INSERT ON erasures TO easel_identity",
    "GRANT UPDATE (status, lease_until, rows_gone_at, completed_at, rows, objects, size_bytes, provider) ON erasures"
    " TO easel_identity",
)
OBJECT_REMOVALS = (
    f"CREATE POLICY tenant ON object_removals TO easel_app{TENANT}",
    "CREATE POLICY identity ON object_removals TO easel_identity USING (true) WITH CHECK (true)",
    "GRANT SELECT, INSERT, UPDATE (erasure_id, due_at) ON object_removals TO easel_app",
    "GRANT SELECT, UPDATE (due_at), DELETE ON object_removals TO easel_identity",
)
PROVIDER_OBJECTS = (
    f"CREATE POLICY tenant ON provider_objects TO easel_app{TENANT}",
    # Those whose run is gone.
    "CREATE POLICY sweep ON provider_objects TO easel_identity USING (run_id IS NULL)",
    "GRANT SELECT, INSERT, UPDATE (erasure_id) ON provider_objects TO easel_app",
    "GRANT SELECT, UPDATE (due_at), DELETE ON provider_objects TO easel_identity",
)
AUDIT_ENTRIES = (
    f"CREATE POLICY erased ON audit_entries TO easel_identity"
    f" USING (EXISTS {OF_TENANT.format('audit_entries.tenant_id')})",
    # Where somebody was a member before.
    f"CREATE POLICY former ON audit_entries FOR SELECT TO easel_identity USING ({LEFT})",
    "GRANT SELECT (id, tenant_id, action, target_id), DELETE ON audit_entries TO easel_identity",
)
# A tenant, a user, an audit log: only where their erasure was requested.
TENANTS = (
    f"CREATE POLICY erased ON tenants AS RESTRICTIVE FOR DELETE TO easel_identity"
    f" USING (EXISTS {OF_TENANT.format('tenants.id')})",
    "GRANT DELETE ON tenants TO easel_identity",
)
USERS = (
    f"CREATE POLICY erased ON users AS RESTRICTIVE FOR DELETE TO easel_identity USING (EXISTS {OF_ACCOUNT})",
    "GRANT DELETE ON users TO easel_identity",
)


def upgrade() -> None:
    run_steps(
        create_erasures,
        create_object_removals,
        create_provider_objects,
        # What was used stays in the books.
        sql("keep the books", "ALTER TABLE usage_entries DROP CONSTRAINT fk_usage_entries_tenant_id"),
        build_index("ix_audit_entries_former", f"audit_entries (target_id) WHERE {LEFT}"),
        # By which a user's own rows are found as the user goes.
        build_index("ix_conversations_user_id", "conversations (user_id)"),
        sql("erase audit entries", *AUDIT_ENTRIES),
        sql("erase tenants", *TENANTS),
        sql("erase users", *USERS),
    )


def secure(table: str, statements: tuple[str, ...]) -> None:
    for statement in (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        *statements,
    ):
        op.execute(statement)


def create_erasures() -> None:
    op.create_table(
        "erasures",
        sa.Column("receipt_hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("rows_gone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("rows", "objects", "size_bytes", "provider")
        ),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    op.create_index(op.f("ix_erasures_receipt_hash"), "erasures", ["receipt_hash"], unique=False)
    op.create_index(
        "ix_erasures_open", "erasures", ["lease_until"], unique=False, postgresql_where=sa.text("completed_at IS NULL")
    )
    op.create_index(
        "ix_erasures_tenant",
        "erasures",
        ["tenant_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'tenant'"),
    )
    secure("erasures", ERASURES)


def create_object_removals() -> None:
    op.create_table(
        "object_removals",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("erasure_id", sa.Uuid(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "prefix", name=op.f("pk_object_removals")),
    )
    op.create_index(op.f("ix_object_removals_due_at"), "object_removals", ["due_at"], unique=False)
    op.create_index(op.f("ix_object_removals_erasure_id"), "object_removals", ["erasure_id"], unique=False)
    secure("object_removals", OBJECT_REMOVALS)


def create_provider_objects() -> None:
    op.create_table(
        "provider_objects",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("erasure_id", sa.Uuid(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["runs.tenant_id", "runs.id"],
            name=op.f("fk_provider_objects_tenant_id_run_id"),
            ondelete="SET NULL (run_id)",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "provider_id", name=op.f("pk_provider_objects")),
    )
    op.create_index("ix_provider_objects_run", "provider_objects", ["tenant_id", "run_id"], unique=False)
    op.create_index(
        "ix_provider_objects_left",
        "provider_objects",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("run_id IS NULL"),
    )
    op.create_index(op.f("ix_provider_objects_erasure_id"), "provider_objects", ["erasure_id"], unique=False)
    secure("provider_objects", PROVIDER_OBJECTS)
