"""Random hyperplanes: the collision law of Charikar 2002, and codes that never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh


@pytest.mark.parametrize("degrees", [0, 10, 45, 90, 135, 180])
def test_bits_agree_with_probability_one_minus_angle_over_pi(degrees: int) -> None:
    bits = 20_000
    angle = np.radians(degrees)
    vectors = np.zeros((2, 8))
    vectors[0, 0] = 1
    vectors[1, :2] = np.cos(angle), np.sin(angle)
    weights = lsh.fit(vectors, bits=bits, seed=7) | {"mean": np.zeros(8), "std": np.ones(8)}
    first, second = lsh.hash_codes(weights, vectors)
    expected = 1 - angle / np.pi
    sampling_error = np.sqrt(expected * (1 - expected) / bits)
    assert abs((first == second).mean() - expected) <= 4 * sampling_error + 1e-12


def test_standardisation_is_by_the_sample() -> None:
    sample = np.random.default_rng(1).normal([5, -3, 0.1], [10, 0.01, 1], (500, 3))
    weights = lsh.fit(sample, bits=64)
    codes = lsh.hash_codes(weights, sample)
    standardised = (sample - sample.mean(axis=0)) / sample.std(axis=0)
    np.testing.assert_array_equal(codes, standardised @ weights["hyperplanes"].T > 0)
    # so scales and offsets of the features do not matter
    scaled = sample * [2, 1024, 0.5] + [1, 2, 3]
    np.testing.assert_array_equal(lsh.hash_codes(lsh.fit(scaled, bits=64), scaled), codes)


def test_constant_feature_decides_nothing() -> None:
    sample = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    sample[:, 2] = 0.1  # its numpy std is a rounding error
    weights = lsh.fit(sample)
    assert weights["std"][2] == 1
    assert all(np.isfinite(array).all() for array in weights.values())
    without = {"mean": weights["mean"][[0, 1, 3]], "std": weights["std"][[0, 1, 3]]}
    without["hyperplanes"] = weights["hyperplanes"][:, [0, 1, 3]]
    np.testing.assert_array_equal(lsh.hash_codes(weights, sample), lsh.hash_codes(without, sample[:, [0, 1, 3]]))


def test_the_seed_decides() -> None:
    sample = np.random.default_rng(1).normal(size=(20, 5))
    first, again, other = (lsh.fit(sample, seed=seed)["hyperplanes"] for seed in (3, 3, 4))
    assert first.shape == (128, 5)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert first.mean() == pytest.approx(0, abs=0.15)
    assert first.std() == pytest.approx(1, abs=0.1)


@given(st.integers(1, 40), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_a_code_does_not_depend_on_the_batch(count: int, dimension: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    vectors = np.concatenate([vectors, vectors[::-1]])
    weights = lsh.fit(vectors)
    together = lsh.hash_codes(weights, vectors)
    alone = np.concatenate([lsh.hash_codes(weights, vector[None]) for vector in vectors])
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(together[:count], together[: count - 1 : -1])


@pytest.mark.parametrize("sample", [np.empty((0, 3)), np.ones(3), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_unusable_sample_is_refused(sample: np.ndarray) -> None:
    with pytest.raises(PgearthError, match="cannot fit a hash"):
        lsh.fit(sample)


def test_vectors_of_another_dimension_are_refused() -> None:
    weights = lsh.fit(np.eye(3))
    with pytest.raises(PgearthError, match=r"takes vectors of 3 dimensions, not of shape \(2, 4\)"):
        lsh.hash_codes(weights, np.ones((2, 4)))
