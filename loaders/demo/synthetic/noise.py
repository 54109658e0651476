"""Random numbers and smooth noise that are functions of seed, name and place only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def random_numbers(seed: int, name: str, columns: NDArray, rows: NDArray) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1) at points of an integer lattice, each a function of seed, name and point only.

    `columns` and `rows` broadcast. The mixing is SplitMix64's (Steele, Lea and Flood 2014).
    """
    (key,) = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)

    def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = mix(mix(columns.astype(np.uint64) * golden + key) + rows.astype(np.uint64) * golden)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def smooth_noise(seed: int, name: str, columns: range, rows: range, scales: Mapping[int, float]) -> NDArray[np.float32]:
    """Smooth random field on a lattice, an array (rows, columns): value noise of several scales, each with its weight.

    Noise of a scale is random numbers of mean 0 and variance 1 at every so many points, blended in between so that the
    variance stays 1; a scale of 1 is white noise.
    """
    field = np.zeros((len(rows), len(columns)), np.float32)
    for scale, weight in scales.items():
        x, left, right = blend(columns, scale)
        y, upper, lower = blend(rows, scale)
        nodes = random_numbers(
            seed, f"{name} {scale}", np.arange(x[0], x[-1] + 2)[None, :], np.arange(y[0], y[-1] + 2)[:, None]
        )
        nodes = ((nodes - 0.5) * (weight * np.sqrt(12))).astype(np.float32)
        x, y = x - x[0], y - y[0]
        nodes = nodes[:, x] * left + nodes[:, x + 1] * right
        field += nodes[y] * upper[:, None] + nodes[y + 1] * lower[:, None]
    return field


def blend(points: range, scale: int) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """The node before each point, and the weights of that node and the next."""
    node, offset = np.divmod(np.arange(points.start, points.stop), scale)
    share = (offset / scale) ** 2 * (3 - 2 * offset / scale)
    norm = np.hypot(1 - share, share)
    return node, ((1 - share) / norm).astype(np.float32), (share / norm).astype(np.float32)
