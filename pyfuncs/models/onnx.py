"""Vectors of patches by a model in the ONNX format, a user's own, through onnxruntime."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from pgearth.pyfuncs.errors import INVALID_BINARY_REPRESENTATION, PgearthError
from pgearth.pyfuncs.models.encoder import Batch, Encoder, check_normalisation, misfit
from pgearth.pyfuncs.pixels.rasters import absent, resample, valid_pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

_sessions: WeakKeyDictionary[Encoder, InferenceSession] = WeakKeyDictionary()
"""Loaded models by encoder; they go with it."""


def encode_batch(encoder: Encoder, batch: Batch, options: RunOptions | None = None) -> np.ndarray:
    """Encode n patches, bands (n, height, width) of digital numbers each at its own resolution, into (n, d) float32.

    On the GPU where onnxruntime has its CUDA provider, else on the CPU. A model of batches of one gets one patch at a
    time. Setting `terminate` of `options` ends the model from another thread, with an error: it may have a loop without
    end. Raises PgearthError where the stored model does not load, or fails on the patches.
    """
    if encoder not in _sessions:
        _sessions[encoder] = load(bytes(encoder.weights["model"]))
    session = _sessions[encoder]
    [image], [output] = session.get_inputs(), session.get_outputs()
    images = prepare(encoder, batch, (image.shape[2], image.shape[3]))
    at_once = 1 if image.shape[0] == 1 else len(images)
    try:
        parts = [
            session.run([output.name], {image.name: images[start : start + at_once]}, options)[0]
            for start in range(0, len(images), at_once)
        ]
    except Exception as error:  # onnxruntime's own have no other class in common
        raise PgearthError(
            f"the model of {encoder.name}:{encoder.version} fails: {error}",
            hint="Use another version, or add a model that takes these images: pgearth encoder add",
        ) from error
    return np.concatenate(parts).astype(np.float32, copy=False)


def load(model: bytes) -> InferenceSession:
    """Load a model. Raises PgearthError when onnxruntime cannot.

    Its threads do not spin, or the sessions of several backends would take the cores from each other (DESIGN.md
    section 4); OMP_NUM_THREADS limits how many they are, as torch's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: one for each core
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A model may name files to read its weights from: there are none in this folder, and it must not leave it.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    providers = [
        provider
        for provider in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if provider in onnxruntime.get_available_providers()
    ]
    try:
        return onnxruntime.InferenceSession(model, options, providers)
    except Exception as error:
        raise PgearthError(
            f"onnxruntime {onnxruntime.__version__} cannot load the model: {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Export it anew, for an operator set that this version of onnxruntime knows.",
        ) from error


def check(encoder: Encoder) -> None:
    """Raise PgearthError unless a stored model loads, and takes the encoder's bands and makes its vectors."""
    check_normalisation(encoder)
    session = load(bytes(encoder.weights["model"]))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise misfit(encoder, f"are a model of {len(inputs)} inputs and {len(outputs)} outputs, not of one each")
    [image], [vector] = inputs, outputs
    channels, *size = image.shape[1:] if len(image.shape) == 4 else (None,)
    if image.type != "tensor(float)" or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise misfit(
            encoder, f"are a model of {image.type} {image.shape}, not of float32 (batch, bands, height, width)"
        )
    if isinstance(channels, int) and channels != len(encoder.bands):
        raise misfit(encoder, f"are a model of {channels} bands instead of {len(encoder.bands)}")
    if len(vector.shape) != 2 or (isinstance(vector.shape[1], int) and vector.shape[1] != encoder.dimension):
        raise misfit(encoder, f"are a model that makes {vector.shape} instead of (batch, {encoder.dimension})")


def prepare(encoder: Encoder, batch: Batch, shape: tuple[int, int]) -> np.ndarray:
    """The input of a model, float32 (n, bands, height, width): normalised, 0 where there is no data, resampled."""
    assert encoder.normalisation is not None
    images = np.empty((len(batch[encoder.bands[0]]), len(encoder.bands), *shape), np.float32)
    means, deviations = encoder.normalisation["mean"], encoder.normalisation["std"]
    for channel, (band, mean, deviation) in enumerate(zip(encoder.bands, means, deviations, strict=True)):
        pixels = batch[band]
        values = (pixels.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        values[~valid_pixels(pixels, absent(pixels))] = 0
        images[:, channel] = resample(values, shape)
    return images
