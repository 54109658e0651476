"""A synthetic archive: a made-up landscape of land-cover polygons in Germany, and Sentinel-2 patches that show it.

For demonstrations without real data, and for benchmarks at any scale: the landscape is a function of place and seed, so
that patches are made block by block in bounded memory, in any order, and neighbours fit together without a seam.

Land cover: the sites of a jittered grid carry four smooth random fields (settlement, wetness, altitude, trees), and
each class is at home at one point in the space of these fields (data/synthetic_land_cover.csv). A site takes the class
with the least squared distance plus `rarity`, a handicap fitted so that the classes cover about as much as they do in
Germany; its Voronoi cell becomes land of that class.

Pixels: the class's spectrum (data/synthetic_spectra.csv), between dormant and growing by the day of the year and, on
farmland, each parcel's crop, with a texture of smooth noise. The spectra are plausible for Central Europe and taken
from no source: nothing here says anything about the real place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import shapely
from numpy.typing import NDArray
from psycopg import Connection
from pyproj import Transformer
from rasterio import Affine
from rasterio.features import rasterize

from pgearth.loaders.archive.footprint import to_wgs84
from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.names import PATCHES_PER_TILE_SIDE, patch_bounds, split_by_rule
from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_2
from pgearth.loaders.products.mgrs import PATCH_SIDE, TILE_SIDE, tile_origin
from pgearth.loaders.reference.corine import class_label_ids, store_polygons
from pgearth.loaders.reference.nomenclature import data_file
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.ledger import file_checksum, load_item
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import NODATA, Raster, resample

LOADER = "synthetic"
SOURCE = "synthetic"
SRID = 32632

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

PIXEL = 10  # metres
CROPS = 16
"""Number of crop calendars of parcels."""
PARCEL = (22, 13)  # pixels
PARCEL_ANGLE = 0.35
PARCEL_WARP = {128: 18.0}
"""How parcels are bent: noise with its scale and its weight, both in pixels."""
TEXTURE = {3: 0.45, 6: 0.6, 24: 0.6}
"""Texture of the ground: noise with its scales, in pixels, and their weights."""
OWN_TEXTURE = {4: 0.3}
"""Texture that a band has to itself on a day."""
LEAST_TEXTURE = 5.0  # digital numbers, where the ground is dark
SENSOR_NOISE = 1.0  # digital numbers


def random_numbers(seed: int, name: str, columns: NDArray, rows: NDArray) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1) at points of an integer lattice, each a function of seed, name and point only.

    `columns` and `rows` broadcast. The mixing is SplitMix64's (Steele, Lea and Flood 2014).
    """
    (key,) = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)

    def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = mix(mix(columns.astype(np.uint64) * golden + key) + rows.astype(np.uint64) * golden)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def smooth_noise(seed: int, name: str, columns: range, rows: range, scales: Mapping[int, float]) -> NDArray[np.float32]:
    """Smooth random field on a lattice, an array (rows, columns): value noise of several scales, each with its weight.

    Noise of a scale is random numbers of mean 0 and variance 1 at every so many points, blended in between so that the
    variance stays 1; a scale of 1 is white noise.
    """
    field = np.zeros((len(rows), len(columns)), np.float32)
    for scale, weight in scales.items():
        x, left, right = blend(columns, scale)
        y, upper, lower = blend(rows, scale)
        nodes = random_numbers(
            seed, f"{name} {scale}", np.arange(x[0], x[-1] + 2)[None, :], np.arange(y[0], y[-1] + 2)[:, None]
        )
        nodes = ((nodes - 0.5) * (weight * np.sqrt(12))).astype(np.float32)
        x, y = x - x[0], y - y[0]
        nodes = nodes[:, x] * left + nodes[:, x + 1] * right
        field += nodes[y] * upper[:, None] + nodes[y + 1] * lower[:, None]
    return field


def blend(points: range, scale: int) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """The node before each point, and the weights of that node and the next."""
    node, offset = np.divmod(np.arange(points.start, points.stop), scale)
    share = (offset / scale) ** 2 * (3 - 2 * offset / scale)
    norm = np.hypot(1 - share, share)
    return node, ((1 - share) / norm).astype(np.float32), (share / norm).astype(np.float32)


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

    `cover` is the class times CROPS plus the crop calendar of the parcel; `texture` has a variance of about 1.
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
        transform=Affine(PIXEL, 0, west, 0, -PIXEL, north),
        dtype="uint8",
    )
    texture = smooth_noise(seed, "texture", columns, rows, TEXTURE)
    return Ground(classes * np.uint16(CROPS) + parcel_crops(seed, columns, rows), texture)


