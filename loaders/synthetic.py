"""A synthetic archive: a made-up landscape of land-cover polygons in Germany, and Sentinel-2 patches that show it.

For demonstrations without real data, and for benchmarks at any scale: the landscape is a function of place and seed, so
that patches are made block by block in bounded memory, in any order, and neighbours fit together without a seam.

Land cover: the sites of a jittered grid carry four smooth random fields (settlement, wetness, altitude, trees), and each
class is at home at one point of the space of these fields (data/synthetic_land_cover.csv): a site takes the nearest
class, its Voronoi cell becomes land of that class. Pixels: the class's spectrum (data/synthetic_spectra.csv) between
dormant and growing by the day of the year, in fields of arable land by each parcel's crop, with a texture of smooth
noise. The spectra are plausible for Central Europe but of no source: nothing here says anything about the real place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

import click
import numpy as np
import shapely
from numpy.typing import NDArray
from psycopg import Connection
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.transform import from_origin

from loaders.bigearthnet import SENTINEL_2
from loaders.bigearthnet_names import PATCH_SIDE, PATCHES_PER_TILE_SIDE, TILE_SIDE, patch_bounds, split_by_rule, tile_origin
from loaders.corine import class_label_ids, store_polygons
from loaders.database import connect
from loaders.errors import InputError
from loaders.ledger import file_checksum, load_item
from loaders.nomenclature import data_file
from loaders.patches import Patch, PatchRaster, Product, write_patches, write_products
from loaders.progress import progress
from loaders.scene import to_wgs84
from loaders.vectors import repair
from pyfuncs.rasters import NODATA, Raster, to_wkb

LOADER = "synthetic"
SOURCE = "synthetic"
SRID = 32632

# Tiles that lie wholly in Germany and in UTM zone 32.
TILES = ("32UNB", "32UPB", "32UNC", "32UPC", "32UNA", "32UPA", "32UND", "32UPD", "32UNV", "32UPV", "32UNU", "32UPU")
BLOCK = 13
"""Patches along the side of a block, the unit in which pixels are made: 13 x 13 patches, 15.6 km."""
BLOCKS_PER_TILE_SIDE = PATCHES_PER_TILE_SIDE // BLOCK
PATCHES_PER_BLOCK = BLOCK * BLOCK
PATCHES_PER_TILE_YEAR = 4 * PATCHES_PER_BLOCK * BLOCKS_PER_TILE_SIDE**2
"""One tile in four seasons: what is stored at a time when there are no pixels."""

FIRST_YEAR = 2018
SEASONS = ((0, 6), (0, 9), (0, 12), (1, 3))  # year after the first, first month
REVISIT_DAYS = 5
REVISITS_PER_SEASON = 18

PIXEL = 10
SITE_SPACING = 600
SITE_JITTER = 0.8
SHEET = 26
"""Sites along the side of a sheet, the unit in which land cover is made: 26 x 26 sites, 15.6 km."""
# With this jitter no place is farther than 1.28 spacings from the nearest site. So a cell reaches at most that far
# from its site, and has no neighbour more than three sites away.
CELL_REACH = 2 * SITE_SPACING
NEIGHBOURS = 3
FIELDS = {"settlement": 16, "wetness": 10, "altitude": 30, "trees": 8}
"""The fields that decide on land cover, and the distance (in sites) over which each varies."""

CROPS = 16
"""Number of crop calendars of parcels."""
PARCEL = (22, 13)  # pixels
PARCEL_ANGLE = 0.35
PARCEL_WARP = 30  # pixels
TEXTURE = {3: 0.45, 6: 0.6, 24: 0.6}
"""Texture of the ground: the weight of smooth noise by the distance (in pixels) over which it varies."""
LEAST_TEXTURE = 8.0  # digital numbers, where the ground is dark
SENSOR_NOISE = 1.0  # digital numbers


def random_numbers(seed: int, name: str, columns: NDArray, rows: NDArray) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1) for points of an integer lattice: the same for the same point, whatever else is
    asked for. `columns` and `rows` broadcast. The mixing is SplitMix64's (Steele, Lea and Flood 2014).
    """
    (key,) = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)

    def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = mix(mix(np.asarray(columns).astype(np.uint64) * golden + key) + np.asarray(rows).astype(np.uint64) * golden)
    return (mixed >> np.uint64(11)) * 2.0**-53


