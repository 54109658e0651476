"""How products are cut into patches: BigEarthNet's grid, windows of a fixed size, geohash cells, or not at all.

- `bigearthnet`: windows of 1,200 m that lie as in BigEarthNet, counted from the upper left corner of the tile. A file
  of a whole tile starts there; in a crop of a Sentinel-2 tile they are the windows of the tile that lie in it.
- `fixed:SIZE`: windows of SIZE x SIZE pixels of the finest band, counted from its upper left corner.
- `aligned:SIZE`: the same, counted from the origin of the projection, so that products of all dates have the same
  windows, wherever their corners lie. Columns count to the east, rows to the south; they may be negative.
- `cell:PRECISION:PIXELS`: the geohash cells of so many characters that meet the product, with the cell's exact bounds
  in EPSG:4326, all bands warped to PIXELS x PIXELS.
- `none`: no patches, only the product's row.

Windows that are not whole, at the right and lower edges, are left out. A pixel of a coarser band must span a whole
number of finest pixels that divides the window, so that windows of it are whole, too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pgearth.loaders.products.bands import Band
from pgearth.loaders.products.mgrs import COARSEST_PIXEL, PATCH_SIDE, TILE_SIDE, square_origin, tile_origin
from pgearth.pyfuncs.errors import PgearthError

GRID = re.compile(
    r"(?P<bigearthnet>bigearthnet)|(?P<none>none)"
    r"|(?P<windows>fixed|aligned):(?P<size>\d{1,5})|cell:(?P<precision>\d{1,2}):(?P<pixels>\d{1,5})"
)
LARGEST_SIDE = 0xFFFF  # of a PostGIS raster
LARGEST_NUMBER = 0x7FFF  # of a column or row in eo.patch
FINEST_PRECISION = 10  # as eo.cells
TOLERANCE = 0.01  # of a pixel


@dataclass(frozen=True)
class Grid:
    """A grid that was asked for: with `precision` geohash cells, with `size` windows, with neither BigEarthNet's.

    Windows that are `aligned` are counted from the origin of the projection.
    """

    text: str
    size: int | None = None
    aligned: bool = False
    precision: int | None = None
    pixels: int = 0

    @property
    def cuts(self) -> bool:
        """Whether there are patches at all."""
        return self.text != "none"


def parse_grid(text: str) -> Grid:
    """Read a grid as the module describes it. Raises PgearthError for anything else."""
    match = GRID.fullmatch(text.strip().lower())
    hint = "Grids are bigearthnet, aligned:SIZE (aligned:120), fixed:SIZE, cell:PRECISION:PIXELS (cell:5:128) and none."
    if match is None:
        raise PgearthError(f"{text!r} is no grid", hint)
    side = int(match["size"] or match["pixels"] or 1)
    if not 1 <= side <= LARGEST_SIDE:
        raise PgearthError(f"{text!r}: patches have 1 to {LARGEST_SIDE} pixels a side", hint)
    if not match["precision"]:
        return Grid(match[0], size=side if match["size"] else None, aligned=match["windows"] == "aligned")
    if not 1 <= int(match["precision"]) <= FINEST_PRECISION:
        raise PgearthError(f"{text!r}: geohashes have 1 to {FINEST_PRECISION} characters", hint)
    return Grid(match[0], precision=int(match["precision"]), pixels=side)


@dataclass(frozen=True)
class Lattice:
    """Square windows on a product's finest pixels: `size` pixels a side, the first at pixel (`left`, `top`).

    That one is called (`first_column`, `first_row`); there are `columns` x `rows` whole ones. Bounds are rounded to so
    many `digits` (None: not at all), where windows of several products are to have the very same.
    """

    size: int
    left: int
    top: int
    first_column: int
    first_row: int
    columns: int
    rows: int
    label: str
    digits: int | None = None

    def bound(self, value: float) -> float:
        """A bound of a window, as it is stored."""
        return value if self.digits is None else round(value, self.digits)

    def name(self, product: str, column: int, row: int) -> str:
        """Name of the patch of a window, counted from the first one."""
        return f"{product}_{self.label}{self.first_column + column}_{self.first_row + row}"


def fixed_lattice(size: int, width: int, height: int) -> Lattice:
    """Windows of so many pixels, counted from the upper left corner of so many columns and rows of pixels."""
    return Lattice(size, 0, 0, 0, 0, width // size, height // size, f"{size}px_")


def aligned_lattice(size: int, coarsest: Band, factor: int, width: int, height: int) -> Lattice:
    """Windows of so many pixels, counted from the origin of the projection, on so many columns and rows of pixels.

    They start at pixels of the coarsest band, whose pixels are `factor` of the finest wide. Raises PgearthError where
    columns or rows have numbers that are too large to store.
    """
    side = size // factor
    # Whole pixels from the origin, of a grid that may be shifted against it: Landsat's by half a pixel.
    x = math.floor(coarsest.left / coarsest.pixel_width + TOLERANCE)
    y = math.floor(-coarsest.top / coarsest.pixel_height + TOLERANCE)
    first_column, first_row = -(-x // side), -(-y // side)
    left, top = (first_column * side - x) * factor, (first_row * side - y) * factor
    columns, rows = max(width - left, 0) // size, max(height - top, 0) // size
    if (
        max(abs(number) for number in (first_column, first_column + columns, first_row, first_row + rows))
        > LARGEST_NUMBER
    ):
        raise PgearthError(
            f"{coarsest.file.path}: windows of {size} pixels are too small to be counted from the projection's origin",
            "Choose larger ones, or a grid that starts at the file's own corner: --grid fixed:SIZE.",
        )
    digits = 9 if coarsest.crs.is_geographic else 3
    return Lattice(size, left, top, first_column, first_row, columns, rows, f"aligned{size}_", digits)


def bigearthnet_size(finest: Band) -> int:
    """Pixels of the product's finest band along the side of a BigEarthNet patch.

    Raises PgearthError unless they are a whole number.
    """
    size = round(PATCH_SIDE / finest.metres)
    sides = (finest.pixel_width * finest.metres / finest.pixel_height, finest.metres)
    if finest.crs.is_geographic or size < 1 or any(abs(PATCH_SIDE - size * side) > TOLERANCE * side for side in sides):
        raise PgearthError(
            f"{finest.file.path}: BigEarthNet's patches of {PATCH_SIDE:g} m have no whole number of pixels of"
            f" {finest.pixel_width:g} x {finest.pixel_height:g} in the units of its reference system",
            "Choose another grid: --grid fixed:120, for one, takes 120 x 120 pixels.",
        )
    return size


def bigearthnet_lattice(finest: Band, size: int, tile: str | None, width: int, height: int) -> Lattice:
    """BigEarthNet's windows, of `size` pixels, on the first so many columns and rows of pixels of the finest band.

    Pixels of a whole tile, and those of a product without tile or outside its tile's UTM zone, start at a window. Those
    of a crop have the windows of its tile; raises PgearthError where these do not start at a pixel.
    """
    left = top = first_column = first_row = 0
    whole = min(finest.width, finest.height) * finest.metres > TILE_SIDE - COARSEST_PIXEL
    if tile is not None and not whole and square_origin(tile)[0] == finest.srid:
        _, west, north = tile_origin(tile)
        x, y = (finest.left - west) / finest.pixel_width, (north - finest.top) / finest.pixel_height
        if max(abs(x - round(x)), abs(y - round(y))) > TOLERANCE:
            raise PgearthError(
                f"{finest.file.path}: its pixels do not lie on those of tile {tile}: the upper left corner is"
                f" {finest.left:.3f} {finest.top:.3f}, the tile's {west} {north}",
                f"Choose a grid that starts at the file's own corner: --grid fixed:{size}.",
            )
        first_column, first_row = -(-round(x) // size), -(-round(y) // size)
        left, top = first_column * size - round(x), first_row * size - round(y)
    columns, rows = max(width - left, 0) // size, max(height - top, 0) // size
    return Lattice(size, left, top, first_column, first_row, columns, rows, "")
