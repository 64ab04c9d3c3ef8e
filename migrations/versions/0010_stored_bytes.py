"""The stored bytes of an image are set by a trigger, where a generated column did it before."""

from app.schema_steps import run_steps, sql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Nothing is written anew: the column keeps its values. Databases that were migrated by steps have all this already.
STATEMENTS = (
    "ALTER TABLE attachments ALTER COLUMN stored_bytes DROP EXPRESSION IF EXISTS",
    """
CREATE OR REPLACE FUNCTION app.set_stored_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.stored_bytes := app.stored_bytes(NEW.status, NEW.size_bytes, NEW.variants);
  RETURN NEW;
END $$
""",
    """
CREATE OR REPLACE TRIGGER set_stored_bytes
BEFORE INSERT OR UPDATE OF status, size_bytes, variants, stored_bytes ON attachments
FOR EACH ROW EXECUTE FUNCTION app.set_stored_bytes()
""",
)


def upgrade() -> None:
    run_steps(sql("set stored bytes", *STATEMENTS))
