"""Training of MiLaN (see `milan`) on vectors and labels. Importing this module imports torch.

Whatever is random is a function of the seed and the step. So the step, the weights and the optimiser's moments are all
that a checkpoint holds, and a training that goes on from one does the same, on a CPU to the bit, as one that was never
broken off.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, normalize

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing.milan import HIDDEN, LAYERS, NEGATIVE_SLOPE
from pgearth.pyfuncs.hashing.projection import checked_sample, standardisation, standardise
from pgearth.pyfuncs.training import checkpoint
from pgearth.pyfuncs.training.triplets import TripletSampler

BETAS = (0.5, 0.9)
BALANCE = 1.0
QUANTISATION = 0.001

Weights = dict[str, np.ndarray]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How MiLaN is trained; with the same seed and data, on a CPU with as many threads, the result is the same.

    A step takes a batch of `triplets` anchors, as many positives and as many negatives. Every `steps_per_evaluation`
    steps the codes of the validation are evaluated; training ends early after `patience` evaluations without a rise.
    `balance` is what the balance loss averages before it compares with one half: `bit`, each bit over the batch, as the
    text of the paper has it, or `sample`, each sample over its bits, as its authors' code does.
    """

    bits: int = 128
    steps: int = 10_000
    triplets: int = 30
    learning_rate: float = 1e-4
    margin: float = 0.2
    balance: Literal["bit", "sample"] = "bit"
    steps_per_evaluation: int = 500
    patience: int = 5
    seed: int = 0


@dataclass
class Position:
    """How far a training is: the steps done, all evaluations, and which of them was the best."""

    step: int = 0
    history: list[Metrics] = field(default_factory=list)
    best: int = -1

    def ended(self, settings: Settings) -> bool:
        """Whether all steps are done, or too many evaluations have brought nothing."""
        return self.step >= settings.steps or len(self.history) - 1 - self.best >= settings.patience


@dataclass(frozen=True)
class Trained:
    """Weights (see `milan.hash_codes`) as they were at the best evaluation, its number and the metrics of all."""

    weights: Weights
    best: int
    history: list[Metrics]


def train(
    settings: Settings,
    vectors: np.ndarray,
    labels: np.ndarray,
    evaluate: Callable[[Weights], float],
    *,
    state: Path | None = None,
    on_step: Callable[[Position], object] = lambda _position: None,
) -> Trained:
    """Train MiLaN on vectors (n, d) and labels, bool (n, classes); keep it as it was when `evaluate` gave the most.

    Minimised is `loss`, by Adam, on the GPU, where there is one, else on the CPU. With `state` the training goes on
    from that file, where there is one, and writes it at every evaluation. Raises PgearthError for vectors of which no
    triplets can be made, for a state of another training, and when the loss is no longer finite.
    """
    scaling = standardisation(checked_sample(vectors))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = torch.from_numpy(standardise(scaling, vectors).astype(np.float32)).to(device)
    sampler = TripletSampler(labels)
    parameters = initial_parameters(inputs.shape[1], settings, device)
    optimizer = torch.optim.Adam(list(parameters.values()), settings.learning_rate, BETAS)
    fingerprint = _fingerprint(settings, vectors, labels)
    position, best = (state and load_state(state, fingerprint, parameters, optimizer)) or (Position(), {})
    losses = []
    while not position.ended(settings):
        triplets = sampler.draw(np.random.default_rng([settings.seed, position.step]), settings.triplets)
        batch = inputs[torch.from_numpy(np.concatenate(triplets)).to(device)]
        value = loss(activations(parameters, batch), settings)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
        position.step += 1
        on_step(position)
        if position.step % settings.steps_per_evaluation == 0 or position.step == settings.steps:
            mean_loss = torch.stack(losses).mean().item()
            losses.clear()
            if not math.isfinite(mean_loss):
                raise PgearthError(
                    f"the training diverged: its loss at step {position.step:,} is {mean_loss}",
                    hint="Lower the learning rate.",
                )
            weights = scaling | {name: value.detach().cpu().numpy().copy() for name, value in parameters.items()}
            metrics = {"step": position.step, "loss": mean_loss, "validation": evaluate(weights)}
            if position.best < 0 or metrics["validation"] > position.history[position.best]["validation"]:
                position.best, best = len(position.history), weights
            position.history.append(metrics)
            if state:
                save_state(state, fingerprint, parameters, optimizer, position, best)
    return Trained(best, position.best, position.history)


