"""BigEarthNet archives as they are delivered: v1 and v2, Sentinel-1 and Sentinel-2, with their pixels.

v1 keeps one folder per patch, with a JSON file beside the bands. v2 keeps the patches of a product in one folder and
has no JSON: its labels are in the catalogue (see bigearthnet_metadata).
"""

from __future__ import annotations

import bz2
import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rasterio
from psycopg import Connection
from psycopg.rows import class_row
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from pgearth.loaders.archive.write import Patch, PatchRaster, Product, patch_raster, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.catalogue import SCHEMA, patch_of_record, read_batches
from pgearth.loaders.datasets.bigearthnet.catalogue import SOURCE as SOURCE_V2
from pgearth.loaders.datasets.bigearthnet.names import parse_patch_name
from pgearth.loaders.files.gdal_files import RASTER_FORMATS, open_raster
from pgearth.loaders.products.mgrs import PATCH_SIDE
from pgearth.loaders.reference.nomenclature import label_ids_by_name
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.explain import reason_of
from pgearth.loaders.work.ledger import listing_checksum, load_item
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.documents import parse_json, read_document
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import Raster

LOADER = "bigearthnet"
SOURCE_V1 = "bigearthnet-v1"
REFERENCE_MAPS = "Reference_Maps"
DEEPEST_LEVEL = 3

BAND_FILE = re.compile(r"S[12][AB]_.*_(B\d[\dA]|VV|VH)\.tif")
TILE_SOURCE = re.compile(r"S2[AB]_MSIL1C_\d{8}T\d{5,6}_N\d{4}_R\d{3}_T(\d{2}[C-X][A-Z]{2})_\d{8}T\d{5,6}")
SCENE_SOURCE = re.compile(r"S1[AB]_IW_GRDH_1S[DS][VH](_\d{8}T\d{6}){2}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}")


@dataclass(frozen=True)
class Sensor:
    """What a patch of a sensor consists of: bands by resolution (metres), pixel type, nodata of files without a tag."""

    bands: Mapping[int, tuple[str, ...]]
    dtype: str
    nodata: float | None


# For Sentinel-2, BigEarthNet defines 0 as no data; the files of v2 are tagged so, those of v1 are not tagged.
SENTINEL_2 = Sensor(
    {
        10: ("B02", "B03", "B04", "B08"),
        20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
        60: ("B01", "B09"),
    },
    dtype="uint16",
    nodata=0,
)
SENTINEL_1 = Sensor({10: ("VV", "VH")}, dtype="float32", nodata=None)


@dataclass(frozen=True)
class Description:
    """What the JSON file of a v1 patch says; `faults` are the archive's known slips, repaired here.

    `bounds` are west, south, east, north; `tile` is None for Sentinel-1, `pair_name` for Sentinel-2.
    """

    product: str
    tile: str | None
    sensing_time: datetime
    srid: int
    bounds: tuple[float, float, float, float]
    labels: list[str]
    pair_name: str | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Patches of one product in one folder; `source` is their name in the ledger, `descriptions` (by name) are v1's."""

    folder: Path
    source: Path
    product: str
    names: list[str]
    descriptions: dict[str, Description] | None


@dataclass(frozen=True)
class Lists:
    """Official v1 lists: the split of Sentinel-2 patches, and those under seasonal snow or with cloud or shadow."""

    splits: dict[str, str]
    seasonal_snow: set[str]
    cloud_or_shadow: set[str]


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
        for batch in find_batches(root.resolve(), counts):
            files = [file for name in batch.names for file in (batch.folder / name).iterdir()]
            checksum = listing_checksum([file for file in files if file.suffix in (".tif", ".json")])
            with load_item(connection, LOADER, str(batch.source), checksum) as item:
                if item is None:
                    counts["products skipped"] += 1
                    counts["patches skipped"] += len(batch.names)
                else:
                    item.rows = writer.write(batch, item.details)
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
    return +counts


def find_batches(root: Path, counts: Counter[str]) -> Iterator[Batch]:
    """Walk an archive and yield its patches by product; reference maps are only counted.

    Holds no more than the names of one folder and, for v1, the descriptions of one acquisition (a few tiles).
    """
    for folder, names in walk(root, counts):
        for acquisition, group in groupby(sorted(names), key=lambda name: parse_patch_name(name).product):
            if folder.name == acquisition:
                yield Batch(folder, folder, acquisition, list(group), None)
                continue
            products: dict[str, dict[str, Description]] = {}
            for name in group:
                description = read_description(folder / name)
                products.setdefault(description.product, {})[name] = description
            for product, descriptions in products.items():
                yield Batch(folder, folder / product, product, list(descriptions), descriptions)


