"""What the hash functions share: standardised vectors, and signs of scores that do not depend on the batch."""

from collections.abc import Callable, Mapping

import numpy as np

from pgearth.pyfuncs.errors import PgearthError

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(matrix (m, d), vectors (n, d)) to their products (n, m)."""

ROUNDING = 1e-9
"""Bound of what rounding in float64 does to a score, relative to 1 + the squared norm of the vector: a wide one."""


def checked_sample(vectors: np.ndarray) -> np.ndarray:
    """Sample vectors (n, d) as float64; raises PgearthError for an empty or non-finite sample."""
    sample = np.asarray(vectors, np.float64)
    if sample.ndim != 2 or not sample.size:
        raise PgearthError(f"cannot fit a hash to vectors of shape {sample.shape}", hint="Encode some patches first.")
    if not np.isfinite(sample).all():
        raise PgearthError(
            "cannot fit a hash to vectors that are not finite", hint="Leave out the vectors that have NaN or infinity."
        )
    return sample


def standardisation(sample: np.ndarray) -> dict[str, np.ndarray]:
    """`mean` (d) and `std` (d) of a sample (n, d), float64; std is 1 where a feature is constant."""
    # The std of equal numbers can be a rounding error instead of 0: compare the numbers themselves.
    constant = (sample == sample[0]).all(axis=0)
    return {"mean": sample.mean(axis=0), "std": np.where(constant, 1.0, sample.std(axis=0))}


def standardise(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) less `mean`, by `std`, in float64; raises PgearthError when they have another dimension."""
    check_dimension(vectors, len(weights["mean"]))
    return (vectors - weights["mean"]) / weights["std"]


def check_dimension(vectors: np.ndarray, dimension: int) -> None:
    """Raise PgearthError unless vectors are (n, dimension)."""
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise PgearthError(
            f"the hash takes vectors of {dimension} dimensions, not of shape {vectors.shape}",
            hint="Give it vectors of the encoder whose vectors its weights were made of.",
        )


def signs(scores: Callable[[np.ndarray, Product], np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Which scores (n, bits) of vectors (n, d) are positive; `scores` is given the product to compute them with.

    BLAS rounds by the batch and by the threads, but a code computed today must equal the one stored last year. So the
    vectors with a score too near to 0 for its sign to be sure are computed again, each alone, in an order that is
    always the same.
    """
    found = scores(vectors, fast_product)
    unsure = np.abs(found) <= ROUNDING * (1 + np.square(vectors).sum(axis=1, keepdims=True))
    for number in np.flatnonzero(unsure.any(axis=1)):
        found[number] = scores(vectors[number : number + 1], _exact_product)
    return found > 0


def fast_product(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Products (n, m) of a matrix (m, d) and vectors (n, d) by BLAS."""
    return vectors @ matrix.T


def _exact_product(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.stack([(matrix * vector).sum(axis=1) for vector in vectors])
