"""BigEarthNet archives as they are delivered: v1 and v2, Sentinel-1 and Sentinel-2, stored with their pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import rasterio
from psycopg import Connection
from psycopg.rows import class_row

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.catalogue import SCHEMA, patch_of_record, read_batches
from pgearth.loaders.datasets.bigearthnet.catalogue import SOURCE as SOURCE_V2
from pgearth.loaders.datasets.bigearthnet.descriptions import Description
from pgearth.loaders.datasets.bigearthnet.folders import Batch, find_batches
from pgearth.loaders.datasets.bigearthnet.lists import read_lists
from pgearth.loaders.datasets.bigearthnet.names import parse_patch_name
from pgearth.loaders.datasets.bigearthnet.rasters import read_rasters
from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_1, sensor_of
from pgearth.loaders.reference.nomenclature import label_ids_by_name
from pgearth.loaders.work.counted import Counted
from pgearth.loaders.work.ledger import listing_checksum, load_item
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError

LOADER = "bigearthnet"
SOURCE_V1 = "bigearthnet-v1"


def load_bigearthnet(
    connection: Connection, root: Path, metadata: Sequence[Path] = (), lists: Path | None = None
) -> Counter[str]:
    """Load all patches below `root` with their pixels, one transaction per product; return counts.

    `root` is the Sentinel-2 or the Sentinel-1 folder of an archive, or holds both. `metadata` are parquet files of the
    v2 catalogue, for v2 patches that `bigearthnet-metadata` has not stored; `lists` is a folder with the v1 lists of
    splits, snow and clouds. Raises PgearthError, naming the file, for the first bad patch: nothing of its product is
    stored then, and what was committed before stays.
    """
    counts: Counter[str] = Counter()
    writer = BatchWriter(connection, metadata, lists)
    with rasterio.Env(), progress(range(0), root.name, "patches") as bar:
        batches = Counted(find_batches(root.resolve()))
        for batch in batches:
            files = [file for name in batch.names for file in (batch.folder / name).iterdir()]
            checksum = listing_checksum([file for file in files if file.suffix in (".tif", ".json")])
            with load_item(connection, LOADER, str(batch.source), checksum) as item:
                if item is None:
                    counts["products skipped"] += 1
                    counts["patches skipped"] += len(batch.names)
                else:
                    item.rows = writer.write(batch)
                    item.details.update(batch.faults)
                    item.details["patches already stored"] = len(batch.names) - item.rows
                    counts.update(item.details)
                    counts["products"] += 1
                    counts["patches"] += len(batch.names)
            bar.update(len(batch.names))
    if not counts["products"] and not counts["products skipped"]:
        raise PgearthError(
            f"{root}: no BigEarthNet patches found",
            "Give the folder with the patch folders (v1) or product folders (v2), or the one above it.",
        )
    return counts + batches.counts


class BatchWriter:
    """Stores batches; holds the labels' numbers, the v1 lists and the v2 catalogue files that it was given."""

    def __init__(self, connection: Connection, metadata: Sequence[Path], lists: Path | None) -> None:
        self.connection = connection
        self.ben43 = label_ids_by_name(connection, "ben43")
        self.ben19 = label_ids_by_name(connection, "ben19")
        self.lists = None if lists is None else read_lists(lists)
        self.catalogue = pa.Table.from_batches([batch for path in metadata for batch in read_batches(path)], SCHEMA)

    def write(self, batch: Batch) -> int:
        """Store the product and patches of a batch; return the number of new patches."""
        if batch.descriptions is None:
            write_products(self.connection, [self.product_v2(batch)])
            return write_patches(self.connection, SOURCE_V2, self.patches_v2(batch))
        write_products(self.connection, self.products_v1(batch))
        return write_patches(self.connection, SOURCE_V1, self.patches_v1(batch, batch.descriptions))

    def products_v1(self, batch: Batch) -> list[Product]:
        """The product that BigEarthNet cut its patches from, after the one that this was made from, if known."""
        assert batch.descriptions is not None
        description = batch.descriptions[batch.names[0]]
        product = Product(
            name=batch.product,
            platform=parse_patch_name(batch.names[0]).platform,
            level="GRD" if description.tile is None else "L2A",
            sensing_time=description.sensing_time,
            mgrs_tile=description.tile,
            source_path=str(batch.folder),
        )
        if description.tile is None:
            return [product]
        # BigEarthNet made Level 2A itself (sen2cor) and names the Level 1C product that it took.
        level_1c = replace(product, name=batch.product.replace("MSIL2A", "MSIL1C"), level="L1C", source_path=None)
        return [level_1c, replace(product, derived_from=level_1c.name)]

    def patches_v1(self, batch: Batch, descriptions: dict[str, Description]) -> Iterator[Patch]:
        """The patches of a v1 batch with their pixels; a Sentinel-1 patch has the split and flags of its pair."""
        for name in batch.names:
            parts = parse_patch_name(name)
            description = descriptions[name]
            sentinel_2_name = description.pair_name or name
            try:
                label_ids = sorted({self.ben43[label] for label in description.labels})
            except PgearthError as error:
                raise error.of(str(batch.folder / name)) from error
            west, south, east, north = description.bounds
            lists = self.lists
            yield Patch(
                name=name,
                product=batch.product,
                platform=parts.platform,
                sensing_time=description.sensing_time,
                srid=description.srid,
                west=west,
                south=south,
                east=east,
                north=north,
                tile_column=parts.column,
                tile_row=parts.row,
                label_ids=label_ids,
                split=None if lists is None else lists.splits.get(sentinel_2_name),
                seasonal_snow=None if lists is None else sentinel_2_name in lists.seasonal_snow,
                cloud_or_shadow=None if lists is None else sentinel_2_name in lists.cloud_or_shadow,
                pair_name=description.pair_name,
                rasters=read_rasters(
                    batch.folder / name, sensor_of(parts.platform), description.srid, description.bounds
                ),
            )

    def product_v2(self, batch: Batch) -> Product:
        """The tile acquisition (Sentinel-2) or acquisition (Sentinel-1) that a v2 folder is named after."""
        parts = parse_patch_name(batch.names[0])
        sentinel_1 = sensor_of(parts.platform) is SENTINEL_1
        return Product(
            name=batch.product,
            platform=parts.platform,
            level="GRD" if sentinel_1 else "L2A",
            sensing_time=parts.sensing_time,
            mgrs_tile=None if sentinel_1 else parts.tile,
            source_path=str(batch.folder),
        )

    def patches_v2(self, batch: Batch) -> Iterator[Patch]:
        """The patches of a v2 batch with their pixels, as the catalogue describes them or (Sentinel-1) their pairs."""
        described = {patch.name: patch for patch in (*self.catalogued(batch.names), *self.stored(batch.names))}
        pairs = {patch.pair_name: patch for patch in described.values()}
        for name in batch.names:
            parts = parse_patch_name(name)
            sensor = sensor_of(parts.platform)
            patch = (pairs if sensor is SENTINEL_1 else described).get(name)
            if patch is None:
                raise PgearthError(
                    f"{batch.folder / name}: the catalogue has no such patch",
                    "Run `pgearth load bigearthnet-metadata` with both parquet files first, or use --metadata.",
                )
            if sensor is SENTINEL_1:
                patch = replace(
                    patch,
                    name=name,
                    product=batch.product,
                    platform=parts.platform,
                    sensing_time=parts.sensing_time,
                    pair_name=patch.name,
                    metadata=None,
                )
            bounds = (patch.west, patch.south, patch.east, patch.north)
            yield replace(patch, rasters=read_rasters(batch.folder / name, sensor, patch.srid, bounds))

    def catalogued(self, names: list[str]) -> list[Patch]:
        """Sentinel-2 patches of these names, or whose pairs have these names, from the catalogue files given."""
        wanted = pa.array(names)
        rows = self.catalogue.filter(
            pc.or_(
                pc.is_in(self.catalogue["patch_id"], wanted),
                pc.is_in(self.catalogue["s1_name"], wanted),
            )
        )
        patches = []
        for record in rows.to_pylist():
            try:
                patches.append(patch_of_record(record, self.ben19))
            except PgearthError as error:
                raise error.of(f"catalogue row {record['patch_id']}") from error
        return patches

    def stored(self, names: list[str]) -> list[Patch]:
        """The same from the archive."""
        with self.connection.cursor(row_factory=class_row(Patch)) as cursor:
            return cursor.execute(SELECT_STORED, {"source": SOURCE_V2, "names": names}).fetchall()


SELECT_STORED = """
select p.name, product.name as product, p.platform, p.sensing_time, p.srid, p.west, p.south, p.east, p.north,
       p.tile_column, p.tile_row, p.label_ids, p.source_country as country, p.split, p.seasonal_snow,
       p.cloud_or_shadow, p.pair_name, p.metadata
from eo.patch p
join eo.product on product.product_id = p.product_id
where p.source = %(source)s and p.platform like 'sentinel-2%%'
  and (p.name = any(%(names)s) or p.pair_name = any(%(names)s))
"""
