"""A synthetic archive: a made-up landscape of land-cover polygons in Germany, and Sentinel-2 patches that show it.

For demonstrations without real data, and for benchmarks at any scale: the landscape (land_cover.py, pixels.py) is a
function of place and seed, so that patches are made block by block (blocks.py) in bounded memory, in any order, and
neighbours fit together without a seam.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from psycopg import Connection
from pyproj import Transformer

from pgearth.loaders.archive.footprint import to_wgs84
from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.names import patch_bounds, split_by_rule
from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_2
from pgearth.loaders.demo.synthetic.blocks import (
    BLOCK,
    BLOCKS_PER_ROUND,
    PATCHES_PER_BLOCK,
    PATCHES_PER_TILE,
    blocks_of,
    nth_block,
)
from pgearth.loaders.demo.synthetic.land_cover import SRID, class_codes, land_cover_of_sheet, sheets
from pgearth.loaders.demo.synthetic.pixels import block_pixels
from pgearth.loaders.products.mgrs import PATCH_SIDE, TILE_SIDE, tile_origin
from pgearth.loaders.reference.corine import class_label_ids, store_polygons
from pgearth.loaders.work.ledger import file_checksum, load_item
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import NODATA, Raster

LOADER = "synthetic"
SOURCE = "synthetic"


def load_synthetic(connection: Connection, patches: int, seed: int = 0, pixels: bool = True) -> Counter[str]:
    """Store the first `patches` patches of the synthetic archive and the land cover around them; return counts.

    Patches have no labels: eo.annotate finds them in the land cover. With pixels, a block of patches is one
    transaction, without them one tile in four seasons; so it may be interrupted and run again, and run again with more
    patches or with pixels. Raises PgearthError for a number of patches below 1, a negative seed, and where the archive
    has other land cover (real, or of another seed) in the same place.
    """
    if patches < 1:
        raise PgearthError(f"{patches} patches cannot be made", "Ask for at least 1.")
    if seed < 0:
        raise PgearthError(f"{seed} is no seed", "Seeds are 0, 1, 2, ...")
    label_ids = class_label_ids(connection)
    # What is made is a function of these files.
    modules = [path for path in Path(__file__).parent.glob("*.py") if path.stem != "commands"]
    tables = Path(__file__).parents[2].joinpath("reference", "data").glob("synthetic_*.csv")
    checksum = file_checksum(*sorted(modules), *sorted(tables))
    counts = Counter({"patches": 0, "polygons": 0})
    blocks = [nth_block(number) for number in range(min(-(-patches // PATCHES_PER_BLOCK), BLOCKS_PER_ROUND))]
    covered = sorted({sheet for bounds in {block.bounds for block in blocks} for sheet in sheets(*bounds)})
    for column, row in progress(covered, "synthetic land cover", "sheets"):
        with load_item(connection, LOADER, f"seed {seed}, land cover {column} {row}", checksum) as item:
            if item is not None:
                item.rows = store_land_cover(connection, seed, column, row, label_ids)
                counts["polygons"] += item.rows
    step = PATCHES_PER_BLOCK if pixels else PATCHES_PER_TILE
    with progress(range(0), "synthetic patches", "patches", patches) as bar:
        for start in range(0, patches, step):
            numbers = range(start, min(start + step, patches))
            source = f"seed {seed}, patches {numbers[0]} to {numbers[-1]}{'' if pixels else ' without pixels'}"
            with load_item(connection, LOADER, source, checksum) as item:
                if item is not None:
                    write_products(connection, synthetic_products(seed, numbers))
                    item.rows = write_patches(connection, SOURCE, synthetic_patches(seed, numbers, pixels))
                    counts["patches"] += item.rows
            bar.update(len(numbers))
    counts["patches stored before"] = patches - counts["patches"]
    (counts["pieces"],) = connection.execute("select eo.derive_corine_parts()").fetchone() or (0,)
    return counts


def store_land_cover(connection: Connection, seed: int, column: int, row: int, label_ids: dict[str, int]) -> int:
    """Store the land cover of a sheet as CORINE polygons; return how many.

    Raises PgearthError if the archive has polygons of another source there.
    """
    source = f"synthetic, seed {seed}"
    cover = land_cover_of_sheet(seed, column, row)
    transformer = Transformer.from_crs(SRID, 3035, always_xy=True)
    polygons = shapely.transform(cover.polygons, transformer.transform, interleaved=False)
    other = connection.execute(
        "select source from eo.corine where source <> %s and geom && ST_MakeEnvelope(%s, %s, %s, %s, 3035) limit 1",
        (source, *shapely.total_bounds(polygons).tolist()),
    ).fetchone()
    if other is not None:
        raise PgearthError(
            f"{source}: the archive has land cover of {other[0]} in the same place",
            "Make the synthetic archive in a database of its own: PGEARTH_DSN names it.",
        )
    multipolygons = shapely.set_srid(shapely.multipolygons(polygons, indices=np.arange(len(polygons))), 3035)
    codes = class_codes()
    ewkb = shapely.to_wkb(multipolygons, include_srid=True)
    return store_polygons(
        connection, source, ((label_ids[codes[number]], each) for number, each in zip(cover.classes, ewkb, strict=True))
    )


def synthetic_products(seed: int, numbers: range) -> list[Product]:
    """The products that patches belong to: one per tile and date."""
    blocks = {block.product: block for block in map(nth_block, blocks_of(numbers))}
    products = []
    for name, block in blocks.items():
        _, west, north = tile_origin(block.tile)
        outline = to_wgs84(shapely.box(west, north - TILE_SIDE, west + TILE_SIDE, north), SRID)
        products.append(
            Product(
                name=name,
                platform=block.platform,
                level="L2A",
                sensing_time=block.sensing_time,
                mgrs_tile=block.tile,
                cloud_cover=0,
                footprint=shapely.to_wkb(shapely.multipolygons([outline])),
                metadata={"synthetic": True, "seed": seed},
            )
        )
    return products


def synthetic_patches(seed: int, numbers: range, pixels: bool = True) -> Iterator[Patch]:
    """Patches by their numbers, of which there is no end: 169 to a block, the blocks in the order of `nth_block`."""
    for number in blocks_of(numbers):
        block = nth_block(number)
        images = block_pixels(seed, block) if pixels else {}
        first = number * PATCHES_PER_BLOCK
        for index in range(max(numbers[0] - first, 0), min(numbers[-1] - first + 1, PATCHES_PER_BLOCK)):
            row, column = divmod(index, BLOCK)
            tile_column, tile_row = block.column * BLOCK + column, block.row * BLOCK + row
            west, south, east, north = patch_bounds(block.tile, tile_column, tile_row)
            yield Patch(
                name=f"{block.product}_{tile_column:02}_{tile_row:02}",
                product=block.product,
                platform=block.platform,
                sensing_time=block.sensing_time,
                srid=SRID,
                west=west,
                south=south,
                east=east,
                north=north,
                tile_column=tile_column,
                tile_row=tile_row,
                split=split_by_rule(tile_column, tile_row),
                seasonal_snow=False,
                cloud_or_shadow=False,
                rasters=[
                    patch_raster(
                        resolution, bands, patch_pixels(images[resolution], resolution, column, row, west, north)
                    )
                    for resolution, bands in SENTINEL_2.bands.items()
                    if pixels
                ],
            )


def patch_pixels(
    image: NDArray[np.uint16], resolution: int, column: int, row: int, west: float, north: float
) -> Raster:
    """Pixels of a patch, cut out of the image (bands, rows, columns) of its block."""
    side = round(PATCH_SIDE / resolution)
    window = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    transform = (float(resolution), -float(resolution), west, north, 0.0, 0.0)
    return Raster(tuple(window), transform, SRID, (NODATA,) * len(window))
