"""Hash functions against their definitions, against FAISS and against slow literal forms of their objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import itq, kslsh, lsh, milan, sign, trivial
from pgearth.pyfuncs.hashing.projection import fast_product, signs

Weights = Mapping[str, np.ndarray]
DIMENSION = 12


def labelled(count: int = 120, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of features of very different scales, and labels that some of the features decide."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, DIMENSION)).astype(np.float32)
    labels = np.stack(
        [vectors[:, 0] > 0.3, vectors[:, 1] > 0.3, (vectors[:, 0] <= 0.3) & (vectors[:, 1] <= 0.3)], axis=1
    )
    return vectors * np.logspace(-3, 3, DIMENSION, dtype=np.float32) + 5, labels


def milan_weights(vectors: np.ndarray, bits: int) -> Weights:
    """A network that nobody trained."""
    random = np.random.default_rng(1)
    sizes = [vectors.shape[1], 9, 7, bits]
    weights = {"mean": vectors.mean(axis=0), "std": vectors.std(axis=0)}
    for layer, inputs, outputs in zip(milan.LAYERS, sizes, sizes[1:], strict=False):
        weights[f"{layer}.weight"] = random.normal(size=(outputs, inputs)).astype(np.float32)
        weights[f"{layer}.bias"] = random.normal(size=outputs).astype(np.float32)
    return weights


VECTORS, LABELS = labelled()
FITTED: dict[str, tuple[Weights, Callable[[Weights, np.ndarray], np.ndarray]]] = {
    "lsh": (lsh.fit(VECTORS, 16, seed=1), lsh.hash_codes),
    "itq": (itq.fit(VECTORS, 8, seed=1), itq.hash_codes),
    "kslsh": (kslsh.fit(VECTORS, LABELS, 16, seed=1), kslsh.hash_codes),
    "sign": (sign.fit(VECTORS), sign.hash_codes),
    "trivial": (trivial.fit(VECTORS, 4), trivial.hash_codes),
    "milan": (milan_weights(VECTORS, 16), milan.hash_codes),
}
every_hash = pytest.mark.parametrize(("weights", "hash_codes"), FITTED.values(), ids=FITTED)


@every_hash
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_code_does_not_depend_on_the_batch(
    weights: Weights, hash_codes: Callable[..., np.ndarray], count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = VECTORS[random.integers(len(VECTORS), size=count)] * random.choice([1, 1e4], (count, 1)).astype(
        np.float32
    )
    vectors = np.concatenate([vectors, weights.get("mean", weights.get("median")).reshape(1, -1), vectors[::-1]])
    together = hash_codes(weights, vectors)
    assert together.dtype == bool
    np.testing.assert_array_equal(np.concatenate([hash_codes(weights, vector[None]) for vector in vectors]), together)
    np.testing.assert_array_equal(together[:count], together[:count:-1])


@every_hash
def test_vectors_of_another_dimension_are_refused(weights: Weights, hash_codes: Callable[..., np.ndarray]) -> None:
    with pytest.raises(PgearthError, match=rf"takes vectors of {DIMENSION} dimensions, not of shape \(2, 13\)"):
        hash_codes(weights, np.ones((2, 13)))


@pytest.mark.parametrize("sample", [np.empty((0, 8)), np.ones(8), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
@pytest.mark.parametrize(
    "fit",
    [lsh.fit, itq.fit, sign.fit, lambda sample: trivial.fit(sample, 1), lambda sample: kslsh.fit(sample, LABELS)],
)
def test_unusable_sample_is_refused(fit: Callable[[np.ndarray], Weights], sample: np.ndarray) -> None:
    with pytest.raises(PgearthError, match="cannot fit a hash"):
        fit(sample)


def test_scores_whose_sign_rounding_decides_are_computed_alone() -> None:
    """Sums that are exactly 0, but not in every order of adding."""
    matrix = np.array([[0.1, 0.2, -0.3, 1e-16], [1.0, 1.0, 1.0, 1.0]])
    vectors = np.ones((5, 4))
    batches = []

    def scores(inputs: np.ndarray, product: Callable[..., np.ndarray]) -> np.ndarray:
        batches.append((len(inputs), product is fast_product))
        return product(matrix, inputs)

    expected = (matrix * vectors[0]).sum(axis=1) > 0
    np.testing.assert_array_equal(signs(scores, vectors), np.tile(expected, (5, 1)))
    assert batches == [(5, True)] + [(1, False)] * 5
    batches.clear()
    signs(scores, np.array([[1.0, 2, 3, 4]]))
    assert batches == [(1, True)]


def test_itq_is_faiss_own() -> None:
    """FAISS trained on the same standardised vectors and applied by itself."""
    random = np.random.default_rng(5)
    vectors = (random.normal(size=(400, 10)) @ random.normal(size=(10, 24)) + random.normal(size=24)).astype(np.float32)
    standardised = ((vectors - vectors.mean(axis=0, dtype=float)) / vectors.std(axis=0, dtype=float)).astype(np.float32)
    transform = faiss.ITQTransform(24, 10, True)
    transform.itq.seed = 7
    transform.train(standardised)
    scores = transform.apply(standardised)
    decided = np.abs(scores) > 1e-4
    assert decided.mean() > 0.99
    codes = itq.hash_codes(itq.fit(vectors, 10, seed=7), vectors)
    np.testing.assert_array_equal(codes[decided], (scores > 0)[decided])
    # the rotation loses less than principal components as they are
    assert quantisation_error(scores) < quantisation_error(principal_components(standardised, 10))
    assert (itq.fit(vectors, 10, seed=8)["projection"] != itq.fit(vectors, 10, seed=7)["projection"]).any()


def principal_components(vectors: np.ndarray, count: int) -> np.ndarray:
    """Scores, by numpy."""
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, -count:]


def quantisation_error(scores: np.ndarray) -> float:
    return float(np.square(np.sign(scores) - scores).sum())


@pytest.mark.parametrize(("count", "bits"), [(100, 13), (7, 8)])
def test_itq_of_too_few_vectors_or_features_is_refused(count: int, bits: int) -> None:
    with pytest.raises(PgearthError, match=f"cannot make {bits} bits of {count} vectors of 12 features"):
        itq.fit(VECTORS[:count], bits)


def test_sign_is_about_the_median() -> None:
    weights, hash_codes = FITTED["sign"]
    codes = hash_codes(weights, VECTORS)
    np.testing.assert_array_equal(codes, np.median(VECTORS.astype(float), axis=0) < VECTORS)
    assert (codes.sum(axis=0) == len(VECTORS) / 2).all()
    assert not hash_codes(sign.fit(np.ones((5, 3))), np.ones((1, 3))).any()


def test_trivial_averages_every_so_many_features() -> None:
    weights, hash_codes = FITTED["trivial"]
    centred = VECTORS.astype(float) - VECTORS.astype(float).mean(axis=0)
    expected = np.stack([centred[:, [bit, bit + 4, bit + 8]].mean(axis=1) > 0 for bit in range(4)], axis=1)
    np.testing.assert_array_equal(hash_codes(weights, VECTORS), expected)
    with pytest.raises(PgearthError, match="cannot average 12 features in 5 groups") as error:
        trivial.fit(VECTORS, 5)
    assert "must divide 12" in str(error.value.hint)


def objective(codes: np.ndarray, similarity: np.ndarray) -> float:
    """Equation (7) of Liu et al. 2012, of codes (n, bits) of -1 and 1."""
    return float(np.square(codes @ codes.T - codes.shape[1] * similarity).sum())


def test_kslsh_bits_are_greedy() -> None:
    """Each bit lowers the objective, by more than the best of many random combinations of kernels would have."""
    weights = kslsh.fit(VECTORS, LABELS, bits=6, seed=2)
    codes = np.where(kslsh.hash_codes(weights, VECTORS), 1.0, -1.0)
    similarity = np.array(
        [[1.0 if i == j or (LABELS[i] & LABELS[j]).any() else -1.0 for j in range(120)] for i in range(120)]
    )
    np.testing.assert_array_equal(kslsh.similarities(LABELS), similarity)
    inputs = (VECTORS.astype(float) - weights["mean"]) / weights["std"]
    anchors = weights["anchors"].astype(float)
    kernels = np.array(
        [[np.exp(-np.square(x - a).sum() / (2 * weights["bandwidth"][0])) for a in anchors] for x in inputs]
    )
    np.testing.assert_allclose(kslsh.radial_kernels(weights, inputs, fast_product), kernels, rtol=1e-9)
    kernels -= kernels.mean(axis=0)
    np.testing.assert_array_equal(np.where(kernels @ weights["projection"].T.astype(float) > 0, 1.0, -1.0), codes)
    residual = 6 * similarity
    random = np.random.default_rng(4)
    for bit in codes.T:
        others = np.sign(kernels @ random.normal(size=(len(anchors), 300)))
        assert bit @ residual @ bit > np.einsum("nk,nm,mk->k", others, residual, others).max()
        lower = residual - np.outer(bit, bit)
        assert np.square(lower).sum() < np.square(residual).sum()
        residual = lower
    assert objective(codes, similarity) == pytest.approx(np.square(residual).sum())
    assert objective(codes, similarity) < objective(
        np.where(lsh.hash_codes(lsh.fit(VECTORS, 6), VECTORS), 1.0, -1.0), similarity
    )


def test_kslsh_gradient_is_that_of_its_objective() -> None:
    random = np.random.default_rng(4)
    basis, residual = random.normal(size=(9, 4)), kslsh.similarities(LABELS[:9]) * 3
    point = random.normal(size=4)
    outputs = 2 / (1 + np.exp(-basis @ point)) - 1
    value, gradient = kslsh._smoothed(point, basis, residual)
    assert value == pytest.approx(-outputs @ residual @ outputs)
    numeric = approx_fprime(point, lambda at: kslsh._smoothed(at, basis, residual)[0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4)


@pytest.mark.parametrize(("labels", "message"), [(np.ones((120, 2), bool), "all"), (np.zeros((120, 2), bool), "none")])
def test_kslsh_needs_vectors_alike_and_unlike(labels: np.ndarray, message: str) -> None:
    with pytest.raises(PgearthError, match=f"{message} of 120 labelled vectors share a label"):
        kslsh.fit(VECTORS, labels)
