"""The manifest of an export, metadata.parquet: all that the archive knows of the patches, and the part each is in.

It is a GeoParquet table, made from one query in one snapshot before anything else is written, and is what every part of
the export is made from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from psycopg import Connection, IsolationLevel
from psycopg.rows import class_row, dict_row
from psycopg.sql import SQL
from rasterio.crs import CRS

from pgearth.loaders.archive.filters import search_call, within_collections
from pgearth.loaders.archive.write import Product
from pgearth.loaders.export.documents import (
    BAND_BYTES,
    PIXEL_FORMATS,
    document_name,
    dump,
    patch_document,
    product_document,
    product_document_name,
    raster_bytes,
)
from pgearth.loaders.export.packs import ARCHIVE_BYTES, ENTRY_BYTES, SUFFIXES, ZSTD_GROWTH, new_file
from pgearth.loaders.files.names import is_plain_name
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError

MANIFEST = "metadata.parquet"
MANIFEST_KEY = b"pgearth"
LAYOUT = 2  # changes whenever the same patches would give other files
ROWS_PER_GROUP = 50_000
ROWS_PER_BATCH = 1_000
FOLDER_PART_BYTES = 128_000_000
BOX = ("xmin", "ymin", "xmax", "ymax")

SCHEMA = pa.schema(
    [
        pa.field("patch_id", pa.int64(), nullable=False),
        pa.field("cell", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("product", pa.string(), nullable=False),
        pa.field("derived_from", pa.string()),
        pa.field("platform", pa.string(), nullable=False),
        pa.field("sensing_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("season", pa.string(), nullable=False),
        pa.field("srid", pa.int32(), nullable=False),
        pa.field("west", pa.float64(), nullable=False),
        pa.field("south", pa.float64(), nullable=False),
        pa.field("east", pa.float64(), nullable=False),
        pa.field("north", pa.float64(), nullable=False),
        pa.field("tile_column", pa.int16()),
        pa.field("tile_row", pa.int16()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("label_codes", pa.list_(pa.string())),
        pa.field("label_ids", pa.list_(pa.int16())),
        pa.field("label_fraction", pa.list_(pa.float32())),
        pa.field("scene_classes", pa.list_(pa.string())),
        pa.field("scene_class_codes", pa.list_(pa.string())),
        pa.field("scene_class_ids", pa.list_(pa.int16())),
        pa.field("scene_class_fraction", pa.list_(pa.float32())),
        pa.field("source_country", pa.string()),
        pa.field("country_codes", pa.list_(pa.string())),
        pa.field("nuts_ids", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("seasonal_snow", pa.bool_()),
        pa.field("cloud_or_shadow", pa.bool_()),
        pa.field("pair_name", pa.string()),
        pa.field("pair_id", pa.int64()),
        pa.field("metadata", pa.string()),
        pa.field("bands", pa.list_(pa.string()), nullable=False),
        pa.field("part", pa.int32()),
        pa.field("bbox", pa.struct([(edge, pa.float64()) for edge in BOX]), nullable=False),
        pa.field("geometry", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Order:
    """What is to be exported and how; `filters` are arguments of eo.filter, `area` among them as EWKT.

    `collections` are names of the calling role's collections, None for no such limit; `shard_size` is in bytes.
    """

    filters: dict[str, Any]
    collections: list[str] | None = None
    format: str = "bigearthnet"
    pack: str = "folder"
    shard_size: int = 1_000_000_000


def manifest_of(destination: Path) -> dict[str, Any]:
    """What a manifest says of the whole export: its order, the numbers of patches and parts."""
    try:
        metadata = pq.read_metadata(destination / MANIFEST).metadata
        return dict(json.loads(metadata[MANIFEST_KEY]))
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise PgearthError(f"{destination / MANIFEST}: no manifest of an export", "Name an empty folder.") from error


def order_record(order: Order) -> dict[str, Any]:
    """An order as the manifest keeps it: only what bears on the files."""
    filters = {name: value for name, value in order.filters.items() if value is not None}
    record = {"layout": LAYOUT, "format": order.format, "pack": order.pack, "filters": filters}
    if order.pack in SUFFIXES:
        record["shard size"] = order.shard_size
    if order.collections is not None:
        record["collections"] = order.collections
    return record


SELECT_PATCHES = SQL(
    """
