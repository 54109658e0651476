"""Vectors of patches by a network that `eo.encoder` stores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pgearth.pyfuncs.errors import INVALID_BINARY_REPRESENTATION, SYSTEM_ERROR, DeviceFailedError, PgearthError
from pgearth.pyfuncs.models.encoder import Batch, Encoder, check_normalisation, misfit
from pgearth.pyfuncs.models.memory import keep_freed_memory, memory_errors
from pgearth.pyfuncs.models.resnet import ResNet, load_weights
from pgearth.pyfuncs.pixels.rasters import NODATA

_models: WeakKeyDictionary[Encoder, ResNet] = WeakKeyDictionary()
"""Networks by encoder; they go with it."""
LESS_MEMORY = (
    "Encode fewer patches at a time (pgearth encode --batch-size, pgearth encoder start --max-batch), or end what else"
    " uses the GPU (nvidia-smi shows it)."
)


def encode_batch(encoder: Encoder, batch: Batch) -> np.ndarray:
    """Encode n patches, bands (n, height, width) of digital numbers each at its own resolution, into (n, d) float32.

    In float32 on the GPU, where there is one, else the CPU: either gives the same vector, to about one part in 100,000.
    Threads are torch's own: OMP_NUM_THREADS limits them. Raises PgearthError where the encoder's weights are not those
    of its architecture and bands, and where the GPU has too little memory; DeviceFailedError where the GPU fails.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with memory_errors(LESS_MEMORY), torch.inference_mode(), full_precision():
            if encoder not in _models:
                keep_freed_memory()
                _models[encoder] = build(encoder).to(device).to(memory_format=layout(device))  # type: ignore[call-overload]
            return _models[encoder](stack(batch, encoder.bands, device)).cpu().numpy()
    except torch.AcceleratorError as error:
        raise DeviceFailedError(
            f"the GPU failed: {str(error).partition(chr(10))[0]}",
            sqlstate=SYSTEM_ERROR,
            hint="Run it again: a process that has met this computes no more.",
        ) from error


def full_precision() -> AbstractContextManager[None]:
    """A context in which a GPU convolves in float32 proper.

    By default torch lets it round the factors to 10 bits (TF32). That is up to four times as fast, but moves vectors by
    one part in 1,000: of codes of 128 bits a tenth to a quarter were not those that a CPU makes (on an H100).
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def layout(device: torch.device) -> torch.memory_format:
    """How weights lie in memory: a GPU is a tenth faster in float32 where channels do not come last, a CPU where so."""
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def build(encoder: Encoder) -> ResNet:
    """The network of an encoder with its weights. Raises PgearthError where they do not fit together."""
    model = network(encoder)
    load_weights(model, encoder.weights)
    return model.eval()


def network(encoder: Encoder) -> ResNet:
    """The network of an encoder, as wide as its weights, without them. Raises PgearthError without normalisation."""
    normalisation = encoder.normalisation
    if normalisation is None or not len(normalisation["mean"]) == len(normalisation["std"]) == len(encoder.bands):
        raise PgearthError(
            f"encoder {encoder.name} version {encoder.version} has no mean and std of each of its bands",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Register it again, as a new version, with its normalisation.",
        )
    width = max(1, np.size(encoder.weights.get("bn1.weight", 1)))
    return ResNet(encoder.architecture, normalisation["mean"], normalisation["std"], width)


def check(encoder: Encoder) -> None:
    """Raise PgearthError unless the weights and the normalisation of an encoder fit its architecture and bands."""
    check_normalisation(encoder)
    # Without memory for weights, of which a file may claim any number.
    try:
        with torch.device("meta"):
            model = network(encoder)
    except RuntimeError as error:  # sizes overflow
        raise misfit(encoder, f"are of no network: {error}") from error
    expected = shapes(model.state_dict())
    found = shapes(encoder.weights)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise misfit(
                encoder, f"have {described(found.get(name))} as {name} instead of {described(expected.get(name))}"
            )
    if model.dimension != encoder.dimension:
        raise misfit(encoder, f"make vectors of {model.dimension} dimensions instead of {encoder.dimension}")


def shapes(tensors: Mapping[str, Tensor] | Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, but of counters of batches, which files may lack."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def described(shape: tuple[int, ...] | None) -> str:
    """A shape in words; None: there is no such tensor."""
    return "nothing" if shape is None else f"{' x '.join(map(str, shape)) or 'a single'} number(s)"


def stack(batch: Mapping[str, np.ndarray], bands: tuple[str, ...], device: torch.device) -> Tensor:
    """Bands as one tensor (n, bands, height, width) on the finest of their grids, NaN where there is no data.

    Resampled as pixels.rasters.resample does, and so ArchiveDataset, but on the device: coarse bands are less to move.
    """
    shape = max(batch[band].shape[1:] for band in bands)
    images = []
    for band in bands:
        pixels = torch.from_numpy(batch[band]).to(device).float()
        if not np.issubdtype(batch[band].dtype, np.floating):
            pixels = pixels.masked_fill(pixels == NODATA, torch.nan)
        images.append(_resample(pixels, shape))
    return torch.stack(images, 1)


def _resample(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Pixels (n, height, width) on a finer grid: repeated where it is finer by whole numbers, else bilinear."""
    whole = all(fine % coarse == 0 for fine, coarse in zip(shape, pixels.shape[1:], strict=True))
    return interpolate(pixels[:, None], shape, mode="nearest-exact" if whole else "bilinear")[:, 0]
