"""Encoders and hash functions behind one seam: an `Encoder` is a row of `eo.encoder`, its architecture the code."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pyfuncs import lsh, spectral
from pyfuncs.convert import bit_string
from pyfuncs.errors import UNDEFINED_OBJECT, PgearthError

BATCH_SIZE = 32

Function = TypeVar("Function", bound=Callable[..., np.ndarray])
Weights = Mapping[str, np.ndarray]
Batch = Mapping[str, np.ndarray]  # band name -> (n, height, width)

_ENCODE: dict[str, Callable[[Weights, Batch], np.ndarray]] = {
    "spectral": lambda _weights, batch: spectral.features(batch),
}
_HASH: dict[str, Callable[[Weights, np.ndarray], np.ndarray]] = {
    "lsh": lsh.hash_codes,
}


@dataclass(frozen=True, eq=False)
class Encoder:
    """One version of an encoder (patch to vector of `dimension`) or of a hash function (vector to code of `bits`)."""

    encoder_id: int
    name: str
    version: int
    architecture: str
    bands: tuple[str, ...]
    input_size: int | None  # pixels along each side of the finest band; None: any
    dimension: int | None
    bits: int | None
    weights: Weights


def encode(encoder: Encoder, patches: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Encode patches, each a mapping of band names to digital numbers (height, width), into (n, dimension) float32.

    Pixels that equal `rasters.NODATA` or are NaN are no data. Patches of the same shapes go through together. Raises
    PgearthError for a patch without one of the encoder's bands or of another size, and when the encoder's architecture
    encodes no patches.
    """
    compute = _lookup(_ENCODE, encoder)
    numbers_by_shapes: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
    for number, patch in enumerate(patches):
        numbers_by_shapes[_shapes(encoder, patch)].append(number)
    vectors = np.empty((len(patches), encoder.dimension or 0), np.float32)
    for numbers in numbers_by_shapes.values():
        for start in range(0, len(numbers), BATCH_SIZE):
            chosen = numbers[start : start + BATCH_SIZE]
            batch = {band: np.stack([patches[number][band] for number in chosen]) for band in encoder.bands}
            vectors[chosen] = compute(encoder.weights, batch)
    return vectors


def hash_codes(encoder: Encoder, vectors: np.ndarray) -> list[str]:
    """Hash vectors (n, d) to the texts of `bit(n)` codes.

    Raises PgearthError when the vectors do not fit the hash function, or the encoder's architecture hashes none.
    """
    return [bit_string(code) for code in _lookup(_HASH, encoder)(encoder.weights, vectors)]


def _lookup(functions: Mapping[str, Function], encoder: Encoder) -> Function:
    if encoder.architecture not in functions:
        raise PgearthError(
            f"encoder {encoder.name} version {encoder.version} has architecture {encoder.architecture!r}, not one of"
            f" {', '.join(sorted(functions))}",
            sqlstate=UNDEFINED_OBJECT,
            hint="Pass an encoder to encode patches and a hash function to hash vectors, of this version of pgearth.",
        )
    return functions[encoder.architecture]


def _shapes(encoder: Encoder, patch: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the encoder's bands in a patch."""
    missing = [band for band in encoder.bands if band not in patch]
    if missing:
        raise PgearthError(
            f"missing band {', '.join(missing)}",
            hint=f"Encoder {encoder.name} needs the bands {', '.join(encoder.bands)}.",
        )
    shapes = tuple(patch[band].shape for band in encoder.bands)
    size = encoder.input_size
    if size is not None and max(shapes) != (size, size):
        raise PgearthError(
            f"patch of {' x '.join(map(str, max(shapes)))} pixels",
            hint=f"Encoder {encoder.name} needs patches of {size} x {size} pixels.",
        )
    return shapes
