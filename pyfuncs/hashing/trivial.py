"""The `trivial` hash: average, then sign.

Bit j is the sign of the average of the features j, j + bits, j + 2 bits, ..., as in the code of Blumenstiel et al. 2024
(Multi-spectral remote sensing image retrieval using geospatial foundation models); they compare it with 0, which is
where their features lie, here it is compared with its average over the sample.
"""

from collections.abc import Mapping

import numpy as np

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing.projection import check_dimension, checked_sample


def fit(vectors: np.ndarray, bits: int = 128) -> dict[str, np.ndarray]:
    """Make the weights, `mean` (d / bits, bits), float64, from sample vectors (n, d): a row per feature of a group.

    Raises PgearthError for an empty or non-finite sample, and where `bits` does not divide d.
    """
    sample = checked_sample(vectors)
    dimension = sample.shape[1]
    if dimension % bits:
        raise PgearthError(
            f"cannot average {dimension} features in {bits} groups of one size",
            hint=f"The number of bits must divide {dimension}.",
        )
    return {"mean": sample.mean(axis=0).reshape(-1, bits)}


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, bits) of bool; raises PgearthError when they have another dimension."""
    mean = weights["mean"]
    check_dimension(vectors, mean.size)
    return (vectors.reshape(-1, *mean.shape) - mean).mean(axis=1) > 0
