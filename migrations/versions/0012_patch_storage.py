"""Patches cut from products have the source product; pixels stay in the database, uncompressed and out of line."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        update eo.patch set source = 'product' where source = 'scene';
        update eo.load set loader = 'product', source = source || '|fixed:120' where loader = 'scene';
        comment on column eo.patch.source is 'Data set or loader: bigearthnet-v1, bigearthnet-v2, product, synthetic';
        comment on column eo.patch.cloud_or_shadow is 'With cloud or cloud shadow: by the data set''s list, or of a product by its scene classes (3, 8, 9, 10); null: not known';
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        update eo.patch set source = 'scene' where source = 'product';
        delete from eo.load where loader = 'product' and source not like '%|fixed:120';
        update eo.load set loader = 'scene', source = left(source, -length('|fixed:120')) where loader = 'product';
        comment on column eo.patch.source is 'Data set or loader: bigearthnet-v1, bigearthnet-v2, scene, synthetic';
        comment on column eo.patch.cloud_or_shadow is 'With cloud or cloud shadow: by the data set''s list, or for a scene by its scene classes (3, 8, 9, 10); null: not known';
        """,
    )
