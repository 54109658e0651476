"""Complete .SAFE products for tests: the sample's real metadata with the sample's real JPEG 2000 pixels."""

from __future__ import annotations

import shutil
import warnings
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

# Folders of safe-metadata with all that a complete product needs.
L1C = "S2A_MSIL1C_20200717T221941_R029_T01LAC_20200717T234135.SAFE"
BEFORE_OFFSET = "esa_S2B_MSIL2A_20210122T133229_N0214_R081_T22HBD_20210122T155500.SAFE"
SINCE_OFFSET = "S2A_MSIL2A_20230821T221941_N0509_R029_T01KAB_20230822T021825.SAFE"


def assemble_safe(sample: Path, name: str, target: Path, reduction: int = 30) -> Path:
    """Write the product whose metadata are in the folder `name` of safe-metadata under `target`; return its folder.

    Its images are those that the metadata list, of tile 19UDP, in the right place with pixels `reduction` times as
    large (a divisor of 10,980, 5,490 and 1,830): with 30, 366, 183 and 61 pixels on a side, as lossless JPEG 2000. As
    the metadata say, pixels since baseline 04.00 are those of `pixels_of` plus 1,000.
    """
    folder = Path(shutil.copytree(sample / "safe-metadata" / name, target / name, copy_function=shutil.copyfile))
    (folder / "expected_output.json").unlink()  # the sample's addition
    root = ElementTree.parse(next(folder.glob("MTD_MSI*.xml"))).getroot()
    tile = ElementTree.parse(next(folder.glob("GRANULE/*/MTD_TL.xml"))).getroot()
    offset = next((int(element.text) for element in root.iter() if element.tag.endswith("_ADD_OFFSET")), 0)
    places = {
        int(element.get("resolution")): tuple(float(element.find(part).text) for part in ("ULX", "ULY"))
        for element in tile.iter("Geoposition")
    }
    for element in root.iter("IMAGE_FILE"):
        file = folder / f"{element.text}.jp2"
        band, resolution = image_of(file.stem)
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = pixels_of(sample, band, 109_800 // (resolution * reduction))
        if band.startswith("B"):
            pixels = np.where(pixels == 0, 0, pixels + np.uint16(-offset))
        count = pixels.shape[0] if pixels.ndim == 3 else 1
        with rasterio.open(
            file,
            "w",
            driver="JP2OpenJPEG",
            width=pixels.shape[-1],
            height=pixels.shape[-2],
            count=count,
            dtype=pixels.dtype,
            crs=tile.find(".//HORIZONTAL_CS_CODE").text,
            transform=from_origin(*places[resolution], resolution * reduction, resolution * reduction),
            QUALITY=100,
            REVERSIBLE="YES",
            blockxsize=128,
            blockysize=128,
        ) as dataset:
            dataset.write(pixels.reshape(count, *pixels.shape[-2:]))
    return folder


def image_of(stem: str) -> tuple[str, int]:
    """Band (or TCI, AOT, WVP) and resolution in metres of an image, by its name."""
    parts = stem.split("_")
    if parts[-1].endswith("m"):
        return parts[-2], int(parts[-1][:-1])
    fine = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "TCI": 10, "B01": 60, "B09": 60, "B10": 60}
    return parts[-1], fine.get(parts[-1], 20)


def pixels_of(sample: Path, band: str, size: int) -> np.ndarray:
    """An image of tile 19UDP of `size` x `size` pixels (of TCI, three such): reflectance * 10,000, 0 is nodata."""
    pixels = read_image(sample, band)
    # nearest neighbours; GDAL would read a level of the wavelet transformation, which averages even classes
    rows, columns = ((np.arange(size) + 0.5) * side // size for side in pixels.shape[-2:])
    return pixels[..., rows.astype(int)[:, None], columns.astype(int)]


@cache
def read_image(sample: Path, band: str) -> np.ndarray:
    """An image of tile 19UDP as the sample has it."""
    file = sample / "sentinel2-jp2/L1C_19UDP_20170729/preview" / f"{band}.jp2"
    if band in ("SCL", "AOT", "WVP", "TCI"):
        file = sample / "sentinel2-jp2/L2A_19UDP_20170729/R20m" / f"{band}.jp2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(file) as dataset:
            pixels: np.ndarray = dataset.read().squeeze()
    return pixels
