"""The loop of every training: epochs, the best of them, checkpoints, the early end. Importing it imports torch.

An epoch is what is done between two evaluations. Whatever is random has to be a function of the seed, the epoch and the
batch. So the position, the weights and the optimiser's moments are all that a checkpoint holds, and a training that
goes on from one does the same, on a CPU to the bit, as one that was never broken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgearth.pyfuncs.errors import DATA_CORRUPTED, PgearthError
from pgearth.pyfuncs.training import checkpoint

SECONDS_BETWEEN_CHECKPOINTS = 300.0
FROM_THE_BEGINNING = "Train with the same, or remove the file to train from the beginning."

Weights = dict[str, np.ndarray]
Metrics = dict[str, float]


@dataclass
class Position:
    """How far a training is: the epoch, what is done of it, and what epochs before it reached."""

    epoch: int = 0
    batches: int = 0
    patches: int = 0
    loss: float = 0.0  # summed over these patches
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1

    def ended(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or `patience` of them, one after the other, have brought nothing."""
        return self.epoch >= epochs or self.epoch - 1 - self.best_epoch >= patience


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    `descend` does the steps of an epoch (the first argument, from 0) from a batch on (the second); after each it yields
    the mean loss of its batch and how many patches that had. `evaluate` measures the epoch that is just done: that with
    the greatest `score` is the best. `weights` are what is kept of it, copied to the CPU.
    """

    epochs: int
    patience: int
    score: str
    tensors: Mapping[str, Tensor]
    """All that changes but for the optimiser's moments, by name."""
    optimizer: torch.optim.Optimizer
    descend: Callable[[int, int], Iterator[tuple[Tensor, int]]]
    evaluate: Callable[[Position], Metrics]
    weights: Callable[[], Weights]
    fingerprint: str | None = None
    """Tells this training from others, whose checkpoints it refuses."""


@dataclass(frozen=True)
class Trained:
    """Weights as they were after the best epoch, its number (from 0), and the metrics of every epoch."""

    weights: Weights
    best_epoch: int
    history: list[Metrics]


def run(
    training: Training,
    state: Path | None = None,
    on_batch: Callable[[Position], object] = lambda _position: None,
    on_epoch: Callable[[int, Metrics], object] = lambda _epoch, _metrics: None,
) -> Trained:
    """Train until all epochs are done, or too many have not raised the score.

    With `state` the training goes on from that file, where there is one, and writes it every epoch and every few
    minutes. `on_batch` hears of the position after each batch, `on_epoch` of each epoch's metrics. Raises PgearthError
    when the loss is no longer finite, and for a file that is no checkpoint of this training.
    """
    position, best = (state and load_state(state, training)) or (Position(), {})
    device = next(iter(training.tensors.values())).device
    written = time.monotonic()
    while not position.ended(training.epochs, training.patience):
        loss = torch.tensor(position.loss, dtype=torch.float64, device=device)
        for batch_loss, patches in training.descend(position.epoch, position.batches):
            loss += patches * batch_loss
            position.batches += 1
            position.patches += patches
            on_batch(position)
            if state and time.monotonic() - written >= SECONDS_BETWEEN_CHECKPOINTS:
                position.loss = finite(loss, position)
                save_state(state, training, position, best)
                written = time.monotonic()
        metrics = {"loss": finite(loss, position) / position.patches} | training.evaluate(position)
        if position.best_epoch < 0 or metrics[training.score] > position.history[position.best_epoch][training.score]:
            position.best_epoch, best = position.epoch, training.weights()
        on_epoch(position.epoch, metrics)
        position.history.append(metrics)
        position.epoch, position.batches, position.patches, position.loss = position.epoch + 1, 0, 0, 0.0
        if state:
            save_state(state, training, position, best)
            written = time.monotonic()
    return Trained(best, position.best_epoch, position.history)


def finite(loss: Tensor, position: Position) -> float:
    """The loss as a number; raises PgearthError when it is none."""
    if not loss.isfinite():
        raise PgearthError(
            f"the training diverged: its loss in epoch {position.epoch + 1} is {loss.item()}",
            hint="Lower the learning rate.",
        )
    return loss.item()


def save_state(path: Path, training: Training, position: Position, best: Weights) -> None:
    """Write all that the rest of a training depends on."""
    tensors = {f"model/{name}": value.detach().cpu().numpy() for name, value in training.tensors.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for number, moments in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value.cpu().numpy() for name, value in moments.items()}
    checkpoint.write(path, tensors, {"fingerprint": training.fingerprint, **asdict(position)})


def load_state(path: Path, training: Training) -> tuple[Position, Weights] | None:
    """Give a training what `save_state` wrote of it, and return the rest; None where there is no file.

    Raises PgearthError where the file is of another training, of another version of pgearth, or of no training.
    """
    found = checkpoint.read(path)
    if found is None:
        return None
    tensors, record = found
    if record.pop("fingerprint", None) != training.fingerprint:
        raise PgearthError(
            f"{path} is the checkpoint of a training with other settings or other data", hint=FROM_THE_BEGINNING
        )
    if record.keys() != {each.name for each in fields(Position)}:
        raise PgearthError(
            f"{path} is no checkpoint that this version of pgearth can go on from",
            sqlstate=DATA_CORRUPTED,
            hint="Remove the file to train from the beginning, or go on with the version that wrote it.",
        )
    kinds: dict[str, Weights] = {"model": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = value
    shapes = {name: tuple(value.shape) for name, value in training.tensors.items()}
    if shapes != {name: value.shape for name, value in kinds["model"].items()}:
        raise PgearthError(f"{path}: its weights do not fit the network that is trained", hint=FROM_THE_BEGINNING)
    with torch.no_grad():
        for name, value in kinds["model"].items():
            training.tensors[name].copy_(torch.from_numpy(value))
    parameters = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for key, value in kinds["optimizer"].items():
        place, _, name = key.partition("/")
        number = int(place)
        # As the parameters lie in memory: only where they lie alike does AdamW take all at once on a GPU.
        moments.setdefault(number, {})[name] = (
            torch.tensor(value.item())
            if name == "step"
            else torch.empty_like(parameters[number]).copy_(torch.from_numpy(value))
        )
    training.optimizer.load_state_dict({**training.optimizer.state_dict(), "state": moments})
    return Position(**record), kinds["best"]
