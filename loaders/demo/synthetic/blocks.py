"""Where and when the synthetic patches are: blocks of products, by their number."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pgearth.loaders.datasets.bigearthnet.names import PATCHES_PER_TILE_SIDE, patch_bounds
from pgearth.loaders.products.mgrs import PATCH_SIDE

# Tiles that lie wholly in Germany and in UTM zone 32.
TILES = ("32UPV", "32UNV", "32UPU", "32UNU", "32UPA", "32UNA", "32UPB", "32UNB", "32UPC", "32UNC", "32UPD", "32UND")
BLOCK = 13
"""Patches along the side of a block, the unit in which pixels are made: 13 x 13 patches, 15.6 km."""
BLOCKS_PER_TILE_SIDE = PATCHES_PER_TILE_SIDE // BLOCK
FIRST_YEAR = 2018
SEASONS = ((0, 6), (0, 9), (0, 12), (1, 3))  # years after the first, first month
REVISIT_DAYS = 5
REVISITS_PER_SEASON = 18
PATCHES_PER_BLOCK = BLOCK**2
PATCHES_PER_TILE = len(SEASONS) * BLOCKS_PER_TILE_SIDE**2 * PATCHES_PER_BLOCK
"""A tile in four seasons: what one transaction stores when there are no pixels."""
BLOCKS_PER_ROUND = len(TILES) * len(SEASONS) * BLOCKS_PER_TILE_SIDE**2
"""All places in four seasons."""


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


def blocks_of(numbers: range) -> range:
    """Numbers of the blocks that patches are in."""
    return range(numbers[0] // PATCHES_PER_BLOCK, numbers[-1] // PATCHES_PER_BLOCK + 1)
