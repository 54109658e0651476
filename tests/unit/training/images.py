"""A small training of encoders, on images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pgearth.pyfuncs.training.classifier import Settings, Trained, train


class Images(IterableDataset[dict[str, Tensor]]):
    """Images of 16 x 16 in memory with the interface of ArchiveDataset; the labels say how many quadrants are bright."""

    classes = ("a quadrant", "two quadrants", "three or four")

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool) -> None:
        random = np.random.default_rng(seed)
        bright = random.random((count, 2, 2)) < 0.4
        self.images = torch.from_numpy(
            (1000 + 800 * np.kron(bright, np.ones((8, 8)))[:, None] + random.normal(0, 90, (count, 2, 16, 16))).astype(
                np.float32
            )
        )
        self.images[::5, 1, :3] = torch.nan
        number = bright.sum((1, 2))
        self.labels = torch.from_numpy(np.stack([number == 1, number == 2, number > 2], 1).astype(np.float32))
        self.batch_size, self.shuffle, self.epoch = batch_size, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = np.arange(len(self.images))
        if self.shuffle:
            order = np.random.default_rng(self.epoch).permutation(order)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield {"image": self.images[chosen], "label": self.labels[chosen]}


NORMALISATION = {"mean": [1250.0, 1250.0], "std": [400.0, 400.0]}


def settings(**changes: Any) -> Settings:
    return Settings(**{
        "architecture": "resnet18", "width": 4, "epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "patience": 9,
        "seed": 7, **changes,
    })  # fmt: skip


def trained(chosen: Settings, state: Path | None = None, count: int = 22, **hooks: Any) -> Trained:
    data = (Images(count, 8, 1, True), Images(21, 8, 2, False))
    return train(chosen, *data, NORMALISATION, state=state, **hooks)  # type: ignore[arg-type]
