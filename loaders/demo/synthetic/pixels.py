"""The pixels of the synthetic landscape.

The class's spectrum (loaders/reference/data/synthetic_spectra.csv), between dormant and growing by the day of the year
and, on farmland, each parcel's crop, with a texture of smooth noise. The spectra are plausible for Central Europe and
taken from no source: nothing here says anything about the real place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_2
from pgearth.loaders.demo.synthetic.blocks import Block
from pgearth.loaders.demo.synthetic.land_cover import class_table, land_cover
from pgearth.loaders.demo.synthetic.noise import random_numbers, smooth_noise
from pgearth.loaders.reference.nomenclature import data_file
from pgearth.pyfuncs.pixels.rasters import NODATA, resample

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
