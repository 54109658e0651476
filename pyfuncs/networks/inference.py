"""Vectors of patches by a network that `eo.encoder` stores."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pyfuncs.encoders import Batch, Encoder
from pyfuncs.errors import INVALID_BINARY_REPRESENTATION, PgearthError
from pyfuncs.networks.memory import keep_freed_memory
from pyfuncs.networks.resnet import ResNet, load_weights
from pyfuncs.rasters import NODATA

_models: WeakKeyDictionary[Encoder, ResNet] = WeakKeyDictionary()
"""Networks by encoder; they go with it."""


def encode_batch(encoder: Encoder, batch: Batch) -> np.ndarray:
    """Encode n patches, bands (n, height, width) of digital numbers each at its own resolution, into (n, d) float32.

    In float32 on the GPU, where there is one, else the CPU. Threads are torch's own: OMP_NUM_THREADS limits them.
    Raises PgearthError where the encoder's weights are not those of its architecture and bands.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if encoder not in _models:
        keep_freed_memory()
        _models[encoder] = build(encoder).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        return _models[encoder](stack(batch, encoder.bands, device)).cpu().numpy()


def build(encoder: Encoder) -> ResNet:
    """The network of an encoder, whose width its weights tell. Raises PgearthError where they do not fit together."""
    normalisation = encoder.normalisation
    if normalisation is None or not len(normalisation["mean"]) == len(normalisation["std"]) == len(encoder.bands):
        raise PgearthError(
            f"encoder {encoder.name} version {encoder.version} has no mean and std of each of its bands",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Register it again, as a new version, with its normalisation.",
        )
    width = len(encoder.weights.get("bn1.weight", [None]))
    model = ResNet(encoder.architecture, normalisation["mean"], normalisation["std"], width)
    load_weights(model, encoder.weights)
    return model.eval()


def stack(batch: Mapping[str, np.ndarray], bands: tuple[str, ...], device: torch.device) -> Tensor:
    """Bands as one tensor (n, bands, height, width) on the finest of their grids, NaN where there is no data.

    Resampled as pyfuncs.rasters.resample does, and so ArchiveDataset, but on the device: coarse bands are less to move.
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
