"""Encoders as classifiers: what they learn, how images are turned, metrics by their definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.resnet import ResNet
from pgearth.pyfuncs.training import classifier as training
from pgearth.pyfuncs.training.classifier import Classifier, metrics_of, turned
from tests.unit.training.images import NORMALISATION, Images, settings, trained


def test_it_fits_a_few_images() -> None:
    torch.manual_seed(0)
    model = Classifier(ResNet("resnet18", *NORMALISATION.values(), width=8), 3)
    optimizer = torch.optim.AdamW(model.parameters())
    (batch,) = Images(16, 16, 1, False)
    losses = [
        training.descend(model, optimizer, batch["image"], batch["label"], training.learning_rate(0.01, step, 30))
        for step in range(30)
    ]
    assert losses[-1] < 0.05 < 0.5 < losses[0]
    truth = batch["label"].numpy() > 0
    assert training.evaluate(model, iter([(batch["image"], batch["label"])]))["map_macro"] > 0.95
    assert metrics_of(truth, truth - 0.5) == dict.fromkeys(("map_micro", "f1_micro", "map_macro", "f1_macro"), 1.0)


def test_images_are_turned_in_all_eight_ways() -> None:
    image = torch.arange(9.0).reshape(1, 3, 3)
    ways = {
        tuple(np.rot90(side, turns).ravel()) for side in (image[0].numpy(), image[0].numpy().T) for turns in range(4)
    }
    assert len(ways) == 8
    result = turned(image.expand(400, 2, 3, 3), np.random.default_rng(0))
    assert torch.equal(result[:, 0], result[:, 1]), "all bands alike"
    last = image.expand(9, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    assert turned(last, np.random.default_rng(0)).is_contiguous(memory_format=torch.channels_last)
    found = [tuple(each.flatten().tolist()) for each in result[:, 0]]
    assert set(found) == ways
    assert all(25 < found.count(way) < 75 for way in ways)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [training.learning_rate(0.5, step, 200) for step in range(200)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(0.5)
    assert rates[105] == pytest.approx(0.25)
    assert all(one > other > 0 for one, other in pairwise(rates[10:]))
    assert training.learning_rate(0.5, 0, 1) == 0.5


def test_metrics_are_those_of_their_definitions() -> None:
    truth = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)
    logits = np.array([[2.0, -1, -3, -2], [1.0, 3, -4, -5], [0.5, -2.5, 2.5, -6], [-1.0, -3.5, -5.5, -7]])
    ranks = {0: [1, 3], 1: [1, 3], 3: [4]}  # of the patches that bear the class
    average = {c: np.mean([(place + 1) / rank for place, rank in enumerate(places)]) for c, places in ranks.items()}
    metrics = metrics_of(truth, logits)
    assert metrics["map_macro"] == pytest.approx(np.mean(list(average.values())))
    order = np.argsort(-logits.ravel())
    hits = truth.ravel()[order]
    assert metrics["map_micro"] == pytest.approx(np.sum(np.cumsum(hits) / np.arange(1, 17) * hits) / hits.sum())
    # Class by class true positives, false positives and false negatives: 2 1 0, 1 0 1, 0 1 0, 0 0 1.
    assert metrics["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 2))
    assert metrics["f1_macro"] == pytest.approx(np.mean([4 / 5, 2 / 3, 0]))
    for number in (0, 1):  # a single class is a class, too
        alone = metrics_of(truth[:, [number]], logits[:, [number]])
        assert alone["map_macro"] == alone["map_micro"] == pytest.approx(average[number])
        assert alone["f1_macro"] == alone["f1_micro"] == pytest.approx([4 / 5, 2 / 3][number])


def test_a_training_that_is_too_large_for_the_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(training, "descend", fail)
    with pytest.raises(PgearthError, match="too little memory") as caught:
        trained(settings())
    assert caught.value.sqlstate == "53000"
    assert "--batch-size" in (caught.value.hint or "")
