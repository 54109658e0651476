"""Networks on a GPU, without a database: encoding, training and the encoder process against bare torch on that card.

The peer is torch alone: the same network over images that lie in the GPU's memory already. Ours starts from pixels in
host memory, as sessions have them. Stand-ins for what a database would do: images made here, with labels that say what
they show; a dataset in memory in place of ArchiveDataset; and a reader of weights from files for the encoder process.
Without a GPU it runs on the CPU with the smallest network alone, as a smoke run.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import IterableDataset, get_worker_info

from benchmarks.harness import Stopwatch, arguments, milliseconds, progress, report, table
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import inference, weights
from pgearth.pyfuncs.models.encoder import Batch, Encoder, encode_batch
from pgearth.pyfuncs.models.resnet import ResNet, weights_of
from pgearth.pyfuncs.service import client as encoder_client
from pgearth.pyfuncs.service import process as service_process
from pgearth.pyfuncs.service.client import NotServedError
from pgearth.pyfuncs.training import classifier as training
from pgearth.pyfuncs.training import loop
from pgearth.pyfuncs.training import milan as milan_training

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIDE = 120
BANDS = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 1),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 2),
    **dict.fromkeys(("B01", "B09"), 6),
}
"""How many times coarser than the finest each band is."""
NORMALISATION = {"mean": [1500.0] * len(BANDS), "std": [600.0] * len(BANDS)}
CLASSES = 19
BITS = 128


@dataclass(frozen=True)
class Network:
    """An architecture of some width; `encoder_id` stands for it where the encoder process is asked."""

    name: str
    architecture: str
    width: int
    encoder_id: int


NETWORKS = (
    Network("small", "resnet18", 16, 1),
    Network("ResNet-18", "resnet18", 64, 2),
    Network("ResNet-50", "resnet50", 64, 3),
)[: None if GPU else 1]
MORE = tuple(Network(f"ResNet-18 number {number}", "resnet18", 64 if GPU else 16, 10 + number) for number in range(6))
BREAKS_THE_GPU = 99
"""The id of an encoder whose reading does what the GPU cannot get over."""
WEIGHTS = "PGEARTH_BENCH_WEIGHTS"
"""Variable that tells the encoder process the folder of the weights."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    batches: Sequence[int]
    compared: int  # patches whose vectors are compared with the CPU's
    training: int
    validation: int
    batch_sizes: Sequence[int]  # of trainings
    epochs: int
    steps: int  # of MiLaN
    clients: int
    seconds: float
    turns: int


FULL = Sizes((16, 64, 256, 1024, 2048), 512, 4096, 512, (64, 256), 3, 1000, 16, 0.5, 3)
QUICK = Sizes((8,), 8, 24, 8, (8,), 2, 40, 2, 0.1, 1)


def main() -> None:
    """Measure, part by part."""
    run = arguments(__doc__ or "")
    sizes = FULL if GPU and not run.quick else QUICK
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # the harness leaves OpenMP one, for FAISS
    encoders = {network.encoder_id: encoder_of(network) for network in (*NETWORKS, *MORE)}
    parts = [
        *encoding(encoders, sizes),
        *agreement(encoders, sizes),
        *trainings(sizes),
        *milan(sizes),
        *encoder_process(encoders, sizes),
    ]
    report(f"Networks without a database ({device_name()})", parts, run, machine())


def device_name() -> str:
    return torch.cuda.get_device_name() if GPU else "the CPU"


def machine() -> str:
    """The machine and what the figures depend on, in a sentence."""
    cpu = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    gpu = "no GPU"
    if GPU:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        gpu = f"{device_name()} of {memory:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{gpu}; {cpu}; Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"


# What stands in for an archive


