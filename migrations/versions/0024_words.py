"""One word for each thing: segments of patches, places of NUTS; region is free for geohash cells."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.nuts rename column region_id to place_id;
        -- There where a user's own view needs them.
        alter view if exists eo.map_nuts rename column region_id to place_id;
        alter view if exists eo.map_nuts_3857 rename column region_id to place_id;
        alter table eo.nuts rename constraint nuts_region_id_key to nuts_place_id_key;
        alter sequence eo.nuts_region_id_seq rename to nuts_place_id_seq;
        alter index eo.patch_without_regions rename to patch_without_places;
        comment on column eo.edition.edition is 'Its year: the land cover''s, or that of the classification of places';
        comment on column eo.encoder.segmentation is 'For a hash function: how patches were cut into the segments (1 and above) that have codes of it: {"method": "grid", "side": 2}, or {"method": "slic", "segments": 9, "compactness": ..., "bands": [...], "library": ...}; null: no segments have';
        comment on column eo.nuts.place_id is 'Number of the place, for map layers that need an integer key';
        comment on column eo.patch.nuts_ids is 'Places of level 3 of NUTS, largest share of the patch first, from eo.annotate; the first 4 and 3 characters are the places of levels 2 and 1; empty: in countries without places of level 3; null: not known';
        comment on column eo.patch_bucket.segment is '0: the whole patch; 1 and above: its segments';
        comment on column eo_internal.nuts_part.level is 'NUTS level of the place';
        comment on column eo_internal.nuts_part.nuts_id is 'Place it is a piece of';
        comment on table eo.nuts is 'Places: NUTS units of levels 0 (countries) to 3';
        comment on table eo.patch_bucket is 'Which hash bucket a patch (or a segment of it) is in';
        comment on table eo.place_name is 'English names of places, where they differ from the local ones';
        comment on table eo_internal.nuts_part is 'Places of NUTS (of level 3, or the lowest that a country has) reprojected to the patches'' reference systems and subdivided: derived, see eo.derive_nuts_parts';
        """,
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        alter table eo.nuts rename column place_id to region_id;
        alter view if exists eo.map_nuts rename column place_id to region_id;
        alter view if exists eo.map_nuts_3857 rename column place_id to region_id;
        alter table eo.nuts rename constraint nuts_place_id_key to nuts_region_id_key;
        alter sequence eo.nuts_place_id_seq rename to nuts_region_id_seq;
        alter index eo.patch_without_places rename to patch_without_regions;
        comment on column eo.edition.edition is 'Its year: the land cover''s, or that of the classification of regions';
        comment on column eo.encoder.segmentation is 'For a hash function: how patches were cut into the regions (segments 1 and above) that have codes of it: {"method": "grid", "side": 2}, or {"method": "slic", "segments": 9, "compactness": ..., "bands": [...], "library": ...}; null: no regions have';
        comment on column eo.nuts.region_id is 'Number of the region, for map layers that need an integer key';
        comment on column eo.patch.nuts_ids is 'NUTS regions of level 3, largest share of the patch first, from eo.annotate; the first 4 and 3 characters are the regions of levels 2 and 1; empty: in countries without regions of level 3; null: not known';
        comment on column eo.patch_bucket.segment is '0: the whole patch; 1 and above: its regions';
        comment on column eo_internal.nuts_part.level is 'NUTS level of the region';
        comment on column eo_internal.nuts_part.nuts_id is 'Region it is a piece of';
        comment on table eo.nuts is 'NUTS regions, levels 0 (countries) to 3';
        comment on table eo.patch_bucket is 'Which hash bucket a patch (or a region of it) is in';
        comment on table eo.place_name is 'English names of NUTS regions, where they differ from the local ones';
        comment on table eo_internal.nuts_part is 'NUTS regions (of level 3, or the lowest that a country has) reprojected to the patches'' reference systems and subdivided: derived, see eo.derive_nuts_parts';
        delete from eo_internal.sql_file;
        """,
    )