def walk(folder: Path, counts: Counter[str], level: int = 0) -> Iterator[tuple[Path, list[str]]]:
    """Folders that hold patch folders, with the names of those; raises PgearthError for bands in any other folder."""
    patches: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                (patches if is_patch_name(entry.name) else others).append(entry.name)
            elif BAND_FILE.fullmatch(entry.name) and not is_patch_name(folder.name):
                raise PgearthError(
                    f"{folder}: it holds bands, but its name is not that of a BigEarthNet patch",
                    "Take the folder from the archive again, or move it elsewhere.",
                )
    if patches:
        yield folder, patches
    for name in sorted(others):
        if name == REFERENCE_MAPS:
            counts["reference maps ignored"] += sum(1 for _ in (folder / name).glob("*/*/"))
        elif level < DEEPEST_LEVEL:
            yield from walk(folder / name, counts, level + 1)


def is_patch_name(name: str) -> bool:
    """Whether `name` is that of a BigEarthNet patch."""
    try:
        parse_patch_name(name)
    except PgearthError:
        return False
    return True


def read_description(folder: Path) -> Description:
    """Read the JSON file of a v1 patch. Raises PgearthError if there is none, or not one as BigEarthNet writes it."""
    path = folder / f"{folder.name}_labels_metadata.json"
    try:
        record = parse_json(read_document(path))
        corners = record["coordinates"]
        faults = []
        if "lry" not in corners:
            faults.append("lly for lry")
        if "acquisition_date" not in record:
            faults.append("acquisition_time for acquisition_date")
        time = datetime.fromisoformat(record.get("acquisition_date") or record["acquisition_time"])
        west, north, east = float(corners["ulx"]), float(corners["uly"]), float(corners["lrx"])
        south = float(corners.get("lry") or corners["lly"])
        if "tile_source" in record:
            match = TILE_SOURCE.fullmatch(record["tile_source"].removesuffix(".SAFE"))
        else:
            match = SCENE_SOURCE.fullmatch(record["scene_source"])
        if match is None:
            raise ValueError("tile_source or scene_source is not a product's name")
        return Description(
            product=match[0].replace("MSIL1C", "MSIL2A"),
            tile=match[1] if "tile_source" in record else None,
            sensing_time=time.replace(tzinfo=UTC),
            srid=epsg_code(record["projection"]),
            bounds=(west, south, east, north),
            labels=[str(label) for label in record["labels"]],
            pair_name=record.get("corresponding_s2_patch"),
            faults=tuple(faults),
        )
    except FileNotFoundError as error:
        raise PgearthError(
            f"{path}: the labels of the patch are missing",
            "Each patch of v1 has this file; patches of v2 lie in a folder of their product's name.",
        ) from error
    except KeyError as error:
        raise PgearthError(f"{path}: it has no {error}", "Take this file from the archive again.") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RasterioError) as error:
        raise PgearthError(
            f"{path}: it cannot be read: {reason_of(error)}", "Take this file from the archive again."
        ) from error


@lru_cache(maxsize=256)
def epsg_code(wkt: str) -> int:
    """EPSG code of a coordinate reference system. Raises ValueError if it has none."""
    code = CRS.from_wkt(wkt).to_epsg()
    if code is None:
        raise ValueError("its coordinate reference system has no EPSG code")
    return int(code)


def read_rasters(
    folder: Path, sensor: Sensor, srid: int, bounds: tuple[float, float, float, float]
) -> list[PatchRaster]:
    """Read the bands of a patch, stacked by resolution.

    Every band must lie exactly within `bounds` (west, south, east, north) in `srid`, as the patch's description or name
    says. Raises PgearthError, naming the file, for bands that do not, and for missing, unreadable or unfitting ones.
    """
    west, _, _, north = bounds
    rasters = []
    for resolution, names in sensor.bands.items():
        transform = (float(resolution), -float(resolution), west, north, 0.0, 0.0)
        bands = [read_band(folder / f"{folder.name}_{name}.tif", sensor, resolution, srid, bounds) for name in names]
        raster = Raster(tuple(band for band, _ in bands), transform, srid, tuple(nodata for _, nodata in bands))
        rasters.append(patch_raster(resolution, names, raster))
    return rasters