def smooth_noise(seed: int, name: str, columns: range, rows: range, spacing: int) -> NDArray[np.float32]:
    """Random field on a lattice, of mean 0 and variance 1, an array (rows, columns): value noise.

    Random numbers at every `spacing`-th point, blended between; with a spacing of 1, white noise.
    """
    values, weights = [], []
    for axis in (columns, rows):
        node, offset = np.divmod(np.arange(axis.start, axis.stop), spacing)
        blend = (offset / spacing) ** 2 * (3 - 2 * offset / spacing)
        values.append(node)
        weights.append(np.stack([1 - blend, blend]) / np.hypot(1 - blend, blend))
    (x, y), (across, down) = values, weights
    nodes = random_numbers(
        seed, name, np.arange(x[0], x[-1] + 2)[None, :], np.arange(y[0], y[-1] + 2)[:, None]
    )
    nodes = ((nodes - 0.5) * np.sqrt(12)).astype(np.float32)
    across, down = across.astype(np.float32), down.astype(np.float32)
    x, y = x - x[0], y - y[0]
    nodes = nodes[:, x] * across[0] + nodes[:, x + 1] * across[1]
    return nodes[y] * down[0][:, None] + nodes[y + 1] * down[1][:, None]


# Land cover


@dataclass(frozen=True)
class LandCover:
    """Polygons (EPSG:32632) and their classes, as rows of the table of classes."""

    polygons: NDArray[np.object_]
    classes: NDArray[np.intp]


@lru_cache(maxsize=1)
def class_codes() -> tuple[str, ...]:
    """Codes of the CORINE classes of the landscape."""
    return tuple(str(row["code"]) for row in data_file("synthetic_land_cover.csv"))


@lru_cache(maxsize=1)
def class_table() -> dict[str, NDArray[np.float32]]:
    """Columns of the table of classes."""
    rows = data_file("synthetic_land_cover.csv")
    return {name: np.array([row[name] for row in rows], np.float32) for name in rows[0] if name != "code"}


