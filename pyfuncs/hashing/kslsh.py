"""The `kslsh` hash: kernel-based supervised hashing (KSH; Liu, Wang, Ji, Jiang and Chang 2012, Supervised hashing with
kernels, CVPR), which remote sensing knows as KSLSH (Demir and Bruzzone 2016, Hashing-based scalable remote sensing
image search and retrieval in large archives, IEEE TGRS 54(2)).

A bit is the sign of a combination of kernels between the vector and anchors, some of the sample's vectors. Numbers of
equations below are those of Liu et al.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing.projection import (
    Product,
    checked_sample,
    fast_product,
    signs,
    standardisation,
    standardise,
)

Floats = NDArray[np.float64]

ANCHORS = 300  # as many as in section 5 of Liu et al.
SAMPLE = 2000  # likewise: vectors whose labels are compared
ITERATIONS = 30
SMALLEST_COMPONENT = 1e-3


def fit(vectors: np.ndarray, labels: np.ndarray, bits: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Make the weights of a hash of `bits` bits from sample vectors (n, d) and their labels, bool (n, classes).

    Vectors are alike where they share a label. `seed` draws SAMPLE vectors and, of these, ANCHORS. Returns `mean` (d)
    and `std` (d), float64; `anchors` (a, d), float32, standardised; `bandwidth` (1) and `kernel_mean` (a), float64; and
    `projection` (bits, a), float32. Raises PgearthError for an empty or non-finite sample, and where all vectors share
    a label or none do: then there is nothing to learn.
    """
    sample = checked_sample(vectors)
    chosen = np.random.default_rng(seed).permutation(len(sample))[:SAMPLE]
    similarity = similarities(labels[chosen])
    weights = standardisation(sample)
    inputs = standardise(weights, sample[chosen])
    weights["anchors"] = inputs[:ANCHORS].astype(np.float32)
    anchors = weights["anchors"].astype(np.float64)
    weights["bandwidth"] = squared_distances(anchors, inputs, fast_product).mean().reshape(1)
    kernels = radial_kernels(weights, inputs, fast_product)
    weights["kernel_mean"] = kernels.mean(axis=0)
    # Combinations of kernels are taken in a basis in which they are orthonormal over the sample. There the generalised
    # eigenproblem of (12) is an ordinary one, and what the kernels hardly differ in is left out.
    basis, scales, components = np.linalg.svd(kernels - weights["kernel_mean"], full_matrices=False)
    kept = scales > SMALLEST_COMPONENT * scales[0]
    coefficients = greedy_bits(basis[:, kept], similarity, bits)
    weights["projection"] = ((coefficients / scales[kept]) @ components[kept]).astype(np.float32)
    return weights


def similarities(labels: np.ndarray) -> Floats:
    """The pairwise label matrix S of (2), (n, n): 1 where two vectors share a label, -1 where they do not.

    Raises PgearthError where the one or the other is the same for all pairs.
    """
    indicators = labels.astype(np.float32)
    shared = indicators @ indicators.T > 0
    np.fill_diagonal(shared, True)
    pairs = len(labels) * (len(labels) - 1)
    alike = int(shared.sum()) - len(labels)
    if alike in (0, pairs):
        raise PgearthError(
            f"{'none' if alike == 0 else 'all'} of {len(labels):,} labelled vectors share a label",
            hint="Supervised hashing learns from vectors that share labels and vectors that do not: choose others.",
        )
    return np.where(shared, 1.0, -1.0)


def greedy_bits(basis: Floats, similarity: Floats, bits: int) -> Floats:
    """Coefficients (bits, b) of one bit after the other in an orthonormal basis (n, b): algorithm 1.

    Bit k makes the most of h'R h, (9), where h are its signs over the sample and R = bits S - sum of h h' of the bits
    before it: what of the similarity is still to be told.
    """
    from scipy.linalg import eigh
    from scipy.optimize import minimize

    count, size = basis.shape
    residual = bits * similarity
    relaxed = basis.T @ residual @ basis
    found = np.empty((bits, size))
    for number in range(bits):
        # Spectral relaxation (12): signs left out, the norm fixed.
        _, vectors = eigh(relaxed, subset_by_index=[size - 1, size - 1])
        start = vectors[:, 0] * np.sqrt(count)
        # Sigmoid smoothing (13): signs as 2 / (1 + exp(-x)) - 1 = tanh(x / 2).
        smooth = minimize(
            _smoothed, start, (basis, residual), method="L-BFGS-B", jac=True, options={"maxiter": ITERATIONS}
        ).x
        candidates = [(_signs(basis @ coefficients), coefficients) for coefficients in (start, smooth)]
        code, found[number] = max(candidates, key=lambda candidate: candidate[0] @ residual @ candidate[0])
        residual -= np.outer(code, code)
        projected = basis.T @ code
        relaxed -= np.outer(projected, projected)
    return found


def _smoothed(coefficients: Floats, basis: Floats, residual: Floats) -> tuple[float, Floats]:
    """The objective (14), to be minimised, and its gradient (15)."""
    outputs = np.tanh(basis @ coefficients / 2)
    towards = residual @ outputs
    return -float(outputs @ towards), -basis.T @ (towards * (1 - outputs**2))


def _signs(scores: Floats) -> Floats:
    return np.where(scores > 0, 1.0, -1.0)


def radial_kernels(weights: Mapping[str, np.ndarray], inputs: Floats, product: Product) -> Floats:
    """Radial basis functions exp(-|x - a|^2 / (2 bandwidth)), (n, a), of standardised inputs (n, d) and anchors a."""
    squared = squared_distances(weights["anchors"].astype(np.float64), inputs, product)
    return np.exp(squared / (-2 * weights["bandwidth"]))


def squared_distances(anchors: Floats, inputs: Floats, product: Product) -> Floats:
    """Squared Euclidean distances (n, a) of inputs (n, d) to anchors (a, d)."""
    lengths = np.square(inputs).sum(axis=1, keepdims=True) + np.square(anchors).sum(axis=1)
    return np.maximum(lengths - 2 * product(anchors, inputs), 0)


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, bits) of bool, computed in float64.

    Raises PgearthError when the vectors have another dimension than the hash.
    """
    projection = weights["projection"].astype(np.float64)

    def scores(inputs: np.ndarray, product: Product) -> np.ndarray:
        return product(projection, radial_kernels(weights, inputs, product) - weights["kernel_mean"])

    return signs(scores, standardise(weights, vectors))
