"""`pgearth load product`: products of any known format (loaders/products/formats/known.py) into the archive.

A product is its row in eo.product and, unless it is not to be cut, patches with their pixels, their statistics and what
the scene classes say. One transaction per product and grid; the ledger tells which are done.
"""

from __future__ import annotations

import hashlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import click
import shapely
from psycopg import Connection

from pgearth.loaders.archive.footprint import footprint
from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.option_types import Names, Number
from pgearth.loaders.products.bands import Band, open_band
from pgearth.loaders.products.cutting import Cutting, Nodata, cut_cells, cut_windows, fit_bands, fit_cells
from pgearth.loaders.products.files import LONGEST_DATA_TAKE, BandFile, Given, ProductFiles, bounds_of, parse_time
from pgearth.loaders.products.folder import check_archived
from pgearth.loaders.products.formats.known import open_product
from pgearth.loaders.products.grids import (
    Grid,
    aligned_lattice,
    bigearthnet_lattice,
    bigearthnet_size,
    fixed_lattice,
    parse_grid,
)
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.explain import TRACEBACK, explained, meets_others
from pgearth.loaders.work.ledger import listing_checksum, load_item
from pgearth.loaders.work.options import engine_options
from pgearth.loaders.work.progress import progress
from pgearth.loaders.work.run import run_tasks
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError

LOADER = "product"
SOURCE = "product"
FORMER_DEFAULT = "fixed:120"  # of products that have aligned:120 today


@dataclass(frozen=True)
class Options:
    """How products are loaded; `grid` and `bands` are None where the format decides."""

    given: Given = field(default_factory=Given)
    grid: str | None = None
    bands: tuple[str, ...] | None = None
    nodata: Nodata = "keep"
    threads: int = 1


@dataclass(frozen=True)
class Task:
    """One product to load."""

    path: Path
    options: Options


def load_task(task: Task) -> Counter[str]:
    """Load one product over a connection of its own: a piece of work for loaders/work/run.py.

    Raises PgearthError for whatever is wrong with this product only, whichever part or library found it.
    """
    try:
        with connect(autocommit=True) as connection:
            return load_product(connection, task.path, task.options)
    except Exception as error:
        if meets_others(error):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        told = explained(error)
        raise told if str(task.path) in told.message else told.of(str(task.path)) from error


def load_product(connection: Connection, path: Path, options: Options | None = None) -> Counter[str]:
    """Load a product in one transaction, decoding in `options.threads` threads beside this one.

    A product that is stored keeps its row, which gets what it lacks. Returns counts: patches; without_data, patches
    dropped since no reflectance band has a valid pixel in them; with_nodata_dropped and masked, by the option `nodata`;
    loaded_before. Raises PgearthError, with nothing loaded, for a missing or unreadable band, grids that do not fit
    together, pixels of unknown units, and a product that cannot be named or dated.
    """
    options = options or Options()
    files = open_product(path, options.given)
    grid = parse_grid(options.grid or files.grid)
    if options.grid is None and grid.aligned:
        check_former_default(connection, path, files.product, grid)
    bands = choose_bands(path, files, options.bands) if grid.cuts else []
    cut = plan_cutting(connection, path, files, grid, bands) if grid.cuts else None
    # The same product with other bands, or other units given, is not what was loaded before.
    choice = f"{','.join(band.name for band in bands)} {options.nodata}"
    if (options.given.scale, options.given.offset) != (None, None):
        choice += f" {options.given.scale} {options.given.offset}"
    checksum = hashlib.sha256(f"{listing_checksum(list(files.sources))} {choice}".encode()).hexdigest()
    with load_item(connection, LOADER, f"{files.product.name}|{grid.text}", checksum, anew=cut is None) as item:
        if item is None:
            return Counter(loaded_before=1)
        changed = write_products(connection, [files.product])
        product = as_stored(connection, path, files.product)
        if cut is None:
            return Counter(products=1) if changed else Counter(loaded_before=1)
        srid = bands[0].srid
        assert srid is not None
        cutting = Cutting(product, srid, files.classes, options.nodata, options.threads, item.details)
        item.rows = write_patches(connection, SOURCE, cut(cutting))
        return Counter(products=1, patches=item.rows) + item.details


