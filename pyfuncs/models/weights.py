"""Weights of encoders as safetensors bytes, the form in which `eo.encoder` stores them."""

import hashlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from pgearth.pyfuncs.errors import DATA_CORRUPTED, INVALID_BINARY_REPRESENTATION, PgearthError
from pgearth.pyfuncs.limits import WEIGHTS_HEADER_BYTES


class Weights(dict[str, np.ndarray]):
    """Named arrays; raises PgearthError where one is asked for that is not there."""

    def __missing__(self, name: str) -> np.ndarray:
        raise PgearthError(
            f"the weights have no tensor {name}, only {', '.join(self) or 'none at all'}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Register those of its architecture as a new version; docs/encoders.md says which tensors they hold.",
        )


def dump(weights: Mapping[str, np.ndarray]) -> bytes:
    """Serialise named arrays; an empty mapping is allowed (an encoder without trained weights)."""
    # safetensors writes the memory of an array as it lies, so it must lie in C order
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in weights.items()})


def load(data: bytes, sha256: str) -> Weights:
    """Read what `dump` wrote; raises PgearthError when the data are not those of the hexadecimal digest `sha256`."""
    check(data, sha256)
    if int.from_bytes(data[:8], "little") > WEIGHTS_HEADER_BYTES:
        raise PgearthError(
            f"weights are not in safetensors format: their header has more than {WEIGHTS_HEADER_BYTES:,} bytes",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Register what the library safetensors saves, as a new version.",
        )
    try:
        return Weights(safetensors.numpy.load(data))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:  # numpy has not all its types
        raise PgearthError(
            f"weights are not in safetensors format: {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Register what the library safetensors saves, as a new version.",
        ) from error


def load_model(data: bytes, sha256: str) -> dict[str, np.ndarray]:
    """A stored ONNX model as one array of bytes, `model`; raises PgearthError when it is not that of the digest."""
    check(data, sha256)
    return {"model": np.frombuffer(data, np.uint8)}


def check(data: bytes, sha256: str) -> None:
    """Raise PgearthError unless the data are those of the hexadecimal digest `sha256`."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise PgearthError(
            f"weights have the SHA-256 digest {digest}, but {sha256} is recorded",
            sqlstate=DATA_CORRUPTED,
            hint="The weights changed after they were stored: restore eo.encoder from a backup or train it anew.",
        )
