"""`pgearth export` and `pgearth load export`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pgearth.loaders.archive.options import filter_options, parse_filters
from pgearth.loaders.export.documents import PIXEL_FORMATS
from pgearth.loaders.export.export import export_patches
from pgearth.loaders.export.load import load_exported
from pgearth.loaders.export.manifest import Order
from pgearth.loaders.export.packs import SUFFIXES
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.options import engine_options
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError

SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as 1GB, 500MB or 64MiB. Raises PgearthError for any other text."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise PgearthError(f"{text!r} is no size", "Give one such as 1GB, 500MB or 64MiB.")
    power = "kMGT".lower().find(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


@click.command("export")
@click.argument("destination", type=click.Path(file_okay=False, path_type=Path))
@filter_options
@click.option("--collection", "collections", multiple=True, help="Only patches of this collection. May be repeated.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice([*PIXEL_FORMATS, "geoparquet"]),
    default="bigearthnet",
    show_default=True,
    help="One GeoTIFF per band, one COG per resolution, or only the table of patches.",
)
@click.option(
    "--pack",
    type=click.Choice(["folder", *SUFFIXES]),
    default="folder",
    show_default=True,
    help="A folder per patch, or archives of many.",
)
@click.option("--shard-size", help="Of zip and tar.zst: no archive is larger. [default: 1GB]")
@engine_options
def export(
    destination: Path,
    collections: tuple[str, ...],
    file_format: str,
    pack: str,
    shard_size: str | None,
    engine: Engine,
    **filters: Any,
) -> None:
    """Write the patches that pass the filters into the folder DESTINATION.

    Without filters, all patches. Interrupted, run the same command again: it does what is missing. SHA256SUMS, written
    last, is for sha256sum -c; metadata.parquet is a GeoParquet table of all patches.
    """
    if pack not in SUFFIXES and shard_size is not None:
        raise click.UsageError("--shard-size is of --pack zip and --pack tar.zst only.")
    if file_format not in PIXEL_FORMATS and pack != "folder":
        raise click.UsageError("--format geoparquet is one file, and needs no --pack.")
    order = Order(parse_filters(filters), list(collections) or None, file_format, pack, parse_size(shard_size or "1GB"))
    counts = export_patches(destination, order, engine)
    click.echo(", ".join(f"{number:,} {name}" for name, number in counts.items()))


@click.command("export")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def load_export(path: Path) -> None:
    """Load what `pgearth export` wrote: PATH is its folder, one shard, or a folder that shards were unpacked in."""
    with connect(autocommit=True) as connection:
        counts: Mapping[str, Any] = load_exported(connection, path)
    click.echo(", ".join(f"{number:,} {name}" for name, number in counts.items()))