select p.patch_id, p.cell, p.name, p.source, product.name as product, parent.name as derived_from, p.platform,
       p.sensing_time, p.season::text, p.srid, p.west, p.south, p.east, p.north, p.tile_column, p.tile_row,
       p.label_ids, p.label_fraction, p.scene_class_ids, p.scene_class_fraction, p.source_country, p.country_codes,
       p.nuts_ids, p.split, p.seasonal_snow, p.cloud_or_shadow, p.pair_name, p.pair_id, p.metadata::text,
       ST_AsBinary(p.footprint) as geometry, p.product_id,
       array(
           select json_build_object('bands', r.bands, 'resolution', r.resolution, 'width', ST_Width(r.rast),
                                    'height', ST_Height(r.rast), 'bytes', ST_MemSize(r.rast))
           from eo.patch_raster r
           where r.patch_id = p.patch_id and r.cell = p.cell
           order by r.resolution
       ) as rasters
from {search} found
join eo.patch p on p.patch_id = found.patch_id and p.cell = found.cell
join eo.product on product.product_id = p.product_id
left join eo.product parent on parent.product_id = product.derived_from
order by product.name collate "C", p.source collate "C", p.name collate "C"
"""
)


def write_manifest(destination: Path, order: Order) -> None:
    """List the patches, in one snapshot, with all that the archive knows of them, and divide them into parts."""
    with connect(autocommit=True) as connection, new_file(destination / MANIFEST) as path:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        divide = Divider(connection, order)
        extent = Extent()
        patches = 0
        with (
            connection.transaction(),
            pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer,
            connection.cursor("patches", row_factory=dict_row) as cursor,
            progress(range(0), "listing", "patches") as bar,
        ):
            cursor.itersize = ROWS_PER_BATCH
            filters = within_collections(connection, order.filters, order.collections)
            query = SELECT_PATCHES.format(search=search_call(filters))
            rows = (divide(row) for row in cursor.execute(query, filters))
            while batch := list(islice(rows, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                extent.add(shapely.from_wkb([row["geometry"] for row in batch]))
                patches += len(batch)
                bar.update(len(batch))
            if not patches:
                raise PgearthError("No patch passes the filters.", "Count them first: select eo.count_patches(...).")
            manifest = {"order": order_record(order), "patches": patches, "parts": divide.parts}
            writer.add_key_value_metadata({b"geo": json.dumps(geo(extent.box())), MANIFEST_KEY: json.dumps(manifest)})


class Extent:
    """The bounds of footprints in degrees, whose parts lie between -180 and 180."""

    def __init__(self) -> None:
        self.from_180 = np.array([np.inf, np.inf, -np.inf, -np.inf])  # longitudes -180 to 180
        self.from_0 = self.from_180.copy()  # longitudes 0 to 360

    def add(self, footprints: np.ndarray) -> None:
        """Take in more footprints."""
        bounds = shapely.bounds(shapely.get_parts(footprints))
        turned = bounds.copy()
        turned[bounds[:, 2] <= 0, ::2] += 360
        turned[(bounds[:, 0] < 0) & (bounds[:, 2] > 0), ::2] = (0, 360)
        self.from_180, self.from_0 = (
            np.concatenate(
                [np.minimum(total[:2], more[:, :2].min(axis=0)), np.maximum(total[2:], more[:, 2:].max(axis=0))]
            )
            for total, more in ((self.from_180, bounds), (self.from_0, turned))
        )

    def box(self) -> list[float]:
        """West, south, east, north: the narrower way around; west > east across the antimeridian (RFC 7946, 5.2)."""
        west, south, east, north = self.from_0.tolist()
        if east - west < self.from_180[2] - self.from_180[0] - 1e-9:
            return [west if west <= 180 else west - 360, south, east if east <= 180 else east - 360, north]
        return list(self.from_180.tolist())


def geo(extent: list[float]) -> dict[str, Any]:
    """The key `geo` of GeoParquet 1.1; no crs is said, so it is OGC:CRS84, longitude and latitude."""
    return {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["MultiPolygon"],
                "bbox": extent,
                "covering": {"bbox": {edge: ["bbox", edge] for edge in BOX}},
            }
        },
    }


class Divider:
    """Makes rows of the manifest from those of the archive, and divides them into parts, in their order.

    A part ends where the next patch might make it larger than its limit, by the most that its files can take. Raises
    PgearthError for names that cannot be names of files, and for a patch that alone is over the limit.
    """

    def __init__(self, connection: Connection, order: Order) -> None:
        self.connection = connection
        self.order = order
        self.labels = {
            label_id: (f"{scheme}:{code}", name)
            for label_id, scheme, code, name in connection.execute("select label_id, scheme, code, name from eo.label")
        }
        self.limit = (order.shard_size if order.pack in SUFFIXES else FOLDER_PART_BYTES) - ARCHIVE_BYTES
        self.parts = 0
        self.bytes = 0
        self.product = ""
        self.product_bytes = 0
        self.names: dict[str, str] = {}  # of the product's patches, by what they are without regard to case
        self.products: dict[str, str] = {}
        self.projection = cache(lambda srid: crs_of(connection, srid).to_wkt())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The manifest's row of the next patch."""
        rasters = row.pop("rasters")
        product_id = row.pop("product_id")
        for ids, codes, names in (
            ("label_ids", "label_codes", "labels"),
            ("scene_class_ids", "scene_class_codes", "scene_classes"),
        ):
            known = row[ids] is not None
            row[codes] = [self.labels[number][0] for number in row[ids]] if known else None
            row[names] = [self.labels[number][1] for number in row[ids]] if known else None
        row["bands"] = [band for raster in rasters for band in raster["bands"]]
        row["bbox"] = dict(zip(BOX, shapely.from_wkb(row["geometry"]).bounds, strict=True))
        row["part"] = None
        if self.order.format in PIXEL_FORMATS:
            row["part"] = self.part(row, product_id, rasters)
        return row

    def part(self, row: Mapping[str, Any], product_id: int, rasters: list[dict[str, Any]]) -> int:
        """The number of the part that the patch goes to."""
        if row["product"] != self.product:
            self.product = row["product"]
            self.names.clear()
            if (other := self.products.setdefault(self.product.casefold(), self.product)) != self.product:
                raise PgearthError(
                    f"Two products are named {other} and {self.product}: folders of Windows and macOS have no case.",
                    "Export their patches apart: --patch-id.",
                )
            document = dump(document_of_product(self.connection, product_id))
            self.product_bytes = self.entry(product_document_name(self.product), len(document))
            new_product = True
        else:
            new_product = False
        self.check_names(row)
        size = self.patch_bytes(row, rasters)
        needed = size + (self.product_bytes if new_product else 0)
        if not self.parts or self.bytes + needed > self.limit:
            self.parts += 1
            self.bytes = 0
            needed = size + self.product_bytes
            if needed > self.limit and self.order.pack in SUFFIXES:
                raise PgearthError(
                    f"Patch {row['name']} may take {needed + ARCHIVE_BYTES:,} bytes, more than a shard.",
                    "A patch is never split: give a larger --shard-size.",
                )
        self.bytes += needed
        return self.parts - 1

    def check_names(self, row: Mapping[str, Any]) -> None:
        """Raise PgearthError where two patches of a product have one name, or a name cannot be one of files."""
        name, product = row["name"], row["product"]
        # Without regard to case: file systems of Windows and macOS have none.
        if (other := self.names.get(name.casefold())) is not None:
            raise PgearthError(
                f"Two patches of product {product} are named {' and '.join(dict.fromkeys((other, name)))}.",
                "Export one source at a time: --source; or one of the two: --patch-id.",
            )
        self.names[name.casefold()] = name
        files = [product, name, product_document_name(product), document_name(name)]
        for file in [*files, *(f"{name}_{band}_99999m.tif" for band in row["bands"])]:
            if not is_plain_name(file):
                raise PgearthError(
                    f"Patch {name} of product {product} cannot be exported: {file!r} is no name for a file.",
                    "Names must not start or end with a dot, end with a space, hold slashes or control characters, be"
                    " too long, or be those of devices of Windows.",
                )

    def patch_bytes(self, row: Mapping[str, Any], rasters: list[dict[str, Any]]) -> int:
        """The most bytes that a patch's files can take in their pack."""
        path = f"{row['product']}/{row['name']}/{row['name']}_"
        longest = max((len(band.encode()) for band in row["bands"]), default=0) + len("_99999m.tif")
        projection = self.projection(row["srid"])
        document = len(dump(patch_document(row, projection, []))) + len(rasters) * BAND_BYTES
        document += len(row["bands"]) * 2 * (len(row["name"].encode()) + longest)
        total = self.entry(path + document_name(""), document)
        for raster in rasters:
            stored, size, bands = raster["bytes"], (raster["width"], raster["height"]), len(raster["bands"])
            pixels = raster_bytes(self.order.format, *size, bands, stored)
            total += pixels + bands * self.entry(path + "x" * longest, 0)
        return total

    def entry(self, path: str, size: int) -> int:
        """The most bytes that a file of `size` takes in the pack: what is said of it, thrice its path, its checksum."""
        if self.order.pack not in SUFFIXES:
            return size
        total = size + ENTRY_BYTES[self.order.pack] + 3 * len(path.encode()) + 70
        return int(total * ZSTD_GROWTH) + 1


