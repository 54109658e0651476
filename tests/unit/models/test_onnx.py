"""Models exported from torch give torch's numbers; what is wrong with a model is said before it is stored."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from pgearth.loaders.models import onnx_file
from pgearth.loaders.models.onnx_file import read_model
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.encoder import Encoder, encode
from pgearth.pyfuncs.models.onnx import load

BANDS = ("B02", "B03", "B11")
MEAN = (500.0, 600.0, 1500.0)
STD = (300.0, 250.0, 800.0)
FREE = {0: "images", 2: "height", 3: "width"}


class Network(nn.Module):
    """A small network whose vector depends on where in the image its pixels are."""

    def __init__(self, bands: int = 3, dimension: int = 16) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(bands, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(8, dimension)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(self.convolution(images)).relu().square().mean((2, 3))))


class Features(Network):
    """With the map of features that the vector is made of, and a third output of two axes."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return self.convolution(images), super().forward(images), images.mean((2, 3))


class Computed(nn.Module):
    """What a function makes of images."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *images: Tensor) -> Tensor:
        return self.function(*images)


def export(
    module: nn.Module,
    size: int = 16,
    free: dict[int, str] | None = None,
    batch: int = 2,
    inputs: tuple[Tensor, ...] | None = None,
    training: bool = False,
) -> bytes:
    """The module as ONNX, its axes `free` (default: all but the bands) dynamic."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is the old one, which needs no further package
        torch.onnx.export(
            module.train() if training else module.eval(),
            inputs or (torch.zeros(batch, 3, size, size),),
            file,
            input_names=["images"],
            dynamic_axes={"images": FREE if free is None else free},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=not training,
            dynamo=False,
        )
    return file.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    """Call `saved(model)` writes it to a file."""

    def save(model: bytes) -> Path:
        file = tmp_path / "model.onnx"
        file.write_bytes(model)
        return file

    return save


def encoder(model: bytes, dimension: int) -> Encoder:
    """As a stored row would give it."""
    weights = {"model": np.frombuffer(model, np.uint8)}
    return Encoder(1, "own", 1, "onnx", BANDS, None, dimension, None, weights, {"mean": list(MEAN), "std": list(STD)})