def site_classes(seed: int, columns: range, rows: range) -> NDArray[np.intp]:
    """Classes of sites, an array (rows, columns)."""
    table = class_table()
    distance = table["rarity"]
    for name, spacing in FIELDS.items():
        field = sum(
            weight * smooth_noise(seed, f"{name} {scale}", columns, rows, scale)
            for scale, weight in ((spacing, 0.85), (spacing // 3, 0.45), (1, 0.28))
        )
        distance = distance + (field[:, :, None] - table[name]) ** 2
    return np.argmin(distance, axis=2)


def site_places(seed: int, columns: range, rows: range) -> NDArray[np.float64]:
    """Coordinates of sites, an array (rows, columns, 2)."""
    column, row = np.meshgrid(np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop))
    jitter = [random_numbers(seed, f"site {axis}", column, row) - 0.5 for axis in "xy"]
    return (np.stack([column, row], -1) + 0.5 + SITE_JITTER * np.stack(jitter, -1)) * SITE_SPACING


@lru_cache(maxsize=64)
def land_cover_of_sheet(seed: int, column: int, row: int) -> LandCover:
    """Land cover of a sheet: the cells of its sites, those of one class that touch each other united."""
    columns = range(column * SHEET - NEIGHBOURS, (column + 1) * SHEET + NEIGHBOURS)
    rows = range(row * SHEET - NEIGHBOURS, (row + 1) * SHEET + NEIGHBOURS)
    sites = shapely.multipoints(site_places(seed, columns, rows).reshape(-1, 2))
    cells = shapely.get_parts(shapely.voronoi_polygons(sites, ordered=True)).reshape(len(rows), len(columns))
    inside = (slice(NEIGHBOURS, -NEIGHBOURS),) * 2
    cells, classes = cells[inside].ravel(), site_classes(seed, columns, rows)[inside].ravel()
    present = np.unique(classes)
    united = [shapely.coverage_union_all(cells[classes == each]) for each in present]
    polygons, index = shapely.get_parts(united, return_index=True)
    return LandCover(polygons, present[index])


def sheets(west: float, south: float, east: float, north: float) -> Iterator[tuple[int, int]]:
    """Columns and rows of the sheets whose land cover may reach into a box."""
    side = SHEET * SITE_SPACING
    for row in range(int((south - CELL_REACH) // side), int((north + CELL_REACH) // side) + 1):
        for column in range(int((west - CELL_REACH) // side), int((east + CELL_REACH) // side) + 1):
            yield column, row


def land_cover(seed: int, west: float, south: float, east: float, north: float) -> LandCover:
    """Land cover that meets a box (EPSG:32632), whole polygons."""
    parts = [land_cover_of_sheet(seed, column, row) for column, row in sheets(west, south, east, north)]
    polygons = np.concatenate([part.polygons for part in parts])
    classes = np.concatenate([part.classes for part in parts])
    met = shapely.intersects(shapely.box(west, south, east, north), polygons)
    return LandCover(polygons[met], classes[met])


# Pixels


@dataclass(frozen=True)
class Block:
    """13 x 13 patches of one product; `column` and `row` (0 to 6) count from the tile's upper left."""

    tile: str
    column: int
    row: int
    sensing_time: datetime
    platform: str

    @property
    def product(self) -> str:
        """Name of the product."""
        return f"SYNTHETIC_{self.tile}_{self.sensing_time:%Y%m%d}"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in EPSG:32632."""
        west, _, _, north = patch_bounds(self.tile, self.column * BLOCK, self.row * BLOCK)
        return west, north - BLOCK * PATCH_SIDE, west + BLOCK * PATCH_SIDE, north


def nth_block(number: int) -> Block:
    """Block by its number: four seasons of a place, then the next place; after all tiles, again some days later."""
    number, season = divmod(number, len(SEASONS))
    number, place = divmod(number, BLOCKS_PER_TILE_SIDE**2)
    revisit, tile = divmod(number, len(TILES))
    year, revisit = divmod(revisit, REVISITS_PER_SEASON)
    later, month = SEASONS[season]
    row, column = divmod(place, BLOCKS_PER_TILE_SIDE)
    # 7 and 18 have no common divisor: every day of the season has its turn, the middle one first.
    days = REVISIT_DAYS * ((7 * revisit + REVISITS_PER_SEASON // 2) % REVISITS_PER_SEASON)
    return Block(
        tile=TILES[tile],
        column=column,
        row=row,
        sensing_time=datetime(FIRST_YEAR + year + later, month, 1, 10, 30, tzinfo=UTC) + timedelta(days=days),
        platform=("sentinel-2a", "sentinel-2b")[(revisit + season) % 2],
    )


@dataclass(frozen=True)
class Ground:
    """What the pixels (10 m) of a place show, whenever: arrays (rows, columns), the northern row first.

    `cover` is the class times CROPS plus the crop calendar of the parcel; `texture` has variance 1.
    """

    cover: NDArray[np.uint16]
    texture: NDArray[np.float32]


@lru_cache(maxsize=1)
def ground(seed: int, west: float, south: float, east: float, north: float) -> Ground:
    """Ground in a box whose sides are multiples of 10 m."""
    columns = range(round(west / PIXEL), round(east / PIXEL))
    rows = range(round(-north / PIXEL), round(-south / PIXEL))
    cover = land_cover(seed, west, south, east, north)
    classes = rasterize(
        zip(cover.polygons, cover.classes.tolist(), strict=True),
        out_shape=(len(rows), len(columns)),
        transform=from_origin(west, north, PIXEL, PIXEL),
        dtype="uint8",
    )
    texture = sum(
        (
            weight * smooth_noise(seed, f"texture {scale}", columns, rows, scale)
            for scale, weight in TEXTURE.items()
        ),
        np.float32(0),
    )
    return Ground(classes * np.uint16(CROPS) + parcel_crops(seed, columns, rows), texture)


def parcel_crops(seed: int, columns: range, rows: range) -> NDArray[np.uint8]:
    """Crop calendar (0 to CROPS - 1) of the parcel that each pixel is in: oblong parcels in bent rows."""
    column, row = np.arange(columns.start, columns.stop)[None, :], np.arange(rows.start, rows.stop)[:, None]
    cos, sin = np.cos(PARCEL_ANGLE), np.sin(PARCEL_ANGLE)
    places = []
    for name, place, side in zip("xy", (column * cos + row * sin, row * cos - column * sin), PARCEL, strict=True):
        warped = place + PARCEL_WARP * smooth_noise(seed, f"parcel {name}", columns, rows, 128)
        places.append((warped // side).astype(np.int32))
    x, y = places
    crops = random_numbers(
        seed, "crop", np.arange(x.min(), x.max() + 1)[None, :], np.arange(y.min(), y.max() + 1)[:, None]
    )
    return (crops * CROPS).astype(np.uint8)[y - y.min(), x - x.min()]


@lru_cache(maxsize=1)
def spectra(state: str) -> dict[str, NDArray[np.float32]]:
    """Mean digital numbers per band of each class when it is dormant or growing."""


def signals(day_of_year: int) -> dict[str, NDArray[np.float32]]:
    """Mean digital numbers by band, an array (classes x CROPS), on a day of the year."""
    table = class_table()
    crop = (np.arange(CROPS) + 0.5) / CROPS - 0.5
    peak = table["peak_day"][:, None] + table["crop_days"][:, None] * crop
    season = (1 + np.cos(2 * np.pi * (day_of_year - peak) / 365.25)) / 2
    vigour = season ** table["season_sharpness"][:, None]
    rows = {(row["code"], row["state"]): row for row in data_file("synthetic_spectra.csv")}
    result = {}
    for band in (band for bands in SENTINEL_2.bands.values() for band in bands):
        dormant, growing = (
            np.array([float(rows[code, state][band] or "nan") for code in class_codes()])[:, None]
            for state in ("dormant", "growing")
        )
        result[band] = (dormant + (growing - dormant) * vigour).astype(np.float32).ravel()
    return result
