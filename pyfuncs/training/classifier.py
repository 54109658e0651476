"""Training of encoders as multi-label classifiers of the archive's patches.

Whatever is random is a function of the seed and the position (epoch and batch): the order of the patches, how each is
turned, the learning rate. So a position, the weights and the optimiser's moments are all that a checkpoint holds, and a
training that goes on from one does the same, on a CPU to the bit, as one that was never broken off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.memory import keep_freed_memory, memory_errors
from pgearth.pyfuncs.models.resnet import ResNet, load_weights, weights_of
from pgearth.pyfuncs.training import checkpoint
from pgearth.pyfuncs.training.dataset import ArchiveDataset

WEIGHT_DECAY = 0.01
WARM_UP = 0.05  # share of all steps in which the learning rate rises
SECONDS_BETWEEN_CHECKPOINTS = 300.0
ORIENTATIONS = 8
LESS_MEMORY = "Train with a smaller --batch-size or --width, or end what else uses the GPU (nvidia-smi shows it)."

Weights = dict[str, np.ndarray]
Metrics = dict[str, float]


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


@dataclass
class Position:
    """How far a training is: the epoch, what is done of it, and what epochs before it reached."""

    epoch: int = 0
    batches: int = 0
    patches: int = 0
    loss: float = 0.0  # summed over these patches
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1

    def ended(self, settings: Settings) -> bool:
        """Whether all epochs are done, or too many have brought nothing."""
        return self.epoch >= settings.epochs or self.epoch - 1 - self.best_epoch >= settings.patience


@dataclass(frozen=True)
class Trained:
    """Weights of the encoder as they were after its best epoch (from 0), and the metrics of every epoch."""

    weights: Weights
    dimension: int
    best_epoch: int
    history: list[Metrics]


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

    With `state` the training goes on from that file, where there is one, and writes it every epoch and every few
    minutes. `on_batch` hears of the position after each batch, `on_epoch` of each epoch's metrics.
    Raises PgearthError when the loss is no longer finite, and where a GPU has too little memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = ResNet(settings.architecture, normalisation["mean"], normalisation["std"], settings.width)
        model = Classifier(encoder, len(training.classes)).to(device)
        model = model.to(memory_format=layout(device))  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY)
    position, best = Position(), weights_of(model)
    if state is not None and (found := load_state(state, model, optimizer)) is not None:
        position, best = found
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
    written = time.monotonic()
    while not position.ended(settings):
        training.set_epoch(position.epoch)
        loss = torch.tensor(position.loss, dtype=torch.float64, device=device)
        model.train()
        for images, labels in batches(islice(loaders[0], position.batches, None), device):
            images = turned(images, np.random.default_rng([settings.seed, position.epoch, position.batches]))
            rate = learning_rate(settings.learning_rate, position.epoch * len(training) + position.batches, steps)
            loss += len(images) * descend(model, optimizer, images, labels, rate)
            position.batches += 1
            position.patches += len(images)
            on_batch(position)
            if state is not None and time.monotonic() - written >= SECONDS_BETWEEN_CHECKPOINTS:
                position.loss = finite(loss, position)
                save_state(state, model, optimizer, position, best)
                written = time.monotonic()
        metrics = {"loss": finite(loss, position) / position.patches}
        metrics |= evaluate(model, batches(loaders[1], device))
        if position.best_epoch < 0 or metrics["map_micro"] > position.history[position.best_epoch]["map_micro"]:
            position.best_epoch = position.epoch
            best = weights_of(model)
        on_epoch(position.epoch, metrics)
        position.history.append(metrics)
        position.epoch, position.batches, position.patches, position.loss = position.epoch + 1, 0, 0, 0.0
        if state is not None:
            save_state(state, model, optimizer, position, best)
            written = time.monotonic()
    prefix = "encoder."
    weights = {name.removeprefix(prefix): value for name, value in best.items() if name.startswith(prefix)}
    return Trained(weights, encoder.dimension, position.best_epoch, position.history)


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


def finite(loss: Tensor, position: Position) -> float:
    """The loss as a number; raises PgearthError when it is none."""
    if not loss.isfinite():
        raise PgearthError(
            f"the training diverged: its loss in epoch {position.epoch + 1} is {loss.item()}",
            hint="Lower the learning rate.",
        )
    return loss.item()


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


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: Position, best: Weights
) -> None:
    """Write all that the rest of a training depends on."""
    tensors = {f"model/{name}": value for name, value in weights_of(model).items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value.cpu().numpy() for name, value in moments.items()}
    checkpoint.write(path, tensors, asdict(position))


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Position, Weights] | None:
    """Read what `save_state` wrote into the model and the optimiser, and return the rest; None where there is no file.

    Raises PgearthError where the file is no state of such a training.
    """
    found = checkpoint.read(path)
    if found is None:
        return None
    tensors, record = found
    kinds: dict[str, Weights] = {"model": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = value
    load_weights(model, kinds["model"])
    parameters = list(model.parameters())
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in kinds["optimizer"].items():
        place, _, name = key.partition("/")
        number = int(place)
        # As the parameters lie in memory: only where they lie alike does AdamW take all at once on a GPU.
        moments.setdefault(number, {})[name] = (
            torch.tensor(value.item())
            if name == "step"
            else torch.empty_like(parameters[number]).copy_(torch.from_numpy(value))
        )
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return Position(**record), kinds["best"]