def spectra() -> NDArray[np.float32]:
    """Of each class, what it adds to each band."""
    return np.random.default_rng(0).normal(0, 400, (CLASSES, len(BANDS))).astype(np.float32)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images, float32 (n, bands, side, side), of one to four classes, which their labels, float32 (n, classes), say."""
    random = np.random.default_rng(seed)
    labels = np.zeros((count, CLASSES), np.float32)
    places = random.integers(0, CLASSES, (count, 4)) * (np.arange(4) < random.integers(1, 5, (count, 1)))
    shown = random.permuted(np.where(places > 0, places, places[:, :1]), axis=1)
    np.put_along_axis(labels, shown, 1, axis=1)
    quarters = spectra()[shown].transpose(0, 2, 1).reshape(count, len(BANDS), 2, 2)
    noise = random.normal(0, 150, (count, len(BANDS), 15, 15)).astype(np.float32)
    ground = interpolate(torch.from_numpy(quarters), (SIDE, SIDE), mode="bilinear")
    ground += interpolate(torch.from_numpy(noise), (SIDE, SIDE), mode="bilinear")
    return (ground + 1500).clamp(1, 10_000), torch.from_numpy(labels)


def pixels(count: int, seed: int = 0) -> dict[str, NDArray[np.uint16]]:
    """A batch of patches, each band at its own resolution."""
    found = images(count, seed)[0].numpy().astype(np.uint16)
    return {
        band: np.ascontiguousarray(found[:, number, ::factor, ::factor])
        for number, (band, factor) in enumerate(BANDS.items())
    }


def encoder_of(network: Network) -> Encoder:
    """An encoder that has learned nothing, with running statistics as a training would leave them."""
    torch.manual_seed(network.encoder_id)
    model = ResNet(network.architecture, NORMALISATION["mean"], NORMALISATION["std"], network.width).train()
    with torch.no_grad():
        model(images(32, 99)[0])
    return encoder_with(network, weights_of(model), model.dimension)


def encoder_with(network: Network, values: Mapping[str, np.ndarray], dimension: int) -> Encoder:
    return Encoder(
        network.encoder_id, network.name, 1, network.architecture, tuple(BANDS), SIDE, dimension, None, values,
        NORMALISATION,
    )  # fmt: skip


class Images(IterableDataset[dict[str, Tensor]]):
    """Batches of images in memory with the interface of ArchiveDataset, the same in each epoch but for their order."""

    classes = tuple(f"class {number}" for number in range(CLASSES))

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self.batches = [
            {"image": image, "label": label}
            for image, label in zip(*(each.split(batch_size) for each in images(count, seed)), strict=True)
        ]
        self.shuffle = shuffle
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        numbers = np.arange(len(self.batches))
        if self.shuffle:
            numbers = np.random.default_rng(int(self.epoch)).permutation(numbers)
        worker = get_worker_info()
        for number in numbers[worker.id :: worker.num_workers] if worker else numbers:
            yield self.batches[number]


# Measuring


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def rate(step: Callable[[], object], count: int, seconds: float) -> float:
    """Patches per second of a step over so many, after two that are not counted."""
    step()
    step()
    wait()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        done += count
    wait()
    return done / (time.perf_counter() - started)


def rates(ways: Mapping[str, Callable[[], object]], count: int, sizes: Sizes) -> dict[str, float]:
    """Median rate of each way, the ways in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(sizes.turns):
        for name, step in ways.items():
            found[name].append(rate(step, count, sizes.seconds))
    return {name: median(values) for name, values in found.items()}


@contextmanager
def peak_memory() -> Iterator[Callable[[], str]]:
    """Measures the most memory that torch took on the GPU, in GiB."""
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield lambda: f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if GPU else ""


# Encoding