def parcel_crops(seed: int, columns: range, rows: range) -> NDArray[np.uint8]:
    """Crop calendar (0 to CROPS - 1) of the parcel that each pixel is in: oblong parcels in bent rows."""
    column, row = np.arange(columns.start, columns.stop)[None, :], np.arange(rows.start, rows.stop)[:, None]
    cos, sin = np.cos(PARCEL_ANGLE), np.sin(PARCEL_ANGLE)
    places = []
    for name, place, side in zip("xy", (column * cos + row * sin, row * cos - column * sin), PARCEL, strict=True):
        warped = place + smooth_noise(seed, f"parcel {name}", columns, rows, PARCEL_WARP)
        places.append((warped // side).astype(np.int32))
    x, y = places
    crops = random_numbers(
        seed, "crop", np.arange(x.min(), x.max() + 1)[None, :], np.arange(y.min(), y.max() + 1)[:, None]
    )
    return (crops * CROPS).astype(np.uint8)[y - y.min(), x - x.min()]


@lru_cache(maxsize=16)
def signals(day_of_year: int) -> dict[str, NDArray[np.float32]]:
    """Mean digital numbers on a day of the year by band, an array (classes x CROPS), flat."""
    table = class_table()
    crop = (np.arange(CROPS) + 0.5) / CROPS - 0.5
    peak = table["peak_day"][:, None] + table["crop_days"][:, None] * crop
    season = (1 + np.cos(2 * np.pi * (day_of_year - peak) / 365.25)) / 2
    vigour = season ** table["season_sharpness"][:, None]
    rows = data_file("synthetic_spectra.csv")
    bands = {}
    for band in (band for bands in SENTINEL_2.bands.values() for band in bands):
        dormant, growing = (
            np.array([row[band] for row in rows if row["state"] == state], np.float32)[:, None]
            for state in ("dormant", "growing")
        )
        bands[band] = (dormant + (growing - dormant) * vigour).astype(np.float32).ravel()
    return bands


def block_pixels(seed: int, block: Block) -> dict[int, NDArray[np.uint16]]:
    """Digital numbers of a block by resolution (metres): arrays (bands, rows, columns), bands as in SENTINEL_2."""
    west, south, east, north = block.bounds
    place = ground(seed, west, south, east, north)
    roughness = np.repeat(class_table()["roughness"], CROPS)[place.cover]
    means = signals(block.sensing_time.timetuple().tm_yday)
    # A sensor's noise is new in every product, unlike all else here, which belongs to the place.
    noise = np.random.default_rng([seed, *block.product.encode(), block.column, block.row])
    result = {}
    for resolution, bands in SENTINEL_2.bands.items():
        columns = range(round(west / resolution), round(east / resolution))
        rows = range(round(-north / resolution), round(-south / resolution))
        shape = (len(rows), len(columns))
        rough, texture = resample(roughness, shape), resample(place.texture, shape)
        pixels = np.empty((len(bands), *shape), np.uint16)
        for number, band in enumerate(bands):
            mean = resample(means[band][place.cover], shape)
            own = smooth_noise(seed, f"{band} {block.sensing_time:%Y%m%d}", columns, rows, OWN_TEXTURE)
            values = mean + (rough * mean + LEAST_TEXTURE) * (texture + own)
            values += SENSOR_NOISE * noise.standard_normal(shape, np.float32)
            pixels[number] = np.clip(np.rint(values), NODATA + 1, np.iinfo(np.uint16).max)
        result[resolution] = pixels
    return result


# The archive


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
    # What is made is a function of this file and its tables.
    checksum = file_checksum(
        Path(__file__), *sorted(Path(__file__).parents[1].joinpath("reference", "data").glob("synthetic_*.csv"))
    )
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


def blocks_of(numbers: range) -> range:
    """Numbers of the blocks that patches are in."""
    return range(numbers[0] // PATCHES_PER_BLOCK, numbers[-1] // PATCHES_PER_BLOCK + 1)


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
