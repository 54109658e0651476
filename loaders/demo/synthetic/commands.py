"""`pgearth synthetic`."""

from __future__ import annotations

import click

from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.loaders.server.connection import connect


@click.command()
@click.option("--patches", type=int, required=True, help="Number of patches the synthetic archive is to have.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed makes another landscape.")
@click.option("--without-pixels", is_flag=True, help="Store places, times and land cover only, for large benchmarks.")
def synthetic(patches: int, seed: int, without_pixels: bool) -> None:
    """Make a synthetic archive: Sentinel-2 patches of a made-up landscape in Germany, with its land cover.

    The same number of patches and seed always make the same archive. It may be interrupted and run again, and with a
    larger number it grows.
    """
    with connect(autocommit=True) as connection:
        counts = load_synthetic(connection, patches, seed, pixels=not without_pixels)
    click.echo(
        f"Synthetic archive, seed {seed}: {counts['patches']:,} patches stored,"
        f" {counts['patches stored before']:,} stored before; {counts['polygons']:,} land-cover polygons stored;"
        f" {counts['pieces']:,} pieces derived."
    )
