"""Regions of patches: how they are cut; changes of places: an index on where and when."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.encoder add column segmentation jsonb;
        comment on column eo.encoder.segmentation is 'For a hash function: how patches were cut into the regions (segments 1 and above) that have codes of it, such as {"method": "grid", "side": 2}; null: no regions have';
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.encoder drop column segmentation;
        delete from eo_internal.sql_file;
        """,
    )
