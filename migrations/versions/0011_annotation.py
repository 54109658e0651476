"""Procedures of annotation of older signatures, dropped."""

from alembic import op

from migrations.sqlfiles import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql(op.get_bind(), "select 1;")


def downgrade() -> None:
    run_sql(op.get_bind(), "select 1;")
