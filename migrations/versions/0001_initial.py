"""The first tables, the two roles that serve requests, and row security on every table."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Roles belong to the whole server: another database of it may have made them, or be making them right now. A login that
# is no superuser may become a role only where it was granted SET.
MAKE_ROLE = """
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
    BEGIN
      CREATE ROLE {role} NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
    END;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}' AND (rolsuper OR rolbypassrls)) THEN
    RAISE 'The role {role} must be neither SUPERUSER nor BYPASSRLS.';
  END IF;
  IF NOT pg_has_role(current_user, '{role}', 'SET') THEN
    BEGIN
      GRANT {role} TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;
    EXCEPTION WHEN unique_violation THEN
    END;
  END IF;
END $$
"""

TENANT_FUNCTION = """
CREATE FUNCTION app.tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
RETURN NULLIF(current_setting('app.tenant_id', true), '')::uuid
"""

# What the sweeps look for among attachments.
UNFINISHED = "status = 'pending' OR (status = 'stored' AND variants IS NULL)"
SEARCH = "to_tsvector('simple', prompt || ' ' || coalesce(revised_prompt, ''))"

# Prompts are written with their row and stay as they are.
WORDS_FUNCTION = """
CREATE FUNCTION app.insert_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO attachment_words (tenant_id, user_id, word, attachment_id)
  SELECT NEW.tenant_id, NEW.user_id, unnest(tsvector_to_array(NEW.search)), NEW.id;
  RETURN NULL;
