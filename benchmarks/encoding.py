"""Bulk encoding: `pgearth encode` from database to database, against the bare loop over the same patches in memory.

The peer has all patches decoded as numpy arrays, stacks them into batches and passes those to the encoder, on the same
device: numpy's `spectral`, torch's ResNet-18 and the same network in the ONNX format. Ours finds the patches that lack
a vector, reads their pixels and stores the vectors, too. Weights are random, which takes as long as trained ones.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from statistics import median

import numpy as np
import psycopg
import torch
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from benchmarks.archive import migrate
from benchmarks.harness import Archive, Stopwatch, arguments, connect, conninfo, progress, report, table
from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.models.pending import WITHOUT_EMBEDDING, pending_patches, read_pixels
from pgearth.loaders.models.versions import register, version_name
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.encoder import BATCH_SIZE, Encoder, encode_batch
from pgearth.pyfuncs.models.resnet import ResNet, weights_of
from pgearth.pyfuncs.models.weights import dump

PATCHES = 4_056
QUICK_PATCHES = 169
ROUNDS = 3
WIDTHS = (16, 64)
SIZE = 120
GPU_BATCH_SIZE = 256
NORMALISATION = {"mean": [1500.0] * len(spectral.BANDS), "std": [1000.0] * len(spectral.BANDS)}
Patch = dict[str, np.ndarray]


def main() -> None:
    """Fill a database, register the encoders, and encode it by each in both ways."""
    run = arguments(__doc__ or "")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # the harness leaves OpenMP one, for FAISS
    patches = QUICK_PATCHES if run.quick else PATCHES
    archive = Archive("encoding", "pgearth_bench_encoding", 0, patches, margin=0)
    with psycopg.connect(conninfo("postgres"), autocommit=True) as server:
        server.execute(SQL("drop database if exists {}").format(Identifier(archive.database)))
        server.execute(SQL("create database {}").format(Identifier(archive.database)))
        try:
            migrate(archive)
            with connect(archive) as connection, connect(archive) as reading:
                progress(f"{patches:,} patches into the database")
                load_nomenclature(connection)
                load_synthetic(connection, patches)
                connection.execute("vacuum analyze")
                report("Bulk encoding", measured(connection, reading, 1 if run.quick else ROUNDS), run)
        finally:
            server.execute(SQL("drop database {} with (force)").format(Identifier(archive.database)))


def encoders(connection: Connection) -> list[Encoder]:
    """Register `spectral`, ResNets of several widths, and an ONNX model of the widest."""
    bands = spectral.BANDS
    found = [register(connection, "spectral", "spectral", dump({}), bands=bands, dimension=spectral.DIMENSION)]
    for width in WIDTHS:
        torch.manual_seed(0)
        model = ResNet("resnet18", NORMALISATION["mean"], NORMALISATION["std"], width).eval()
        weights = dump(weights_of(model))
        found.append(
            register(
                connection, f"resnet18-{width}", "resnet18", weights,
                bands=bands, dimension=model.dimension, normalisation=NORMALISATION,
            )
        )  # fmt: skip
    model.mean.zero_()  # an ONNX encoder normalises before its model does
    model.std.fill_(1)
    exported = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is the old one, which needs no further package
        torch.onnx.export(
            model, (torch.zeros(2, len(bands), SIZE, SIZE),), exported,
            input_names=["images"], dynamic_axes={"images": {0: "number"}}, dynamo=False,
        )  # fmt: skip
    found.append(
        register(
            connection, f"onnx-{width}", "onnx", exported.getvalue(),
            bands=bands, dimension=model.dimension, normalisation=NORMALISATION,
        )
    )  # fmt: skip
    return found


def measured(connection: Connection, reading: Connection, rounds: int) -> list[str]:
    """Encode in both ways in turn, the first time untimed and compared."""
    gpu = torch.cuda.is_available()
    batch_size = GPU_BATCH_SIZE if gpu else BATCH_SIZE
    registered = encoders(connection)
    ids, _ = pending_patches(connection, WITHOUT_EMBEDDING, registered[0], registered[0])
    patches: list[Patch] = []
    reading_seconds = []
    for _ in range(rounds + 1):
        with Stopwatch() as watch, closing(read_pixels(reading, ids, spectral.BANDS, "reading")) as chunks:
            patches = [bands for chunk in chunks for _, _, bands in chunk]
        reading_seconds.append(watch.seconds)
    rows: list[Sequence[object]] = []
    for encoder in registered:
        progress(version_name(encoder))
        expected = bare(encoder, patches[: 2 * batch_size], batch_size)
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(rounds):
            with Stopwatch() as watch:
                bare(encoder, patches, batch_size)
            seconds["bare"].append(watch.seconds)
            connection.execute("delete from eo.embedding where encoder_id = %s", (encoder.encoder_id,))
            connection.execute("vacuum analyze eo.embedding")
            with Stopwatch() as watch:
                done = encode_archive(connection, reading, [version_name(encoder)], batch_size=batch_size)
            seconds["ours"].append(watch.seconds)
            assert done.embeddings == len(patches)
        compare(connection, encoder, ids[: len(expected)].tolist(), expected)
        ours, theirs = (len(patches) / median(seconds[name]) for name in ("ours", "bare"))
        rows.append((encoder.name, encoder.dimension, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.0%}"))
    device = torch.cuda.get_device_name() if gpu else f"the CPU, {torch.get_num_threads()} threads of torch"
    return [
        f"{len(patches):,} patches of 12 bands, batches of {batch_size}, on {device}; torch {torch.__version__},"
        f" onnxruntime {version('onnxruntime')}; ResNet-18 of width {' and '.join(map(str, WIDTHS))}, the"
        f" wider one in the ONNX format, too. Medians of {rounds} rounds, both in turn.",
        table(("encoder", "dimensions", "pgearth encode, patches/s", "bare loop, patches/s", "share"), rows),
        f"Reading the pixels alone (COPY, WKB to arrays): {len(patches) / median(reading_seconds[1:]):,.0f} patches/s;"
        " the server and a thread of its own do that while the patches before are encoded, so that the slower of the"
        " two bounds the rate.",
    ]


def bare(encoder: Encoder, patches: Sequence[Patch], batch_size: int) -> np.ndarray:
    """Vectors of patches in memory."""
    return np.concatenate(
        [
            encode_batch(
                encoder,
                {
                    band: np.stack([patch[band] for patch in patches[start : start + batch_size]])
                    for band in encoder.bands
                },
            )
            for start in range(0, len(patches), batch_size)
        ]
    )


def compare(connection: Connection, encoder: Encoder, patch_ids: list[int], expected: np.ndarray) -> None:
    """Fail unless the stored vectors of patches are as expected."""
    rows = connection.execute(
        "select embedding::real[] from eo.embedding where encoder_id = %s and patch_id = any (%s) order by patch_id",
        (encoder.encoder_id, patch_ids),
    ).fetchall()
    np.testing.assert_allclose(np.array([vector for (vector,) in rows]), expected, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
