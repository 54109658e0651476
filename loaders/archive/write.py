"""Writes products and patches, with or without pixels: the one way by which every loader fills the archive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import numpy as np
from psycopg import Connection, Cursor
from psycopg.sql import SQL
from psycopg.types.json import Jsonb

from pgearth.loaders.files.names import LONGEST_BAND, LONGEST_PATCH, LONGEST_PRODUCT, check_name
from pgearth.loaders.server.connection import planner
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import Raster, band_statistics, to_wkb

BATCH = 10_000
BATCH_WITH_PIXELS = 64

PLATFORMS = {
    "S1A": "sentinel-1a",
    "S1B": "sentinel-1b",
    "S1C": "sentinel-1c",
    "S2A": "sentinel-2a",
    "S2B": "sentinel-2b",
    "S2C": "sentinel-2c",
}


@dataclass(frozen=True)
class Product:
    """A product to store; the fields are the columns of eo.product.

    `footprint` is WKB of a MultiPolygon in EPSG:4326, `derived_from` a product's name.
    """

    name: str
    platform: str
    level: str
    sensing_time: datetime
    mgrs_tile: str | None = None
    cloud_cover: float | None = None
    footprint: bytes | None = None
    source_path: str | None = None
    metadata: dict[str, Any] | None = None
    derived_from: str | None = None
    end_time: datetime | None = None
    processed_at: datetime | None = None
    processing_baseline: str | None = None
    relative_orbit: int | None = None
    scales: dict[str, float] | None = None
    offsets: dict[str, float] | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class PatchRaster:
    """Pixels of a patch at one resolution (metres): PostGIS raster WKB, the names of its bands, their statistics.

    `statistics` is what band_statistics finds, an array (bands, 5).
    """

    resolution: int
    bands: tuple[str, ...]
    wkb: bytes
    statistics: np.ndarray


def patch_raster(resolution: int, bands: Sequence[str], raster: Raster) -> PatchRaster:
    """The pixels of a patch, with the statistics of the raster's bands, which have these names."""
    statistics = [band_statistics(pixels, no) for pixels, no in zip(raster.bands, raster.nodata, strict=True)]
    return PatchRaster(resolution, tuple(bands), to_wkb(raster), np.array(statistics))


@dataclass(frozen=True)
class Patch:
    """A patch to store: bounds in units of `srid`; `product` is a product's name; label ids ascend.

    `country` is what the source says; `country_codes` are all countries, where more than that one is known.
    """

    name: str
    product: str
    platform: str
    sensing_time: datetime
    srid: int
    west: float
    south: float
    east: float
    north: float
    tile_column: int | None = None
    tile_row: int | None = None
    label_ids: list[int] | None = None
    label_fraction: list[float] | None = None
    scene_class_ids: list[int] | None = None
    scene_class_fraction: list[float] | None = None
    country: str | None = None
    country_codes: list[str] | None = None
    nuts_ids: list[str] | None = None
    split: str | None = None
    seasonal_snow: bool | None = None
    cloud_or_shadow: bool | None = None
    pair_name: str | None = None
    metadata: dict[str, Any] | None = None
    rasters: list[PatchRaster] = field(default_factory=list)


def write_products(connection: Connection, products: Iterable[Product]) -> int:
    """Store products; return how many rows that added or completed. A product comes after the one it is derived from.

    A product that is stored keeps what its row says, and gets what the row does not say. Raises PgearthError for a name
    that no file can have, and for a cloud cover that is no percentage.
    """
    products = list(products)
    for product in products:
        check_name("A product", product.name, LONGEST_PRODUCT)
        cover = product.cloud_cover
        if cover is not None and not (isinstance(cover, int | float) and 0 <= cover <= 100):
            raise PgearthError(
                f"Product {product.name}: its cloud cover is {str(cover)[:100]!r}, no number from 0 to 100",
                "Take its metadata from where the product came from again, or mend them.",
            )
    rows = [
        {
            **{column.name: getattr(product, column.name) for column in fields(Product)},
            "metadata": json_or_null(product.metadata),
            "scales": json_or_null(product.scales),
            "offsets": json_or_null(product.offsets),
        }
        for product in products
    ]
    with planner(connection, enable_seqscan="off"), connection.cursor() as cursor:
        cursor.executemany(STORE_PRODUCT, rows)
        changed = cursor.rowcount
        # Not "on conflict do update", which locks the rows that it leaves as they are until the load ends.
        cursor.executemany(COMPLETE_PRODUCT, rows)
        return changed + cursor.rowcount