def encoding(encoders: Mapping[int, Encoder], sizes: Sizes) -> list[str]:
    """Patches per second by network and batch."""
    rows: list[list[object]] = []
    for network in NETWORKS:
        used = encoders[network.encoder_id]
        proper, rounded, halves = bare(used, *PROPER), bare(used, *ROUNDED), bare(used, *HALVES)
        for count in sizes.batches:
            progress(f"encoding by {network.name}, {count} at a time")
            batch = pixels(count)
            stacked = inference.stack(batch, used.bands, DEVICE)
            last = stacked.contiguous(memory_format=torch.channels_last)
            with peak_memory() as peak:
                found = rates(
                    {
                        "ours": lambda batch=batch, used=used: encode_batch(used, batch),  # type: ignore[misc]
                        "float32": lambda x=stacked, way=proper: way(x),  # type: ignore[misc]
                        "TF32": lambda x=last, way=rounded: way(x),  # type: ignore[misc]
                        "bfloat16": lambda x=last, way=halves: way(x),  # type: ignore[misc]
                    },
                    count,
                    sizes,
                )
                rows.append(
                    [network.name, count, *(f"{each:,.0f}" for each in found.values()),
                     f"{found['ours'] / found['float32']:.0%}", peak()]
                )  # fmt: skip
    return [
        "**Encoding.** `encode_batch` from pixels in host memory (uint16, each band at its own resolution) to vectors"
        f" in host memory, {len(BANDS)} bands, {SIDE} x {SIDE} pixels; bare torch from float32 images in the GPU's"
        " memory to vectors there: in float32 proper, as ours; with factors rounded to TF32, torch's default; and in"
        f" bfloat16 (autocast), these two channels last. Patches per second, median of {sizes.turns} turns of"
        f" {sizes.seconds} s.",
        table(
            ["network", "batch", "ours", "bare float32", "bare TF32", "bare bfloat16", "ours of bare float32",
             "peak memory (GiB)"],
            rows,
        ),
    ]  # fmt: skip


PROPER = (torch.contiguous_format, False, False)
ROUNDED = (torch.channels_last, True, False)
HALVES = (torch.channels_last, True, True)
"""Of a bare network: how its weights lie, whether it may round to TF32, whether it computes in bfloat16."""


def bare(used: Encoder, layout: torch.memory_format, tf32: bool, halves: bool) -> Callable[[Tensor], Tensor]:
    """The network itself, from images to vectors, both on the device."""
    model = inference.build(used).to(DEVICE).to(memory_format=layout)  # type: ignore[call-overload]

    def encode(stacked: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32),
            torch.autocast(DEVICE.type, torch.bfloat16) if halves else nullcontext(),
        ):
            return model(stacked).float()

    return encode


def agreement(encoders: Mapping[int, Encoder], sizes: Sizes) -> list[str]:
    """How far vectors and codes are from those of the CPU."""
    rows: list[list[object]] = []
    batch = pixels(sizes.compared, seed=5)
    for network in NETWORKS:
        progress(f"agreement of {network.name} with the CPU")
        used = encoders[network.encoder_id]
        with torch.inference_mode():
            model, cpu = inference.build(used), torch.device("cpu")
            chunks = [
                {band: each[start : start + 64] for band, each in batch.items()} for start in starts(sizes.compared)
            ]
            expected = np.concatenate([model(inference.stack(chunk, used.bands, cpu)).numpy() for chunk in chunks])
        hashing = lsh.fit(expected, bits=BITS)
        codes = lsh.hash_codes(hashing, expected)
        stacked = inference.stack(batch, used.bands, DEVICE)
        for name, vectors in {
            "ours": encode_batch(used, batch),
            "ours, one at a time": np.concatenate([encode_batch(used, one) for one in ones(batch, 64)]),
            "TF32": bare(used, *ROUNDED)(stacked).cpu().numpy(),
            "bfloat16": bare(used, *HALVES)(stacked).cpu().numpy(),
        }.items():
            others = expected[: len(vectors)]
            differ = lsh.hash_codes(hashing, vectors) != codes[: len(vectors)]
            rows.append(
                [network.name, name, len(vectors), f"{1 - cosines(vectors, others).min():.0e}",
                 f"{np.abs(vectors - others).max() / np.abs(others).max():.0e}", f"{differ.mean():.3%}",
                 f"{differ.any(axis=1).mean():.1%}"]
            )  # fmt: skip
    return [
        f"**Agreement with the CPU** in float32; codes by `lsh` of {BITS} bits.",
        table(
            ["network", "way", "patches", "1 - cosine, at most", "difference, at most, of the greatest value",
             "bits that differ", "codes that differ"],
            rows,
        ),
    ]  # fmt: skip


def starts(count: int) -> range:
    return range(0, count, 64)


def ones(batch: Batch, count: int) -> list[dict[str, np.ndarray]]:
    return [{band: each[n : n + 1] for band, each in batch.items()} for n in range(min(count, len(batch["B02"])))]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    a, b = one.astype(np.float64), other.astype(np.float64)
    found: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


# Training


class BrokenOffError(Exception):
    """What ends a training that is to go on later."""


