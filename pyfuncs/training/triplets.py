"""Triplets of multi-label samples: an anchor, a positive that shares labels with it, a negative that shares none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgearth.pyfuncs.errors import PgearthError

Indices = NDArray[np.intp]
SETS_AT_ONCE = 1024


class Triplets(NamedTuple):
    """Indices (count) of samples."""

    anchors: Indices
    positives: Indices
    negatives: Indices


class TripletSampler:
    """Draws triplets from samples with labels, bool (n, classes); raises PgearthError where there are none to draw.

    Samples with the same labels are alike here, and an archive has far fewer different sets of labels than patches: so
    labels are compared set by set.
    """

    def __init__(self, labels: np.ndarray) -> None:
        sets, members, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        self._sets = sets.astype(np.float32)
        self._set_of = members.reshape(-1)
        self._counts = counts
        self._members = np.argsort(self._set_of, kind="stable")  # sample indices, set by set
        self._first = np.cumsum(counts) - counts
        self._place = np.empty(len(labels), np.intp)  # of each sample within its set
        self._place[self._members] = np.arange(len(labels)) - self._first[self._set_of[self._members]]
        usable = np.concatenate(
            [
                self._usable(np.arange(start, min(start + SETS_AT_ONCE, len(sets))))
                for start in range(0, len(sets), SETS_AT_ONCE)
            ]
        )
        self.anchors = np.flatnonzero(usable[self._set_of])
        """Samples for which there are both a positive and a negative."""
        if not len(self.anchors):
            raise PgearthError(
                f"no triplets can be made of {len(labels):,} samples: each shares a label with all others or with none",
                hint="Metric learning needs samples that share labels and samples that do not: choose others.",
            )

    def _usable(self, sets: Indices) -> NDArray[np.bool_]:
        """Whether samples of these sets have both a positive and a negative."""
        positives, negatives = self._weights(sets)
        return (positives.sum(axis=1) > 0) & (negatives.sum(axis=1) > 0)

    def _weights(self, sets: Indices) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (m, sets) with which a positive, and a negative, of samples of these sets (m) is of each set."""
        shared = self._sets[sets] @ self._sets.T
        counts = np.broadcast_to(self._counts, shared.shape).astype(np.float64)
        negatives = np.where(shared == 0, counts, 0.0)
        counts[np.arange(len(sets)), sets] -= 1  # no sample is its own positive
        sizes = self._sets.sum(axis=1)
        jaccard = shared / np.maximum(sizes[sets, None] + sizes - shared, 1)
        return jaccard * counts, negatives

    def draw(self, random: np.random.Generator, count: int) -> Triplets:
        """Draw triplets: an anchor; a positive, with a probability in proportion to the Jaccard index of its labels and
        the anchor's; a negative, all alike."""
        anchors = random.choice(self.anchors, count)
        sets = self._set_of[anchors]
        positives, negatives = self._weights(sets)
        positive_sets, negative_sets = _draw_columns(random, positives), _draw_columns(random, negatives)
        own = positive_sets == sets
        places = random.integers(self._counts[positive_sets] - own)
        # In the anchor's own set the places from the anchor's on are one further: the anchor is left out.
        places += own & (places >= self._place[anchors])
        return Triplets(
            anchors,
            self._members[self._first[positive_sets] + places],
            self._members[self._first[negative_sets] + random.integers(self._counts[negative_sets])],
        )


def _draw_columns(random: np.random.Generator, weights: NDArray[np.float64]) -> Indices:
    """A column for each row of weights (m, n), with a probability in proportion to the weight."""
    sums = weights.cumsum(axis=1)
    total = sums[:, -1:]
    drawn = np.minimum(random.random((len(weights), 1)) * total, np.nextafter(total, 0))
    return (sums <= drawn).sum(axis=1)
