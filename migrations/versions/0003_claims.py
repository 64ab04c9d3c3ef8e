"""The index by which a tenant's oldest run is found."""

from app.schema_steps import replace_index, run_steps

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_steps(
        *replace_index("ix_runs_open", "runs (tenant_id, status, id) WHERE status IN ('queued', 'running')"),
    )