STORE_PRODUCT = """
insert into eo.product
    (name, platform, level, sensing_time, mgrs_tile, cloud_cover, footprint, source_path, metadata,
     derived_from, end_time, processed_at, processing_baseline, relative_orbit, scales, offsets, bytes)
values (%(name)s, %(platform)s, %(level)s, %(sensing_time)s, %(mgrs_tile)s, %(cloud_cover)s,
        ST_GeomFromWKB(%(footprint)s, 4326), %(source_path)s, %(metadata)s,
        (select product_id from eo.product where name = %(derived_from)s), %(end_time)s, %(processed_at)s,
        %(processing_baseline)s, %(relative_orbit)s, %(scales)s, %(offsets)s, %(bytes)s)
on conflict (name) do nothing
"""
COMPLETE_PRODUCT = """
update eo.product as stored set
    mgrs_tile = new.mgrs_tile, cloud_cover = new.cloud_cover, footprint = new.footprint, source_path = new.source_path,
    metadata = new.metadata, derived_from = new.derived_from, end_time = new.end_time, processed_at = new.processed_at,
    processing_baseline = new.processing_baseline, relative_orbit = new.relative_orbit, scales = new.scales,
    offsets = new.offsets, bytes = new.bytes
from (
    select product_id, coalesce(mgrs_tile, %(mgrs_tile)s) as mgrs_tile,
           coalesce(cloud_cover, %(cloud_cover)s::real) as cloud_cover,
           coalesce(footprint, ST_GeomFromWKB(%(footprint)s, 4326)) as footprint,
           coalesce(source_path, %(source_path)s) as source_path, coalesce(metadata, %(metadata)s) as metadata,
           coalesce(derived_from, (select product_id from eo.product where name = %(derived_from)s)) as derived_from,
           coalesce(end_time, %(end_time)s) as end_time, coalesce(processed_at, %(processed_at)s) as processed_at,
           coalesce(processing_baseline, %(processing_baseline)s) as processing_baseline,
           coalesce(relative_orbit, %(relative_orbit)s) as relative_orbit,
           coalesce(scales, %(scales)s) as scales, coalesce(offsets, %(offsets)s) as offsets,
           coalesce(bytes, %(bytes)s) as bytes
    from eo.product where name = %(name)s
) as new
where stored.product_id = new.product_id
  and (stored.mgrs_tile, stored.cloud_cover, stored.footprint, stored.source_path, stored.metadata, stored.derived_from,
       stored.end_time, stored.processed_at, stored.processing_baseline, stored.relative_orbit, stored.scales,
       stored.offsets, stored.bytes)
      is distinct from
      (new.mgrs_tile, new.cloud_cover, new.footprint, new.source_path, new.metadata, new.derived_from,
       new.end_time, new.processed_at, new.processing_baseline, new.relative_orbit, new.scales,
       new.offsets, new.bytes)
"""


def json_or_null(document: dict[str, Any] | None) -> Jsonb | None:
    """The document for a jsonb column; None stays null, not JSON's null."""
    return None if document is None else Jsonb(document)


