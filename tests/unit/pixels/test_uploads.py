"""Uploaded GeoTIFFs, read without GDAL, against files that GDAL writes and reads."""

import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.io import MemoryFile

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.uploads import read_image
from tests.hostile import grey, read_measured, tiff


def geotiff(bands: np.ndarray, descriptions: list[str] | None = None, **options: object) -> bytes:
    count, height, width = bands.shape
    options = {"driver": "GTiff", "dtype": bands.dtype, "crs": "EPSG:32633", **options}
    with MemoryFile() as file:
        transform = Affine(10, 0, 5e5, 0, -10, 5e6)
        with file.open(width=width, height=height, count=count, transform=transform, **options) as dataset:
            dataset.write(bands)
            if descriptions:
                dataset.descriptions = descriptions
        return file.read()


BANDS = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)


def test_image_bands_are_called_by_their_descriptions() -> None:
    image = read_image(geotiff(BANDS, ["B04", "B08"])).bands
    assert list(image) == ["B04", "B08"]
    np.testing.assert_array_equal(list(image.values()), BANDS)


def test_given_names_go_before_descriptions() -> None:
    image = read_image(geotiff(BANDS, ["red", "infrared"]), ["B04", "B08"]).bands
    np.testing.assert_array_equal(image["B08"], BANDS[1])


def test_real_image(sample: Path) -> None:
    path = next(sample.glob("bigearthnet-v2/BigEarthNet-S2/*/*/*_B02.tif"))
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(read_image(path.read_bytes(), ["B02"]).bands["B02"], dataset.read(1))


def test_declared_nodata_is_marked() -> None:
    image = read_image(geotiff(BANDS, nodata=7), ["B04", "B08"]).bands
    np.testing.assert_array_equal(image["B04"], np.where(BANDS[0] == 7, 0, BANDS[0]))
    image = read_image(geotiff(BANDS.astype(np.float32), nodata=7), ["B04", "B08"]).bands
    np.testing.assert_array_equal(image["B04"], np.where(BANDS[0] == 7, np.nan, BANDS[0]))


VRT = b'<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'


@pytest.mark.parametrize(
    "image",
    [b"", b"not a raster", VRT, geotiff(BANDS)[:60], geotiff(np.ones((2, 300, 300), np.uint16), compress="lzw")[:900]],
    ids=["empty", "text", "another driver", "truncated header", "truncated pixels"],
)
def test_what_is_not_a_geotiff_is_refused(image: bytes) -> None:
    with pytest.raises(PgearthError, match=rf"cannot read the image \({len(image)} bytes\) as a GeoTIFF") as error:
        read_image(image, ["B04", "B08"])
    assert error.value.sqlstate == "22P03"


@pytest.mark.parametrize(
    ("descriptions", "names", "reason"),
    [
        (None, None, "does not name its bands"),
        (None, ["B04"], "1 band names for an image of 2 bands"),
        (None, ["B04", "B04"], "band names repeat: B04, B04"),
        (["B04", "B04"], None, "band names repeat: B04, B04"),
    ],
)
def test_bands_that_cannot_be_told_apart_are_refused(
    descriptions: list[str] | None, names: list[str] | None, reason: str
) -> None:
    with pytest.raises(PgearthError, match=reason) as error:
        read_image(geotiff(BANDS, descriptions), names)
    assert error.value.sqlstate == "22023"


def test_too_large_an_image_is_refused_before_it_is_read() -> None:
    with MemoryFile() as file:
        options = {
            "driver": "GTiff",
            "dtype": "uint8",
            "crs": "EPSG:32633",
            "transform": Affine(10, 0, 5e5, 0, -10, 5e6),
        }
        with file.open(width=8001, height=8000, count=1, sparse_ok=True, **options):
            pass
        image = file.read()
    assert len(image) < 200_000  # what a bomb looks like
    with pytest.raises(PgearthError, match="8001 x 8000 pixels in 1 bands is too large") as error:
        read_image(image, ["B04"])
    assert error.value.sqlstate == "54000"


NOISE = np.random.default_rng(1).integers(1, 100, (13, 70, 50))


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("count", [1, 3, 4, 13])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiled": True, "blockxsize": 32, "blockysize": 16},
        {"compress": "lzw", "predictor": 2},
        {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "zstd", "endianness": "BIG", "bigtiff": "YES"},
    ],
    ids=["strips", "tiles", "lzw", "deflate", "zstd big-endian BigTIFF"],
)
def test_every_way_gdal_lays_out_pixels(interleave: str, count: int, dtype: str, options: dict[str, object]) -> None:
    names = [f"band {number}" for number in range(count)]
    image = read_image(geotiff(NOISE[:count].astype(dtype), names, interleave=interleave, **options)).bands
    assert list(image) == names
    np.testing.assert_array_equal(list(image.values()), NOISE[:count])


def test_cloud_optimised_geotiff_gives_its_full_resolution() -> None:
    bands = np.tile(NOISE[:2], (1, 12, 16)).astype(np.uint16)  # large enough for overviews
    image = read_image(geotiff(bands, ["B04", "B08"], driver="COG")).bands
    np.testing.assert_array_equal(list(image.values()), bands)


@pytest.mark.parametrize("options", [{}, {"compress": "lzw"}, {"compress": "deflate", "tiled": True}])
def test_damaged_files_are_refused_or_read_but_never_crash(options: dict[str, object]) -> None:
    image = geotiff(NOISE[:2].astype(np.uint16), ["B04", "B08"], **options)
    for length in range(0, len(image), 401):
        with pytest.raises(PgearthError):
            read_image(image[:length])
    random = np.random.default_rng(2)
    directory = int.from_bytes(image[4:8], "little")  # where the tags lie: the part that a decoder believes
    refused = 0
    for _ in range(200):
        damaged = bytearray(image)
        for position in random.integers(directory, directory + 200, 2):
            damaged[position] = random.integers(0, 256)
        try:
            read_image(bytes(damaged))
        except PgearthError:
            refused += 1
    assert refused > 50  # guards against damage that touches nothing


@pytest.mark.parametrize("code", [256, 257, 259, 277, 284, 317, 32997])
def test_a_size_that_is_several_takes_no_memory(tmp_path: Path, code: int) -> None:
    """tifffile makes a tuple of a tag of several values, which a multiplication would repeat."""
    several = (4, 2, struct.pack("<II", 122, 61))
    file = tmp_path / "several.tif"
    file.write_bytes(tiff([{**grey(4, 2_000_000), code: several}], bytes(8)))
    outcome, grown = read_measured(file)
    assert f"its tag {code} has 2 values" in outcome
    assert grown < 50
