"""The official BigEarthNet v2 catalogue (parquet): every Sentinel-2 patch with its labels, without pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import Connection

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.names import parse_patch_name, patch_bounds
from pgearth.loaders.products.mgrs import tile_origin
from pgearth.loaders.reference.nomenclature import LabelIds, label_ids_by_name
from pgearth.loaders.work.ledger import file_checksum, load_item
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.limits import PARQUET_BYTES, PARQUET_TEXT_BYTES, PARQUET_VALUES

LOADER = "bigearthnet-metadata"
SOURCE = "bigearthnet-v2"
ROWS_PER_BATCH = 50_000
CATALOGUE = (
    "Give metadata.parquet or metadata_for_patches_with_snow_cloud_or_shadow.parquet of BigEarthNet v2, unchanged."
)

SCHEMA = pa.schema(
    {
        "patch_id": pa.string(),
        "labels": pa.list_(pa.string()),
        "split": pa.string(),
        "country": pa.string(),
        "s1_name": pa.string(),
        "s2v1_name": pa.string(),
        "contains_seasonal_snow": pa.bool_(),
        "contains_cloud_or_shadow": pa.bool_(),
    }
)

COUNTRY_CODES = {
    "Austria": "AT",
    "Belgium": "BE",
    "Finland": "FI",
    "Ireland": "IE",
    "Kosovo": "XK",
    "Lithuania": "LT",
    "Luxembourg": "LU",
    "Portugal": "PT",
    "Serbia": "RS",
    "Switzerland": "CH",
}
SPLITS = ("train", "validation", "test")


def load_bigearthnet_metadata(connection: Connection, paths: Iterable[Path]) -> dict[str, int]:
    """Load parquet files of the catalogue, one transaction each; return counts of files and patches.

    Raises PgearthError, naming file and row, for a file that is not the catalogue or has an unknown name, tile, label,
    country or split; nothing of that file is stored then.
    """
    counts = {"files": 0, "files skipped": 0, "patches": 0, "patches skipped": 0}
    label_ids = label_ids_by_name(connection, "ben19")
    for path in paths:
        rows = row_count(path)
        with load_item(connection, LOADER, str(path.resolve()), file_checksum(path)) as item:
            if item is None:
                counts["files skipped"] += 1
                counts["patches skipped"] += rows
                continue
            with progress(range(0), path.name, "patches", rows) as bar:
                for patches in read_catalogue(path, label_ids):
                    write_products(connection, products_of(patches))
                    item.rows += write_patches(connection, SOURCE, patches)
                    bar.update(len(patches))
            item.details["already stored"] = rows - item.rows
            counts["files"] += 1
            counts["patches"] += item.rows
            counts["patches skipped"] += rows - item.rows
    return counts


def open_catalogue(path: Path) -> pq.ParquetFile:
    """Open a parquet file of the catalogue. Raises PgearthError if it is none or lacks columns."""
    try:
        file = pq.ParquetFile(path)
        check_size(path, file.metadata)
        # A text that is in many rows stays one: of what it would take in each, a file says nothing.
        columns = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        file = pq.ParquetFile(path, read_dictionary=texts)
    except (pa.ArrowInvalid, OSError) as error:
        raise PgearthError(f"{path}: not a readable parquet file: {error}", CATALOGUE) from error
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise PgearthError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}",
            CATALOGUE,
        )
    return file


def check_size(path: Path, metadata: pq.FileMetaData) -> None:
    """Raise PgearthError for a table with a row group that unpacks to more than the limits."""
    limit = PARQUET_BYTES.of_environment()
    for number in range(metadata.num_row_groups):
        columns = [metadata.row_group(number).column(place) for place in range(metadata.num_columns)]
        size = sum(column.total_uncompressed_size for column in columns)
        values = max(column.num_values for column in columns)
        if size > limit or values > PARQUET_VALUES:
            raise PgearthError(
                f"{path}: row group {number + 1} unpacks to {size:,} bytes and {values:,} values in a column;"
                f" the limits are {limit:,} and {PARQUET_VALUES:,}",
                f"Write it in smaller row groups; {PARQUET_BYTES.variable} sets another limit to bytes.",
            )


def check_texts(path: Path, batch: pa.RecordBatch) -> None:
    """Raise PgearthError for a text that is too long to stand in every row."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.flatten() if pa.types.is_list(column.type) else column
        if not pa.types.is_dictionary(values.type):
            continue
        longest = pc.max(pc.binary_length(values.dictionary)).as_py() or 0
        if longest > PARQUET_TEXT_BYTES:
            raise PgearthError(
                f"{path}: a text of {longest:,} bytes in column {name}, and the limit is {PARQUET_TEXT_BYTES:,}",
                CATALOGUE,
            )


