"""A user's ONNX model, tried out before it is stored: what would go wrong in a search goes wrong here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.interrupts import interruptibly
from pgearth.pyfuncs.limits import MODEL_BYTES
from pgearth.pyfuncs.models.onnx import load

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto
    from onnxruntime import InferenceSession

MAX_DIMENSION = 16_000  # pgvector's
TOLERANCE = 1e-3
"""Relative difference of vectors of one image, alone and in a batch: float32 sums in another order stay well below."""


def read_model(file: Path, bands: Sequence[str], size: int, output: str | None) -> tuple[bytes, int]:
    """Read a model of images of these bands and size x size pixels; return it as it is stored, and its dimension.

    It then has one output, (n, dimension), and takes that size only. Raises PgearthError for a file that is not a whole
    ONNX model with its weights in it, and for a model that does not make finite vectors of such images, the same of an
    image alone as in a batch.
    """
    model = parse(file)
    session = start(file, model)
    image = check_input(file, session, bands, size)
    for graph_input in model.graph.input:
        if graph_input.name == image:
            for dimension in graph_input.type.tensor_type.shape.dim[2:]:
                dimension.dim_value = size
    chosen = choose_output(file, session, np.zeros((1, len(bands), size, size), np.float32), output)
    del model.graph.output[:chosen], model.graph.output[1:]
    session = start(file, model)
    return model.SerializeToString(deterministic=True), check_vectors(file, session, len(bands), size)


def parse(file: Path) -> ModelProto:
    """Read a file. Raises PgearthError where it is no whole ONNX model, keeps weights in other files, or is too big."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    if (size := file.stat().st_size) > MODEL_BYTES:
        raise PgearthError(
            f"{file}: {size / 2**20:,.0f} MiB are more than the {MODEL_BYTES // 2**20} MiB that the archive takes.",
            "Store its weights in half precision (onnxconverter-common: convert_float_to_float16, keep_io_types=True).",
        )
    try:
        model = onnx.load_model_from_string(file.read_bytes())
        elsewhere = {ExternalDataInfo(tensor).location for tensor in tensors_of(model) if uses_external_data(tensor)}
        if elsewhere:
            raise PgearthError(
                f"{file}: the model keeps weights in another file, {', '.join(sorted(elsewhere))}.",
                "Put them into one: onnx.save_model(onnx.load(FILE), OTHER, save_as_external_data=False).",
            )
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise PgearthError(f"{file}: not a whole ONNX model: {error}", "Export it again.") from error
    return model


def tensors_of(message: Message) -> Iterator[TensorProto]:
    """All tensors in a model, wherever they lie: initialisers, attributes, graphs in attributes, functions."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from tensors_of(part)


def start(file: Path, model: ModelProto) -> InferenceSession:
    """Load a model into onnxruntime. Raises PgearthError when it cannot."""
    try:
        return load(model.SerializeToString(deterministic=True))
    except PgearthError as error:
        raise PgearthError(f"{file}: {error}", "Export it with operators and an opset that onnxruntime has.") from error


def check_input(file: Path, session: InferenceSession, bands: Sequence[str], size: int) -> str:
    """Name of the model's input. Raises PgearthError unless it has one, for batches of such images."""

    def refuse(message: str, hint: str) -> NoReturn:
        raise PgearthError(f"{file}: {message}", hint)

    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(image.name for image in inputs) or "none"
        refuse(f"the model has {len(inputs)} inputs ({names}), not one.", "Wrap it so that only images go in.")
    [image] = inputs
    described = f"its input {image.name} takes {image.type} {tuple(image.shape)}"
    if image.type != "tensor(float)":
        refuse(f"{described}, not float32.", "Export it with a float32 input.")
    if len(image.shape) != 4:
        refuse(f"{described}, not (batch, bands, height, width).", "Wrap it so that it takes batches of images.")
    batch, channels, *shape = image.shape
    if isinstance(batch, int) and batch != 1:
        refuse(f"{described}: {batch} images at once.", "Export it with a dynamic first axis, or for one image.")
    if isinstance(channels, int) and channels != len(bands):
        refuse(
            f"{described}: {channels} bands, but {len(bands)} are given ({', '.join(bands)}).",
            "Name by --bands what the model was trained on, in its order.",
        )
    for side in shape:
        if isinstance(side, int) and side != size:
            refuse(f"{described}, not images of {size} x {size} pixels.", f"Give --size {side}.")
    name: str = image.name
    return name


