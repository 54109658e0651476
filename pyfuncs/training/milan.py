"""Training of MiLaN (see `hashing.milan`) on vectors and labels (see `loop`). Importing this module imports torch.

Whatever is random is a function of the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear, normalize

from pgearth.pyfuncs.hashing.milan import HIDDEN, LAYERS, NEGATIVE_SLOPE
from pgearth.pyfuncs.hashing.projection import checked_sample, standardisation, standardise
from pgearth.pyfuncs.training import loop
from pgearth.pyfuncs.training.loop import Metrics, Position, Trained, Weights
from pgearth.pyfuncs.training.triplets import TripletSampler

BETAS = (0.5, 0.9)
BALANCE = 1.0
QUANTISATION = 0.001


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


def train(
    settings: Settings,
    vectors: np.ndarray,
    labels: np.ndarray,
    evaluate: Callable[[Weights], float],
    *,
    state: Path | None = None,
    on_step: Callable[[int], object] = lambda _step: None,
) -> Trained:
    """Train MiLaN on vectors (n, d) and labels, bool (n, classes); keep it as it was when `evaluate` gave the most.

    Minimised is `loss`, by Adam, on the GPU, where there is one, else on the CPU. `state`: see loop.run; `on_step` is
    told the number of steps done. The weights are those of `milan.hash_codes`. Raises PgearthError as loop.run does,
    and for vectors of which no triplets can be made.
    """
    scaling = standardisation(checked_sample(vectors))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = torch.from_numpy(standardise(scaling, vectors).astype(np.float32)).to(device)
    sampler = TripletSampler(labels)
    parameters = initial_parameters(inputs.shape[1], settings, device)
    optimizer = torch.optim.Adam(list(parameters.values()), settings.learning_rate, BETAS)

    def descend(epoch: int, first: int) -> Iterator[tuple[Tensor, int]]:
        start = epoch * settings.steps_per_evaluation
        for step in range(start + first, min(start + settings.steps_per_evaluation, settings.steps)):
            triplets = sampler.draw(np.random.default_rng([settings.seed, step]), settings.triplets)
            batch = inputs[torch.from_numpy(np.concatenate(triplets)).to(device)]
            value = loss(activations(parameters, batch), settings)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            yield value.detach(), settings.triplets

    def weights() -> Weights:
        return scaling | {name: value.detach().cpu().numpy().copy() for name, value in parameters.items()}

    def steps(position: Position) -> int:
        return position.epoch * settings.steps_per_evaluation + position.batches

    def measure(position: Position) -> Metrics:
        return {"step": steps(position), "validation": evaluate(weights())}

    course = loop.Training(
        epochs=math.ceil(settings.steps / settings.steps_per_evaluation),
        patience=settings.patience,
        score="validation",
        tensors=parameters,
        optimizer=optimizer,
        descend=descend,
        evaluate=measure,
        weights=weights,
        fingerprint=_fingerprint(settings, vectors, labels),
    )
    return loop.run(course, state, lambda position: on_step(steps(position)))


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
