"""A Sentinel-2 L2A product of the synthetic landscape, as the AWS buckets hold them: what loading is measured on.

Twelve bands at 10, 20 and 60 m and the scene classes, lossless JPEG 2000 in blocks of 1024 x 1024 pixels as ESA
delivers them, on the grid of tile 32UPU. With noise of 3 digital numbers the files have about the size of real ones
(90 to 130 MB for a band of 10 m of a whole tile).
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine

from benchmarks.harness import ROOT, progress
from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_2
from pgearth.loaders.demo.synthetic.blocks import BLOCK, Block
from pgearth.loaders.demo.synthetic.noise import smooth_noise
from pgearth.loaders.demo.synthetic.pixels import block_pixels
from pgearth.loaders.products.mgrs import PATCH_SIDE, tile_origin

TILE = "32UPU"
SENSING_TIME = datetime(2020, 6, 20, 10, 30, tzinfo=UTC)
NOISE = 3.0
FULL_SIDE = 109_800
QUICK_SIDE = 18_300
"""Metres: a whole tile, and a sixth of it in either direction."""
FOLDER = ROOT / "build" / "benchmark-products"


def find_or_make_product(side: int, number: int = 0) -> Path:
    """The folder of the product of so many metres (a multiple of 300) a side; made when it is not there.

    Products of other numbers are copies under other names.
    """
    name = f"S2A_MSIL2A_{SENSING_TIME:%Y%m%dT%H%M%S}_N0214_R{number + 1:03}_T{TILE}_20200620T170000"
    folder = FOLDER / str(side) / name
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if number:
        shutil.copytree(find_or_make_product(side), unfinished, copy_function=os.link)
    else:
        write_bands(unfinished, side)
    write_tile_info(unfinished, name, side)
    unfinished.rename(folder)
    return folder


def write_bands(folder: Path, side: int) -> None:
    """Make the pixels, block by block, and write each band to a file."""
    images = {
        resolution: np.empty((len(bands), side // resolution, side // resolution), np.uint16)
        for resolution, bands in SENTINEL_2.bands.items()
    }
    blocks = -(-side // round(BLOCK * PATCH_SIDE))
    for row in range(blocks):
        progress(f"pixels of {folder.stem}: row {row + 1} of {blocks}")
        for column in range(blocks):
            for resolution, pixels in block_pixels(0, Block(TILE, column, row, SENSING_TIME, "sentinel-2a")).items():
                x, y = column * pixels.shape[2], row * pixels.shape[1]
                part = images[resolution][:, y : y + pixels.shape[1], x : x + pixels.shape[2]]
                part[:] = pixels[:, : part.shape[1], : part.shape[2]]
    random = np.random.default_rng(0)
    for resolution, bands in SENTINEL_2.bands.items():
        for band, image in zip(bands, images[resolution], strict=True):
            progress(f"file of {band}")
            noise = random.standard_normal(image.shape, np.float32)
            noise *= NOISE
            noise += image
            np.rint(noise, out=noise)
            write_band(
                folder / f"R{resolution}m" / f"{band}.jp2", np.clip(noise, 1, 10_000).astype(np.uint16), resolution
            )
    write_band(folder / "R20m" / "SCL.jp2", scene_classes(side // 20), 20)


def scene_classes(side: int) -> NDArray[np.uint8]:
    """Scene classes: vegetation and bare soil, and thick clouds of 2 km with their edges."""
    clouds = smooth_noise(0, "clouds", range(side), range(side), {100: 1.0})
    soil = smooth_noise(0, "soil", range(side), range(side), {12: 1.0})
    return np.select([clouds > 1.6, clouds > 1.4, soil > 0.8], [9, 8, 5], 4).astype(np.uint8)


def write_band(path: Path, pixels: NDArray, resolution: int) -> None:
    """Write lossless JPEG 2000 in blocks of 1024 x 1024 pixels."""
    _, west, north = tile_origin(TILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=1,
        dtype=pixels.dtype,
        crs="EPSG:32632",
        transform=Affine(resolution, 0, west, 0, -resolution, north),
        QUALITY=100,
        REVERSIBLE="YES",
        BLOCKXSIZE=1024,
        BLOCKYSIZE=1024,
    ) as file:
        file.write(pixels, 1)


def write_tile_info(folder: Path, name: str, side: int) -> None:
    """Write what the AWS buckets say of a product in tileInfo.json."""
    srid, west, north = tile_origin(TILE)
    east, south = west + side, north - side
    geometry = {
        "type": "Polygon",
        "crs": {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG:8.8.1:{srid}"}},
        "coordinates": [[[west, north], [east, north], [east, south], [west, south], [west, north]]],
    }
    document = {
        "productName": name,
        "timestamp": f"{SENSING_TIME:%Y-%m-%dT%H:%M:%S}.000Z",
        "tileGeometry": geometry,
        "tileDataGeometry": geometry,
        "cloudyPixelPercentage": 3.0,
    }
    path = folder / "tileInfo.json"
    path.unlink(missing_ok=True)  # of a copy it is a link
    path.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    for side in (QUICK_SIDE, FULL_SIDE):
        print(find_or_make_product(side))