def check_former_default(connection: Connection, path: Path, product: Product, grid: Grid) -> None:
    """Raise PgearthError where the archive has patches on the former default grid of the same mission and level.

    They lie elsewhere than those of today's, so that eo.change would find no pair of an old and a new one.
    """
    row = connection.execute(
        """
        select p.name from eo.load l join eo.product p on l.source = p.name || '|' || %(former)s
        where l.loader = %(loader)s and l.state = 'done' and l.rows > 0
          and rtrim(p.platform, 'abcd') = rtrim(%(platform)s, 'abcd') and p.level = %(level)s
        limit 1
        """,
        {"former": FORMER_DEFAULT, "loader": LOADER, "platform": product.platform, "level": product.level},
    ).fetchone()
    if row:
        raise PgearthError(
            f"{path}: the archive has patches of {product.platform}, {product.level}, on the grid {FORMER_DEFAULT}, the"
            f" default of earlier versions (of {row[0]}, for one); those of today's, {grid.text}, lie elsewhere",
            f"Say which: --grid {FORMER_DEFAULT} as before, or --grid {grid.text}, whose places are the same on every"
            " date. docs/loading.md says how to replace the old patches.",
        )


def as_stored(connection: Connection, path: Path, product: Product) -> Product:
    """The product with the platform and time that its row has, which its patches share.

    Raises PgearthError where the row is of another product: of another platform, level or time.
    """
    row = connection.execute(
        "select platform, level, sensing_time from eo.product where name = %s", (product.name,)
    ).fetchone()
    assert row is not None
    platform, level, sensing_time = row
    apart = abs(sensing_time - product.sensing_time)
    if (platform, level) != (product.platform, product.level) or apart > LONGEST_DATA_TAKE:
        raise PgearthError(
            f"{path}: {product.name} is stored as a product of {platform}, {level}, {sensing_time}; this one is of"
            f" {product.platform}, {product.level}, {product.sensing_time}",
            "Load it under another name: --name.",
        )
    return replace(product, sensing_time=sensing_time)


def choose_bands(path: Path, files: ProductFiles, selected: Sequence[str] | None) -> list[Band]:
    """Open the wanted bands, each in its finest resolution (where it is there in several), in the product's order."""
    there: dict[str, list[BandFile]] = {}
    for file in files.bands:
        there.setdefault(file.name, []).append(file)
    order = list(dict.fromkeys([*there, *files.expected]))
    if selected is None:
        wanted = order
    else:
        names = {name: files.named(name) for name in selected}
        if unknown := [name.strip() for name, known in names.items() if known is None]:
            raise PgearthError(f"{', '.join(sorted(unknown))}: no such band", f"Bands are {', '.join(order)}.")
        if not set(names.values()) - {files.classes}:
            raise PgearthError(f"{path}: no reflectance band selected", "Add at least one more band to --bands.")
        wanted = [name for name in order if name in names.values()]
    if missing := [name for name in wanted if name not in there]:
        raise PgearthError(
            f"{path}: no file for {'band' if len(missing) == 1 else 'bands'} {', '.join(missing)}",
            f"Add what is missing, or load what is there: {bands_option(files, set(wanted) - set(missing))}",
        )
    in_file = Counter(file.path for file in files.bands)
    bands = []
    for name in wanted:
        opened = [open_band(file, in_file[file.path]) for file in there[name]]
        finest, *others = sorted(opened, key=lambda band: band.metres)
        for other in others:
            if Path(other.file.path).parent == Path(finest.file.path).parent and other.metres == finest.metres:
                raise PgearthError(
                    f"{path}: band {name} is there twice: {Path(finest.file.path).name} and"
                    f" {Path(other.file.path).name}",
                    "Remove one of the files; each product needs a folder of its own.",
                )
        bands.append(finest)
    for band in bands:
        if band.file.unknown_units:
            raise PgearthError(
                band.file.unknown_units,
                "Say what they mean with --scale and --offset: reflectance = scale * pixel + offset. As ESA delivers"
                " Sentinel-2, they are 0.0001 and, since baseline 04.00, -0.1; the offset is 0 before, and where a"
                " service has applied it. Reflectance itself has --scale 1.",
            )
    check_crs(files, bands)
    check_archived(band.file.path for band in bands)
    return bands


