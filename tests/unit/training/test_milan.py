"""MiLaN: its losses by hand and by finite differences, its triplets, and that it learns, resumes and hashes as trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh, milan
from pgearth.pyfuncs.hashing.projection import standardise
from pgearth.pyfuncs.training.loop import Trained, Weights
from pgearth.pyfuncs.training.milan import Settings, activations, initial_parameters, loss, train
from pgearth.pyfuncs.training.triplets import TripletSampler

SETTINGS = Settings(bits=32, steps=60, triplets=10, steps_per_evaluation=20, learning_rate=1e-3)


def clusters(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of six classes, of which most have two; what tells them apart is small against what does not."""
    random = np.random.default_rng(seed)
    labels = (
        np.eye(6, dtype=bool)[random.integers(6, size=count)] | np.eye(6, dtype=bool)[random.integers(6, size=count)]
    )
    means = np.random.default_rng(99).normal(size=(6, 8))
    vectors = np.concatenate(
        [labels @ means + 0.5 * random.normal(size=(count, 8)), random.normal(size=(count, 24))], axis=1
    )
    return vectors.astype(np.float32), labels


VECTORS, LABELS = clusters()
OTHERS, OTHER_LABELS = clusters(seed=1)


def precision(codes: np.ndarray) -> float:
    """Share of the ten nearest codes of each of OTHERS that share a label with it."""
    distances = (codes[:, None] != codes[None]).sum(axis=2)
    np.fill_diagonal(distances, 99)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :10]
    return float((OTHER_LABELS[:, None] & OTHER_LABELS[nearest]).any(axis=2).mean())


def quality(weights: Weights) -> float:
    return precision(milan.hash_codes(weights, OTHERS))


def test_loss_by_hand() -> None:
    """One triplet of two bits, and both forms of balance, with numbers worked out on paper."""
    outputs = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.3, 0.4]], dtype=torch.float64)
    # Scaled to length 1: (0.6, 0.8), (0.8, 0.6), (0.6, 0.8). Squared distances 0.08 and 0: 0.08 - 0 + 0.2.
    triplet = 0.28
    push = 0.001 / 2 * ((0.01 + 0.09) + (0.09 + 0.01) + (0.04 + 0.01)) / 3
    by_bit = ((1.7 / 3 - 0.5) ** 2 + (1.8 / 3 - 0.5) ** 2) / 2
    by_sample = (0.2**2 + 0.2**2 + 0.15**2) / 3
    assert loss(outputs, Settings(balance="bit")).item() == pytest.approx(triplet + by_bit - push)
    assert loss(outputs, Settings(balance="sample")).item() == pytest.approx(triplet + by_sample - push)
    # a negative at a squared distance of 0.8, of which the margin asks for more, or for less
    outputs[2] = torch.tensor([1.0, 0.0])
    nothing = loss(outputs, Settings(margin=0.7)).item()
    assert loss(outputs, Settings(margin=0.2)).item() == nothing
    assert loss(outputs, Settings(margin=0.8)).item() == pytest.approx(nothing + 0.08)


@pytest.mark.parametrize("balance", ["bit", "sample"])
def test_loss_against_torch_and_finite_differences(balance: str) -> None:
    """With hinges that are on and hinges that are off."""
    torch.manual_seed(1)
    settings = Settings(balance=balance, margin=0.05)  # type: ignore[arg-type]
    logits = torch.randn(15, 6, dtype=torch.float64, requires_grad=True)
    anchors, positives, negatives = functional.normalize(logits.sigmoid()).chunk(3)
    triplet = functional.triplet_margin_with_distance_loss(
        anchors, positives, negatives, distance_function=lambda a, b: (a - b).square().sum(1), margin=0.05
    )
    mean = logits.sigmoid().mean(dim={"bit": 0, "sample": 1}[balance])
    expected = (
        triplet
        + functional.mse_loss(mean, torch.full_like(mean, 0.5))
        - 0.001 / 6 * torch.cdist(logits.sigmoid(), torch.full((1, 6), 0.5, dtype=torch.float64)).square().mean()
    )
    assert 0 < triplet.item() < 0.2
    assert loss(logits.sigmoid(), settings).item() == pytest.approx(expected.item())
    assert torch.autograd.gradcheck(lambda inputs: loss(inputs.sigmoid(), settings), logits)


def test_triplets_share_labels_and_share_none() -> None:
    labels = np.random.default_rng(5).random((80, 6)) < 0.25
    sampler = TripletSampler(labels)
    shared = (labels.astype(int) @ labels.T > 0) & ~np.eye(80, dtype=bool)
    strangers = labels.astype(int) @ labels.T == 0
    np.testing.assert_array_equal(sampler.anchors, np.flatnonzero(shared.any(axis=1) & strangers.any(axis=1)))
    anchors, positives, negatives = sampler.draw(np.random.default_rng(1), 40_000)
    assert shared[anchors, positives].all()
    assert strangers[anchors, negatives].all()
    # probabilities, of every pair: anchors and negatives alike, positives by the Jaccard index
    union = (labels[:, None] | labels[None]).sum(axis=2)
    jaccard = np.where(shared, (labels[:, None] & labels[None]).sum(axis=2) / np.maximum(union, 1), 0.0)
    for others, weights in ((positives, jaccard), (negatives, strangers.astype(float))):
        counts = np.zeros((80, 80))
        np.add.at(counts, (anchors, others), 1)
        wanted = np.zeros((80, 80))
        rows = sampler.anchors
        wanted[rows] = weights[rows] / weights[rows].sum(axis=1, keepdims=True) / len(rows) * 40_000
        assert (np.abs(counts - wanted) <= 6 * np.sqrt(wanted) + 1e-9).all()


