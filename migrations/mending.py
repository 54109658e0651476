"""What a revision lacked when it was first published, made up for in databases that ran it then."""

from __future__ import annotations

from sqlalchemy import Connection

from pgearth.migrations.sqlfiles import run_sql

# Commit 5c4be08 had 0011 and 0012 without their statements. One that 0011 drops, eo.patch_cell, tells such databases.
EMPTY_0011_AND_0012 = """
drop index eo.patch_cell, eo.patch_srid;
create index patch_without_labels on eo.patch (cell) where label_ids is null;
create index patch_without_regions on eo.patch (cell) where nuts_ids is null;
create index patch_raster_scene_classes on eo.patch_raster (cell) where 'SCL' = any (bands);
truncate eo.nuts_part;
comment on column eo.patch.country_codes is 'Countries (ISO 3166-1 alpha-2), largest share of the patch first; from eo.annotate, until then from the data set; null: not known';
comment on column eo.patch.nuts_ids is 'NUTS regions of level 3, largest share of the patch first, from eo.annotate; the first 4 and 3 characters are the regions of levels 2 and 1; empty: in countries without regions of level 3; null: not known';
comment on column eo.patch.seasonal_snow is 'With seasonal snow: by the data set''s list, or by its scene classes (11); null: not known';
comment on table eo.nuts_part is 'NUTS regions (of level 3, or the lowest that a country has) reprojected to the patches'' reference systems and subdivided: derived, see eo.derive_nuts_parts';

-- Later checkouts may have loaded some of these again, as products.
update eo.patch old set source = 'product'
where old.source = 'scene'
  and not exists (select from eo.patch new where new.name = old.name and new.source = 'product' and new.cell = old.cell);
update eo.load old set loader = 'product', source = old.source || '|fixed:120'
where old.loader = 'scene'
  and not exists (select from eo.load new where new.loader = 'product' and new.source = old.source || '|fixed:120');
comment on column eo.patch.source is 'Data set or loader: bigearthnet-v1, bigearthnet-v2, product, synthetic';
comment on column eo.patch.cloud_or_shadow is 'With cloud or cloud shadow: by the data set''s list, or of a product by its scene classes (3, 8, 9, 10); null: not known';
"""


def mend(connection: Connection, revision: str | None) -> None:
    """Bring a database that is at `revision` to what this revision is today."""
    patch_cell = "select to_regclass('eo.patch_cell') is not null"
    if revision in {"0012", "0013"} and connection.exec_driver_sql(patch_cell).scalar():
        run_sql(connection, EMPTY_0011_AND_0012)
