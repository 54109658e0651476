"""The MGRS grid, and the grid of BigEarthNet's patches within Sentinel-2's tiles. Pure arithmetic.

Source: MGRS lettering after NGA.STND.0037.
"""

from __future__ import annotations

import math
from functools import lru_cache

from pgearth.pyfuncs.errors import PgearthError

PATCH_SIDE = 1200.0  # metres, as the other two
TILE_SIDE = 109_800.0
COARSEST_PIXEL = 60

LATITUDE_BANDS = "CDEFGHJKLMNPQRSTUVWX"  # 8 degrees each, N the first north of the equator
BAND_HEIGHT = 888_000
SOUTHERN_FALSE_NORTHING = 10_000_000
ROW_CYCLE = 2_000_000
COLUMN_LETTERS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # of zones 0, 1, 2 modulo 3
ROW_LETTERS = "ABCDEFGHJKLMNPQRSTUV"


@lru_cache(maxsize=4096)
def square_origin(tile: str) -> tuple[int, int, int]:
    """EPSG code of the UTM zone and lower-left corner (easting, northing, metres) of an MGRS 100 km square.

    Squares are named like 33UUP. Raises PgearthError if there is no such square.
    """
    zone = int(tile[:2]) if len(tile) == 5 and tile[:2].isdecimal() else 0
    if not 1 <= zone <= 60 or tile[2] not in LATITUDE_BANDS:
        raise PgearthError(f"{tile!r} is not a tile of the MGRS grid", "Tiles look like 33UUP.")
    band = tile[2]
    column = COLUMN_LETTERS[zone % 3].find(tile[3])
    row = ROW_LETTERS.find(tile[4])
    if column < 0 or row < 0:
        raise PgearthError(f"{tile!r} is not a tile of the MGRS grid", f"Zone {zone} has no such 100 km square.")
    northern = band >= "N"
    northing = (row - (5 if zone % 2 == 0 else 0)) % len(ROW_LETTERS) * 100_000
    # Row letters repeat every 2,000 km: the repetition nearest to the middle of the latitude band is meant.
    middle = (LATITUDE_BANDS.index(band) - 9.5) * BAND_HEIGHT + (0 if northern else SOUTHERN_FALSE_NORTHING)
    northing += round((middle - northing) / ROW_CYCLE) * ROW_CYCLE
    return (32600 if northern else 32700) + zone, (column + 1) * 100_000, northing


@lru_cache(maxsize=4096)
def tile_origin(tile: str) -> tuple[int, int, int]:
    """EPSG code and upper-left corner (easting, northing, metres) of the patch grid of a Sentinel-2 tile.

    The tile reaches 9.8 km beyond its 100 km square to the south and east; its corner is the square's, moved outwards
    to a multiple of 60 m, counted from the equator.
    """
    srid, easting, northing = square_origin(tile)
    west = easting // COARSEST_PIXEL * COARSEST_PIXEL
    equator = 0 if srid < 32700 else SOUTHERN_FALSE_NORTHING
    north = equator + math.ceil((northing + 100_000 - equator) / COARSEST_PIXEL) * COARSEST_PIXEL
    return srid, west, north