@pytest.mark.parametrize("labels", [np.ones((9, 2), bool), np.zeros((9, 2), bool), np.eye(9, dtype=bool)])
def test_no_triplets_can_be_made(labels: np.ndarray) -> None:
    with pytest.raises(PgearthError, match="no triplets can be made of 9 samples"):
        TripletSampler(labels)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(SETTINGS, VECTORS, LABELS, quality)


def test_it_learns(trained: Trained) -> None:
    baseline = precision(lsh.hash_codes(lsh.fit(VECTORS, 32), OTHERS))
    assert quality(trained.weights) > baseline + 0.1
    assert [metrics["step"] for metrics in trained.history] == [20, 40, 60]
    assert trained.history[trained.best_epoch]["validation"] == quality(trained.weights)
    assert trained.best_epoch == np.argmax([metrics["validation"] for metrics in trained.history])
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    ones = milan.hash_codes(trained.weights, OTHERS).mean(axis=0)
    assert ones.min() > 0.05 and ones.max() < 0.95


def test_codes_are_the_networks_activations_above_one_half(trained: Trained) -> None:
    parameters = {name: torch.from_numpy(value) for name, value in trained.weights.items() if "." in name}
    assert [value.shape for value in parameters.values()] == [
        (1024, 32),
        (1024,),
        (512, 1024),
        (512,),
        (32, 512),
        (32,),
    ]
    inputs = torch.from_numpy(standardise(trained.weights, OTHERS).astype(np.float32))
    outputs = activations(parameters, inputs).numpy()
    decided = np.abs(outputs - 0.5) > 1e-4
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(milan.hash_codes(trained.weights, OTHERS)[decided], (outputs > 0.5)[decided])


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_the_seed_decides(trained: Trained) -> None:
    short = replace(SETTINGS, steps=2)
    first, again, other = (train(replace(short, seed=seed), VECTORS, LABELS, quality).weights for seed in (1, 1, 2))
    assert same(first, again)
    assert not np.array_equal(first["output.weight"], other["output.weight"])
    start = initial_parameters(32, SETTINGS, torch.device("cpu"))
    assert start["hidden1.weight"].std().item() == pytest.approx(np.sqrt(2 / 1.04 / 32), rel=0.02)


@pytest.mark.parametrize("killed_at", [7, 45, 60])
def test_a_training_that_was_killed_ends_as_if_unbroken(trained: Trained, tmp_path: Path, killed_at: int) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == killed_at:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(SETTINGS, VECTORS, LABELS, quality, state=state, on_step=kill)
    assert state.exists() == (killed_at > 20)
    steps: list[int] = []
    resumed = train(SETTINGS, VECTORS, LABELS, quality, state=state, on_step=steps.append)
    assert steps[0] == (killed_at - 1) // 20 * 20 + 1
    assert same(resumed.weights, trained.weights)
    assert (resumed.history, resumed.best_epoch) == (trained.history, trained.best_epoch)
    # and once more, from the state of a training that is done
    again = train(SETTINGS, VECTORS, LABELS, quality, state=state, on_step=kill)
    assert same(again.weights, trained.weights)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    short = replace(SETTINGS, steps=1)
    train(short, VECTORS, LABELS, quality, state=state)
    before = state.read_bytes()
    for settings, vectors, labels in (
        (replace(short, margin=0.3), VECTORS, LABELS),
        (short, VECTORS + 1, LABELS),
        (short, VECTORS, LABELS[::-1]),
    ):
        with pytest.raises(PgearthError, match="checkpoint of a training with other settings or other data"):
            train(settings, vectors, labels, quality, state=state)
    assert state.read_bytes() == before
    state.write_bytes(before[:100])
    with pytest.raises(PgearthError, match="not a checkpoint"):
        train(short, VECTORS, LABELS, quality, state=state)


def test_it_ends_early_and_keeps_the_best() -> None:
    found = iter([0.1, 0.4, 0.3, 0.4, 0.2, 0.9])
    seen: list[Weights] = []

    def evaluate(weights: Weights) -> float:
        seen.append(weights)
        return next(found)

    result = train(replace(SETTINGS, steps_per_evaluation=1, patience=3), VECTORS, LABELS, evaluate)
    assert [metrics["validation"] for metrics in result.history] == [0.1, 0.4, 0.3, 0.4, 0.2]
    assert result.best_epoch == 1
    assert same(result.weights, seen[1])


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(PgearthError, match="the training diverged") as error:
        train(replace(SETTINGS, learning_rate=1e30), VECTORS, LABELS, lambda _weights: 0.0)
    assert "learning rate" in str(error.value.hint)
