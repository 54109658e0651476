"""Indexes for filters, map layers and foreign keys."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        create index patch_footprint on eo.patch using gist (footprint);
        create index patch_label_ids on eo.patch using gin (label_ids);
        create index patch_country_codes on eo.patch using gin (country_codes);
        create index patch_sensing_time on eo.patch (sensing_time);
        create index patch_cell on eo.patch (cell);
        create index patch_product_id on eo.patch (product_id);
        create index patch_pair_name on eo.patch (pair_name) where pair_name is not null;
        create index patch_srid on eo.patch (srid, patch_id);
        create index product_footprint on eo.product using gist (footprint);
        create index product_sensing_time on eo.product (sensing_time);
        create index label_closure_descendant_id on eo.label_closure (descendant_id);
        create index corine_geom on eo.corine using gist (geom);
        create index corine_label_id on eo.corine (label_id);
        create index corine_part_geom on eo.corine_part using gist (geom);
        create index corine_part_corine_id on eo.corine_part (corine_id);
        create index nuts_geom on eo.nuts using gist (geom);
        create index nuts_part_geom on eo.nuts_part using gist (geom);
        create index nuts_part_nuts_id on eo.nuts_part (nuts_id);
        create index patch_bucket_bucket_no on eo.patch_bucket (encoder_id, bucket_no);
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop index eo.patch_footprint, eo.patch_label_ids, eo.patch_country_codes, eo.patch_sensing_time, eo.patch_cell,
            eo.patch_product_id, eo.patch_pair_name, eo.patch_srid, eo.product_footprint, eo.product_sensing_time,
            eo.label_closure_descendant_id, eo.corine_geom, eo.corine_label_id, eo.corine_part_geom, eo.corine_part_corine_id,
            eo.nuts_geom, eo.nuts_part_geom, eo.nuts_part_nuts_id, eo.patch_bucket_bucket_no;
        """,
    )
