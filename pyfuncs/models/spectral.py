"""The `spectral` encoder: hand-crafted features of a Sentinel-2 patch; nothing is trained.

Spectral statistics per band, statistics of three indices and a texture of gradient orientations, the kinds of features
that the unsupervised methods of Deep Earth Query rest on. One implementation serves every array library of the array
API standard (numpy, torch). Each patch's numbers are reduced along its own contiguous row, so on numpy a patch gets the
same bits alone as in a batch.
"""

from collections.abc import Mapping
from typing import Any

from array_api_compat import array_namespace

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import NODATA, resample

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""The bands of a BigEarthNet patch: all of Sentinel-2 but the cirrus band B10."""

INDICES = {
    "NDVI": ("B08", "B04"),  # Rouse et al. 1974: vegetation
    "NDWI": ("B03", "B08"),  # McFeeters 1996: open water
    "NDBI": ("B11", "B08"),  # Zha, Gao and Ni 2003: built-up area
}
"""Normalised differences (first - second) / (first + second)."""

TEXTURE_BANDS = ("B04", "B08")
REFLECTANCE_SCALE = 10_000.0  # digital numbers per unit of reflectance in Sentinel-2 L2A
BAND_PERCENTILES = (5, 25, 50, 75, 95)
INDEX_PERCENTILES = (10, 50, 90)

FEATURE_NAMES = (
    *(
        f"{band}_{statistic}"
        for band in BANDS
        for statistic in (*(f"p{percentile:02d}" for percentile in BAND_PERCENTILES), "mean", "std", "skewness")
    ),
    *(
        f"{index}_{statistic}"
        for index in INDICES
        for statistic in ("mean", "std", *(f"p{percentile}" for percentile in INDEX_PERCENTILES))
    ),
    *(f"{band}_orientation_{45 * octant:03d}" for band in TEXTURE_BANDS for octant in range(8)),
    "B08_relative_gradient",
)
"""What each of the 128 numbers of a vector is, in order."""

DIMENSION = len(FEATURE_NAMES)


def features(bands: Mapping[str, Any], nodata: float = NODATA) -> Any:
    """Compute the vectors (n, 128), float32, of n patches.

    `bands` maps each name in BANDS to digital numbers (n, height, width); resolutions may differ between bands. Pixels
    that equal `nodata` or are not finite are left out of every statistic; statistics of no pixels are 0. Computed in
    float64. Raises PgearthError when a band is missing.
    """
    missing = [name for name in BANDS if name not in bands]
    if missing:
        raise PgearthError(
            f"missing band {', '.join(missing)}", hint=f"The spectral encoder needs the bands {', '.join(BANDS)}."
        )
    xp = array_namespace(*(bands[name] for name in BANDS))
    numbers = {name: _with_nan(xp, bands[name], nodata) for name in BANDS}
    columns = []
    for name in BANDS:
        values = _rows(xp, numbers[name]) / REFLECTANCE_SCALE
        columns += [_percentiles(xp, values, BAND_PERCENTILES), *_moments(xp, values)]
    for first, second in INDICES.values():
        values = _rows(xp, _normalised_difference(xp, numbers[first], numbers[second]))
        columns += [*_moments(xp, values)[:2], _percentiles(xp, values, INDEX_PERCENTILES)]
    for name in TEXTURE_BANDS:
        columns.append(_orientations(xp, *_gradient(xp, numbers[name])))
    columns.append(_relative_gradient(xp, numbers["B08"]))
    return xp.astype(xp.concat(columns, axis=1), xp.float32)


def _with_nan(xp: Any, band: Any, nodata: float) -> Any:
    """Digital numbers in float64, NaN where there is no data."""
    numbers = xp.astype(band, xp.float64)
    return xp.where(xp.isfinite(numbers) & (numbers != nodata), numbers, xp.nan)


def _rows(xp: Any, images: Any) -> Any:
    """(n, height, width) as (n, pixels)."""
    return xp.reshape(images, (images.shape[0], images.shape[1] * images.shape[2]))


def _count(xp: Any, values: Any) -> Any:
    return xp.sum(xp.astype(~xp.isnan(values), xp.float64), axis=1, keepdims=True)


def _mean(xp: Any, values: Any) -> Any:
    """Means (n, 1) of the numbers in each row that are not NaN."""
    total = xp.sum(xp.where(xp.isnan(values), 0.0, values), axis=1, keepdims=True)
    return total / xp.clip(_count(xp, values), min=1.0)


def _moments(xp: Any, values: Any) -> tuple[Any, Any, Any]:
    """Mean, population standard deviation and (biased) skewness, each (n, 1); the skewness of a constant is 0."""
    mean = _mean(xp, values)
    deviation = values - mean
    square = deviation * deviation
    variance = _mean(xp, square)
    third_moment = _mean(xp, square * deviation)
    varies = variance > (xp.finfo(xp.float64).eps * mean) ** 2  # else the deviations are only rounding errors
    std = xp.sqrt(variance)
    return mean, std, third_moment / xp.where(varies, variance * std, xp.inf)


def _percentiles(xp: Any, values: Any, percentiles: tuple[int, ...]) -> Any:
    """Percentiles (n, k) of the numbers in each row that are not NaN, interpolated as in numpy.percentile."""
    nan_last = xp.sort(xp.where(xp.isnan(values), xp.finfo(xp.float64).max, values), axis=1)
    count = _count(xp, values)
    last = xp.clip(count - 1.0, min=0.0)
    position = xp.concat([last * (percentile / 100.0) for percentile in percentiles], axis=1)
    below = xp.floor(position)
    above = xp.minimum(below + 1.0, last)
    low = xp.take_along_axis(nan_last, xp.astype(below, xp.int64), axis=1)
    high = xp.take_along_axis(nan_last, xp.astype(above, xp.int64), axis=1)
    return xp.where(count > 0, low + (high - low) * (position - below), 0.0)


def _normalised_difference(xp: Any, first: Any, second: Any) -> Any:
    """(first - second) / (first + second) in [-1, 1] on the finer of the two grids, NaN unless the sum is positive."""
    shape = (max(first.shape[1], second.shape[1]), max(first.shape[2], second.shape[2]))
    first, second = resample(first, shape), resample(second, shape)
    total = first + second
    difference = (first - second) / xp.where(total > 0, total, xp.nan)
    return xp.clip(difference, min=-1.0, max=1.0)


def _gradient(xp: Any, images: Any) -> tuple[Any, Any]:
    """Gradients along columns and rows, as numpy.gradient: central differences, one-sided at the edges.

    NaN where a pixel or one of the neighbours used is NaN.
    """
    along_columns = _difference(xp, images)
    along_rows = xp.matrix_transpose(_difference(xp, xp.matrix_transpose(images)))
    absent = xp.isnan(images)  # a central difference does not look at its own pixel
    return xp.where(absent, xp.nan, along_columns), xp.where(absent, xp.nan, along_rows)


def _difference(xp: Any, images: Any) -> Any:
    if images.shape[-1] == 1:
        return images - images
    first = images[..., 1:2] - images[..., :1]
    last = images[..., -1:] - images[..., -2:-1]
    return xp.concat([first, (images[..., 2:] - images[..., :-2]) / 2.0, last], axis=-1)


def _orientations(xp: Any, along_columns: Any, along_rows: Any) -> Any:
    """Histograms (n, 8) of gradient orientation weighted by magnitude, each summing to 1, or all 0 for a flat image.

    Bin k holds the angles [45 k, 45 (k + 1)) degrees, counted from the direction of growing columns towards growing
    rows. Signs and comparisons place them, not an arc tangent, and digital numbers are whole: so multiples of 45
    degrees, which are frequent, fall alike in every library.
    """
    x, y = _rows(xp, along_columns), _rows(xp, along_rows)
    magnitude = xp.sqrt(x * x + y * y)
    weights = []
    for ahead, aside in ((x, y), (y, -x), (-x, -y), (-y, x)):  # the frame turned by 0, 90, 180, 270 degrees
        quadrant = (ahead > 0) & (aside >= 0)
        for octant in (quadrant & (aside < ahead), quadrant & (aside >= ahead)):
            weights.append(xp.sum(xp.where(octant, magnitude, 0.0), axis=1, keepdims=True))
    histogram = xp.concat(weights, axis=1)
    total = xp.sum(histogram, axis=1, keepdims=True)
    return histogram / xp.where(total > 0, total, 1.0)


def _relative_gradient(xp: Any, images: Any) -> Any:
    """Mean gradient magnitude (n, 1) over the mean of the image, 0 where that mean is not positive."""
    x, y = _gradient(xp, images)
    mean = _mean(xp, _rows(xp, images))
    magnitude = _mean(xp, _rows(xp, xp.sqrt(x * x + y * y)))
    return xp.where(mean > 0, magnitude / xp.where(mean > 0, mean, 1.0), 0.0)
