"""`pgearth export`: the patches of a search or a collection as files, whole and checkable, in any number of runs.

The manifest, metadata.parquet, comes first: all that the archive knows of the patches, from one snapshot, and which
part of the export each is in. A part (a shard; in a folder some hundred patches) is one piece of work: it reads its
rows of the manifest, streams the pixels and notes in PARTS, when all its files are on disk, what they are. So a run
does only what no run before it has done, and many runs leave the same bytes as one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import rasterio
from psycopg import Connection

from pgearth.loaders.export.documents import (
    StoredRaster,
    document_name,
    dump,
    patch_document,
    product_document_name,
    raster_files,
)
from pgearth.loaders.export.manifest import (
    MANIFEST,
    Order,
    crs_of,
    document_of_product,
    manifest_of,
    manifest_rows,
    order_record,
    write_manifest,
)
from pgearth.loaders.export.packs import (
    CHECKSUMS,
    SUFFIXES,
    File,
    checksum_line,
    new_file,
    sync,
    write_folder,
    write_shard,
)
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.ledger import file_checksum
from pgearth.loaders.work.locks import lock
from pgearth.loaders.work.progress import progress
from pgearth.loaders.work.run import run_tasks
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError

PARTS = ".parts"
PATCHES_PER_QUERY = 16


@dataclass(frozen=True)
class Part:
    """One piece of work: a part of the export in `destination`, all else about which is in the manifest."""

    destination: Path
    number: int


def export_patches(destination: Path, order: Order, engine: Engine) -> Counter[str]:
    """Export patches into a folder, or go on with the export in it; return counts.

    Raises PgearthError when the folder holds anything else, when nothing passes the filters, for a patch larger than a
    shard, and for a full disk.
    """
    destination = destination.resolve()
    destination.mkdir(parents=True, exist_ok=True)
    with lock(destination, f"{destination}: another export is writing into this folder"):
        begun = open_manifest(destination)
        if begun is None:
            write_manifest(destination, order)
        else:
            check_order(destination, begun, order)
        return export_parts(destination, engine)


def export_parts(destination: Path, engine: Engine) -> Counter[str]:
    """Write the parts that are missing, then the checksums of all; return counts."""
    (destination / PARTS).mkdir(exist_ok=True)
    with lock(destination / PARTS, f"{destination}: processes of an interrupted export still write into this folder"):
        pass
    manifest = manifest_of(destination)
    done = {number: record for number in range(manifest["parts"]) if (record := read_record(destination, number))}
    missing = [Part(destination, number) for number in range(manifest["parts"]) if number not in done]
    counts: Counter[str] = Counter({"patches": manifest["patches"], "parts": 0, "parts that were there": len(done)})
    with progress(range(0), destination.name, "patches", manifest["patches"]) as bar:
        bar.update(sum(record["patches"] for record in done.values()))
        for part, result in run_tasks(export_part, missing, engine):
            if isinstance(result, PgearthError):
                raise result
            counts["parts"] += 1
            done[part.number] = record = read_record(destination, part.number) or {}
            bar.update(record["patches"])
    checksums = {MANIFEST: file_checksum(destination / MANIFEST)}
    for record in done.values():
        counts["patches without pixels"] += record["patches without pixels"]
        counts["bytes"] += sum(size for _, size in record["files"].values())
        checksums.update((name, checksum) for name, (checksum, _) in record["files"].items())
    with new_file(destination / CHECKSUMS) as path:
        path.write_text("".join(checksum_line(checksum, name) for name, checksum in sorted(checksums.items())))
    counts["files"] = len(checksums)
    return +counts


def open_manifest(destination: Path) -> dict[str, Any] | None:
    """What the export in a folder was begun with; None for an empty folder. Raises PgearthError for any other."""
    if (destination / MANIFEST).exists():
        return manifest_of(destination)
    if any(not entry.name.endswith(".partial") for entry in destination.iterdir()):
        raise PgearthError(
            f"{destination}: this folder is not empty, and holds no export", "Name an empty or new folder."
        )
    return None


def check_order(destination: Path, begun: Mapping[str, Any], order: Order) -> None:
    """Raise PgearthError, naming what differs, when the export in the folder was begun with another order."""
    wanted = order_record(order)
    for name in sorted(begun["order"].keys() | wanted.keys()):
        before, now = begun["order"].get(name), wanted.get(name)
        if before != now:
            raise PgearthError(
                f"{destination}: it holds another export, of {name} {json.dumps(before)}, not {json.dumps(now)}",
                "Run that one again with its own arguments, or name an empty folder.",
            )


# Parts


def export_part(part: Part) -> int:
    """Write one part of an export; return how many patches it has.

    Raises PgearthError when a patch is no longer in the archive as it was listed, and for a full disk.
    """
    begins = f"{part.destination}: another export begins in this folder"
    # On a cluster: of a process that was given up for lost, and is not.
    busy = f"{part.destination}: another process writes part {part.number}"
    order = manifest_of(part.destination)["order"]
    bands = [row["bands"] for row in manifest_rows(part.destination, part.number, ["bands"])]
    files: dict[str, tuple[str, int]] = {}
    with (
        lock(part.destination / PARTS, begins, shared=True),
        lock(record_path(part.destination, part.number).with_suffix(".lock"), busy),
        rasterio.Env(),
        connect(autocommit=True) as connection,
        # After an error, the COPY that it is in must end before the connection can.
        closing(files_of_part(connection, part, order)) as units,
    ):
        if order["pack"] in SUFFIXES:
            name = f"shard-{part.number:05}{SUFFIXES[order['pack']]}"
            path = part.destination / name
            write_shard(path, order["pack"], (file for unit in units for file in unit), order["shard size"])
            files[name] = (file_checksum(path), path.stat().st_size)
        else:
            for unit in units:
                write_unit(part.destination, unit)
                files.update((name, (hashlib.sha256(content).hexdigest(), len(content))) for name, content in unit)
            for product in {name.split("/")[0] for name in files}:
                sync(part.destination / product)
            sync(part.destination)
        with new_file(record_path(part.destination, part.number)) as path:
            counts = {"patches": len(bands), "patches without pixels": sum(not names for names in bands)}
            path.write_text(json.dumps({**counts, "files": files}))
    return len(bands)


def write_unit(destination: Path, unit: list[File]) -> None:
    """Write the files of a patch, or the document of a product, below a folder."""
    path = destination / unit[0][0]
    if path.parent.parent == destination:
        with new_file(path) as partial:
            partial.write_bytes(unit[0][1])
    else:
        write_folder(path.parent, unit)


def record_path(destination: Path, number: int) -> Path:
    """Where it is noted that a part is done."""
    return destination / PARTS / f"{number:05}.json"


def read_record(destination: Path, number: int) -> dict[str, Any] | None:
    """What a part that is done consists of, if all its files are there at their sizes; else None."""
    try:
        record: dict[str, Any] = json.loads(record_path(destination, number).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    for name, (_, size) in record["files"].items():
        path = destination / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    return record


def files_of_part(connection: Connection, part: Part, order: Mapping[str, Any]) -> Generator[list[File], None, None]:
    """The files of a part, those of a patch together, after the document of its product.

    In a folder the product's document goes with its first patch; every shard has those of all its products.
    """
    written: set[str] = set()
    if order["pack"] not in SUFFIXES:
        written.update(row["product"] for row in manifest_rows(part.destination, part.number - 1, ["product"]))
    rows = manifest_rows(part.destination, part.number)
    while batch := list(islice(rows, PATCHES_PER_QUERY)):
        documents: dict[str, bytes] = {}
        for row, product_id in zip(batch, product_ids(connection, batch), strict=True):
            if row["product"] not in written:
                documents[row["product"]] = dump(document_of_product(connection, product_id))
                written.add(row["product"])
        reference_systems = {row["srid"]: crs_of(connection, row["srid"]) for row in batch}
        with closing(stored_rasters(connection, batch)) as pixels:
            for row, rasters in zip(batch, pixels, strict=True):
                product, name = row["product"], row["name"]
                if [band for raster in rasters for band in raster.bands] != row["bands"]:
                    raise changed(name)
                if document := documents.pop(product, None):
                    yield [(f"{product}/{product_document_name(product)}", document)]
                crs = reference_systems[row["srid"]]
                files, described = raster_files(name, rasters, order["format"], crs)
                files.insert(0, (document_name(name), dump(patch_document(row, crs.to_wkt(), described))))
                yield [(f"{product}/{name}/{file}", content) for file, content in files]


PRODUCT_IDS = """
select w.name, p.product_id
from unnest(%(ids)s::bigint[], %(cells)s::text[], %(names)s::text[]) with ordinality as w (patch_id, cell, name, number)
left join eo.patch p on p.patch_id = w.patch_id and p.cell = w.cell and p.name = w.name
order by w.number
"""


def product_ids(connection: Connection, rows: list[dict[str, Any]]) -> list[int]:
    """Keys of the products of listed patches. Raises PgearthError for a patch that is gone."""
    found = connection.execute(PRODUCT_IDS, keys_of(rows)).fetchall()
    for name, product_id in found:
        if product_id is None:
            raise changed(name)
    return [product_id for _, product_id in found]


# With true, ST_AsWKB brings pixels along that are stored outside the database.
STORED_RASTERS = """
copy (
    select w.number, r.resolution, r.bands, ST_AsWKB(r.rast, true)
    from unnest(%(ids)s::bigint[], %(cells)s::text[]) with ordinality as w (patch_id, cell, number)
    join eo.patch_raster r on r.patch_id = w.patch_id and r.cell = w.cell
    order by w.number, r.resolution
) to stdout (format binary)
"""


def stored_rasters(connection: Connection, rows: list[dict[str, Any]]) -> Generator[list[StoredRaster], None, None]:
    """The pixels of listed patches, in their order, those of one at a time; the connection is busy meanwhile."""
    done = 0
    with connection.cursor().copy(STORED_RASTERS, keys_of(rows)) as copy:
        copy.set_types(["int8", "int2", "text[]", "bytea"])
        for number, group in groupby(copy.rows(), key=lambda values: values[0]):
            yield from ([] for _ in range(done, number - 1))
            yield [StoredRaster(resolution, tuple(bands), wkb) for _, resolution, bands, wkb in group]
            done = number
    yield from ([] for _ in range(done, len(rows)))


def keys_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What to look listed patches up by."""
    return {
        "ids": [row["patch_id"] for row in rows],
        "cells": [row["cell"] for row in rows],
        "names": [row["name"] for row in rows],
    }


def changed(name: str) -> PgearthError:
    """What to tell of a patch that is not as it was listed."""
    return PgearthError(f"Patch {name} is gone or has other bands since it was listed.", "Export into an empty folder.")
