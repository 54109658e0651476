"""The `lsh` hash: signs of random projections of standardised vectors (Charikar 2002)."""

from collections.abc import Mapping

import numpy as np

from pyfuncs.errors import PgearthError


def fit(vectors: np.ndarray, bits: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Make the weights of a hash of `bits` bits from sample vectors (n, d).

    Returns `mean` (d) and `std` (d), float64, 1 where a feature is constant, and `hyperplanes` (bits, d), float32,
    standard normal from `seed`. Raises PgearthError for an empty or non-finite sample.
    """
    sample = np.asarray(vectors, np.float64)
    if sample.ndim != 2 or not sample.size:
        raise PgearthError(f"cannot fit a hash to vectors of shape {sample.shape}", hint="Encode some patches first.")
    if not np.isfinite(sample).all():
        raise PgearthError("cannot fit a hash to vectors that are not finite")
    # The std of equal numbers can be a rounding error instead of 0: compare the numbers themselves.
    constant = (sample == sample[0]).all(axis=0)
    hyperplanes = np.random.default_rng(seed).standard_normal((bits, sample.shape[1]), np.float32)
    return {"mean": sample.mean(axis=0), "std": np.where(constant, 1.0, sample.std(axis=0)), "hyperplanes": hyperplanes}


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, bits) of bool: is the standardised vector on each hyperplane's positive side?

    Computed in float64. Raises PgearthError when the vectors have another dimension than the hash.
    """
    hyperplanes = weights["hyperplanes"].astype(np.float64)
    bits, dimension = hyperplanes.shape
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise PgearthError(f"the hash takes vectors of {dimension} dimensions, not of shape {vectors.shape}")
    codes = np.empty((len(vectors), bits), bool)
    # Row by row and without BLAS, whose rounding depends on the batch and on the threads: a code computed today
    # must equal the one stored last year.
    for code, vector in zip(codes, (vectors - weights["mean"]) / weights["std"], strict=True):
        code[:] = (hyperplanes * vector).sum(axis=1) > 0
    return codes
