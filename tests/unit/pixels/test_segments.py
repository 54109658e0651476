"""Cutting patches into segments: what is whole stays whole, and nothing depends on order or company."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.segments import (
    cut_segments,
    grid_segmentation,
    same_cut,
    segment,
    slic_masks,
    slic_segmentation,
)

SIZES = {"B02": 48, "B03": 48, "B04": 48, "B08": 48, "B05": 24, "B01": 8}
BANDS = list(SIZES)
Patch = dict[str, np.ndarray]


def landscape(seed: int, holes: bool = False) -> Patch:
    """A patch of smooth hills; with holes, about a third of the pixels of one band have no data."""
    generator = np.random.default_rng(seed)
    patch = {}
    for band, size in SIZES.items():
        hills = gaussian_filter(generator.normal(size=(size, size)), size / 12)
        patch[band] = (3000 + 1000 * hills / hills.std()).clip(1).astype(np.uint16)
    if holes:
        hills = gaussian_filter(generator.normal(size=(48, 48)), 4)
        patch["B03"][hills > np.quantile(hills, 0.7)] = 0
    return patch


@pytest.mark.parametrize("segments", [1, 2, 9, 40])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_segments_partition_what_has_data(seed: int, holes: bool, segments: int) -> None:
    patch = landscape(seed, holes)
    masks = slic_masks(patch, slic_segmentation(segments, BANDS))
    np.testing.assert_array_equal(np.sum(masks, axis=0), patch["B03"] > 0)
    firsts = [int(np.flatnonzero(mask)[0]) for mask in masks]
    assert firsts == sorted(firsts)
    if segments == 9:
        assert 4 <= len(masks) <= 12


def test_pixels_of_a_segment_are_those_of_its_segment() -> None:
    """Against a walk over the pixels of each band."""
    patch = landscape(1, holes=True)
    segmentation = slic_segmentation(9, BANDS)
    masks, segments = slic_masks(patch, segmentation), cut_segments(patch, BANDS, segmentation)
    assert len(masks) == len(segments)
    for mask, found in zip(masks, segments, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        north, west = rows[0] // 6 * 6, columns[0] // 6 * 6  # pixels of B01 are 6 x 6 of the finest
        for band, pixels in patch.items():
            factor = 48 // len(pixels)
            assert found[band].dtype == np.uint16
            height, width = found[band].shape
            assert north + factor * height == -(-(rows[-1] + 1) // 6) * 6
            assert west + factor * width == -(-(columns[-1] + 1) // 6) * 6
            for row in range(height):
                for column in range(width):
                    y, x = north // factor + row, west // factor + column
                    inside = mask[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].mean() >= 0.5
                    assert found[band][row, column] == (pixels[y, x] if inside else 0)


def test_a_thin_segment_keeps_the_coarse_pixels_it_covers_most() -> None:
    inside = np.zeros((12, 12), bool)
    inside[2, 1:12] = True  # one fine row: a sixth of the coarse pixels that it crosses, less of the first
    patch = {"fine": np.arange(1, 145).reshape(12, 12), "coarse": np.array([[1, 2], [3, 4]])}
    found = segment(patch, inside)
    assert found["fine"].shape == (6, 12)
    assert found["coarse"].tolist() == [[0, 2]]
    np.testing.assert_array_equal(found["fine"][2], [0, *range(26, 37)])
    assert found["fine"].sum() == sum(range(26, 37))


def test_segments_follow_edges() -> None:
    """Two fields with a slanted border between them: no segment has a notable part of both."""
    row, column = np.mgrid[:48, :48]
    left = column < 18 + row // 4
    noise = np.random.default_rng(0).normal(0, 30, (48, 48))
    patch = {band: (np.where(left, 800, 2500) + noise).astype(np.uint16) for band in ("B02", "B03", "B04", "B08")}
    masks = slic_masks(patch, slic_segmentation(8, list(patch)))
    assert len(masks) > 2
    shares = [left[mask].mean() for mask in masks]
    assert all(min(share, 1 - share) < 0.05 for share in shares)


def test_the_same_patch_is_cut_alike_whatever_the_order_of_its_bands() -> None:
    patch, other = landscape(3), landscape(4)
    segmentation = slic_segmentation(9, BANDS)
    first = cut_segments(patch, BANDS, segmentation)
    cut_segments(other, BANDS, segmentation)
    turned = dict(reversed(patch.items())) | {"B11": np.zeros((7, 7), np.uint16)}
    again = cut_segments(turned, BANDS, json.loads(json.dumps(segmentation)))
    assert len(first) == len(again) > 1
    for one, two in zip(first, again, strict=True):
        assert list(one) == list(two) == BANDS
        for band in BANDS:
            np.testing.assert_array_equal(one[band], two[band])


def test_what_decides_on_the_cuts() -> None:
    """The bands with 10 m pixels where the encoder reads them, else all, such as those of radar or of a photograph."""
    assert slic_segmentation(9, BANDS)["bands"] == ["B02", "B03", "B04", "B08"]
    assert slic_segmentation(9, ["B05", "B04", "B01"])["bands"] == ["B04"]
    assert slic_segmentation(9, ["VV", "VH"])["bands"] == ["VV", "VH"]
    patch = landscape(2)
    masks = slic_masks(patch, slic_segmentation(9, BANDS))
    patch["B05"] = patch["B05"][::-1]
    for one, two in zip(masks, slic_masks(patch, slic_segmentation(9, BANDS)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_floats_lack_data_where_they_are_nan() -> None:
    decibels = gaussian_filter(np.random.default_rng(0).normal(size=(24, 24)), 3) * 20 - 12
    decibels[:5] = np.nan
    segments = cut_segments({"VV": decibels, "VH": decibels - 7}, ["VV", "VH"], slic_segmentation(4, ["VV", "VH"]))
    assert sum(int(np.isfinite(segment["VV"]).sum()) for segment in segments) == 19 * 24
    assert not any((segment["VV"] == 0).any() for segment in segments)


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("size", [1, 3, 48])
def test_patches_that_show_nothing(value: int, size: int) -> None:
    """Of one value, and without any data: one segment or more, the same pixels in all."""
    patch = {band: np.full((size, size), value, np.uint16) for band in ("B02", "B03", "B04", "B08")}
    segments = cut_segments(patch, list(patch), slic_segmentation(9, list(patch)))
    assert sum(int((segment["B02"] > 0).sum()) for segment in segments) == (size * size if value else 0)
    if not value:
        assert [segment["B02"].shape for segment in segments] == [(size, size)]


@pytest.mark.parametrize(
    ("change", "segmentation", "message"),
    [
        ({"B05": np.ones((36, 36), np.uint16)}, slic_segmentation(9, BANDS), "B05 of 36 x 36 .* 48 x 48 pixels"),
        ({"B05": np.ones((25, 25), np.uint16)}, grid_segmentation(2), "B05 of 25 x 25 .* 2 x 2 segments"),
    ],
)
def test_bands_that_do_not_fit(change: Patch, segmentation: dict[str, object], message: str) -> None:
    with pytest.raises(PgearthError, match=message) as caught:
        cut_segments(landscape(0) | change, BANDS, segmentation)
    assert caught.value.hint


@pytest.mark.parametrize("segmentation", [grid_segmentation(2), slic_segmentation(9, BANDS)])
def test_a_missing_band(segmentation: dict[str, object]) -> None:
    patch = landscape(0)
    del patch["B03"]
    with pytest.raises(PgearthError, match="missing band B03"):
        cut_segments(patch, BANDS, segmentation)


def test_the_same_cut() -> None:
    nine = slic_segmentation(9, BANDS)
    assert nine["library"].startswith("scikit-image ")
    assert same_cut(nine, nine | {"library": "scikit-image 0.1"})
    assert not same_cut(nine, slic_segmentation(8, BANDS))
    assert not same_cut(nine, grid_segmentation(3))
    assert not same_cut(grid_segmentation(2), grid_segmentation(3))


def test_imports() -> None:
    """The library is imported only where segments are cut, and brings no GDAL along, which PL/Python has its own of."""
    script = """
import sys
import pgearth.pyfuncs.pixels.segments
assert "skimage" not in sys.modules
import skimage.segmentation, pgearth.pyfuncs.pixels.segments as segments, numpy
segments.slic_masks({"a": numpy.eye(9)}, segments.slic_segmentation(2, ["a"]))
assert not {"rasterio", "osgeo", "shapely", "pyproj", "pyogrio", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
