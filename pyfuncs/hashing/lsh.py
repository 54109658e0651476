"""The `lsh` hash: signs of random projections of standardised vectors (Charikar 2002)."""

from collections.abc import Mapping

import numpy as np

from pgearth.pyfuncs.hashing.projection import checked_sample, signs, standardisation, standardise


def fit(vectors: np.ndarray, bits: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Make the weights of a hash of `bits` bits from sample vectors (n, d).

    Returns `mean` (d) and `std` (d), float64, 1 where a feature is constant, and `hyperplanes` (bits, d), float32,
    standard normal from `seed`. Raises PgearthError for an empty or non-finite sample.
    """
    sample = checked_sample(vectors)
    hyperplanes = np.random.default_rng(seed).standard_normal((bits, sample.shape[1]), np.float32)
    return standardisation(sample) | {"hyperplanes": hyperplanes}


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, bits) of bool: is the standardised vector on each hyperplane's positive side?

    Computed in float64. Raises PgearthError when the vectors have another dimension than the hash.
    """
    hyperplanes = weights["hyperplanes"].astype(np.float64)
    return signs(lambda inputs, product: product(hyperplanes, inputs), standardise(weights, vectors))
