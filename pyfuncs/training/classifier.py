"""Training of encoders as multi-label classifiers of the archive's patches (see `loop`).

Whatever is random is a function of the seed, the epoch and the batch: the order of the patches, how each is turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from pgearth.pyfuncs.models.memory import keep_freed_memory, memory_errors
from pgearth.pyfuncs.models.resnet import ResNet, learned, weights_of
from pgearth.pyfuncs.training import loop
from pgearth.pyfuncs.training.dataset import ArchiveDataset
from pgearth.pyfuncs.training.loop import Metrics, Position

WEIGHT_DECAY = 0.01
WARM_UP = 0.05  # share of all steps in which the learning rate rises
ORIENTATIONS = 8
LESS_MEMORY = "Train with a smaller --batch-size or --width, or end what else uses the GPU (nvidia-smi shows it)."


@dataclass(frozen=True)
class Settings:
    """How an encoder is trained; with the same seed and data, on a CPU with as many threads, the result is the same.

    Training ends early after `patience` epochs in which the validation's micro-averaged average precision did not
    rise.
    """

    architecture: str
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    seed: int


@dataclass(frozen=True)
class Trained(loop.Trained):
    """Weights of the encoder as they were after its best epoch (from 0), and the metrics of every epoch."""

    dimension: int


class Classifier(nn.Module):
    """An encoder with a linear layer of one output per class: what is trained. Only the encoder is kept."""

    def __init__(self, encoder: ResNet, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dimension, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, bands, height, width)."""
        return self.head(self.encoder(images))


@memory_errors(LESS_MEMORY)
def train(
    settings: Settings,
    training: ArchiveDataset,
    validation: ArchiveDataset,
    normalisation: Mapping[str, Sequence[float]],
    *,
    workers: int = 0,
    state: Path | None = None,
    on_batch: Callable[[Position], object] = lambda _position: None,
    on_epoch: Callable[[int, Metrics], object] = lambda _epoch, _metrics: None,
) -> Trained:
    """Train an encoder on `training`, keep it as it was when it did best on `validation`.

    Datasets give batches of images and labels, NaN where there is no data, the first shuffled; `normalisation` has
    `mean` and `std` of each band; `workers` are processes that read. Minimised is the binary cross entropy, by AdamW
    (Loshchilov and Hutter 2019), on the GPU, where there is one, in bfloat16 where that suffices, else on the CPU in
    float32. The learning rate rises, then falls as a cosine to 0. Patches are flipped and turned by quarters.

    `state`, `on_batch`, `on_epoch`: see loop.run. Raises PgearthError as that does, and where a GPU has too little
    memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = ResNet(settings.architecture, normalisation["mean"], normalisation["std"], settings.width)
        model = Classifier(encoder, len(training.classes)).to(device)
        model = model.to(memory_format=layout(device))  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = settings.epochs * len(training)
    loaders = [
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the caller's
        )
        for dataset in (training, validation)
    ]

    def descend_epoch(epoch: int, first: int) -> Iterator[tuple[Tensor, int]]:
        training.set_epoch(epoch)
        model.train()
        for number, (images, labels) in enumerate(batches(islice(loaders[0], first, None), device), first):
            images = turned(images, np.random.default_rng([settings.seed, epoch, number]))
            rate = learning_rate(settings.learning_rate, epoch * len(training) + number, steps)
            yield descend(model, optimizer, images, labels, rate), len(images)

    course = loop.Training(
        epochs=settings.epochs,
        patience=settings.patience,
        score="map_micro",
        tensors=learned(model),
        optimizer=optimizer,
        descend=descend_epoch,
        evaluate=lambda _position: evaluate(model, batches(loaders[1], device)),
        weights=lambda: weights_of(model),
    )
    trained = loop.run(course, state, on_batch, on_epoch)
    prefix = "encoder."
    weights = {name.removeprefix(prefix): value for name, value in trained.weights.items() if name.startswith(prefix)}
    return Trained(weights, trained.best_epoch, trained.history, encoder.dimension)


def batches(loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each batch, on the device."""
    for batch in loader:
        yield (
            batch["image"].to(device, memory_format=layout(device), non_blocking=True),
            batch["label"].to(device, non_blocking=True),
        )


def layout(device: torch.device) -> torch.memory_format:
    """How images lie in memory.

    On a CPU not channels last: there oneDNN (in torch 2.13, with AVX-512) writes beyond its buffers in the backward
    pass of convolutions of 1 x 1 with stride 2 on 8 channels.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def turned(images: Tensor, random: np.random.Generator) -> Tensor:
    """Images (n, bands, side, side), each flipped and turned by quarters at random: eight orientations in all.

    Each is three flips, or fewer: of columns, of rows, and of both with each other.
    """
    orientations = random.integers(ORIENTATIONS, size=len(images))
    bits = orientations >> np.arange(3)[:, None] & 1
    flips = torch.from_numpy(np.stack([bits.sum(axis=0) % 2, bits[2], bits[1]]) == 0).to(images.device)
    for kept, flip in zip(flips, (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3)), strict=True):
        images = torch.where(kept[:, None, None, None], images, flip(images))
    return images


def learning_rate(greatest: float, step: int, steps: int) -> float:
    """Learning rate of a step (from 0): linear to the greatest, then half a cosine towards 0.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, one cycle; warm-up: Goyal et al. 2017, section 2.2.
    """
    rising = max(1.0, WARM_UP * steps)
    if step < rising:
        return greatest * min(1.0, (step + 1) / rising)
    return greatest * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, rate: float) -> Tensor:
    """One step of gradient descent; returns the batch's mean loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with autocast(images.device):
        loss = binary_cross_entropy_with_logits(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def autocast(device: torch.device) -> torch.autocast:
    """A context in which a GPU computes in bfloat16 what suffers it; a CPU computes in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def evaluate(model: nn.Module, data: Iterator[tuple[Tensor, Tensor]]) -> Metrics:
    """Metrics of a classifier, see `metrics_of`."""
    model.eval()
    logits, truth = [], []
    with torch.inference_mode():
        for images, labels in data:
            with autocast(images.device):
                logits.append(model(images).float().cpu())
            truth.append(labels.cpu())
    return metrics_of(torch.cat(truth).numpy() > 0, torch.cat(logits).numpy())


def metrics_of(truth: np.ndarray, logits: np.ndarray) -> Metrics:
    """Average precision and F1 (of probabilities of at least one half) of truth and logits (n, classes).

    Micro: over all pairs of patch and class; macro: mean over the classes that some patch bears.
    """
    scores = {"map": average_precision_score, "f1": lambda borne, logit: f1_score(borne, logit >= 0, zero_division=0)}
    classes = np.flatnonzero(truth.any(axis=0))
    metrics: Metrics = {}
    for name, score in scores.items():
        metrics[f"{name}_micro"] = float(score(truth.ravel(), logits.ravel()))
        metrics[f"{name}_macro"] = float(np.mean([score(truth[:, number], logits[:, number]) for number in classes]))
    return metrics
