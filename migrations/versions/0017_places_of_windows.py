"""What columns and rows of patches are counted from, now that windows may be counted from the projection's origin."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        comment on column eo.patch.tile_column is 'Column of the grid, counted eastwards from the tile''s or file''s west edge, or from the projection''s origin (grid aligned; may be negative)';
        comment on column eo.patch.tile_row is 'Row of the grid, counted southwards from the tile''s or file''s north edge, or from the projection''s origin (grid aligned; may be negative)';
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        comment on column eo.patch.tile_column is 'Column in the tile, counted from its west edge';
        comment on column eo.patch.tile_row is 'Row in the tile, counted from its north edge';
        """,
    )
