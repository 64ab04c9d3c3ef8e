"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports + chr(10) if imports else ""}
from app.schema_steps import run_steps

revision = ${repr(up_revision).replace("'", '"')}
down_revision = ${repr(down_revision).replace("'", '"')}
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_steps(change)


def change() -> None:
    ${upgrades if upgrades else "pass"}
