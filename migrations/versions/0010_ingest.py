"""What products say of themselves, shares of scene classes, NUTS regions of patches, statistics of bands."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0010"
down_revision = "0009"

# EPSG has no code for the sinusoidal grid of MODIS, a sphere: spatialreference.org's 6974 with 900000 added.
MODIS_SINUSOIDAL = """
insert into public.spatial_ref_sys (srid, auth_name, auth_srid, proj4text, srtext)
values (906974, 'SR-ORG', 6974, '+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs',
    'PROJCS["MODIS Sinusoidal",GEOGCS["User with datum World Geodetic Survey 1984",DATUM["unnamed",SPHEROID["MODIS sphere",6371007.181,0]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Sinusoidal"],PARAMETER["longitude_of_center",0],PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]')
on conflict (srid) do nothing;
"""


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.product
            add column end_time timestamptz,
            add column processed_at timestamptz,
            add column processing_baseline text,
            add column relative_orbit integer,
            add column scales jsonb,
            add column offsets jsonb,
            add column bytes bigint check (bytes >= 0),
            add column season eo.season not null generated always as (
                case mod(extract(month from sensing_time at time zone 'UTC')::integer
                         + case when public.st_ymax(footprint) < 0 then 6 else 0 end, 12) / 3
                    when 0 then 'winter'::eo.season
                    when 1 then 'spring'::eo.season
                    when 2 then 'summer'::eo.season
                    else 'autumn'::eo.season
                end
            ) stored;
        comment on column eo.product.end_time is 'End of sensing';
        comment on column eo.product.processed_at is 'When it was processed to its level';
        comment on column eo.product.processing_baseline is 'Version of the processor, such as 04.00 (Sentinel-2), 02 (Landsat''s collection) or 061 (MODIS)';
        comment on column eo.product.relative_orbit is 'Relative orbit number; of Landsat the WRS-2 path';
        comment on column eo.product.scales is 'By band, as STAC''s raster extension has it: physical value = scale * pixel as delivered + offset';
        comment on column eo.product.offsets is 'By band, in physical units (reflectance: -0.1 of Sentinel-2 since baseline 04.00). Sentinel-2 patches have it applied: their pixels are reflectance * 10,000 of every baseline';
        comment on column eo.product.bytes is 'Size of the product''s files';
        comment on column eo.product.season is 'Meteorological season of the sensing month (UTC) in the hemisphere of the footprint';
        create index product_tile on eo.product (mgrs_tile, season, cloud_cover);

        alter table eo.patch
            add column scene_class_fraction real[],
            add column nuts_ids text[],
            add check (scene_class_fraction is null or cardinality(scene_class_fraction) = cardinality(scene_class_ids));
        comment on column eo.patch.scene_class_fraction is 'Share of the classified pixels per scene class, 0 to 1, in the order of scene_class_ids; null where only the classes are known';
        comment on column eo.patch.nuts_ids is 'NUTS regions of level 3, largest share of the patch first, from eo.annotate_country; the first 4 and 3 characters are the regions of levels 2 and 1; null: not known';

        alter table eo.patch_raster
            add column band_min real[],
            add column band_max real[],
            add column band_mean real[],
            add column band_std real[],
            add column valid_fraction real[];
        comment on column eo.patch_raster.band_min is 'Least valid pixel of each band, in the order of bands; null for a band without valid pixels';
        comment on column eo.patch_raster.band_max is 'Greatest valid pixel of each band';
        comment on column eo.patch_raster.band_mean is 'Mean of each band''s valid pixels';
        comment on column eo.patch_raster.band_std is 'Standard deviation (of the population) of each band''s valid pixels';
        comment on column eo.patch_raster.valid_fraction is 'Share of each band''s pixels that are valid (not nodata), 0 to 1';
        """
        + MODIS_SINUSOIDAL,
    )


def downgrade() -> None:
    # Cascade: functions of sql/ read the new columns; those of an older revision come from the older checkout.
    run_sql(
        op.get_bind(),
        """
        drop index eo.product_tile;
        alter table eo.product
            drop column end_time cascade, drop column processed_at cascade, drop column processing_baseline cascade,
            drop column relative_orbit cascade, drop column scales cascade, drop column offsets cascade,
            drop column bytes cascade, drop column season cascade;
        alter table eo.patch drop column scene_class_fraction cascade, drop column nuts_ids cascade;
        alter table eo.patch_raster
            drop column band_min cascade, drop column band_max cascade, drop column band_mean cascade,
            drop column band_std cascade, drop column valid_fraction cascade;
        delete from public.spatial_ref_sys where srid = 906974;
        delete from eo_internal.sql_file;
        """,
    )