def trainings(sizes: Sizes) -> list[str]:
    """Trainings of encoders: how fast, whether they learn, and whether they go on from a checkpoint."""
    rows: list[list[object]] = []
    same: list[list[object]] = []
    for batch_size in sizes.batch_sizes:
        data = (Images(sizes.training, batch_size, 1, True), Images(sizes.validation, batch_size, 2, False))
        for network in NETWORKS:
            progress(f"training of {network.name}, {batch_size} at a time")
            settings = training.Settings(
                network.architecture, network.width, sizes.epochs, batch_size, 1e-3, sizes.epochs, seed=7
            )
            with peak_memory() as peak:
                by_itself, with_two = Clock(), Clock()
                found = trained(settings, data, on_batch=by_itself.tick)
                trained(settings, data, on_batch=with_two.tick, workers=2)
                most = peak()
            ours, with_workers = (clock.rate(batch_size, len(data[0])) for clock in (by_itself, with_two))
            halves, singles = (bare_training(network, data[0], sizes, half) for half in (True, False))
            last = found.history[-1]
            rows.append(
                [network.name, batch_size, f"{ours:,.0f}", f"{with_workers:,.0f}", f"{halves:,.0f}", f"{singles:,.0f}",
                 f"{ours / halves:.0%}", " ".join(f"{epoch['loss']:.3f}" for epoch in found.history),
                 f"{last['map_micro']:.3f}", most]
            )  # fmt: skip
            if batch_size == sizes.batch_sizes[0]:
                again, resumed = trained(settings, data), broken_off(settings, data)
                same.append([network.name, equality(found, again), equality(found, resumed)])
    return [
        f"**Training of encoders** by `training.classifier.train` on {sizes.training:,} images, a dataset in memory in"
        f" place of ArchiveDataset, {sizes.epochs} epochs, validated on {sizes.validation:,}. Patches per second from"
        " the second batch of the last epoch to its end, validation not counted, with no process that reads and with"
        " two. Bare: forward, backward and AdamW over one batch in the GPU's memory, which is neither read nor turned;"
        " bfloat16 as ours, and float32 with TF32.",
        table(
            ["network", "batch", "ours", "ours, 2 workers", "bare bfloat16", "bare float32 (TF32)",
             "ours of bare bfloat16", "loss by epoch", "mAP", "peak memory (GiB)"],
            rows,
        ),
        "The same training again, and one that was killed in the middle of an epoch, a batch after its last checkpoint,"
        " and went on: weights and metrics against those of the first.",
        table(["network", "again", "broken off"], same),
    ]  # fmt: skip