def choose_output(file: Path, session: InferenceSession, image: np.ndarray, output: str | None) -> int:
    """Position of the output that has this name, or is the only one with a vector. Raises PgearthError without one."""
    names = [one.name for one in session.get_outputs()]
    shapes = [np.shape(array) for array in run(file, session, image)]
    described = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
    if output is not None and output not in names:
        raise PgearthError(f"{file}: the model has no output {output}.", f"Of one image it makes {described}.")
    positions = [
        position
        for position, (name, shape) in enumerate(zip(names, shapes, strict=True))
        if output in (None, name) and len(shape) == 2 and shape[0] == 1
    ]
    if not positions:
        raise PgearthError(
            f"{file}: the model makes no vector of an image, (1, dimension), but {described}.",
            "Wrap it so that it pools its features into one vector.",
        )
    if len(positions) > 1:
        raise PgearthError(f"{file}: the model has several outputs.", f"Choose one by --output: {described}.")
    return positions[0]


def check_vectors(file: Path, session: InferenceSession, bands: int, size: int) -> int:
    """Dimension of the vectors that a model with one output makes. Raises PgearthError where they are not usable."""
    # Normalised pixels of two images, and one without data between them.
    images = np.random.default_rng(0).standard_normal((3, bands, size, size), np.float32)
    images[1] = 0
    alone = np.concatenate([run(file, session, images[number : number + 1])[0] for number in range(3)])
    dimension = alone.shape[1]
    if alone.dtype.kind != "f":
        raise PgearthError(
            f"{file}: its output is {alone.dtype}, not of floating point.", "Choose another by --output."
        )
    if not 1 <= dimension <= MAX_DIMENSION:
        raise PgearthError(
            f"{file}: vectors of {dimension:,} numbers; the archive takes 1 to {MAX_DIMENSION:,}.",
            "Wrap the model so that it pools its features.",
        )
    if not np.isfinite(alone).all():
        raise PgearthError(
            f"{file}: of {'images' if not np.isfinite(alone[::2]).all() else 'an image without data'} the model makes"
            " numbers that are not finite.",
            "Images have mean 0 and deviation 1 when they go in, and 0 where there is no data: look what overflows.",
        )
    again = np.concatenate([run(file, session, images[number : number + 1])[0] for number in range(3)])
    tolerance = TOLERANCE * np.abs(alone).max()
    if not np.allclose(alone, again, TOLERANCE, tolerance):
        raise PgearthError(
            f"{file}: the same image gives another vector each time.",
            "It was exported as in training, with dropout: call model.eval() before.",
        )
    if session.get_inputs()[0].shape[0] != 1:
        together = run(file, session, images)[0]
        if together.shape != alone.shape or not np.allclose(alone, together, TOLERANCE, tolerance):
            raise PgearthError(
                f"{file}: an image gives another vector in a batch than alone.",
                "It was exported as in training, with statistics of the batch: call model.eval() before. Or export it"
                " for one image at a time, without a dynamic first axis.",
            )
    return dimension


def run(file: Path, session: InferenceSession, images: np.ndarray) -> list[np.ndarray]:
    """All outputs for a batch of images. Raises PgearthError where the model fails on it."""
    from onnxruntime import RunOptions

    options = RunOptions()

    def compute(_: Callable[[], None]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: images}, options)
        return outputs

    try:
        # In a thread, so that an interrupt ends what has no end.
        return interruptibly(compute, lambda: None, lambda: setattr(options, "terminate", True))
    except Exception as error:  # onnxruntime's own have no other class in common
        raise PgearthError(
            f"{file}: the model fails on {len(images)} image(s) of {images.shape[1]} bands and {images.shape[2]} x"
            f" {images.shape[3]} pixels: {error}",
            "Try another --size; or export the model again with that size, or with a dynamic first axis.",
        ) from error