END $$
"""
WORDS_TRIGGER = """
CREATE TRIGGER insert_words AFTER INSERT ON attachments
FOR EACH ROW WHEN (NEW.search <> '') EXECUTE FUNCTION app.insert_words()
"""

TABLES = (
    "tenants",
    "users",
    "memberships",
    "api_keys",
    "tokens",
    "conversations",
    "messages",
    "runs",
    "attachments",
    "attachment_words",
    "usage_entries",
    "idempotency_keys",
    "orphan_candidates",
)

TENANT_TABLES = TABLES[2:4] + TABLES[5:]

# The role easel_app: everything in one tenant. `users` is seen as far as they are members of it.
APP_POLICIES = (
    *(
        f"CREATE POLICY tenant ON {table} TO easel_app"
        " USING (tenant_id = (SELECT app.tenant())) WITH CHECK (tenant_id = (SELECT app.tenant()))"
        for table in TENANT_TABLES
    ),
    "CREATE POLICY tenant ON tenants FOR SELECT TO easel_app USING (id = (SELECT app.tenant()))",
    "CREATE POLICY tenant ON users FOR SELECT TO easel_app USING (EXISTS ("
    "SELECT FROM memberships m WHERE m.user_id = users.id AND m.tenant_id = (SELECT app.tenant())))",
)
APP_GRANTS = (
    "GRANT SELECT ON tenants, memberships TO easel_app",
    "GRANT SELECT (id, email, created_at) ON users TO easel_app",
    "GRANT SELECT, INSERT, UPDATE (name, expires_at, revoked_at) ON api_keys TO easel_app",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON conversations, messages, runs, attachments TO easel_app",
    "GRANT SELECT, INSERT ON attachment_words, usage_entries TO easel_app",
    "GRANT SELECT, INSERT, DELETE ON idempotency_keys TO easel_app",
    "GRANT SELECT, INSERT, UPDATE (seen_at), DELETE ON orphan_candidates TO easel_app",
)

# The role easel_identity: what happens before a tenant is known, and finding the work that was left behind.
IDENTITY_POLICIES = (
    *(f"CREATE POLICY identity ON {table} TO easel_identity USING (true) WITH CHECK (true)" for table in TABLES[:5]),
    "CREATE POLICY sweep ON runs FOR SELECT TO easel_identity"
    " USING (status IN ('queued', 'running') OR unrecorded_images <> '{}')",
    f"CREATE POLICY sweep ON attachments FOR SELECT TO easel_identity USING ({UNFINISHED})",
    "CREATE POLICY sweep ON idempotency_keys TO easel_identity USING (expires_at < now())",
)
IDENTITY_GRANTS = (
    "GRANT SELECT, INSERT ON tenants, memberships TO easel_identity",
    "GRANT SELECT, INSERT, UPDATE (password_hash, disabled_at) ON users TO easel_identity",
    "GRANT SELECT, UPDATE (last_used_at) ON api_keys TO easel_identity",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON tokens TO easel_identity",
    "GRANT SELECT (id, tenant_id, status, attempt, created_at, lease_until, unrecorded_images)"
    " ON runs TO easel_identity",
    "GRANT SELECT (id, tenant_id, status, created_at, run_id, storage_key, variants) ON attachments TO easel_identity",
    "GRANT SELECT (expires_at), DELETE ON idempotency_keys TO easel_identity",
)


def upgrade() -> None:
    create_identity()
    create_conversations()
    create_runs()
    create_attachments()
    create_attachment_words()
    create_usage()
    create_idempotency_keys()
    create_orphan_candidates()
    create_roles()
    secure()


def create_roles() -> None:
    for role in ("easel_app", "easel_identity"):
        op.execute(MAKE_ROLE.format(role=role))
    op.execute("CREATE SCHEMA app")
    op.execute(TENANT_FUNCTION)
    op.execute(WORDS_FUNCTION)
    op.execute(WORDS_TRIGGER)
    op.execute("GRANT USAGE ON SCHEMA app, public TO easel_app, easel_identity")
    # Whoever runs the service asks whether the schema is the right one.
    op.execute("GRANT SELECT ON alembic_version TO PUBLIC")


def secure() -> None:
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    for statement in (*APP_POLICIES, *APP_GRANTS, *IDENTITY_POLICIES, *IDENTITY_GRANTS):
        op.execute(statement)


def create_identity() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
    )
    op.create_table(
        "users",
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "memberships",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_memberships_tenant_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["memberships.tenant_id", "memberships.user_id"],
            name=op.f("fk_api_keys_tenant_id_user_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_api_keys_secret_hash")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_api_keys_tenant_id_id")),
    )
    op.create_table(
        "tokens",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("family_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_tokens_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_tokens_secret_hash")),
    )
    op.create_index(op.f("ix_tokens_expires_at"), "tokens", ["expires_at"], unique=False)
    op.create_index(op.f("ix_tokens_family_id"), "tokens", ["family_id"], unique=False)
    op.create_index(op.f("ix_tokens_user_id"), "tokens", ["user_id"], unique=False)


def create_conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("agent_key", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_conversations_tenant_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_conversations_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_conversations_tenant_id_id")),
    )
    op.create_index("ix_conversations_owner", "conversations", ["tenant_id", "user_id", "id"], unique=False)
    op.create_table(
        "messages",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("input_ids", postgresql.ARRAY(sa.Uuid()), server_default="{}", nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["conversations.tenant_id", "conversations.id"],
            name=op.f("fk_messages_tenant_id_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_messages_tenant_id_id")),
    )
    op.create_index("ix_messages_conversation", "messages", ["tenant_id", "conversation_id", "id"], unique=False)


def create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("agent_key", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("options", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("input_message_id", sa.Uuid(), nullable=False),
        sa.Column("output_message_id", sa.Uuid(), nullable=False),
        sa.Column("calling_turn", sa.Integer(), nullable=False),
        sa.Column("calling_agent", sa.Text(), nullable=True),
        sa.Column("background", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("response_id", sa.Text(), nullable=True),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("usage", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unrecorded_images", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["conversations.tenant_id", "conversations.id"],
            name=op.f("fk_runs_tenant_id_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_runs_tenant_id_id")),
    )
    op.create_index("ix_runs_conversation", "runs", ["tenant_id", "conversation_id", "id"], unique=False)
    op.create_index(
        "ix_runs_open",
        "runs",
        ["tenant_id", "status"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_runs_unrecorded",
        "runs",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("unrecorded_images <> '{}'"),
    )


def create_attachments() -> None:
    op.create_table(
        "attachments",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("message_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("agent_key", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("tool_call_id", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), server_default="", nullable=False),
        sa.Column("revised_prompt", sa.Text(), nullable=True),
        sa.Column("search", postgresql.TSVECTOR(), sa.Computed(SEARCH, persisted=True), nullable=True),
        sa.Column("options", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parent_object_id", sa.Uuid(), nullable=True),
        sa.Column("variants", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("blurhash", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["conversations.tenant_id", "conversations.id"],
            name=op.f("fk_attachments_tenant_id_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["runs.tenant_id", "runs.id"],
            name=op.f("fk_attachments_tenant_id_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attachments")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_attachments_tenant_id_id")),
        sa.UniqueConstraint(
            "tenant_id",
            "run_id",
            "tool_call_id",
            "sha256",
            name=op.f("uq_attachments_tenant_id_run_id_tool_call_id_sha256"),
        ),
    )
    op.create_index("ix_attachments_conversation", "attachments", ["tenant_id", "conversation_id"], unique=False)
    op.create_index("ix_attachments_message", "attachments", ["tenant_id", "message_id"], unique=False)
    op.create_index("ix_attachments_owner", "attachments", ["tenant_id", "user_id", "id"], unique=False)
    op.create_index(
        "ix_attachments_unfinished",
        "attachments",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text(UNFINISHED),
    )


def create_attachment_words() -> None:
    op.create_table(
        "attachment_words",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("word", sa.Text(collation="C"), nullable=False),
        sa.Column("attachment_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "attachment_id"],
            ["attachments.tenant_id", "attachments.id"],
            name=op.f("fk_attachment_words_tenant_id_attachment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", "word", "attachment_id", name=op.f("pk_attachment_words")),
    )
    op.create_index("ix_attachment_words_attachment", "attachment_words", ["tenant_id", "attachment_id"], unique=False)


def create_usage() -> None:
    op.create_table(
        "usage_entries",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_usage_entries_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_entries")),
        sa.UniqueConstraint("tenant_id", "run_id", "kind", name=op.f("uq_usage_entries_tenant_id_run_id_kind")),
    )


def create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["runs.tenant_id", "runs.id"],
            name=op.f("fk_idempotency_keys_tenant_id_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", "route", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_run", "idempotency_keys", ["tenant_id", "run_id"], unique=False)
    op.create_index("ix_idempotency_keys_expired", "idempotency_keys", ["expires_at"], unique=False)


def create_orphan_candidates() -> None:
    op.create_table(
        "orphan_candidates",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("marked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_orphan_candidates_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_orphan_candidates")),
    )