def patches(number: int, size: int = 24) -> list[dict[str, np.ndarray]]:
    """Digital numbers, B11 at half the resolution, some of them no data."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(number):
        patch = {band: rng.integers(1, 3000, (size, size), np.uint16) for band in BANDS[:2]}
        patch["B11"] = rng.integers(1, 3000, (size // 2, size // 2), np.uint16)
        patch["B02"][:4, :7] = 0
        patch["B11"][-3:, -2:] = 0
        made.append(patch)
    return made


def by_hand(patch: dict[str, np.ndarray]) -> Tensor:
    """Input of the network for a patch of 24 x 24, resampled to 12 x 12 by means, or left alone at B11."""
    channels = []
    for band, mean, std in zip(BANDS, MEAN, STD, strict=True):
        pixels = torch.from_numpy(patch[band].astype(np.float64))
        values = torch.where(pixels == 0, 0, (pixels - mean) / std)
        channels.append(nn.functional.avg_pool2d(values[None], 2)[0] if len(values) == 24 else values)
    return torch.stack(channels)[None].float()


@pytest.mark.parametrize("free", [FREE, {0: "images"}, {}], ids=["free", "size fixed", "one at a time"])
def test_a_model_gives_torchs_numbers(saved: Callable[[bytes], Path], free: dict[int, str]) -> None:
    torch.manual_seed(0)
    network = Network()
    model, dimension = read_model(saved(export(network, 12, free, batch=2 if 0 in free else 1)), BANDS, 12, None)
    assert dimension == 16
    given = patches(5)
    vectors = encode(encoder(model, dimension), given, batch_size=3)
    assert vectors.dtype == np.float32
    with torch.inference_mode():
        expected = torch.cat([network(by_hand(patch)) for patch in given]).numpy()
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 0.1, "the patches must differ in what is compared"


def test_patches_of_floats_and_of_another_size(saved: Callable[[bytes], Path]) -> None:
    """NaN is no data in floats; bilinear where the sizes are no multiples."""
    network = Network()
    model, dimension = read_model(saved(export(network)), BANDS, 16, None)
    own = encoder(model, dimension)
    [patch] = patches(1, 20)
    floats = {band: np.where(pixels == 0, np.nan, pixels).astype(np.float32) for band, pixels in patch.items()}
    one, other = encode(own, [patch, floats])
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.isfinite(one).all()


def test_one_output_is_taken(saved: Callable[[bytes], Path]) -> None:
    torch.manual_seed(0)
    network = Features()
    file = saved(export(network))
    with pytest.raises(PgearthError, match="several outputs") as caught:
        read_model(file, BANDS, 16, None)
    assert "--output" in caught.value.hint
    names = [output.name for output in onnx.load(file).graph.output]
    images = torch.randn(2, 3, 16, 16)
    for position, dimension in ((1, 16), (2, 3)):
        model, found = read_model(file, BANDS, 16, names[position])
        assert found == dimension
        [output] = load(model).get_outputs()
        assert output.name == names[position]
        [vectors] = load(model).run(None, {"images": images.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(vectors, network(images)[position].numpy(), rtol=1e-5, atol=1e-6)
    for output, message in ((names[0], "makes no vector of an image"), ("nothing", "no output nothing")):
        with pytest.raises(PgearthError, match=message):
            read_model(file, BANDS, 16, output)


def test_the_same_file_is_stored_as_the_same_bytes(saved: Callable[[bytes], Path]) -> None:
    file = saved(export(Network()))
    assert read_model(file, BANDS, 16, None) == read_model(file, BANDS, 16, None)


def computed(function: Callable[..., Tensor], **arguments: object) -> Callable[[], bytes]:
    """Exports what a function makes of images."""
    return lambda: export(Computed(function), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        (lambda: export(Network(4), inputs=(torch.zeros(2, 4, 16, 16),)), r"4 bands, but 3 are given \(B02", "--bands"),
        (lambda: export(Network(), 20, {0: "n"}), "not images of 16 x 16 pixels", "Give --size 20"),
        (lambda: export(Network(), batch=8, free={}), "8 images at once", "dynamic first axis"),
        (computed(lambda images: images * 2), "makes no vector", "pools"),
        (computed(lambda images: images.flatten(1).argmax(1, keepdim=True)), "int64", "--output"),
        (computed(lambda images: images.flatten(1).repeat(1, 30)), "vectors of 23,040 numbers", "pools"),
        (computed(lambda images: images.mean((2, 3)).log()), "of images the model makes numbers that are not", "mean 0"),
        (computed(lambda images: 1 / images.square().mean((2, 3))), "of an image without data", "overflows"),
        (
            computed(
                lambda one, other: (one + other).mean((2, 3)),
                inputs=(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)),
            ),
            r"2 inputs \(images",
            "only images go in",
        ),
        (computed(lambda image: image.mean(1), free={}, inputs=(torch.zeros(3, 16, 16),)), "not \\(batch", "batches of images"),
        (
            computed(lambda images: images.float().mean((2, 3)), inputs=(torch.zeros(2, 3, 16, 16).half(),)),
            "not float32",
            "float32 input",
        ),
        (computed(lambda images: images.mean((2, 3)) - images.mean((0, 2, 3))), "in a batch than alone", "eval"),
        (lambda: export(Network(), training=True), "another vector", r"model.eval\(\)"),
        (computed(lambda images: images.flatten(1) @ torch.ones(1200, 5), size=20), "the model fails on 1 image", "--size"),
    ],
    ids=[
        "bands", "size", "batch", "rank", "integers", "dimension", "not finite", "no data", "inputs", "image", "half",
        "batch statistics", "dropout", "fails",
    ],
)  # fmt: skip
def test_a_model_that_would_not_do_is_refused(
    saved: Callable[[bytes], Path], model: Callable[[], bytes], message: str, hint: str
) -> None:
    with pytest.raises(PgearthError, match=message) as caught:
        read_model(saved(model()), BANDS, 16, None)
    assert "model.onnx" in str(caught.value)
    assert caught.value.hint
    assert hint.replace("\\", "") in caught.value.hint


def test_files_that_are_no_whole_models(saved: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = export(Network())
    for content in (b"", b"not a model", model[:10], model[: len(model) // 2], model[:-3], b"PK\3\4" + model):
        with pytest.raises(PgearthError, match="not a whole ONNX model"):
            read_model(saved(content), BANDS, 16, None)
    monkeypatch.setattr(onnx_file, "MODEL_BYTES", len(model) - 1)
    with pytest.raises(PgearthError, match="more than the 0 MiB") as caught:
        read_model(saved(model), BANDS, 16, None)
    assert "half precision" in caught.value.hint


@pytest.mark.parametrize("location", ["weights.bin", "/etc/hostname", "../../../etc/hostname"])
def test_no_other_file_is_read(saved: Callable[[bytes], Path], location: str) -> None:
    """Neither when it is added nor, should it have got into the database by another way, when it is used."""
    model = onnx.load_model_from_string(export(Network()))
    tensor = model.graph.initializer[0]
    set_external_data(tensor, location, 0, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    file = saved(model.SerializeToString())
    (file.parent / "weights.bin").write_bytes(bytes(10_000))
    with pytest.raises(PgearthError, match=f"keeps weights in another file, {location}") as caught:
        read_model(file, BANDS, 16, None)
    assert "save_as_external_data=False" in caught.value.hint
    with pytest.raises(PgearthError, match="External data path"):
        encode(encoder(file.read_bytes(), 16), patches(1))


def test_a_stored_model_that_does_not_load() -> None:
    with pytest.raises(PgearthError, match="cannot load the model") as caught:
        encode(encoder(b"not a model", 16), patches(1))
    assert caught.value.sqlstate == "22P03"


def test_weights_elsewhere_in_a_node(saved: Callable[[bytes], Path]) -> None:
    model = onnx.load_model_from_string(export(Network()))
    tensor = model.graph.initializer[0]
    model.graph.initializer.remove(tensor)
    node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
    value = node.attribute[0].t
    set_external_data(value, "weights.bin", 0, len(value.raw_data))
    value.ClearField("raw_data")
    value.data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.insert(0, node)
    with pytest.raises(PgearthError, match=r"keeps weights in another file, weights\.bin"):
        read_model(saved(model.SerializeToString()), BANDS, 16, None)
