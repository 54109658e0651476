"""Encoders and hash functions behind one seam: an `Encoder` is a row of `eo.encoder`, its architecture the code."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.errors import INVALID_BINARY_REPRESENTATION, UNDEFINED_OBJECT, PgearthError
from pgearth.pyfuncs.hashing import itq, kslsh, lsh, milan, sign, trivial
from pgearth.pyfuncs.models import spectral

BATCH_SIZE = 16
"""Patches that go through a network at once on a CPU: of more, the arrays of a wide one are larger than malloc can be
told to keep for the next batch."""

Function = TypeVar("Function", bound=Callable[..., np.ndarray | None])
Weights = Mapping[str, np.ndarray]
Batch = Mapping[str, np.ndarray]  # band name -> (n, height, width)


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
    normalisation: Mapping[str, Sequence[float]] | None = None
    units: tuple[str, ...] | None = None  # of each band (pgearth.pyfuncs.models.units); None: not declared


# Networks are imported where they are used: torch takes a second and a half.


def _encode_by_network(encoder: Encoder, batch: Batch) -> np.ndarray:
    from pgearth.pyfuncs.models.inference import encode_batch

    return encode_batch(encoder, batch)


def _encode_by_onnx(encoder: Encoder, batch: Batch) -> np.ndarray:
    from pgearth.pyfuncs.models.onnx import encode_batch

    return encode_batch(encoder, batch)


_ENCODE: dict[str, Callable[[Encoder, Batch], np.ndarray]] = {
    "spectral": lambda _encoder, batch: spectral.features(batch),
    "resnet18": _encode_by_network,
    "resnet50": _encode_by_network,
    "onnx": _encode_by_onnx,
}


def _check_spectral(encoder: Encoder) -> None:
    if encoder.weights:
        raise misfit(encoder, f"hold {', '.join(encoder.weights)}, but there is nothing to be trained")


def _check_network(encoder: Encoder) -> None:
    from pgearth.pyfuncs.models.inference import check

    check(encoder)


def _check_onnx(encoder: Encoder) -> None:
    from pgearth.pyfuncs.models.onnx import check

    check(encoder)


_CHECK: dict[str, Callable[[Encoder], None]] = {
    "spectral": _check_spectral,
    "resnet18": _check_network,
    "resnet50": _check_network,
    "onnx": _check_onnx,
}
NETWORKS = frozenset(_ENCODE) - {"spectral"}
"""Architectures that the encoder process computes where it runs."""
_HASH: dict[str, Callable[[Weights, np.ndarray], np.ndarray]] = {
    "itq": itq.hash_codes,
    "kslsh": kslsh.hash_codes,
    "lsh": lsh.hash_codes,
    "milan": milan.hash_codes,
    "sign": sign.hash_codes,
    "trivial": trivial.hash_codes,
}


def check_normalisation(encoder: Encoder) -> None:
    """Raise PgearthError unless there are a mean and a deviation of each band to normalise by."""
    given = encoder.normalisation if isinstance(encoder.normalisation, Mapping) else {}
    numbers = [given.get(name) for name in ("mean", "std")]
    if not all(
        isinstance(values, list)
        and len(values) == len(encoder.bands)
        and all(isinstance(value, int | float) and np.isfinite(value) for value in values)
        for values in numbers
    ) or not all(value > 0 for value in given["std"]):
        raise PgearthError(
            f"the normalisation of {encoder.name} version {encoder.version} has no mean and std of each of its bands",
            hint='Give one number for each band, std above 0, such as {"mean": [430, 614], "std": [572, 583]} for two.',
        )


def check(encoder: Encoder, parent_dimension: int | None) -> None:
    """Raise PgearthError unless the weights of an encoder, or hash function of such vectors, fit its architecture."""
    for name, tensor in encoder.weights.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise misfit(encoder, f"have numbers in {name} that are not finite")
    if encoder.bits is None:
        _lookup(_CHECK, encoder)(encoder)
    else:
        hash_codes(encoder, np.zeros((1, parent_dimension or 0), np.float32))


def encode_batch(encoder: Encoder, batch: Batch) -> np.ndarray:
    """Encode n patches of the same shapes, each band (n, height, width), into (n, dimension) float32.

    Raises PgearthError when the encoder's architecture encodes no patches.
    """
    return _lookup(_ENCODE, encoder)(encoder, batch)


def encode(
    encoder: Encoder,
    patches: Sequence[Mapping[str, np.ndarray]],
    compute: Callable[[Encoder, Batch], np.ndarray] = encode_batch,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Encode patches, each a mapping of band names to digital numbers (height, width), into (n, dimension) float32.

    Integers that equal `rasters.NODATA` and floats that are NaN are no data. Patches of the same shapes and dtypes go
    through together, at most `batch_size` at a time, by `encode_batch` or what takes its place. Raises PgearthError for
    a patch without one of the encoder's bands or of another size, and when the encoder's architecture encodes none.
    """
    numbers_by_kind: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, patch in enumerate(patches):
        shapes = _shapes(encoder, patch)
        # Not of several dtypes, for integers and floats differ in what is no data.
        numbers_by_kind[shapes, *(patch[band].dtype for band in encoder.bands)].append(number)
    vectors = np.empty((len(patches), encoder.dimension or 0), np.float32)
    for numbers in numbers_by_kind.values():
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            batch = {band: np.stack([patches[number][band] for number in chosen]) for band in encoder.bands}
            computed = compute(encoder, batch)
            if computed.shape != (len(chosen), encoder.dimension):
                wrong = " x ".join(map(str, computed.shape[1:]))
                raise misfit(encoder, f"make vectors of {wrong} dimensions instead of {encoder.dimension}")
            vectors[chosen] = computed
    return vectors


def hash_codes(encoder: Encoder, vectors: np.ndarray) -> list[str]:
    """Hash vectors (n, d) to the texts of `bit(n)` codes.

    Raises PgearthError when the vectors do not fit the hash function, or the encoder's architecture hashes none.
    """
    function = _lookup(_HASH, encoder)
    try:
        codes = function(encoder.weights, vectors)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise misfit(encoder, "do not fit together") from error
    if codes.shape != (len(vectors), encoder.bits):
        raise misfit(encoder, f"make codes of {' x '.join(map(str, codes.shape[1:]))} bits instead of {encoder.bits}")
    return [bit_string(code) for code in codes]


def misfit(encoder: Encoder, fault: str) -> PgearthError:
    """The error of weights that do not fit the encoder's architecture."""
    return PgearthError(
        f"the weights of {encoder.name} version {encoder.version} {fault}",
        sqlstate=INVALID_BINARY_REPRESENTATION,
        hint=f"Register weights of the architecture {encoder.architecture} as a new version.",
    )


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
