"""`pgearth load product`."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import click

from pgearth.loaders.option_types import Names, Number
from pgearth.loaders.products.files import Given, parse_time
from pgearth.loaders.products.grids import parse_grid
from pgearth.loaders.products.load import Options, Task, load_task
from pgearth.loaders.products.patches import Nodata
from pgearth.loaders.work.options import engine_options
from pgearth.loaders.work.progress import progress
from pgearth.loaders.work.run import run_tasks
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError


class Time(click.ParamType):
    """A time on the command line, as ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse it, or fail with what was expected."""
        try:
            return value if isinstance(value, datetime) else parse_time(value)
        except ValueError:
            self.fail(f"{value!r} is no ISO 8601 time such as 2020-02-19T11:21:11Z", param, ctx)


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--grid",
    help="bigearthnet, aligned:SIZE, fixed:SIZE, cell:PRECISION:PIXELS or none (the row only). Default: by format.",
)
@click.option("--bands", type=Names(), help="Bands to load, comma-separated. Default: all.")
@click.option(
    "--nodata",
    type=click.Choice(get_args(Nodata)),
    default="keep",
    show_default=True,
    help="Patches with nodata pixels: keep, drop, or mask those pixels in all bands. Without data they are dropped.",
)
@click.option("--name", help="Product name. Parts of one product that lie in several folders need a name each.")
@click.option("--time", "sensing_time", type=Time(), help="Start of sensing, ISO 8601; UTC if no zone is given.")
@click.option("--platform", help="Satellite, as STAC writes it: sentinel-2a, landsat-8, ...")
@click.option(
    "--scale",
    type=Number(min=0, min_open=True),
    help="Of Sentinel-2's pixels, as STAC has it: reflectance = scale * pixel + offset.",
)
@click.option("--offset", type=Number(-1, 1), help="The same: -0.1 as ESA delivers since baseline 04.00, or 0.")
@engine_options
def product(
    paths: tuple[Path, ...],
    grid: str | None,
    bands: list[str] | None,
    nodata: Nodata,
    engine: Engine,
    name: str | None,
    sensing_time: datetime | None,
    platform: str | None,
    scale: float | None,
    offset: float | None,
) -> None:
    """Load satellite products, each PATH a folder or an archive file, and cut them into patches.

    What a product is, and what its pixels mean, is read from its metadata or its name; --name, --time, --platform,
    --scale and --offset say so where neither does.
    """
    if len(paths) > 1 and (name or sensing_time):
        raise click.UsageError("--name and --time are of one product: give one PATH.")
    if grid:
        parse_grid(grid)
    options = Options(
        given=Given(name, sensing_time, platform, scale, offset),
        grid=grid,
        bands=tuple(bands) if bands else None,
        nodata=nodata,
        # Spark gives a piece of work one core.
        threads=max(engine.jobs // len(paths), 1) if engine.name == "local" else 1,
    )
    counts: Counter[str] = Counter()
    errors = []
    tasks = [Task(path.absolute(), options) for path in paths]
    for _, result in progress(run_tasks(load_task, tasks, engine), "load", "products", len(tasks)):
        if isinstance(result, PgearthError):
            errors.append(result)
        else:
            counts += result
    click.echo(
        f"{counts['products']} products loaded, {counts['loaded_before']} loaded before, {len(errors)} failed;"
        f" {counts['patches']} patches loaded, {counts['masked']} of them masked; {counts['without_data']} without data"
        f" and {counts['with_nodata_dropped']} with nodata dropped."
    )
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise PgearthError("\n".join(str(error) for error in errors), "Run the same command again to load these.")
