"""What the names of BigEarthNet patches say: satellite, time, tile, place and split. Pure arithmetic, no files.

Sources: the naming guides of BigEarthNet v1 (https://bigearth.net/v1.0.html) and v2 (Clasen et al., 2024,
arXiv:2407.03653, for the split). The footprint rule was found from, and holds for, every official v1 footprint at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from pgearth.loaders.archive.write import PLATFORMS
from pgearth.loaders.products.mgrs import PATCH_SIDE, TILE_SIDE, tile_origin
from pgearth.pyfuncs.errors import PgearthError

PATCHES_PER_TILE_SIDE = 91
TRAIN_LIMIT = 16_079.84
VALIDATION_LIMIT = 27_450.0

SENTINEL_2_V1 = re.compile(
    r"(?P<product>(?P<satellite>S2[AB])_MSIL2A_(?P<time>\d{8}T\d{5,6}))"
    r"_(?P<column>\d{1,2})_(?P<row>\d{1,2})"
)
SENTINEL_2_V2 = re.compile(
    r"(?P<product>(?P<satellite>S2[AB])_MSIL2A_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[C-X][A-Z]{2}))"
    r"_(?P<column>\d{2})_(?P<row>\d{2})"
)
SENTINEL_1 = re.compile(
    r"(?P<product>(?P<satellite>S1[AB])_IW_GRDH_1S[DS][VH]_(?P<time>\d{8}T\d{6}))_(?P<tile>\d{2}[C-X][A-Z]{2})"
    r"_(?P<column>\d{1,2})_(?P<row>\d{1,2})"
)

OFFICIAL = "Give the file or folder the name that it was published with."


@dataclass(frozen=True)
class PatchName:
    """What a patch's name says.

    `product` is the name without what follows the product: in v2 the tile acquisition, in v1 and for Sentinel-1 the
    acquisition, which may span tiles. `tile` is None in Sentinel-2 v1 names. `faults` are the archive's known slips in
    the time of v1 names, which `sensing_time` (UTC) has repaired.
    """

    product: str
    platform: str
    sensing_time: datetime
    tile: str | None
    column: int
    row: int
    faults: tuple[str, ...] = ()


def parse_patch_name(name: str) -> PatchName:
    """Parse the name of a Sentinel-1 or Sentinel-2 patch of BigEarthNet v1 or v2; raise PgearthError for any other."""
    match = SENTINEL_2_V2.fullmatch(name) or SENTINEL_1.fullmatch(name) or SENTINEL_2_V1.fullmatch(name)
    if match is None:
        raise PgearthError(
            f"{name!r} is not the name of a BigEarthNet patch",
            "Names look like S2A_MSIL2A_20170613T101031_87_48 (v1), S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57 "
            "(v2) or S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48.",
        )
    column, row = int(match["column"]), int(match["row"])
    if not (column < PATCHES_PER_TILE_SIDE and row < PATCHES_PER_TILE_SIDE):
        raise PgearthError(f"{name!r}: columns and rows of a tile run from 0 to {PATCHES_PER_TILE_SIDE - 1}", OFFICIAL)
    sensing_time, faults = parse_time(match["time"])
    return PatchName(
        product=match["product"],
        platform=PLATFORMS[match["satellite"]],
        sensing_time=sensing_time,
        tile=match.groupdict().get("tile"),
        column=column,
        row=row,
        faults=faults,
    )


@lru_cache(maxsize=4096)
def parse_time(text: str) -> tuple[datetime, tuple[str, ...]]:
    """Read YYYYMMDDTHHMMSS (UTC) and name the faults repaired; raise PgearthError where that is no time.

    v1 counted acquisitions within a datatake by adding 1 to the digits, so that a leading zero was lost and 59 seconds
    became 60 or 61: T94160 is 09:41:60, that is 09:42:00.
    """
    date, _, digits = text.partition("T")
    faults = []
    if len(digits) == 5:
        faults.append("hour without its leading zero")
    digits = digits.zfill(6)
    seconds = int(digits[4:])
    if seconds > 59:
        faults.append("seconds above 59")
    try:
        minute = datetime.strptime(date + digits[:4], "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise PgearthError(f"{text!r} is not a time: {error}", OFFICIAL) from error
    return minute + timedelta(seconds=seconds), tuple(faults)


def patch_bounds(tile: str, column: int, row: int) -> tuple[float, float, float, float]:
    """West, south, east and north edge of a patch (metres, in the UTM zone of its tile).

    Columns count from the tile's west edge, rows from its north edge.
    """
    _, west, north = tile_origin(tile)
    return (
        west + PATCH_SIDE * column,
        north - PATCH_SIDE * (row + 1),
        west + PATCH_SIDE * (column + 1),
        north - PATCH_SIDE * row,
    )


def split_by_rule(column: int, row: int) -> str:
    """Split of a v2 patch: train near the edge of its tile, test in the middle, validation between them.

    What counts is the distance of the patch centre to the nearest edge.
    """
    x, y = PATCH_SIDE * (column + 0.5), PATCH_SIDE * (row + 0.5)
    distance = min(x, y, TILE_SIDE - x, TILE_SIDE - y)
    if distance <= TRAIN_LIMIT:
        return "train"
    return "validation" if distance <= VALIDATION_LIMIT else "test"


def is_patch_name(name: str) -> bool:
    """Whether `name` is that of a BigEarthNet patch."""
    try:
        parse_patch_name(name)
    except PgearthError:
        return False
    return True