def write_patches(connection: Connection, source: str, patches: Iterable[Patch]) -> int:
    """Store patches of one source inside the caller's transaction; return how many were new.

    A patch that is stored (same name and source) is left as it is, but gets pixels of resolutions it lacks. Footprint
    and cell are derived here, from the native bounds. Sentinel-1/Sentinel-2 pairs are linked whichever of the two comes
    first and whichever names the other. Holds the pixels of no more than BATCH_WITH_PIXELS patches. Raises PgearthError
    for a name that no file can have, and for a place in its grid that the archive has no number for.
    """
    stored = 0
    batch: list[Patch] = []
    with planner(connection, enable_seqscan="off"), connection.cursor() as cursor:
        cursor.execute(STAGE)
        for patch in patches:
            check_name("A patch", patch.name, LONGEST_PATCH)
            if not all(place is None or -(2**15) <= place < 2**15 for place in (patch.tile_column, patch.tile_row)):
                raise PgearthError(
                    f"Patch {patch.name}: column {patch.tile_column} and row {patch.tile_row} of its grid are not both"
                    " within -32,768 to 32,767",
                    "Choose a grid of larger patches, or cut the product into parts.",
                )
            for band in {band for raster in patch.rasters for band in raster.bands}:
                check_name(f"A band of patch {patch.name}", band, LONGEST_BAND)
            batch.append(patch)
            if len(batch) >= (BATCH_WITH_PIXELS if patch.rasters else BATCH):
                stored += write_batch(cursor, source, batch)
                batch.clear()
        stored += write_batch(cursor, source, batch)
        stored += store_staged(cursor, source)
        cursor.execute("drop table staged_patch")
    return stored


def write_batch(cursor: Cursor, source: str, batch: list[Patch]) -> int:
    """Stage a batch and, if there are pixels, store what is staged; return how many patches were stored."""
    stage_patches(cursor, batch)
    if not any(patch.rasters for patch in batch):
        return 0
    stored = store_staged(cursor, source)
    store_rasters(cursor, source, batch)
    return stored


def store_staged(cursor: Cursor, source: str) -> int:
    """Store the staged patches and link pairs; return how many were new. Leaves the staging table empty."""
    cursor.execute("analyze staged_patch (name, product, pair_name)")
    cursor.execute(STORE_PATCHES, {"source": source})
    stored = cursor.rowcount
    cursor.execute(LINK_PAIRS, {"source": source})
    cursor.execute("truncate staged_patch")
    return stored


STAGE = """
create temporary table staged_patch (
    name text, product text, platform text, sensing_time timestamptz, srid integer,
    west float8, south float8, east float8, north float8, tile_column smallint, tile_row smallint,
    label_ids smallint[], label_fraction real[], scene_class_ids smallint[], scene_class_fraction real[], country text,
    country_codes text[], nuts_ids text[], split text, seasonal_snow boolean, cloud_or_shadow boolean,
    pair_name text, metadata jsonb
) on commit drop
"""
STAGED_TYPES = [
    *(*["text"] * 3, "timestamptz", "int4", *["float8"] * 4, *["int2"] * 2, *["int2[]", "float4[]"] * 2),
    *("text", "text[]", "text[]", "text", "bool", "bool", "text", "jsonb"),
]


def stage_patches(cursor: Cursor, patches: Iterable[Patch]) -> None:
    """COPY patches, without their pixels, into the staging table."""
    with cursor.copy("copy staged_patch from stdin (format binary)") as copy:
        copy.set_types(STAGED_TYPES)
        for patch in patches:
            copy.write_row(
                (
                    patch.name,
                    patch.product,
                    patch.platform,
                    patch.sensing_time,
                    patch.srid,
                    float(patch.west),
                    float(patch.south),
                    float(patch.east),
                    float(patch.north),
                    patch.tile_column,
                    patch.tile_row,
                    patch.label_ids,
                    patch.label_fraction,
                    patch.scene_class_ids,
                    patch.scene_class_fraction,
                    patch.country,
                    patch.country_codes,
                    patch.nuts_ids,
                    patch.split,
                    patch.seasonal_snow,
                    patch.cloud_or_shadow,
                    patch.pair_name,
                    json_or_null(patch.metadata),
                )
            )


