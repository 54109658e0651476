"""The filter of patches and that of products as types, and the index that pages by time walk along."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        create type eo.filter as (
            area public.geometry,
            from_time timestamptz,
            to_time timestamptz,
            platforms text[],
            seasons text[],
            labels text[],
            label_match eo.label_match,
            countries text[],
            splits text[],
            sources text[],
            seasonal_snow boolean,
            cloud_or_shadow boolean,
            max_cloud real,
            scene_classes text[],
            cells text[],
            patch_ids bigint[],
            names text[]
        );
        comment on type eo.filter is 'Which patches: every condition that is given is to hold, and null gives none. Made by the function eo.filter, whose comment tells what the conditions are';
        create type eo.product_filter as (
            area public.geometry,
            from_time timestamptz,
            to_time timestamptz,
            platforms text[],
            levels text[],
            tiles text[],
            seasons text[],
            max_cloud real,
            product_ids bigint[]
        );
        comment on type eo.product_filter is 'Which products: every condition that is given is to hold, and null gives none. Made by the function eo.product_filter';
        drop index eo.patch_sensing_time;
        create index patch_sensing_time on eo.patch (sensing_time, patch_id);
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop type eo.filter cascade;
        drop type eo.product_filter cascade;
        drop index eo.patch_sensing_time;
        create index patch_sensing_time on eo.patch (sensing_time);
        delete from eo_internal.sql_file;
        """,
    )
