"""`pgearth load bigearthnet` and `bigearthnet-metadata`."""

from __future__ import annotations

from pathlib import Path

import click

from pgearth.loaders.datasets.bigearthnet.catalogue import load_bigearthnet_metadata
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.server.connection import connect
from pgearth.pyfuncs.errors import PgearthError


@click.command("bigearthnet-metadata")
@click.argument("parquet", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def bigearthnet_metadata(parquet: tuple[Path, ...]) -> None:
    """Load the official catalogue of BigEarthNet v2: all patches with labels and footprints, without pixels."""
    with connect(autocommit=True) as connection:
        counts = load_bigearthnet_metadata(connection, parquet)
    click.echo(", ".join(f"{number} {name}" for name, number in counts.items()))


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