def read_band(
    path: Path, sensor: Sensor, resolution: int, srid: int, bounds: tuple[float, float, float, float]
) -> tuple[np.ndarray, float | None]:
    """Pixels and nodata of one band file, which must be as read_rasters says."""
    if not path.is_file():
        raise PgearthError(f"{path}: this band is missing", "Take the patch from the archive again.")
    side = round(PATCH_SIDE) // resolution
    try:
        with open_raster(path) as dataset:
            if dataset.crs is None:
                raise PgearthError(f"{path}: it has no coordinate reference system", f"EPSG:{srid} is expected.")
            if (found := epsg_code(dataset.crs.to_wkt())) != srid:
                raise PgearthError(
                    f"{path}: it is in EPSG:{found}, the patch in EPSG:{srid}", "Take this file from the archive again."
                )
            if (dataset.count, *dataset.shape, *dataset.dtypes) != (1, side, side, sensor.dtype):
                raise PgearthError(
                    f"{path}: {dataset.count} band(s), {dataset.width} x {dataset.height} pixels, {dataset.dtypes[0]}",
                    f"Expected is one band, {side} x {side} pixels, {sensor.dtype}.",
                )
            if not dataset.transform.almost_equals(Affine(resolution, 0, bounds[0], 0, -resolution, bounds[3])):
                raise PgearthError(
                    f"{path}: its bounds are {tuple(dataset.bounds)}, those of the patch {bounds}",
                    "Bands and description of a patch have one footprint: one of them belongs to another patch.",
                )
            nodata = sensor.nodata if dataset.nodata is None else dataset.nodata
            return dataset.read(1), nodata
    except (RasterioError, ValueError) as error:
        raise PgearthError(
            f"{path}: it cannot be read: {error}", f"{RASTER_FORMATS}. Take this file from the archive again."
        ) from error


def read_lists(folder: Path) -> Lists:
    """Read the v1 lists in `folder` (.csv or .csv.bz2). Raises PgearthError if one is missing or names no patch."""
    splits = {"train": "train", "val": "validation", "test": "test"}
    return Lists(
        splits={name: split for stem, split in splits.items() for name in read_list(folder, stem)},
        seasonal_snow=set(read_list(folder, "patches_with_seasonal_snow")),
        cloud_or_shadow=set(read_list(folder, "patches_with_cloud_and_shadow")),
    )


def read_list(folder: Path, stem: str) -> Iterator[str]:
    """Names in one v1 list: one per row, in the first column, without a header."""
    path = folder / f"{stem}.csv.bz2"
    if not path.is_file():
        path = folder / f"{stem}.csv"
    try:
        with bz2.open(path, "rt") if path.suffix == ".bz2" else path.open() as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row or not is_patch_name(row[0]):
                    raise PgearthError(
                        f"{path}, row {number}: {','.join(row)!r} is not the name of a BigEarthNet patch",
                        "Take this list from the archive again: names of patches, one in a row, and no header.",
                    )
                yield row[0]
    except FileNotFoundError as error:
        raise PgearthError(
            f"{folder}: no {stem}.csv.bz2 or {stem}.csv", "All lists of splits, snow and clouds are needed."
        ) from error
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise PgearthError(f"{path}: it cannot be read: {error}", "Take this list from the archive again.") from error


class BatchWriter:
    """Stores batches; holds the labels' numbers, the v1 lists and the v2 catalogue files that it was given."""

    def __init__(self, connection: Connection, metadata: Sequence[Path], lists: Path | None) -> None:
        self.connection = connection
        self.ben43 = label_ids_by_name(connection, "ben43")
        self.ben19 = label_ids_by_name(connection, "ben19")
        self.lists = None if lists is None else read_lists(lists)
        self.catalogue = pa.Table.from_batches([batch for path in metadata for batch in read_batches(path)], SCHEMA)

    def write(self, batch: Batch, details: Counter[str]) -> int:
        """Store the product and patches of a batch; count faults in `details`; return the number of new patches."""
        if batch.descriptions is None:
            write_products(self.connection, [self.product_v2(batch)])
            return write_patches(self.connection, SOURCE_V2, self.patches_v2(batch))
        write_products(self.connection, self.products_v1(batch))
        return write_patches(self.connection, SOURCE_V1, self.patches_v1(batch, batch.descriptions, details))

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

    def patches_v1(self, batch: Batch, descriptions: dict[str, Description], details: Counter[str]) -> Iterator[Patch]:
        """The patches of a v1 batch with their pixels; a Sentinel-1 patch has the split and flags of its pair."""
        for name in batch.names:
            parts = parse_patch_name(name)
            description = descriptions[name]
            details.update(parts.faults + description.faults)
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


def sensor_of(platform: str) -> Sensor:
    """What the patches of a platform consist of."""
    return SENTINEL_1 if platform.startswith("sentinel-1") else SENTINEL_2


@click.command()
@click.argument("root", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--metadata",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Parquet file of the v2 catalogue, where `bigearthnet-metadata` has not stored it; may be repeated.",
)
@click.option(
    "--lists",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the v1 lists: train, val, test, patches_with_seasonal_snow, patches_with_cloud_and_shadow.",
)
def bigearthnet(root: Path, metadata: tuple[Path, ...], lists: Path | None) -> None:
    """Load a BigEarthNet archive (v1 or v2, Sentinel-1 and Sentinel-2) with its pixels.

    ROOT is the folder of one sensor, or the one above it.
    """
    if root.is_file():
        raise PgearthError(f"{root}: it is a file, not a folder", "Unpack the archive, and name the folder of it.")
    with connect(autocommit=True) as connection:
        counts = load_bigearthnet(connection, root, metadata, lists)
    click.echo(", ".join(f"{number} {name}" for name, number in counts.items()))
