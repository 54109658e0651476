"""Quicklooks, decoded again by Pillow."""

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from pyfuncs.errors import PgearthError
from pyfuncs.picture import patch_png, rgb_png


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


def test_each_band_is_stretched_between_its_percentiles() -> None:
    red, green, blue = (
        np.random.default_rng(1).permuted(np.tile(np.arange(1, 10_001), (3, 1)), axis=1).reshape(3, 100, 100)
    )
    picture = decoded(rgb_png(red, green * 5, blue + 50_000))
    for channel, numbers in enumerate((red, green, blue)):
        expected = 255 * (numbers - 200.98) / (9800.02 - 200.98)  # np.percentile(range(1, 10001), [2, 98])
        assert abs(picture[..., channel] - expected.clip(0, 255)).max() <= 0.51


def test_nodata_in_any_band_is_black_and_not_counted() -> None:
    band = np.arange(1000, 1100).reshape(10, 10)
    holed = np.where(band < 1050, 0, band)
    picture = decoded(rgb_png(holed, band, band))
    assert not picture[holed == 0].any()
    expected = decoded(rgb_png(band[5:], band[5:], band[5:]))  # the stretch is that of the valid half
    np.testing.assert_array_equal(picture[5:], expected)
    with_nan = np.where(band < 1050, np.nan, band)
    np.testing.assert_array_equal(decoded(rgb_png(with_nan, band, band, nodata=None)), picture)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_bands(value: int) -> None:
    with np.errstate(all="raise"):
        assert not decoded(rgb_png(*[np.full((4, 5), value, np.uint16)] * 3)).any()


def test_bands_of_different_shape_are_refused() -> None:
    with pytest.raises(PgearthError, match="differ in shape"):
        rgb_png(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("folder", "bands", "drawn"),
    [
        ("S2", ["B02", "B03", "B04", "B08"], lambda b: rgb_png(b["B04"], b["B03"], b["B02"])),
        ("S1", ["VV", "VH"], lambda b: rgb_png(b["VV"], b["VH"], b["VV"] - b["VH"], nodata=None)),
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
    np.testing.assert_array_equal(picture, decoded(drawn(patch)))


def test_patch_without_drawable_bands_is_refused() -> None:
    with pytest.raises(PgearthError, match="B04, B08 cannot be drawn"):
        patch_png(dict.fromkeys(["B04", "B08"], np.ones((2, 2))))
