"""Measures of retrieval written as they are defined, for one order of results, and all orders that ties allow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

Labels = list[set[int]]


def is_relevant(relevance: str) -> Callable[[set[int], set[int]], bool]:
    if relevance == "any":
        return lambda query, patch: bool(query & patch)
    if relevance == "same":
        return lambda query, patch: query == patch
    least = float(relevance.removeprefix("jaccard:"))
    return lambda query, patch: len(query & patch) / len(query | patch) >= least


def literal(order: list[int], query: set[int], patches: Labels, k: int, relevance: str) -> dict[str, float]:
    """The measures of one order of the results, each written as it is defined."""
    relevant = [is_relevant(relevance)(query, patches[patch]) for patch in order]
    shared = [len(query & patches[patch]) for patch in order]
    total, top = sum(relevant), order[:k]
    precisions = [sum(relevant[: rank + 1]) / (rank + 1) for rank in range(len(top)) if relevant[rank]]
    gains = [sum(shared[: rank + 1]) / (rank + 1) for rank in range(len(top)) if shared[rank]]
    hits = len(precisions)
    precision, recall = hits / k, hits / total
    cumulated = [
        sum((2**gain - 1) / np.log2(2 + rank) for rank, gain in enumerate(ranked[:k]))
        for ranked in (shared, sorted(shared, reverse=True))
    ]
    return {
        "map": sum(precisions) / min(k, total),
        "map_hits_found": sum(precisions) / hits if hits else 0,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0,
        "ndcg": cumulated[0] / cumulated[1],
        "acg": sum(shared[:k]) / k,
        "wap": sum(gains) / min(k, sum(gain > 0 for gain in shared)),
        "wap_hits_found": sum(gains) / len(gains) if gains else 0,
    }


def mean(values: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


def orders(distances: NDArray) -> list[list[int]]:
    """All orders of the results that the distances allow."""
    groups = [np.flatnonzero(distances == distance).tolist() for distance in np.unique(distances)]
    return [[patch for group in chosen for patch in group] for chosen in product(*map(permutations, groups))]
