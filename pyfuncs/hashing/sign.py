"""The `sign` hash, a "binary embedding": each feature's sign about its median, so a bit per feature.

Blumenstiel et al. 2024 (Multi-spectral remote sensing image retrieval using geospatial foundation models) take the
signs of features that lie about 0; the median serves features that lie anywhere, and makes each bit as often 1 as 0.
"""

from collections.abc import Mapping

import numpy as np

from pgearth.pyfuncs.hashing.projection import check_dimension, checked_sample


def fit(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Make the weights, `median` (d), float64, from sample vectors (n, d).

    Raises PgearthError for an empty or non-finite sample.
    """
    return {"median": np.median(checked_sample(vectors), axis=0)}


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, d) of bool; raises PgearthError when they have another dimension."""
    check_dimension(vectors, len(weights["median"]))
    return vectors > weights["median"]
