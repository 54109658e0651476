"""Constraints that PostGIS's catalogue views can read, and triggers that look names up where nobody else may create."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    # raster_columns reads a number of bands, geometry_columns a reference system, after ` = ` of any constraint that
    # names st_numbands, or srid( before it; so `select *` from them failed.
    run_sql(
        op.get_bind(),
        """
        alter table eo.patch_raster
            drop constraint patch_raster_check,
            add check ((public.st_metadata(rast)).numbands = cardinality(bands));
        alter table eo.corine_part drop constraint corine_part_check, add check (srid = public.st_srid(geom));
        alter table eo.nuts_part drop constraint nuts_part_check, add check (srid = public.st_srid(geom));

        alter function eo_internal.note_patch_change() set search_path = pg_catalog, eo, pg_temp;
        alter function eo_internal.keep_buckets() set search_path = pg_catalog, eo, pg_temp;
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.patch_raster
            drop constraint patch_raster_check,
            add check (public.st_numbands(rast) = cardinality(bands));
        alter table eo.corine_part drop constraint corine_part_check, add check (public.st_srid(geom) = srid);
        alter table eo.nuts_part drop constraint nuts_part_check, add check (public.st_srid(geom) = srid);

        alter function eo_internal.note_patch_change() set search_path = eo, public, pg_temp;
        alter function eo_internal.keep_buckets() set search_path = eo, public, pg_temp;
        delete from eo_internal.sql_file;
        """,
    )