class Clock:
    """Hears of each batch."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self, _position: object) -> None:
        self.ticks.append(time.perf_counter())

    def rate(self, batch_size: int, batches: int) -> float:
        """Patches per second in the last epoch. The GPU may be a few batches behind, and so it was at the first."""
        last = self.ticks[-batches:]
        return batch_size * (len(last) - 1) / (last[-1] - last[0])


def trained(settings: training.Settings, data: tuple[Images, Images], **options: Any) -> training.Trained:
    return training.train(settings, *data, NORMALISATION, **options)  # type: ignore[arg-type]


def broken_off(settings: training.Settings, data: tuple[Images, Images]) -> training.Trained:
    """A training that wrote its state in the middle of the last epoch, was killed a batch later, and went on."""
    written, killed = len(data[0]) // 2, len(data[0]) // 2 + 1

    def on_batch(position: loop.Position) -> None:
        place = (position.epoch, position.batches)
        loop.SECONDS_BETWEEN_CHECKPOINTS = 0.0 if place == (settings.epochs - 1, written) else 1e9
        if place == (settings.epochs - 1, killed):
            raise BrokenOffError

    seconds = loop.SECONDS_BETWEEN_CHECKPOINTS
    with tempfile.TemporaryDirectory(prefix="pgearth-gpu-") as folder:
        state = Path(folder) / "state.safetensors"
        try:
            trained(settings, data, state=state, on_batch=on_batch)
        except BrokenOffError:
            pass
        finally:
            loop.SECONDS_BETWEEN_CHECKPOINTS = seconds
        return trained(settings, data, state=state)


def equality(one: training.Trained, other: training.Trained) -> str:
    """Whether two trainings came to the same, or how far they are apart."""
    if one.history == other.history and all(
        value.tobytes() == other.weights[name].tobytes() for name, value in one.weights.items()
    ):
        return "equal to the bit"
    most = max(np.abs(value - other.weights[name]).max() for name, value in one.weights.items())
    losses = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(one.history, other.history, strict=True)]
    return f"weights differ by {most:.0e} at most, losses by {max(losses):.1%}"


def bare_training(network: Network, data: Images, sizes: Sizes, halves: bool) -> float:
    """Patches per second of the usual loop over one batch that lies on the device."""
    encoder = ResNet(network.architecture, NORMALISATION["mean"], NORMALISATION["std"], network.width)
    model = training.Classifier(encoder, CLASSES).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not GPU:
        model = model.to(memory_format=torch.contiguous_format)  # see training.layout
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batch, labels = data.batches[0]["image"].to(DEVICE), data.batches[0]["label"].to(DEVICE)
    batch = batch.contiguous(memory_format=training.layout(DEVICE))

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=halves and GPU):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return rates({"bare": step}, len(batch), sizes)["bare"]


def milan(sizes: Sizes) -> list[str]:
    """Training of MiLaN on the GPU and on the CPU."""
    progress("MiLaN")
    random = np.random.default_rng(0)
    sets = (random.random((300, CLASSES)) < 0.12) | (np.arange(CLASSES) == random.integers(0, CLASSES, (300, 1)))
    labels = sets[random.integers(0, len(sets), 5000)]
    vectors = (labels @ random.normal(0, 1, (CLASSES, 512)) + random.normal(0, 0.7, (5000, 512))).astype(np.float32)
    settings = milan_training.Settings(bits=BITS, steps=sizes.steps, steps_per_evaluation=sizes.steps // 4)

    def train(**options: Any) -> loop.Trained:
        return milan_training.train(settings, vectors, labels, lambda _weights: 0.0, **options)

    def same(one: loop.Trained, other: loop.Trained) -> str:
        bits = all(value.tobytes() == other.weights[name].tobytes() for name, value in one.weights.items())
        return "equal to the bit" if bits and one.history == other.history else "differs"

    rows = []
    for name in ["GPU", "CPU"] if GPU else ["CPU"]:
        with patch("torch.cuda.is_available", return_value=name == "GPU"):
            with Stopwatch() as watch:
                found = train()
            again = train()
            with tempfile.TemporaryDirectory(prefix="pgearth-gpu-") as folder:
                state = Path(folder) / "state.safetensors"

                def stop(step: int) -> None:
                    if step == sizes.steps // 2 + 5:
                        raise BrokenOffError

                try:
                    train(state=state, on_step=stop)
                except BrokenOffError:
                    resumed = train(state=state)
        losses = " ".join(f"{each['loss']:.4f}" for each in found.history)
        rows.append([name, f"{sizes.steps / watch.seconds:,.0f}", losses, same(found, again), same(found, resumed)])
    return [
        f"**Training of MiLaN** by `training.milan.train`: {BITS} bits of 5,000 vectors of 512 dimensions with 300 sets"
        f" of labels, {sizes.steps:,} steps, nothing evaluated in between.",
        table(["device", "steps/s", "loss of each quarter", "again", "broken off"], rows),
    ]


# The encoder process


class FileReader:
    """Takes the place of encoder_cache.ArchiveReader: weights from a folder."""

    def __init__(self, _conninfo: str) -> None:
        self.folder = Path(os.environ[WEIGHTS])

    def check_version(self) -> None:
        pass

    def load(self, encoder_id: int, make_room: Callable[[int], None]) -> Encoder:
        if encoder_id == BREAKS_THE_GPU:
            torch.zeros(4, device=DEVICE)[torch.tensor([9], device=DEVICE)]  # beyond its end
            encoder_id = NETWORKS[0].encoder_id
        network = next(network for network in (*NETWORKS, *MORE) if network.encoder_id == encoder_id)
        content = (self.folder / str(encoder_id)).read_bytes()
        make_room(len(content))
        values = weights.load(content, sha256(content).hexdigest())
        return encoder_with(network, values, inference.build(encoder_with(network, values, 0)).dimension)


def serve() -> None:
    """The encoder process, but for where it reads encoders."""
    service_process.ArchiveReader = FileReader  # type: ignore[assignment, misc]
    service_process.main()


@dataclass(frozen=True)
class Process:
    """A running encoder process."""

    running: subprocess.Popen[bytes]
    socket: Path

    def status(self) -> dict[str, Any]:
        return encoder_client.status(self.socket, no_pause)

    def ask(self, used: Encoder, batch: Batch) -> np.ndarray:
        return encoder_client.encode_batch(self.socket, used, batch, no_pause)


def no_pause() -> None:
    pass


@contextmanager
def process(encoders: Mapping[int, Encoder], *options: str) -> Iterator[Process]:
    """Start it, wait until it answers, and end it."""
    with tempfile.TemporaryDirectory(prefix="pgearth-gpu-") as home:
        data = Path(home)
        (data / "postmaster.pid").touch()  # it ends where it sees no PostgreSQL
        for encoder_id, used in encoders.items():
            (data / str(encoder_id)).write_bytes(weights.dump(used.weights))
        folder = data / "pgearth" / "1" / "encoder_process"
        with (data / "log").open("wb") as log:
            running = subprocess.Popen(
                [sys.executable, "-c", "from benchmarks.gpu import serve; serve()", str(folder), *options],
                env={**os.environ, WEIGHTS: home},
                stderr=log,
            )
        found = Process(running, folder / "socket")
        try:
            while True:
                try:
                    found.status()
                    break
                except NotServedError:
                    assert running.poll() is None, (data / "log").read_text()
                    time.sleep(0.05)
            yield found
        finally:
            running.terminate()
            running.wait()


def encoder_process(encoders: Mapping[int, Encoder], sizes: Sizes) -> list[str]:
    """Throughput and latency by clients, then what it does in trouble."""
    rows: list[list[object]] = []
    # Clients are processes, as sessions are; they do not touch the GPU.
    with (
        patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}),
        ProcessPoolExecutor(sizes.clients, get_context("spawn")) as pool,
    ):
        list(pool.map(abs, range(sizes.clients)))
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        os.environ.pop("OMP_NUM_THREADS")
        with process(encoders) as running:
            for network in NETWORKS:
                progress(f"encoder process, {network.name}")
                used = encoders[network.encoder_id]
                bare_one, bare_many = (
                    rate(partial(encode_batch, used, pixels(count)), count, sizes.seconds) for count in (1, 64)
                )
                for clients, count in ((1, 1), (sizes.clients, 1), (1, 64), (2, 64), (sizes.clients, 64)):
                    before = running.status()["counts"]
                    begin = time.time() + (1.0 if GPU else 3.0)
                    work = [
                        (running.socket, network.encoder_id, used.dimension, count, begin, 4 * sizes.seconds)
                    ] * clients
                    answers = list(pool.map(client, work))
                    after = running.status()["counts"]
                    seconds = np.concatenate([latencies for latencies, _ in answers])
                    found = sum(count * len(latencies) / elapsed for latencies, elapsed in answers)
                    filled = (after["patches"] - before["patches"]) / (after["batches"] - before["batches"])
                    peer = bare_one if (clients, count) == (1, 1) else bare_many
                    rows.append(
                        [network.name, clients, count, f"{found:,.0f}", f"{peer:,.0f}", f"{found / peer:.0%}",
                         *(milliseconds(1000 * np.percentile(seconds, percent)) for percent in (50, 95)),
                         f"{filled:.1f}"]
                    )  # fmt: skip
                expected = encode_batch(used, pixels(64))
                np.testing.assert_allclose(
                    running.ask(used, pixels(64)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
                )
    return [
        "**The encoder process**, pyfuncs.service with weights from files in place of the database, asked over"
        " its socket by other processes, each as fast as it is answered; vectors are compared. The peer is"
        " `encode_batch` in a process of its own, over the same pixels: of one patch for the single client, else 64 at"
        " a time.",
        table(
            ["network", "clients", "patches a request", "patches/s", "peer, patches/s", "of the peer", "p50 (ms)",
             "p95 (ms)", "patches per batch"],
            rows,
        ),
        "In trouble:",
        table(["what happens", "what it does"], trouble(encoders)),
    ]  # fmt: skip


def client(work: tuple[Path, int, int, int, float, float]) -> tuple[NDArray[np.float64], float]:
    """Ask from an agreed moment on for so many seconds: seconds that each request took, and all together."""
    socket, encoder_id, dimension, count, begin, seconds = work
    used = Encoder(encoder_id, "", 1, "resnet18", tuple(BANDS), SIDE, dimension, None, {})
    batch = pixels(count)
    encoder_client.encode_batch(socket, used, batch, no_pause)
    time.sleep(max(0.0, begin - time.time()))
    taken = []
    started = now = time.perf_counter()
    while now - started < seconds:
        encoder_client.encode_batch(socket, used, batch, no_pause)
        before, now = now, time.perf_counter()
        taken.append(now - before)
    return np.array(taken), now - started


def trouble(encoders: Mapping[int, Encoder]) -> list[list[str]]:
    """What the process does when room is scarce, the GPU full or lost, and when it is stopped at work."""
    rows = []
    small, wide = encoders[NETWORKS[0].encoder_id], encoders[MORE[0].encoder_id]
    batch = pixels(64)
    progress("encoder process in trouble")
    limit = 2.5 * sum(each.nbytes for each in wide.weights.values()) / 2**20
    with process(encoders, "--memory-limit", str(round(limit))) as running:
        used, seconds = [], []
        for turn in range(3):
            for network in MORE:
                with Stopwatch() as watch:
                    running.ask(encoders[network.encoder_id], batch)
                seconds.append(watch.seconds)
            used.append(taken())
            assert running.status()["evicted"] == len(MORE) * (turn + 1) - 2
    rows.append(
        [f"Six networks in turn, three times, where two have room ({round(limit)} MB)",
         f"each is read again: {1000 * median(seconds):.0f} ms with a batch of 64; GPU memory in use after each turn:"
         f" {', '.join(f'{each:,.0f}' for each in used)} MiB"]
    )  # fmt: skip
    with process(encoders) as running:
        running.ask(small, batch)
        with Stopwatch() as watch:
            os.kill(running.running.pid, signal.SIGTERM)
            code = running.running.wait()
    rows.append(["SIGTERM", f"ends after {watch.seconds:.1f} s with exit code {code}"])
    if not GPU:
        return rows
    with process(encoders, "--max-batch", "1024") as running:
        running.ask(small, batch)
        free = torch.cuda.mem_get_info()[0]
        full = torch.empty(free - (200 << 20), dtype=torch.uint8, device=DEVICE)
        answer = failure(lambda: running.ask(wide, pixels(1024)))
        still = running.ask(small, batch).shape
        del full
        torch.cuda.empty_cache()
        assert running.ask(wide, pixels(1024)).shape == (1024, wide.dimension)
    rows.append(
        ["Another program takes all but 200 MiB of the GPU; a request of 1,024 patches",
         f"{answer}; a request of {still[0]} is answered, and the large one, too, when the memory is free again"]
    )  # fmt: skip
    with process(encoders) as running:
        running.ask(small, batch)
        lost = Encoder(BREAKS_THE_GPU, "", 1, "resnet18", tuple(BANDS), SIDE, small.dimension, None, {})
        answer = failure(lambda: running.ask(lost, batch))
        with Stopwatch() as watch:
            code = running.running.wait()
        later = failure(lambda: running.ask(small, batch))
    rows.append(
        ["The GPU fails (a kernel that asserts)",
         f"{answer}; ends after {watch.seconds:.1f} s with exit code {code}; the next request: {later}"]
    )  # fmt: skip
    return rows


def taken() -> float:
    """MiB of the GPU that are in use by whatever process."""
    if not GPU:
        return 0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def failure(step: Callable[[], object]) -> str:
    """What a step raises."""
    try:
        step()
    except PgearthError as error:
        return f"error {error.sqlstate} ({error.message.partition('. ')[0]})"
    except NotServedError:
        return "left to the session"
    return "no error"


if __name__ == "__main__":
    main()
