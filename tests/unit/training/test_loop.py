"""Trainings that break off against unbroken ones; checkpoints; when a training ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models import weights
from pgearth.pyfuncs.models.resnet import ResNet, learned, load_weights
from pgearth.pyfuncs.training import checkpoint, loop
from pgearth.pyfuncs.training.classifier import Classifier, Trained
from pgearth.pyfuncs.training.loop import Position
from tests.unit.training.images import NORMALISATION, settings, trained


def assert_same(one: Trained, other: Trained) -> None:
    assert one.history == other.history
    assert one.best_epoch == other.best_epoch
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert value.tobytes() == other.weights[name].tobytes(), name


def test_the_best_epoch_is_kept(whole: Trained) -> None:
    assert whole.best_epoch == int(np.argmax([metrics["map_micro"] for metrics in whole.history]))
    model = ResNet("resnet18", *NORMALISATION.values(), width=4)
    load_weights(model, whole.weights)
    assert whole.dimension == model.dimension == 32


@pytest.fixture(scope="module")
def whole() -> Trained:
    """Three epochs of three batches, never broken off."""
    torch.set_num_threads(1)
    return trained(settings())


class BrokenOffError(Exception):
    """The training was broken off."""


@pytest.mark.parametrize("breaks", [[1, 5], [9]])
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trained, breaks: list[int]
) -> None:
    """Broken off after these batches; the file is written after every batch."""
    state = tmp_path / "state.safetensors"
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    for number in breaks:

        def break_off(position: Position, number: int = number) -> None:
            if position.epoch * 3 + position.batches == number:
                raise BrokenOffError

        with pytest.raises(BrokenOffError):
            trained(settings(), state, on_batch=break_off)
        assert state.exists() == (number > 1), "the file is written after on_batch"
    heard: list[int] = []
    result = trained(settings(), state, on_batch=lambda position: heard.append(position.epoch * 3 + position.batches))
    assert_same(whole, result)
    assert heard == list(range(breaks[-1], 10)), "what was done is not done again"
    heard.clear()
    assert_same(whole, trained(settings(), state, on_batch=heard.append))
    assert heard == []


def test_epochs_alone_are_checkpoints_too(tmp_path: Path, whole: Trained) -> None:
    state = tmp_path / "state.safetensors"

    def break_off(position: Position) -> None:
        if (position.epoch, position.batches) == (2, 2):
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        trained(settings(), state, on_batch=break_off)
    found = checkpoint.read(state)
    assert found is not None
    assert (found[1]["epoch"], found[1]["batches"]) == (2, 0)
    assert_same(whole, trained(settings(), state))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    trained(settings(epochs=1), state)
    whole = state.read_bytes()
    for content in (b"", b"garbage" * 99, whole[: len(whole) // 2], weights.dump({"model/x": np.zeros(3)})):
        state.write_bytes(content)
        with pytest.raises(PgearthError, match=r"state\.safetensors: not a checkpoint") as caught:
            trained(settings(), state)
        assert "Remove the file" in (caught.value.hint or "")
    state.write_bytes(whole)
    with pytest.raises(PgearthError, match="do not fit the network"):
        trained(settings(width=6), state)


def test_training_ends_when_it_brings_nothing() -> None:
    result = trained(settings(epochs=99, patience=2))
    assert len(result.history) == result.best_epoch + 3 < 99
    assert not Position(epoch=2, best_epoch=0).ended(epochs=9, patience=2)
    assert Position(epoch=3, best_epoch=0).ended(epochs=9, patience=2)
    assert Position(epoch=3, best_epoch=2).ended(epochs=3, patience=2)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(PgearthError, match="diverged: its loss in epoch 1 is") as caught:
        trained(settings(learning_rate=1e30), tmp_path / "state")
    assert "learning rate" in (caught.value.hint or "")
    assert not (tmp_path / "state").exists()


def training_of(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, **changes: Any) -> loop.Training:
    """One whose steps nobody does, unless they are given."""
    nothing: dict[str, Any] = {"descend": None, "evaluate": None, "weights": dict, "epochs": 9, "patience": 9}
    return loop.Training(**{**nothing, "score": "height", "tensors": tensors, "optimizer": optimizer, **changes})


def climbing(heights: list[float], **changes: Any) -> loop.Training:
    """Of one number, which goes from 0 by 1 a batch, two batches an epoch; `heights` are what epochs score."""
    number = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([number], lr=1.0)

    def descend(_epoch: int, first: int) -> Iterator[tuple[Tensor, int]]:
        for batch in range(first, 2):
            optimizer.zero_grad()
            (-number.sum()).backward()
            optimizer.step()
            yield torch.tensor(1.0 + batch), 1 + 2 * batch

    return training_of(
        {"number": number},
        optimizer,
        descend=descend,
        evaluate=lambda position: {"height": heights[position.epoch]},
        weights=lambda: {"number": number.detach().numpy().copy()},
        **changes,
    )


def test_the_loop_keeps_the_best_and_ends_early() -> None:
    heard: list[float] = []
    result = loop.run(
        climbing([0.1, 0.4, 0.4, 0.3, 0.2, 0.9], patience=3),
        on_epoch=lambda _epoch, metrics: heard.append(metrics["height"]),
    )
    assert heard == [metrics["height"] for metrics in result.history] == [0.1, 0.4, 0.4, 0.3, 0.2]
    assert (result.best_epoch, result.weights["number"].tolist()) == (1, [4.0])
    assert result.history[0]["loss"] == (1 * 1.0 + 3 * 2.0) / 4, "the mean over patches, not over batches"


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    """Of other settings or data, of a network of another shape, and one that an earlier version wrote."""
    state = tmp_path / "state"
    loop.run(climbing([1.0], epochs=1, fingerprint="this"), state)
    with pytest.raises(PgearthError, match="with other settings or other data"):
        loop.run(climbing([1.0], epochs=1, fingerprint="that"), state)
    wide = torch.zeros(2, requires_grad=True)
    with pytest.raises(PgearthError, match="do not fit the network"):
        loop.run(training_of({"number": wide}, torch.optim.SGD([wide]), fingerprint="this"), state)
    before = {"step": 1, "history": [], "best": -1}
    checkpoint.write(state, {"parameters/number": np.zeros(1)}, {"fingerprint": "this", "position": before})
    with pytest.raises(PgearthError, match="no checkpoint that this version of pgearth can go on from") as caught:
        loop.run(climbing([1.0], epochs=1, fingerprint="this"), state)
    assert "Remove the file" in caught.value.hint


def test_a_checkpoint_from_before_there_were_fingerprints_is_read(tmp_path: Path) -> None:
    state = tmp_path / "state"
    unbroken = loop.run(climbing([0.1, 0.2], epochs=2))
    loop.run(climbing([0.1], epochs=1), state)
    found = checkpoint.read(state)
    assert found is not None
    tensors, record = found
    assert record.pop("fingerprint") is None
    checkpoint.write(state, tensors, record)
    assert loop.run(climbing([0.1, 0.2], epochs=2), state) == unbroken


def test_moments_from_a_checkpoint_lie_as_the_parameters_do(tmp_path: Path) -> None:
    """Else AdamW takes them one by one."""

    def made() -> tuple[Classifier, torch.optim.AdamW, loop.Training]:
        model = Classifier(ResNet("resnet18", *NORMALISATION.values(), width=4), 3)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters())
        return model, optimizer, training_of(learned(model), optimizer)

    model, optimizer, training = made()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step()
    loop.save_state(tmp_path / "state", training, Position(), {})
    restored, other, its_training = made()
    loop.load_state(tmp_path / "state", its_training)
    for one, two in zip(model.parameters(), restored.parameters(), strict=True):
        assert torch.equal(one, two)
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[one][name], other.state[two][name])
            assert other.state[two][name].stride() == two.stride()
            assert not other.state[two][name].requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_training_on_a_gpu_learns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16. A GPU does not promise the same sums again, so the losses are only to be near."""
    chosen = settings(width=16, epochs=4)
    unbroken = trained(chosen, count=64)
    losses = [metrics["loss"] for metrics in unbroken.history]
    assert losses[-1] < 0.7 * losses[0]
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0)

    def break_off(position: Position) -> None:
        if (position.epoch, position.batches) == (2, 5):
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        trained(chosen, tmp_path / "state", count=64, on_batch=break_off)
    resumed = trained(chosen, tmp_path / "state", count=64)
    assert [metrics["loss"] for metrics in resumed.history] == pytest.approx(losses, rel=0.02)
