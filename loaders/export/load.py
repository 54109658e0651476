"""`pgearth load export`: what `pgearth export` wrote, back into an archive: the same pixels, labels and products."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path, PurePosixPath

import rasterio
from psycopg import Connection

from pgearth.loaders.archive.write import Patch, write_patches, write_products
from pgearth.loaders.export.documents import (
    document_name,
    patch_of_document,
    product_document_name,
    products_of_document,
)
from pgearth.loaders.export.packs import (
    AGAIN,
    CHECKSUMS,
    SHARD_CHECKSUMS,
    SUFFIXES,
    File,
    checksum_line,
    damaged,
    path_in,
    read_checksums,
    read_folder,
    read_shard,
    reading_order,
)
from pgearth.loaders.work.explain import reason_of
from pgearth.loaders.work.ledger import file_checksum, load_item
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.documents import parse_json
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.limits import PATCH_BYTES

LOADER = "export"


@dataclass(frozen=True)
class Source:
    """What is loaded in one transaction: a shard, or a product's folder; `files` reads it anew at each call."""

    path: Path
    checksum: str
    files: Callable[[], Iterator[File]]


def load_exported(connection: Connection, path: Path) -> Counter[str]:
    """Load an export (its folder, a folder that shards were unpacked in, or one shard); return counts.

    A shard, or the folder of a product, is one transaction. Raises PgearthError, naming the file, for the first that is
    missing, damaged or no part of an export: nothing of its shard or product is stored then.
    """
    counts: Counter[str] = Counter()
    ids: dict[str, int] = dict(connection.execute("select scheme || ':' || code, label_id from eo.label").fetchall())
    sources = list(sources_in(path.resolve()))
    with rasterio.Env(), progress(range(0), path.name, "patches") as bar:
        for source in sources:
            with load_item(connection, LOADER, str(source.path), source.checksum) as item:
                if item is None:
                    counts["parts skipped"] += 1
                    continue
                for patches, stored in load_files(connection, source, ids):
                    item.rows += stored
                    item.details["patches already stored"] += patches - stored
                    bar.update(patches)
                counts["patches"] += item.rows
                counts["patches already stored"] += item.details["patches already stored"]
                counts["parts"] += 1
    return +counts


def sources_in(path: Path) -> Iterator[Source]:
    """What there is to load. Raises PgearthError for what is no export, and for listed shards that are missing."""
    if path.is_file():
        if not path.name.endswith(tuple(SUFFIXES.values())):
            raise PgearthError(f"{path}: it is no shard of an export", "Shards end in .zip or .tar.zst.")
        listed = path.parent / CHECKSUMS
        checksums = read_checksums(listed.read_bytes(), listed) if listed.exists() else {}
        yield shard(path, checksums.get(path.name))
        return
    lists = [*path.glob(CHECKSUMS), *sorted(path.glob(f"*{SHARD_CHECKSUMS}"))]
    if not lists:
        raise PgearthError(
            f"{path}: it has no {CHECKSUMS}: it is no export, or one that has not been finished",
            "Run the same `pgearth export` again to finish it, or name a folder that shards were unpacked in.",
        )
    checksums = {name: checksum for file in lists for name, checksum in read_checksums(file.read_bytes(), file).items()}
    shards = {name for name in checksums if name.endswith(tuple(SUFFIXES.values()))}
    files = {name: checksum for name, checksum in checksums.items() if len(PurePosixPath(name).parts) > 1}
    others = {name: checksum for name, checksum in checksums.items() if name not in shards and name not in files}
    for name in others:
        check_file(path_in(path, name), others[name])
    if not shards and not files:
        raise PgearthError(f"{path}: it holds a table of patches only", "Export it with pixels: --format bigearthnet.")
    for name in sorted(shards):
        yield shard(path / name, checksums[name])
    for product, names in groupby(sorted(files, key=reading_order), key=lambda name: name.split("/")[0]):
        yield product_folder(path, product, {name: files[name] for name in names})


def shard(path: Path, listed: str | None) -> Source:
    """A shard as a source. Raises PgearthError if it is missing, or its checksum is not the one listed."""
    return Source(path, check_file(path, listed), lambda: read_shard(path))


def check_file(path: Path, listed: str | None) -> str:
    """Checksum of a file. Raises PgearthError if it is missing, or its checksum is not the one listed."""
    if not path.is_file():
        raise damaged(path, "is listed with its checksum, but missing")
    checksum = file_checksum(path)
    if listed not in (None, checksum):
        raise damaged(path, "has another checksum than listed")
    return checksum


def product_folder(root: Path, product: str, checksums: dict[str, str]) -> Source:
    """A product's folder as a source."""
    lines = "".join(checksum_line(checksum, name) for name, checksum in checksums.items())
    return Source(root / product, hashlib.sha256(lines.encode()).hexdigest(), lambda: read_folder(root, checksums))


def load_files(connection: Connection, source: Source, ids: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Store what a source holds; yield for each product how many patches it has there, and how many were new."""
    for product, files in groupby(source.files(), key=lambda file: file[0].split("/")[0]):
        name, content = next(files)
        with faults_of(source.path, name):
            if PurePosixPath(name).name != product_document_name(product) or name.count("/") != 1:
                raise PgearthError(f"the document of product {product} is missing before its patches", AGAIN)
            write_products(connection, products_of_document(parse_json(content)))
        read, stored = count(), 0
        for patch_source, patches in groupby(read_patches(source.path, files, ids), key=lambda found: found[0]):
            # Each patch takes a number as it passes; the next one is how many there were.
            numbered = zip(patches, read, strict=False)
            stored += write_patches(connection, patch_source, (patch for (_, patch), _ in numbered))
        yield next(read), stored


def read_patches(path: Path, files: Iterator[File], ids: Mapping[str, int]) -> Iterator[tuple[str, Patch]]:
    """The patches that files of one product make up, each with its source; those of one patch are together."""
    for folder, group in groupby(files, key=lambda file: str(PurePosixPath(file[0]).parent)):
        document = document_name(PurePosixPath(folder).name)
        with faults_of(path, f"{folder}/{document}"):
            contents = contents_of_patch(group)
            if document not in contents:
                raise PgearthError("this file is missing", "Take the patch from the export again.")
            described = parse_json(contents[document])
            if not isinstance(source := described["source"], str):
                raise PgearthError(f"its source cannot be {str(source)[:100]!r}", AGAIN)
            yield source, patch_of_document(described, contents, ids)


def contents_of_patch(files: Iterator[File]) -> dict[str, bytes]:
    """The files of a patch by name. Raises PgearthError where they have more bytes than a patch may have."""
    contents: dict[str, bytes] = {}
    size, limit = 0, PATCH_BYTES.of_environment()
    for name, content in files:
        contents[PurePosixPath(name).name] = content
        size += len(content)
        if size > limit:
            raise PgearthError(
                f"the files of the patch have more than {limit:,} bytes", f"{PATCH_BYTES.variable} sets another limit."
            )
    return contents


@contextmanager
def faults_of(path: Path, name: str) -> Iterator[None]:
    """Turn what a bad document raises into a PgearthError that names it."""
    try:
        yield
    except PgearthError as error:
        raise error.of(f"{path}: {name}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error) as error:
        raise PgearthError(
            f"{path}: {name}: it is no document of an export: {reason_of(error)}",
            "Take this file from the export again.",
        ) from error