def manifest_rows(destination: Path, part: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one part, in their order, read in batches."""
    with pq.ParquetFile(destination / MANIFEST) as file:
        column = SCHEMA.get_field_index("part")
        limits = [file.metadata.row_group(group).column(column).statistics for group in range(file.num_row_groups)]
        groups = [group for group, limit in enumerate(limits) if limit.min <= part <= limit.max]
        wanted = None if columns is None else [*columns, "part"]
        for batch in file.iter_batches(ROWS_PER_BATCH, groups, wanted):
            yield from batch.filter(pc.equal(batch["part"], part)).to_pylist()


def document_of_product(connection: Connection, product_id: int) -> dict[str, Any]:
    """The document of a product, with that of the product it is derived from inside."""
    with connection.cursor(row_factory=class_row(StoredProduct)) as cursor:
        row = cursor.execute(SELECT_PRODUCT, (product_id,)).fetchone()
    assert row is not None
    parent = None if row.parent_id is None else document_of_product(connection, row.parent_id)
    return product_document(row, parent)


@dataclass(frozen=True)
class StoredProduct(Product):
    """A product as it is stored, with the key of the one it is derived from."""

    parent_id: int | None = None


SELECT_PRODUCT = """
select name, platform, level, sensing_time, mgrs_tile, cloud_cover, ST_AsBinary(footprint) as footprint, source_path,
       metadata, end_time, processed_at, processing_baseline, relative_orbit, scales, offsets, bytes,
       derived_from as parent_id
from eo.product
where product_id = %s
"""


def crs_of(connection: Connection, srid: int) -> CRS:
    """The reference system of a srid: EPSG's where it has a code, else as the database defines it."""
    row = connection.execute(
        "select auth_name, auth_srid, srtext from spatial_ref_sys where srid = %s", (srid,)
    ).fetchone()
    if row is None:
        raise PgearthError(f"spatial_ref_sys has no SRID {srid}.", "Add it, then run the same command again.")
    return CRS.from_epsg(row[1]) if row[0] == "EPSG" else CRS.from_wkt(row[2])
