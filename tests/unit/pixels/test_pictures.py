"""Quicklooks, decoded again by Pillow."""

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image, ImageFont

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.pictures import (
    FONT_SIZE,
    TILE,
    layer_limits,
    layer_tile,
    overview_tile,
    patch_png,
    rgb_picture,
    wrapped,
)
from pgearth.pyfuncs.pixels.rasters import Raster


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


def test_each_band_is_stretched_between_its_percentiles() -> None:
    red, green, blue = (
        np.random.default_rng(1).permuted(np.tile(np.arange(1, 10_001), (3, 1)), axis=1).reshape(3, 100, 100)
    )
    picture = rgb_picture(red, green * 5, blue + 50_000)
    for channel, numbers in enumerate((red, green, blue)):
        expected = 255 * (numbers - 200.98) / (9800.02 - 200.98)  # np.percentile(range(1, 10001), [2, 98])
        assert abs(picture[..., channel] - expected.clip(0, 255)).max() <= 0.51


def test_nodata_in_any_band_is_black_and_not_counted() -> None:
    band = np.arange(1000, 1100).reshape(10, 10)
    holed = np.where(band < 1050, 0, band)
    picture = rgb_picture(holed, band, band)
    assert not picture[holed == 0].any()
    expected = rgb_picture(band[5:], band[5:], band[5:])  # the stretch is that of the valid half
    np.testing.assert_array_equal(picture[5:], expected)
    with_nan = np.where(band < 1050, np.nan, band)
    np.testing.assert_array_equal(rgb_picture(with_nan, band, band, nodata=None), picture)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_bands(value: int) -> None:
    with np.errstate(all="raise"):
        assert not rgb_picture(*[np.full((4, 5), value, np.uint16)] * 3).any()


def test_bands_of_different_shape_are_refused() -> None:
    with pytest.raises(PgearthError, match="differ in shape"):
        rgb_picture(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("folder", "bands", "drawn"),
    [
        ("S2", ["B02", "B03", "B04", "B08"], lambda b: rgb_picture(b["B04"], b["B03"], b["B02"])),
        ("S1", ["VV", "VH"], lambda b: rgb_picture(b["VV"], b["VH"], b["VV"] - b["VH"], nodata=None)),
    ],
)
def test_patches_of_both_sensors(sample: Path, folder: str, bands: list[str], drawn: object) -> None:
    patch_folder = min((sample / "bigearthnet-v1" / folder).iterdir())
    patch = {}
    for band in bands:
        with rasterio.open(patch_folder / f"{patch_folder.name}_{band}.tif") as dataset:
            patch[band] = dataset.read(1)
    picture = decoded(patch_png(patch))
    assert picture.shape == (120, 120, 3)
    assert picture.std(axis=(0, 1)).min() > 20  # a stretched real image uses the range
    np.testing.assert_array_equal(picture, drawn(patch))


def test_patch_without_drawable_bands_is_refused() -> None:
    with pytest.raises(PgearthError, match="B04, B08 cannot be drawn"):
        patch_png(dict.fromkeys(["B04", "B08"], np.ones((2, 2))))


def test_captions_are_wrapped_to_the_tile() -> None:
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    text = "Land principally occupied by agriculture, with significant areas of natural vegetation " + "x" * 200
    lines = list(wrapped(text, font))
    assert max(map(font.getlength, lines)) <= TILE
    assert "".join(lines).replace(" ", "") == text.replace(" ", ""), "nothing is lost"
    assert lines[0].startswith("Land principally") and len(lines) < 14
    assert list(wrapped("", font)) == []


def random_raster(generator: np.random.Generator, x: float, y: float) -> Raster:
    """A 16-bit band with holes, a float band with holes, and a byte band without a nodata value."""
    integers = generator.integers(0, 5000, (6, 4)).astype(np.uint16)
    integers[generator.random((6, 4)) < 0.4] = 0
    floats = generator.normal(-10, 5, (6, 4)).astype(np.float32)
    floats[generator.random((6, 4)) < 0.4] = np.nan
    transform = (10.0, -10.0, x, y, 0.0, 0.0)
    return Raster((integers, floats, np.full((6, 4), 9, np.uint8)), transform, 32633, (0, None, None))


def test_an_overview_halves_tiles_by_the_mean_of_what_has_data() -> None:
    generator = np.random.default_rng(3)
    # The tile in the lower left is missing.
    children = {(0, 0): (500, 900), (0, 1): (540, 900), (1, 1): (540, 840)}
    rasters = {place: random_raster(generator, *corner) for place, corner in children.items()}
    result = overview_tile(list(rasters.values()), 500, 900)
    assert result.transform == (20, -20, 500, 900, 0, 0)
    assert (result.srid, result.nodata) == (32633, (0, None, None))
    assert [band.dtype for band in result.bands] == [np.uint16, np.float32, np.uint8]
    for number, missing in enumerate((0, np.nan, None)):
        for row, column in np.ndindex(6, 4):
            found = [
                rasters[place].bands[number][y % 6, x % 4]
                for y in (2 * row, 2 * row + 1)
                for x in (2 * column, 2 * column + 1)
                if (place := (y // 6, x // 4)) in rasters
            ]
            valid = [float(value) for value in found if value != missing and not np.isnan(value)]
            expected = sum(valid) / len(valid) if valid else 0
            assert abs(float(result.bands[number][row, column]) - expected) <= (1e-4 if number == 1 else 0.5)


def test_tiles_of_a_layer_share_one_stretch() -> None:
    band = np.arange(1, 201, dtype=np.uint16).reshape(10, 20)
    halves = [
        Raster((part, part * np.uint16(2)), (10.0, -10.0, 0.0, 0.0, 0.0, 0.0), 32633, (0, 0))
        for part in (band[:, :10], band[:, 10:])
    ]
    low, high = layer_limits(halves)
    np.testing.assert_allclose(low, np.percentile(band, 2) * np.array([1, 2]))
    for part, half in zip((band[:, :10], band[:, 10:]), halves, strict=True):
        tile = layer_tile(half, low, high)
        assert (tile.transform, tile.nodata, tile.bands[0].dtype) == (half.transform, (0, 0), np.uint8)
        expected = 1 + 254 * ((part - low[0]) / (high[0] - low[0])).clip(0, 1)
        assert abs(tile.bands[0] - expected).max() <= 0.51
        np.testing.assert_array_equal(tile.bands[0], tile.bands[1])
    holed = Raster(
        (np.where(band > 100, band, 0).astype(np.uint16), band), (10.0, -10.0, 0.0, 0.0, 0.0, 0.0), 32633, (0, None)
    )
    assert not np.stack(layer_tile(holed, low, high).bands)[:, band <= 100].any(), "nodata in any band is nodata in all"
    with pytest.raises(PgearthError, match="hold no data"):
        layer_limits([Raster((np.zeros((2, 2), np.uint16),), (10.0, -10.0, 0.0, 0.0, 0.0, 0.0), 32633, (0,))])
