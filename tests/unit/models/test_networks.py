"""Networks against published numbers of parameters and slow oracles, on the CPU and on a GPU."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgearth.pyfuncs.errors import DeviceFailedError, PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import inference, weights
from pgearth.pyfuncs.models.encoder import Encoder, encode
from pgearth.pyfuncs.models.resnet import ARCHITECTURES, ResNet, weights_of
from pgearth.pyfuncs.pixels.rasters import NODATA, resample
from pgearth.pyfuncs.training.classifier import Classifier
from tests.unit.training.images import settings, trained

SENTINEL_2 = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 1),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 2),
    **dict.fromkeys(("B01", "B09"), 6),
}
"""How many times coarser than the finest each band is."""
SENTINEL_1 = {"VV": 1, "VH": 1}
WITHOUT_60_M = {band: factor for band, factor in SENTINEL_2.items() if factor < 6}
Patch = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def patch(bands: dict[str, int], size: int = 120, seed: int = 0) -> Patch:
    """Pixels of each band; of Sentinel-1 floats."""
    random = np.random.default_rng(seed)
    return {
        band: random.normal(-15, 5, (size // factor, size // factor)).astype(np.float32)
        if band in SENTINEL_1
        else random.integers(1, 6000, (size // factor, size // factor)).astype(np.uint16)
        for band, factor in bands.items()
    }


def encoder(kinds: dict[str, int], network: str = "resnet18", width: int = 8, **changes: Any) -> Encoder:
    """An encoder with random weights, read as the database stores it."""
    torch.manual_seed(1)
    mean, std = ([-15.0] * 2, [5.0] * 2) if "VV" in kinds else ([3000.0] * len(kinds), [1700.0] * len(kinds))
    model = ResNet(network, mean, std, width)
    model.train()
    with torch.no_grad():  # so that the running statistics are not those of new networks
        model(torch.randn(8, len(kinds), 64, 64) * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
    stored = weights.dump(weights_of(model))
    row: dict[str, Any] = {
        "encoder_id": 1,
        "name": "cnn",
        "version": 1,
        "architecture": network,
        "bands": tuple(kinds),
        "input_size": None,
        "dimension": model.dimension,
        "bits": None,
        "weights": weights.load(stored, weights.hashlib.sha256(stored).hexdigest()),
        "normalisation": json.loads(json.dumps({"mean": mean, "std": std})),
    }
    return Encoder(**{**row, **changes})


# The network


@pytest.mark.parametrize(("architecture", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_numbers_of_parameters_are_the_published_ones(architecture: str, parameters: int) -> None:
    classifier = Classifier(ResNet(architecture, [0] * 3, [1] * 3), 1000)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == parameters


@pytest.mark.parametrize(("architecture", "convolutions"), [("resnet18", 20), ("resnet50", 53)])
def test_layers_and_sizes_are_those_of_table_1(architecture: str, convolutions: int) -> None:
    """Of 224 x 224 pixels the stages leave 56, 28, 14 and 7; shortcuts of other shapes are projections."""
    block, depths = ARCHITECTURES[architecture]
    model = ResNet(architecture, [0] * 3, [1] * 3)
    shapes = []
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda _module, _input, output: shapes.append(output.shape[1:]))
    assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 512 * block.expansion)
    widths = [64, *(width * block.expansion for width in (64, 128, 256, 512))]
    assert shapes == [(width, size, size) for width, size in zip(widths, (56, 56, 28, 14, 7), strict=True)]
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert [sum(isinstance(module, block) for module in stage.modules()) for stage in
            (model.layer1, model.layer2, model.layer3, model.layer4)] == list(depths)  # fmt: skip


def literal_resnet18(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """ResNet-18 written out, in evaluation mode."""

    def convolution(values: Tensor, name: str, norm: str, stride: int, padding: int) -> Tensor:
        values = nn.functional.conv2d(values, state[f"{name}.weight"], stride=stride, padding=padding)
        mean, variance, gain, shift = (
            state[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / (variance + 1e-5).sqrt() * gain + shift

    values = convolution(images, "conv1", "bn1", 2, 3).clamp(min=0)
    values = nn.functional.max_pool2d(values, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = values
            if stride == 2:
                shortcut = convolution(values, f"{name}.downsample.0", f"{name}.downsample.1", 2, 0)
            values = convolution(values, f"{name}.conv1", f"{name}.bn1", stride, 1).clamp(min=0)
            values = (convolution(values, f"{name}.conv2", f"{name}.bn2", 1, 1) + shortcut).clamp(min=0)
    return values.flatten(2).mean(2)


def test_resnet18_against_one_that_is_written_out() -> None:
    used = encoder(SENTINEL_1, width=4)
    one = patch(SENTINEL_1, 50)
    images = (torch.from_numpy(np.stack([one["VV"], one["VH"]])[None]) + 15) / 5
    expected = literal_resnet18({name: torch.tensor(value) for name, value in used.weights.items()}, images)
    np.testing.assert_allclose(encode(used, [one]), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bands", [SENTINEL_2, WITHOUT_60_M, SENTINEL_1], ids=["12 bands", "10 bands", "2 bands"])
@pytest.mark.parametrize(("architecture", "dimension"), [("resnet18", 64), ("resnet50", 256)])
def test_any_bands_make_vectors(bands: dict[str, int], architecture: str, dimension: int) -> None:
    used = encoder(bands, architecture)
    vectors = encode(used, [patch(bands, 120, seed) for seed in range(3)])
    assert vectors.shape == (3, dimension) == (3, used.dimension)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) == 3


def test_a_patch_has_the_same_vector_alone_as_in_a_batch() -> None:
    used = encoder(SENTINEL_2, width=16)
    patches = [patch(SENTINEL_2, 120, seed) for seed in range(37)]
    together = encode(used, patches).astype(np.float64)
    for number in (0, 31, 32, 36):
        alone = encode(used, [patches[number]])[0].astype(np.float64)
        cosine = alone @ together[number] / np.linalg.norm(alone) / np.linalg.norm(together[number])
        assert cosine > 1 - 1e-6
    assert np.array_equal(encode(used, patches[:5]), encode(used, patches[:5]))


def test_patches_of_several_sizes_go_through_together() -> None:
    used = encoder(SENTINEL_2)
    patches = [patch(SENTINEL_2, size, size) for size in (120, 60, 120, 24)]
    for vector, each in zip(encode(used, patches), patches, strict=True):
        np.testing.assert_allclose(vector, encode(used, [each])[0], rtol=1e-4, atol=1e-5)


def test_batches_take_over_the_memory_of_those_before() -> None:
    """In a process of its own, for what malloc keeps depends on all that came before."""
    code = """