def bands_option(files: ProductFiles, names: set[str]) -> str:
    """The option that loads these bands only."""
    order = dict.fromkeys(file.name for file in files.bands)
    return "--bands " + ",".join(name for name in order if name in names)


def check_crs(files: ProductFiles, bands: Sequence[Band]) -> None:
    """Raise PgearthError unless all bands have the same coordinate reference system, one that has a number."""
    srids = Counter(band.srid for band in bands)
    srid = srids.most_common(1)[0][0]
    if unlike := [band for band in bands if band.srid != srid]:
        usual = {band.name for band in bands if band.srid == srid}
        raise PgearthError(
            "; ".join(f"{band.file.path}: {crs_name(band.srid)}" for band in unlike)
            + f", while {crs_name(srid)} is that of {srids[srid]} of the {len(bands)} bands",
            f"Replace the file, or load the product without it: {bands_option(files, usual)}",
        )
    if srid is None:
        raise PgearthError(
            f"{bands[0].file.path}: the coordinate reference system is not one of EPSG's",
            "Warp the product to one that is (gdalwarp -t_srs EPSG:...): eo.patch stores its number.",
        )


def crs_name(srid: int | None) -> str:
    """How messages call a coordinate reference system."""
    return "a coordinate reference system unknown to EPSG" if srid is None else f"EPSG:{srid}"


def plan_cutting(
    connection: Connection, path: Path, files: ProductFiles, grid: Grid, bands: Sequence[Band]
) -> Callable[[Cutting], Iterator[Patch]]:
    """Fit bands and grid together; return what then cuts the product. Raises PgearthError where they do not fit."""
    if grid.precision is not None:
        cells = fit_cells(find_cells(connection, files, bands, grid.precision), bands)
        return lambda cutting: cut_cells(cutting, bands, cells, grid.pixels)
    finest = min(bands, key=lambda band: band.metres)
    size = grid.size or bigearthnet_size(finest)
    resolutions = fit_bands(path, bands, size, lambda names: bands_option(files, names))
    width = min(group[0].width * factor for factor, group in resolutions.items())
    height = min(group[0].height * factor for factor, group in resolutions.items())
    if grid.size and grid.aligned:
        factor, (coarsest, *_) = max(resolutions.items())
        lattice = aligned_lattice(size, coarsest, factor, width, height)
    elif grid.size:
        lattice = fixed_lattice(size, width, height)
    else:
        lattice = bigearthnet_lattice(finest, size, files.product.mgrs_tile, width, height)
    for factor, (band, *_) in resolutions.items():
        if lattice.left % factor or lattice.top % factor:
            raise PgearthError(
                f"{band.file.path}: windows of {size} pixels of {finest.metres:g} m, from pixel {lattice.left},"
                f" {lattice.top} on, do not start at a pixel of {band.metres:g} m",
                f"Choose a grid that starts at the file's own corner: --grid fixed:{size}.",
            )
    if not lattice.columns or not lattice.rows:
        raise PgearthError(
            f"{path}: {'no window of the grid is whole in it' if grid.aligned else 'smaller than one patch'}:"
            f" {finest.width} x {finest.height} pixels of {finest.file.path}",
            f"A patch takes {size} x {size} pixels of the finest band."
            + (f" --grid fixed:{size} counts them from the file's own corner." if grid.aligned else ""),
        )
    return lambda cutting: cut_windows(cutting, resolutions, lattice)


def find_cells(
    connection: Connection, files: ProductFiles, bands: Sequence[Band], precision: int
) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Geohash cells, with their bounds, that meet the product's footprint; where it has none, the bands' grid."""
    outline = files.product.footprint
    if outline is None:
        outline = footprint(shapely.union_all([bounds_of(band.file) for band in bands]))
    rows = connection.execute(
        """
        select cell, ST_XMin(geom), ST_YMin(geom), ST_XMax(geom), ST_YMax(geom)
        from eo.cells(ST_GeomFromWKB(%s, 4326), %s)
        """,
        (outline, precision),
    )
    return [(cell, (west, south, east, north)) for cell, west, south, east, north in rows]


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
    "--scale", type=Number(), help="Of Sentinel-2's pixels, as STAC has it: reflectance = scale * pixel + offset."
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
