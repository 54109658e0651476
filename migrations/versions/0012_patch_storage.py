"""How pixels of patches are stored."""

from alembic import op

from migrations.sqlfiles import run_sql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql(op.get_bind(), "select 1;")


def downgrade() -> None:
    run_sql(op.get_bind(), "select 1;")
