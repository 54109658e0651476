"""Encoders declare the units of their bands; rasters from outside have a function of their own."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.encoder add column units text[]
            check (units <@ array['reflectance10000', 'reflectance', 'decibels'] and cardinality(units) = cardinality(bands));
        comment on column eo.encoder.units is 'Unit of each of its bands, which uploaded images are converted to or must be in: reflectance10000 (reflectance times 10,000), reflectance (0 to 1), decibels; null: not declared, nothing is checked';
        -- Its bands are those of Sentinel-2, as the archive stores them.
        update eo.encoder set units = array_fill('reflectance10000'::text, array[cardinality(bands)])
        where name = 'spectral' and architecture = 'spectral' and cardinality(bands) > 1;
        drop function if exists eo.register_encoder(text, integer, text, text[], bytea, integer, integer, smallint, integer, jsonb, jsonb);
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop function if exists eo.register_encoder(text, integer, text, text[], bytea, integer, integer, smallint, integer, jsonb, jsonb, text[]);
        drop function if exists eo_internal.encode_rasters(smallint, text[], bytea[]);
        drop function if exists eo_internal.check_image_pixels(bigint, text);
        alter table eo.encoder drop column units;
        delete from eo_internal.sql_file;
        """,
    )