def store_rasters(cursor: Cursor, source: str, patches: Iterable[Patch]) -> None:
    """Store pixels of patches that are stored.

    Patch by patch, each value a binary parameter: the type raster has no binary input for COPY, and staging the bytes
    writes them twice (benchmarks/storage.py has the ways compared).
    """
    rasters = {patch.name: patch.rasters for patch in patches if patch.rasters}
    keys = cursor.execute(RASTER_KEYS, {"source": source, "names": list(rasters)}).fetchall()
    rows: dict[int, list[list[Any]]] = {}
    for name, patch_id, cell in keys:
        row: list[Any] = []
        for raster in rasters[name]:
            row += (patch_id, raster.resolution, cell, list(raster.bands), raster.wkb)
            row += statistics_columns(raster.statistics)
        rows.setdefault(len(rasters[name]), []).append(row)
    for number, of_patches in rows.items():
        cursor.executemany(STORE_RASTERS.format(SQL(", ").join([RASTER_VALUES] * number)), of_patches)


def statistics_columns(statistics: np.ndarray) -> list[list[float | None]]:
    """Values for band_min, band_max, band_mean, band_std and valid_fraction; NaN becomes null."""
    return [[None if value != value else value for value in column] for column in statistics.T.tolist()]


STORE_PATCHES = """
insert into eo.patch
    (footprint, cell, name, source, product_id, platform, sensing_time, srid, west, south, east, north,
     tile_column, tile_row, label_ids, label_fraction, scene_class_ids, scene_class_fraction, source_country,
     country_codes, nuts_ids, split, seasonal_snow, cloud_or_shadow, pair_name, metadata)
select eo_internal.footprint(s.west, s.south, s.east, s.north, s.srid),
       ST_GeoHash(eo_internal.patch_centre(s.west, s.south, s.east, s.north, s.srid), 5),
       s.name, %(source)s, p.product_id, s.platform, s.sensing_time,
       s.srid, s.west, s.south, s.east, s.north, s.tile_column, s.tile_row, s.label_ids, s.label_fraction,
       s.scene_class_ids, s.scene_class_fraction, s.country,
       coalesce(s.country_codes, case when s.country is not null then array[s.country] end), s.nuts_ids, s.split,
       s.seasonal_snow, s.cloud_or_shadow, s.pair_name, s.metadata
from staged_patch s
join eo.product p on p.name = s.product
order by s.name collate "C"
on conflict (name, source, cell) do nothing
"""
# Patches are looked up by name one by one (lateral, limit): an index scan each. A plain join would be planned by
# statistics that are out of date in the middle of a load, and then take hours.
RASTER_KEYS = """
select n.name, p.patch_id, p.cell
from unnest(%(names)s::text[]) as n (name)
cross join lateral (select patch_id, cell from eo.patch where name = n.name and source = %(source)s limit 1) p
"""
STORE_RASTERS = SQL(
    """
    insert into eo.patch_raster
        (patch_id, resolution, cell, bands, rast, band_min, band_max, band_mean, band_std, valid_fraction)
    values {}
    on conflict (patch_id, resolution, cell) do nothing
    """
)
RASTER_VALUES = SQL(
    """
    (%b::bigint, %b::smallint, %b::text, %b::text[], ST_RastFromWKB(%b::bytea),
     %b::real[], %b::real[], %b::real[], %b::real[], %b::real[])
    """
)

LINK_PAIRS = """
with named as (
    select own.patch_id as one_id, own.name as one, other.patch_id as other_id, other.name as other, own.cell
    from staged_patch s
    cross join lateral (
        select patch_id, name, cell from eo.patch where name = s.pair_name and source = %(source)s limit 1
    ) other
    cross join lateral (
        select patch_id, name, cell from eo.patch
        where name = s.name and source = %(source)s and cell = other.cell
        limit 1
    ) own
    union all
    select own.patch_id, own.name, other.patch_id, other.name, own.cell
    from staged_patch s
    cross join lateral (
        select patch_id, name, cell from eo.patch where pair_name = s.name and source = %(source)s limit 1
    ) other
    cross join lateral (
        select patch_id, name, cell from eo.patch
        where name = s.name and source = %(source)s and cell = other.cell
        limit 1
    ) own
), pair as (
    select one_id as patch_id, cell, other_id as pair_id, other as pair_name from named
    union all
    select other_id, cell, one_id, one from named
)
update eo.patch p set pair_id = pair.pair_id, pair_name = pair.pair_name
from pair
where p.patch_id = pair.patch_id and p.cell = pair.cell and p.pair_id is distinct from pair.pair_id
"""
