"""The spectral encoder against numpy, scipy and plain loops, feature by feature."""

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.spectral import BANDS, DIMENSION, FEATURE_NAMES, features

Patch = dict[str, np.ndarray]

COARSENESS = {"B02": 1, "B03": 1, "B04": 1, "B08": 1, "B01": 6, "B09": 6}  # pixel side over 10 m; the others: 2


def stacked(patches: list[Patch]) -> Patch:
    return {band: np.stack([patch[band] for patch in patches]) for band in BANDS}


def named(vector: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, vector.tolist(), strict=True))


@pytest.fixture(scope="module")
def patches(sample: Path) -> list[Patch]:
    """Real patches, one of them with a strip and some scattered pixels of no data."""
    folders = sorted((sample / "bigearthnet-v1" / "S2").iterdir())
    patches = []
    for folder in folders:
        patch = {}
        for band in BANDS:
            with rasterio.open(folder / f"{folder.name}_{band}.tif") as dataset:
                patch[band] = dataset.read(1)
        patches.append(patch)
    scattered = np.random.default_rng(1)
    holed = {band: pixels.copy() for band, pixels in patches[0].items()}
    for pixels in holed.values():
        pixels[:, : pixels.shape[1] // 5] = 0
        pixels[scattered.random(pixels.shape) < 0.1] = 0
    return [*patches, holed]


@pytest.fixture(scope="module")
def vectors(patches: list[Patch]) -> np.ndarray:
    return features(stacked(patches))


def test_shape_and_names(vectors: np.ndarray, patches: list[Patch]) -> None:
    assert vectors.shape == (len(patches), 128)
    assert vectors.dtype == np.float32
    assert DIMENSION == 128
    assert len(set(FEATURE_NAMES)) == 128
    assert np.isfinite(vectors).all()


def test_real_patches_differ(vectors: np.ndarray) -> None:
    assert len(np.unique(vectors, axis=0)) == len(vectors)


def check_distribution(feature: dict[str, float], prefix: str, values: np.ndarray, percentiles: list[int]) -> None:
    assert feature[f"{prefix}_mean"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
    assert feature[f"{prefix}_std"] == pytest.approx(values.std(), rel=1e-5, abs=1e-6)
    for percentile in percentiles:
        expected = np.percentile(values, percentile)
        assert feature[f"{prefix}_p{percentile:02d}"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("band", BANDS)
def test_band_statistics(vectors: np.ndarray, patches: list[Patch], band: str) -> None:
    for vector, patch in zip(vectors, patches, strict=True):
        values = patch[band][patch[band] != 0] / 10_000
        check_distribution(named(vector), band, values, [5, 25, 50, 75, 95])
        assert named(vector)[f"{band}_skewness"] == pytest.approx(scipy.stats.skew(values), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("index", "first", "second"), [("NDVI", "B08", "B04"), ("NDWI", "B03", "B08")])
def test_index_statistics(vectors: np.ndarray, patches: list[Patch], index: str, first: str, second: str) -> None:
    for vector, patch in zip(vectors, patches, strict=True):
        a, b = (patch[band].astype(float) for band in (first, second))
        valid = (a != 0) & (b != 0)
        check_distribution(named(vector), index, (a[valid] - b[valid]) / (a[valid] + b[valid]), [10, 50, 90])


def test_index_of_bands_at_two_resolutions(vectors: np.ndarray, patches: list[Patch]) -> None:
    for vector, patch in zip(vectors, patches, strict=True):
        values = [
            (float(patch["B11"][row // 2, column // 2]) - near) / (float(patch["B11"][row // 2, column // 2]) + near)
            for (row, column), near in np.ndenumerate(patch["B08"].astype(float))
            if near and patch["B11"][row // 2, column // 2]
        ]
        check_distribution(named(vector), "NDBI", np.array(values), [10, 50, 90])


def test_indices_by_hand() -> None:
    bands = {band: np.full((1, 4, 4), 1000, np.uint16) for band in BANDS}
    bands["B08"][:] = 3000
    bands["B11"] = np.full((1, 2, 2), 500, np.uint16)
    feature = named(features(bands)[0])
    assert feature["NDVI_mean"] == 0.5  # (3000 - 1000) / 4000
    assert feature["NDWI_p50"] == -0.5
    assert feature["NDBI_p90"] == pytest.approx(-2500 / 3500)
    assert feature["NDVI_std"] == 0


def slow_gradients(band: np.ndarray) -> list[tuple[float, float]]:
    """Gradients of the pixels where every pixel that they look at, and the pixel itself, is valid."""
    image = np.where(band == 0, np.nan, band / 10_000)
    rows, columns = image.shape
    gradients = []
    for row in range(rows):
        for column in range(columns):
            left, right = max(column - 1, 0), min(column + 1, columns - 1)
            above, below = max(row - 1, 0), min(row + 1, rows - 1)
            x = (image[row, right] - image[row, left]) / (right - left)
            y = (image[below, column] - image[above, column]) / (below - above)
            if not np.isnan([x, y, image[row, column]]).any():
                gradients.append((x, y))
    return gradients


@pytest.mark.parametrize("number", [0, -1], ids=["whole", "with no data"])
@pytest.mark.parametrize("band", ["B04", "B08"])
def test_gradient_orientations(patches: list[Patch], band: str, number: int) -> None:
    # The loop's arc tangent puts exact multiples of 45 degrees on either side of a border, so break them by tiny noise.
    noise = np.random.default_rng(2).normal(0, 1e-6, patches[number][band].shape)
    patch = patches[number] | {band: np.where(patches[number][band] == 0, 0, patches[number][band] + noise)}
    feature = named(features(stacked([patch]))[0])
    gradients = slow_gradients(patch[band])
    histogram = np.zeros(8)
    for x, y in gradients:
        histogram[int(math.degrees(math.atan2(y, x)) % 360 // 45)] += math.hypot(x, y)
    histogram /= histogram.sum()
    result = [feature[f"{band}_orientation_{angle:03d}"] for angle in range(0, 360, 45)]
    np.testing.assert_allclose(result, histogram, rtol=1e-5)


def test_relative_gradient(vectors: np.ndarray, patches: list[Patch]) -> None:
    for number in (0, -1):
        near_infrared = patches[number]["B08"]
        expected = np.mean([math.hypot(x, y) for x, y in slow_gradients(near_infrared)])
        expected /= near_infrared[near_infrared != 0].mean() / 10_000
        assert named(vectors[number])["B08_relative_gradient"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("angle", range(0, 360, 45))
def test_ramp_falls_into_the_bin_of_its_direction(angle: int) -> None:
    """Also on the borders of bins: a bin holds its lower border."""
    step_x, step_y = round(math.cos(math.radians(angle)) * 1.9), round(math.sin(math.radians(angle)) * 1.9)
    step_x, step_y = np.sign(step_x), np.sign(step_y)
    rows, columns = np.indices((16, 16))
    bands = {band: np.full((1, 16, 16), 500) for band in BANDS}
    bands["B08"] = (1000 + 10 * (step_x * columns + step_y * rows))[None]
    feature = named(features(bands)[0])
    assert feature[f"B08_orientation_{angle:03d}"] == pytest.approx(1)


def test_torch_agrees(vectors: np.ndarray, patches: list[Patch]) -> None:
    tensors = {band: torch.from_numpy(pixels.astype(np.int32)) for band, pixels in stacked(patches).items()}
    result = features(tensors)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), vectors, rtol=1e-5, atol=1e-5)


def digital_numbers(side: int) -> st.SearchStrategy[np.ndarray]:
    elements = st.sampled_from([0, 0, 1, 2, 3, 9999, 65535]) | st.integers(0, 10_000)
    return arrays(np.uint16, (5, side, side), elements=elements)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from([1, 2, 5, 12]))
def test_a_patch_gets_the_same_bits_alone_as_in_a_batch(data: st.DataObject, side: int) -> None:
    bands = {band: data.draw(digital_numbers(side * 6 // COARSENESS.get(band, 2))) for band in ("B08", "B11", "B01")}
    bands |= dict.fromkeys(("B02", "B03", "B04"), bands["B08"][:, ::-1])
    bands |= dict.fromkeys(("B05", "B06", "B07", "B8A", "B12"), bands["B11"]) | {"B09": bands["B01"]}
    together = features(bands)
    assert np.isfinite(together).all()
    for number in range(5):
        alone = features({band: pixels[number : number + 1] for band, pixels in bands.items()})
        assert alone.tobytes() == together[number : number + 1].tobytes()


def test_real_patches_get_the_same_bits_alone_as_in_a_batch(vectors: np.ndarray, patches: list[Patch]) -> None:
    for patch, vector in zip(patches, vectors, strict=True):
        assert features(stacked([patch]))[0].tobytes() == vector.tobytes()


@pytest.mark.parametrize("value", [1, 333, 10_000, 65_535])
def test_constant_image(value: int) -> None:
    with np.errstate(all="raise"):
        feature = named(features({band: np.full((1, 7, 7), value, np.uint16) for band in BANDS})[0])
    assert feature["B05_mean"] == pytest.approx(value / 10_000)
    assert feature["B05_skewness"] == 0
    assert [feature[f"B04_orientation_{angle:03d}"] for angle in range(0, 360, 45)] == [0] * 8
    assert np.isfinite(list(feature.values())).all()


def test_all_nodata_gives_zeros() -> None:
    assert not features({band: np.zeros((2, 6, 6), np.uint16) for band in BANDS}).any()


def test_nodata_band_leaves_the_others_alone(vectors: np.ndarray, patches: list[Patch]) -> None:
    feature = named(features(stacked([patches[0] | {"B01": np.zeros_like(patches[0]["B01"])}]))[0])
    for name, expected in named(vectors[0]).items():
        assert feature[name] == (0 if name.startswith("B01") else expected)


def test_other_nodata_values() -> None:
    numbers = np.random.default_rng(3).integers(1, 5000, (1, 12, 12))
    holes = np.random.default_rng(4).random(numbers.shape) < 0.3
    expected = features(dict.fromkeys(BANDS, np.where(holes, 0, numbers)))
    for nodata in (-9999, np.nan, np.inf):
        marked = np.where(holes, nodata, numbers.astype(float))
        np.testing.assert_array_equal(features(dict.fromkeys(BANDS, marked), nodata=-9999), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_smallest_images_are_finite(shape: tuple[int, int]) -> None:
    assert np.isfinite(
        features(dict.fromkeys(BANDS, np.arange(1, 6, dtype=np.uint16)[: math.prod(shape)].reshape(1, *shape)))
    ).all()


def test_negative_reflectance_keeps_the_indices_in_range() -> None:
    numbers = np.random.default_rng(5).normal(0, 100, (1, 9, 9))
    feature = named(features({band: np.roll(numbers, n, axis=1) for n, band in enumerate(BANDS)})[0])
    for index in ("NDVI", "NDWI", "NDBI"):
        assert -1 <= feature[f"{index}_p10"] <= feature[f"{index}_p90"] <= 1


def test_index_leaves_out_pixels_whose_sum_is_not_positive() -> None:
    bands = {band: np.array([[[300.0, -500.0, 100.0]]]) for band in BANDS}
    bands["B04"] = np.array([[[100.0, 300.0, -100.0]]])
    with np.errstate(all="raise"):
        feature = named(features(bands)[0])
    assert (feature["NDVI_mean"], feature["NDVI_std"]) == (0.5, 0)  # of the first pixel alone: (300 - 100) / 400


def test_missing_bands_are_named() -> None:
    bands = {band: np.ones((1, 2, 2)) for band in BANDS if band not in ("B8A", "B09")}
    with pytest.raises(PgearthError, match="missing band B8A, B09"):
        features(bands)