def row_count(path: Path) -> int:
    """Number of patches in a file of the catalogue."""
    with open_catalogue(path) as file:
        return int(file.metadata.num_rows)


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches of the catalogue's columns, typed as in SCHEMA. Raises PgearthError for damaged data and empty values."""
    first = 1
    with open_catalogue(path) as file:
        try:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=SCHEMA.names):
                check_texts(path, batch)
                batch = pa.RecordBatch.from_arrays(
                    [batch.column(field.name).cast(field.type) for field in SCHEMA], schema=SCHEMA
                )
                for field in SCHEMA:
                    if batch.column(field.name).null_count:
                        row = first + batch.column(field.name).is_null().index(True).as_py()
                        raise PgearthError(f"{path}, row {row}: {field.name} is empty", CATALOGUE)
                yield batch
                first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise PgearthError(f"{path}: it cannot be read: {error}", CATALOGUE) from error


def read_catalogue(path: Path, label_ids: LabelIds) -> Iterator[list[Patch]]:
    """Patches of a file of the catalogue, in batches. Raises PgearthError, with file and row, for what is not known."""
    first = 1
    for batch in read_batches(path):
        patches = []
        for number, record in enumerate(batch.to_pylist(), start=first):
            try:
                patches.append(patch_of_record(record, label_ids))
            except PgearthError as error:
                raise error.of(f"{path}, row {number}") from error
        first += batch.num_rows
        yield patches


def patch_of_record(record: dict[str, Any], label_ids: LabelIds) -> Patch:
    """The patch that a row of the catalogue describes.

    Raises PgearthError for a name, tile, label, country or split that is not known.
    """
    name = record["patch_id"]
    parts = parse_patch_name(name)
    if parts.tile is None:
        raise PgearthError(f"{name!r} is the name of a patch of BigEarthNet v1", CATALOGUE)
    if not parts.platform.startswith("sentinel-2"):
        raise PgearthError(f"{name!r} is not the name of a Sentinel-2 patch", CATALOGUE)
    if not record["labels"]:
        raise PgearthError(f"{name} has no labels", CATALOGUE)
    country = COUNTRY_CODES.get(record["country"])
    if country is None:
        raise PgearthError(f"unknown country {record['country']!r}", f"Known are {', '.join(COUNTRY_CODES)}.")
    if record["split"] not in SPLITS:
        raise PgearthError(f"unknown split {record['split']!r}", f"Known are {', '.join(SPLITS)}.")
    west, south, east, north = patch_bounds(parts.tile, parts.column, parts.row)
    return Patch(
        name=name,
        product=parts.product,
        platform=parts.platform,
        sensing_time=parts.sensing_time,
        srid=tile_origin(parts.tile)[0],
        west=west,
        south=south,
        east=east,
        north=north,
        tile_column=parts.column,
        tile_row=parts.row,
        label_ids=sorted({label_ids[label] for label in record["labels"]}),
        country=country,
        split=record["split"],
        seasonal_snow=record["contains_seasonal_snow"],
        cloud_or_shadow=record["contains_cloud_or_shadow"],
        pair_name=record["s1_name"],
        metadata={"v1_name": record["s2v1_name"]},
    )


def products_of(patches: Iterable[Patch]) -> list[Product]:
    """The acquired tiles that v2 patches were cut from."""
    return [
        Product(
            name=patch.product,
            platform=patch.platform,
            level="L2A",
            sensing_time=patch.sensing_time,
            mgrs_tile=parse_patch_name(patch.name).tile,
        )
        for patch in {patch.product: patch for patch in patches}.values()
    ]
