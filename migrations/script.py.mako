"""${message}"""

from alembic import op

from migrations.sqlfiles import run_sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "run_sql(op.get_bind(), '')"}


def downgrade() -> None:
    ${downgrades if downgrades else "run_sql(op.get_bind(), '')"}