def initial_parameters(dimension: int, settings: Settings, device: torch.device) -> dict[str, Tensor]:
    """Weights for LeakyReLU (He et al. 2015, equation 10, with the slope of (15)), and biases of 0."""
    random = torch.Generator().manual_seed(settings.seed)
    sizes = (dimension, *HIDDEN, settings.bits)
    parameters = {}
    for layer, size, outputs in zip(LAYERS, sizes, sizes[1:], strict=False):
        weight = nn.init.kaiming_uniform_(torch.empty(outputs, size), NEGATIVE_SLOPE, generator=random)
        parameters[f"{layer}.weight"] = weight.to(device).requires_grad_()
        parameters[f"{layer}.bias"] = torch.zeros(outputs, device=device, requires_grad=True)
    return parameters


def activations(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Outputs of the network, in (0, 1), (n, bits), for standardised vectors (n, d)."""
    for layer in LAYERS[:-1]:
        outputs = linear(inputs, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
        inputs = leaky_relu(outputs, NEGATIVE_SLOPE)
    return linear(inputs, parameters[f"{LAYERS[-1]}.weight"], parameters[f"{LAYERS[-1]}.bias"]).sigmoid()


def loss(outputs: Tensor, settings: Settings) -> Tensor:
    """The loss of activations (3 n, bits): n anchors, their positives, their negatives (Roy et al. 2021, section II).

    The triplet loss, on activations scaled to length 1, with a margin; plus the balance loss; less the push towards 0
    and 1, which makes the quantisation lose less.
    """
    anchors, positives, negatives = normalize(outputs).chunk(3)
    distances = (anchors - positives).square().sum(1) - (anchors - negatives).square().sum(1)
    triplet = (distances + settings.margin).clamp(min=0).mean()
    means = outputs.mean(0 if settings.balance == "bit" else 1)
    balance = (means - 0.5).square().mean()
    push = (outputs - 0.5).square().mean()
    return triplet + BALANCE * balance - QUANTISATION * push


def _fingerprint(settings: Settings, *data: np.ndarray) -> str:
    """Tells one training from another: the SHA-256 digest of settings and data."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for array in data:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_state(
    path: Path,
    fingerprint: str,
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    position: Position,
    best: Weights,
) -> None:
    """Write all that the rest of a training depends on."""
    tensors = {f"parameters/{name}": value.detach().cpu().numpy() for name, value in parameters.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value.cpu().numpy() for name, value in moments.items()}
    checkpoint.write(path, tensors, {"fingerprint": fingerprint, "position": asdict(position)})


def load_state(
    path: Path, fingerprint: str, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[Position, Weights] | None:
    """Read what `save_state` wrote into parameters and optimiser, and return the rest; None where there is no file.

    Raises PgearthError where the file is of another training, or of none.
    """
    found = checkpoint.read(path)
    if found is None:
        return None
    tensors, record = found
    if record.get("fingerprint") != fingerprint:
        raise PgearthError(
            f"{path} is the checkpoint of a training with other settings or other data",
            hint="Train with the same, or remove the file to train from the beginning.",
        )
    kinds: dict[str, Weights] = {"parameters": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = value
    with torch.no_grad():
        for name, value in kinds["parameters"].items():
            parameters[name].copy_(torch.from_numpy(value))
    moments: dict[int, dict[str, Any]] = {}
    for key, value in kinds["optimizer"].items():
        number, _, name = key.partition("/")
        moments.setdefault(int(number), {})[name] = torch.tensor(value.item() if name == "step" else value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return Position(**record["position"]), kinds["best"]