import resource
import numpy as np
from pgearth.pyfuncs.models.encoder import BATCH_SIZE, Encoder, encode_batch
from pgearth.pyfuncs.models.resnet import ResNet, weights_of

model = ResNet("resnet18", [0.0] * 12, [1.0] * 12, 16)
bands = tuple(f"B{number}" for number in range(12))
encoder = Encoder(
    1, "cnn", 1, "resnet18", bands, None, model.dimension, None, weights_of(model), {"mean": [0] * 12, "std": [1] * 12}
)
batch = {band: np.ones((BATCH_SIZE, 120, 120), np.uint16) for band in bands}
for _ in range(4):
    encode_batch(encoder, batch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    encode_batch(encoder, batch)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000, "pages that are new to the process, of 7,000 that a batch fills"


# The input stage


@pytest.mark.parametrize("factors", [(1, 2, 6), (1, 3, 4)])
def test_bands_are_resampled_as_in_training(factors: tuple[int, ...]) -> None:
    bands = {f"B{number}": factor for number, factor in enumerate(factors)}
    batch = {band: pixels[None] for band, pixels in patch(bands).items()}
    stacked = inference.stack(batch, tuple(bands), torch.device("cpu"))
    assert stacked.shape == (1, 3, 120, 120)
    for channel, band in enumerate(bands):
        np.testing.assert_array_equal(stacked[0, channel], resample(batch[band][0], (120, 120)))


def test_a_coarse_band_that_does_not_fit_is_bilinear() -> None:
    random = np.random.default_rng(3)
    batch = {"fine": random.random((2, 37, 37), np.float32), "coarse": random.random((2, 19, 12), np.float32)}
    stacked = inference.stack(batch, ("fine", "coarse"), torch.device("cpu"))
    np.testing.assert_allclose(stacked[:, 1], resample(batch["coarse"], (37, 37)), atol=1e-6)


def test_what_is_no_data_is_the_mean_to_the_network() -> None:
    used = encoder(SENTINEL_2)
    absent, mean = patch(SENTINEL_2), patch(SENTINEL_2)
    for band, (value, other) in {"B02": (NODATA, 3000), "B8A": (NODATA, 3000), "B01": (NODATA, 3000)}.items():
        absent[band][5:9, 2:7] = value
        mean[band][5:9, 2:7] = other
    np.testing.assert_array_equal(encode(used, [absent]), encode(used, [mean]))
    radar = encoder(SENTINEL_1)
    absent, mean = patch(SENTINEL_1), patch(SENTINEL_1)
    absent["VV"][:50], mean["VV"][:50] = np.nan, -15
    np.testing.assert_array_equal(encode(radar, [absent]), encode(radar, [mean]))
    zero = patch(SENTINEL_1)
    zero["VV"][:50] = 0
    assert not np.array_equal(encode(radar, [zero]), encode(radar, [mean])), "0 decibels are a value"
    nothing = {band: np.zeros_like(pixels) for band, pixels in patch(SENTINEL_2).items()}
    assert np.isfinite(encode(used, [nothing])).all()


# What is stored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalisation": None}, "no mean and std of each of its bands"),
        ({"normalisation": {"mean": [0.0], "std": [1.0]}}, "no mean and std of each of its bands"),
        ({"weights": {}}, "do not fit the network: .*Missing key"),
        ({"architecture": "resnet50"}, "do not fit the network"),
        ({"bands": ("VV",), "normalisation": {"mean": [0.0], "std": [1.0]}}, "size mismatch for conv1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    used = encoder(SENTINEL_1, **changes)
    with pytest.raises(PgearthError, match=f"(?s){message}") as caught:
        encode(used, [patch(SENTINEL_1)])
    assert caught.value.sqlstate == "22P03"


def test_a_network_is_built_once_and_goes_with_its_encoder() -> None:
    used = encoder(SENTINEL_1)
    encode(used, [patch(SENTINEL_1)])
    model = inference._models[used]
    encode(used, [patch(SENTINEL_1)])
    assert inference._models[used] is model
    gone = weakref.ref(model)
    del used, model
    gc.collect()
    assert gone() is None


# What is to happen on a GPU, with stand-ins for it


def test_a_gpu_is_to_convolve_in_float32_proper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded factors (TF32) would change the bits of codes."""
    rounded = []

    def look(*arguments: Any) -> Tensor:
        rounded.append(torch.backends.cudnn.allow_tf32)
        return inference_stack(*arguments)

    inference_stack = inference.stack
    monkeypatch.setattr(inference, "stack", look)
    before = torch.backends.cudnn.allow_tf32
    encode(encoder(SENTINEL_1), [patch(SENTINEL_1)])
    assert rounded == [False]
    assert torch.backends.cudnn.allow_tf32 == before, "what others compute is none of its business"


OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 9 GiB. If reserved but unallocated memory is large try setting ..."
)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: Any) -> Any:
        raise error

    return fail


def test_a_batch_that_is_too_large_for_the_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    used = encoder(SENTINEL_1)
    with monkeypatch.context() as patched:
        patched.setattr(inference, "stack", raising(OUT_OF_MEMORY))
        with pytest.raises(
            PgearthError, match=r"too little memory: CUDA out of memory\. Tried to allocate 9 GiB\.\n"
        ) as caught:
            encode(used, [patch(SENTINEL_1)])
    assert caught.value.sqlstate == "53000"
    assert "--batch-size" in (caught.value.hint or "")
    assert "--max-batch" in (caught.value.hint or "")
    assert encode(used, [patch(SENTINEL_1)]).shape == (1, 64), "the next, smaller one is encoded"


def test_a_gpu_that_fails_is_no_common_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for it.")
    monkeypatch.setattr(inference, "stack", raising(failure))
    with pytest.raises(
        DeviceFailedError, match=r"^the GPU failed: CUDA error: device-side assert triggered\n"
    ) as caught:
        encode(encoder(SENTINEL_1), [patch(SENTINEL_1)])
    assert caught.value.sqlstate == "58000"


# On a GPU

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_the_cpu(used: Encoder, patches: list[Patch]) -> np.ndarray:
    batch = {band: np.stack([each[band] for each in patches]) for band in used.bands}
    with torch.inference_mode():
        return inference.build(used)(inference.stack(batch, used.bands, torch.device("cpu"))).numpy()


@on_a_gpu
@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_a_gpu_gives_the_vectors_of_the_cpu(network: str, dtype: str) -> None:
    """Of each dtype that a session may send."""
    used = encoder(SENTINEL_2, network, width=16)
    patches = [
        {
            band: (pixels % 100 if dtype[1] == "1" else pixels).astype(dtype)
            for band, pixels in patch(SENTINEL_2).items()
        }
        for _ in range(5)
    ]
    expected = on_the_cpu(used, patches)
    np.testing.assert_allclose(encode(used, patches), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@on_a_gpu
def test_codes_do_not_depend_on_where_vectors_are_computed() -> None:
    used = encoder(SENTINEL_2, width=32)
    patches = [patch(SENTINEL_2, 120, seed) for seed in range(64)]
    expected, found = on_the_cpu(used, patches), encode(used, patches, batch_size=64)
    hashing = lsh.fit(expected, bits=128)
    differ = lsh.hash_codes(hashing, expected) != lsh.hash_codes(hashing, found)
    assert differ.sum() <= 1, "of 8,192 bits, where rounded factors change ten"


@on_a_gpu
def test_a_gpu_that_is_full_gives_an_error_and_goes_on() -> None:
    used = encoder(SENTINEL_2, width=64)
    patches = [patch(SENTINEL_2, 120, seed) for seed in range(64)]
    expected = encode(used, patches, batch_size=64)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + (120 << 20)) / torch.cuda.mem_get_info()[1]
    )
    try:
        with pytest.raises(PgearthError, match="the GPU has too little memory") as caught:
            encode(used, patches, batch_size=64)
        assert caught.value.sqlstate == "53000"
        del caught  # its traceback keeps what was computed so far
        gc.collect()
        assert encode(used, patches[:1]).shape == (1, 512)
        with pytest.raises(PgearthError, match="the GPU has too little memory"):
            trained(settings(width=64))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(encode(used, patches, batch_size=64), expected, rtol=1e-4, atol=1e-4)


@on_a_gpu
def test_networks_of_encoders_that_are_dropped_leave_the_gpu() -> None:
    encode(encoder(SENTINEL_1, width=64), [patch(SENTINEL_1)])
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        used = encoder(SENTINEL_1, width=64)
        encode(used, [patch(SENTINEL_1)])
        assert torch.cuda.memory_allocated() - before > 40 << 20
        del used
        gc.collect()
        assert torch.cuda.memory_allocated() == before


@on_a_gpu
def test_a_gpu_that_failed_is_given_up() -> None:
    """In a process of its own, for to this one it would be lost."""
    code = """
import numpy as np, torch
from pgearth.pyfuncs.models.encoder import Encoder, encode_batch
from pgearth.pyfuncs.errors import DeviceFailedError
from pgearth.pyfuncs.models.resnet import ResNet, weights_of

model = ResNet("resnet18", [0.0], [1.0], 8)
normalisation = {"mean": [0.0], "std": [1.0]}
encoder = Encoder(1, "cnn", 1, "resnet18", ("B1",), None, model.dimension, None, weights_of(model), normalisation)
batch = {"B1": np.ones((2, 60, 60), np.uint16)}
encode_batch(encoder, batch)
torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]  # beyond its end
for _ in range(2):
    try:
        encode_batch(encoder, batch)
    except DeviceFailedError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the GPU failed: CUDA error: device-side assert triggered\n" * 2
