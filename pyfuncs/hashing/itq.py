"""The `itq` hash: iterative quantisation (Gong and Lazebnik 2011), fitted by FAISS.

Standardised vectors are centred, projected on their principal components and rotated so that the signs lose least.
"""

from collections.abc import Mapping

import numpy as np

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing.projection import checked_sample, signs, standardisation, standardise


def fit(vectors: np.ndarray, bits: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Make the weights of a hash of `bits` bits from sample vectors (n, d); `seed` decides the rotation begun with.

    Returns `mean` (d) and `std` (d), float64, and `projection` (bits, d), float32. Raises PgearthError for an empty or
    non-finite sample, and for more bits than the vectors have features or than there are vectors.
    """
    import faiss

    sample = checked_sample(vectors)
    count, dimension = sample.shape
    if bits > min(count, dimension):
        raise PgearthError(
            f"cannot make {bits} bits of {count:,} vectors of {dimension} features by principal components",
            hint="There must be at least as many vectors, and features, as bits.",
        )
    weights = standardisation(sample)
    transform = faiss.ITQTransform(dimension, bits, True)
    transform.itq.seed = seed
    transform.train(standardise(weights, sample).astype(np.float32))
    # FAISS scales centred vectors to length 1, too, which changes no sign.
    centre = faiss.vector_to_array(transform.mean).astype(np.float64)
    return {
        "mean": weights["mean"] + weights["std"] * centre,
        "std": weights["std"],
        "projection": faiss.vector_to_array(transform.pca_then_itq.A).reshape(bits, dimension),
    }


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, bits) of bool; raises PgearthError when they have another dimension."""
    projection = weights["projection"].astype(np.float64)
    return signs(lambda inputs, product: product(projection, inputs), standardise(weights, vectors))
