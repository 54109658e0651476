"""One procedure of annotation in place of two, indexes of what is not annotated, pieces of NUTS regions of level 3."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop procedure if exists eo.annotate_land_cover(text, boolean, integer);
        drop procedure if exists eo.annotate_country(text, boolean, integer);
        drop function if exists eo_internal.annotate_land_cover_batch(bigint[]);
        drop function if exists eo_internal.annotate_country_batch(bigint[]);
        drop function if exists eo.derive_corine_parts(integer[]);
        drop function if exists eo.derive_nuts_parts(integer[]);

        -- An update of a patch writes an entry into every index but partial ones that leave it out. patch_cell_prefix
        -- finds equal cells, too; of reference systems there are few, and patches are read by place.
        drop index eo.patch_cell, eo.patch_srid;
        create index patch_without_labels on eo.patch (cell) where label_ids is null;
        create index patch_without_regions on eo.patch (cell) where nuts_ids is null;
        create index patch_raster_scene_classes on eo.patch_raster (cell) where 'SCL' = any (bands);

        -- Derived: made again, of level 3 where there was level 0, by the next annotation.
        truncate eo.nuts_part;
        comment on column eo.patch.country_codes is 'Countries (ISO 3166-1 alpha-2), largest share of the patch first; from eo.annotate, until then from the data set; null: not known';
        comment on column eo.patch.nuts_ids is 'NUTS regions of level 3, largest share of the patch first, from eo.annotate; the first 4 and 3 characters are the regions of levels 2 and 1; empty: in countries without regions of level 3; null: not known';
        comment on column eo.patch.seasonal_snow is 'With seasonal snow: by the data set''s list, or by its scene classes (11); null: not known';
        comment on table eo.nuts_part is 'NUTS regions (of level 3, or the lowest that a country has) reprojected to the patches'' reference systems and subdivided: derived, see eo.derive_nuts_parts';
        """,
    )


def downgrade() -> None:
    # Functions of the older revision come from the older checkout.
    run_sql(
        op.get_bind(),
        """
        drop procedure if exists eo.annotate(text[], text, real, text, text[], boolean, integer, bigint);
        drop function if exists eo.unannotated_cells(text[], text, text[], boolean);
        drop function if exists eo.reference_map(text);
        drop function if exists eo.derive_corine_parts(integer[], public.geometry);
        drop function if exists eo.derive_nuts_parts(integer[], public.geometry);
        drop function if exists eo_internal.annotate_cells(text[], text[], text, real, text, boolean);
        drop function if exists eo_internal.annotations(text[], text[], text, real, text, boolean);
        drop function if exists eo_internal.unannotated_in(text[], text[], text, boolean);
        drop function if exists eo_internal.annotate_scene_classes(text[], text, boolean);
        drop function if exists eo_internal.derive_parts(text[], text[], text, boolean);
        drop function if exists eo_internal.annotatable();
        drop function if exists eo_internal.unannotated(text[], text, boolean);
        drop function if exists eo_internal.land_cover_raster(
            double precision, double precision, double precision, double precision, integer, public.geomval[]);

        drop index eo.patch_without_labels, eo.patch_without_regions, eo.patch_raster_scene_classes;
        create index patch_cell on eo.patch (cell);
        create index patch_srid on eo.patch (srid, patch_id);
        truncate eo.nuts_part;
        delete from eo_internal.sql_file;
        """,
    )
