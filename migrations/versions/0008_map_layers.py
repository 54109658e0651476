"""Map layers: indexes behind the views in other reference systems, QGIS's table of styles, a schema for raster layers."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        -- The expressions are those of the views in sql/410_map_layers.sql: a map's bounds are compared with these.
        -- Web Mercator ends short of the poles, where transforming to it fails.
        create index patch_footprint_3857 on eo.patch using gist (
            (case when public.st_ymin(footprint) >= -85.06 and public.st_ymax(footprint) <= 85.06
                  then public.st_transform(footprint, 3857) end::public.geometry(Polygon, 3857)));
        create index corine_geom_4326 on eo.corine using gist (
            (public.st_transform(geom, 4326)::public.geometry(MultiPolygon, 4326)));
        create index corine_geom_3857 on eo.corine using gist (
            (public.st_transform(geom, 3857)::public.geometry(MultiPolygon, 3857)));
        create index nuts_geom_3857 on eo.nuts using gist (
            (public.st_transform(geom, 3857)::public.geometry(MultiPolygon, 3857)));

        create schema eo_layers authorization eo_owner;
        comment on schema eo_layers is 'pgearth: raster layers for maps, made by eo.make_raster_layer';
        grant usage on schema eo_layers to eo_reader;

        -- As QGIS makes it when somebody saves a style in a database; it may have done so already.
        create table if not exists public.layer_styles (
            id serial primary key,
            f_table_catalog varchar,
            f_table_schema varchar,
            f_table_name varchar,
            f_geometry_column varchar,
            stylename text,
            styleqml xml,
            stylesld xml,
            useasdefault boolean,
            description text,
            owner varchar(63) default current_user,
            ui xml,
            update_time timestamp default current_timestamp
        );
        alter table public.layer_styles add column if not exists type varchar;
        grant select on public.layer_styles to eo_reader;
        grant insert, update, delete on public.layer_styles to eo_writer;
        do $$
        begin
            execute format('grant usage on sequence %s to eo_writer', pg_get_serial_sequence('public.layer_styles', 'id'));
        end
        $$;
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        do $$
        begin
            delete from public.layer_styles where f_table_schema in ('eo', 'eo_layers');
            if not exists (select from public.layer_styles) then
                drop table public.layer_styles;
            end if;
        end
        $$;
        drop schema eo_layers cascade;
        drop index eo.patch_footprint_3857, eo.corine_geom_4326, eo.corine_geom_3857, eo.nuts_geom_3857;
        delete from eo_internal.sql_file;
        """,
    )
