"""The land cover of the synthetic landscape.

The sites of a jittered grid carry four smooth random fields (settlement, wetness, altitude, trees), and each class is
at home at one point in the space of these fields (loaders/reference/data/synthetic_land_cover.csv). A site takes the
class with the least squared distance plus `rarity`, a handicap fitted so that the classes cover about as much as they
do in Germany; its Voronoi cell becomes land of that class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray

from pgearth.loaders.demo.synthetic.noise import random_numbers, smooth_noise
from pgearth.loaders.reference.nomenclature import data_file

SRID = 32632

SITE_SPACING = 600  # metres
SITE_JITTER = 0.8
SHEET = 26
"""Sites along the side of a sheet, the unit in which land cover is made: 26 x 26 sites, 15.6 km."""
# With this jitter no place is farther than 1.28 spacings from the nearest site. So a cell reaches at most that far
# from its site, and has no neighbour more than three sites away.
CELL_REACH = 2 * SITE_SPACING
NEIGHBOURS = 3
FIELDS = {
    "settlement": {16: 0.85, 5: 0.45, 1: 0.28},
    "wetness": {10: 0.85, 3: 0.45, 1: 0.28},
    "altitude": {30: 0.85, 10: 0.45, 1: 0.28},
    "trees": {8: 0.85, 2: 0.45, 1: 0.28},
}
"""What decides on land cover: fields of noise with its scales, in sites, and their weights."""


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
    for name, scales in FIELDS.items():
        field = smooth_noise(seed, name, columns, rows, scales)
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
