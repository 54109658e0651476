"""Training data from the database against GeoTIFFs on disk: how fast an epoch goes by, by number of workers.

The peer is BigEarthNet's way: a folder per patch with a GeoTIFF per band and a JSON file of labels, read by rasterio in
a map-style dataset, whose samples torch's DataLoader collates. Both give the same batches of float32 (checked): all 12
bands at 120 x 120 pixels and the labels, in random order. Nothing is trained.
"""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
import rasterio
import torch
from psycopg.sql import SQL, Identifier
from rasterio.transform import from_origin
from torch.utils.data import DataLoader, Dataset

from benchmarks.archive import migrate
from benchmarks.harness import Archive, arguments, connect, conninfo, progress, ratio, report, table
from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_2
from pgearth.loaders.demo.synthetic.archive import load_synthetic, synthetic_patches
from pgearth.loaders.demo.synthetic.land_cover import SRID
from pgearth.loaders.products.mgrs import PATCH_SIDE
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.pyfuncs.pixels.rasters import from_wkb, resample
from pgearth.pyfuncs.training.dataset import ArchiveDataset

PATCHES = 2_028
QUICK_PATCHES = 169
SIZE = 120
BATCH = 64
WORKERS = (0, 1, 2)
EPOCHS = 3
BANDS = sorted(band for bands in SENTINEL_2.bands.values() for band in bands)
SCHEME = "ben19"
LABELS = """
update eo.patch p
set label_ids = array(
    select l.label_id from eo.label l where l.scheme = %s and (l.label_id + p.patch_id) %% 7 = 0 order by 1)
"""
Batch = dict[str, torch.Tensor]


class GeotiffDataset(Dataset[Batch]):
    """Folders with a GeoTIFF per band, `<folder>_<band>.tif`, and `<folder>_labels_metadata.json`."""

    def __init__(self, folders: Sequence[Path], classes: Sequence[str]) -> None:
        self.folders = folders
        self.position = {name: position for position, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, number: int) -> Batch:
        folder = self.folders[number]
        image = np.empty((len(BANDS), SIZE, SIZE), np.float32)
        for channel, band in enumerate(BANDS):
            with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
                image[channel] = resample(file.read(1), (SIZE, SIZE))
        label = np.zeros(len(self.position), np.float32)
        for name in json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())["labels"]:
            label[self.position[name]] = 1
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}


def main() -> None:
    """Fill a database and a folder with the same patches, and read both."""
    run = arguments(__doc__ or "")
    patches = QUICK_PATCHES if run.quick else PATCHES
    archive = Archive("training", "pgearth_bench_training", 0, patches, margin=0)
    with (
        psycopg.connect(conninfo("postgres"), autocommit=True) as server,
        tempfile.TemporaryDirectory(prefix="pgearth-training-") as folder,
    ):
        server.execute(SQL("drop database if exists {}").format(Identifier(archive.database)))
        server.execute(SQL("create database {}").format(Identifier(archive.database)))
        try:
            progress(f"{patches:,} patches into the database")
            fill(archive)
            progress("the same patches into GeoTIFFs")
            write_files(archive, Path(folder))
            report("Training data", [measured(archive, sorted(Path(folder).iterdir()))], run)
        finally:
            server.execute(SQL("drop database {} with (force)").format(Identifier(archive.database)))


def fill(archive: Archive) -> None:
    """Store patches with pixels, and labels that nobody looks at."""
    migrate(archive)
    with connect(archive) as connection:
        load_nomenclature(connection)
        load_synthetic(connection, archive.patches)
        connection.execute(LABELS, (SCHEME,))
        connection.execute("vacuum analyze")


def write_files(archive: Archive, target: Path) -> None:
    """Write the patches in BigEarthNet's layout, uncompressed as there."""
    with connect(archive) as connection:
        labels = dict(
            connection.execute(
                "select p.name, array_agg(l.name) from eo.patch p"
                " join eo.label l on l.label_id = any (p.label_ids) group by p.name"
            ).fetchall()
        )
    for patch in synthetic_patches(0, range(archive.patches)):
        folder = target / patch.name
        folder.mkdir()
        (folder / f"{patch.name}_labels_metadata.json").write_text(json.dumps({"labels": labels.get(patch.name, [])}))
        for stored in patch.rasters:
            for band, pixels in zip(stored.bands, from_wkb(stored.wkb).bands, strict=True):
                profile = {
                    "driver": "GTiff",
                    "width": pixels.shape[1],
                    "height": pixels.shape[0],
                    "count": 1,
                    "dtype": pixels.dtype,
                    "crs": f"EPSG:{SRID}",
                    "transform": from_origin(patch.west, patch.north, *(PATCH_SIDE / side for side in pixels.shape)),
                }
                with rasterio.open(folder / f"{patch.name}_{band}.tif", "w", **profile) as file:
                    file.write(pixels, 1)


def measured(archive: Archive, folders: Sequence[Path]) -> str:
    """Read epochs in all ways in turn, the first untimed and compared."""
    dataset = {"dsn": conninfo(archive.database), "bands": BANDS, "size": SIZE, "scheme": SCHEME, "shuffle": True}
    batches = ArchiveDataset(**dataset, batch_size=BATCH)
    single = ArchiveDataset(**dataset)
    files = GeotiffDataset(folders, batches.classes)
    ways: dict[str, Callable[[int], Iterable[Batch]]] = {
        "batches": lambda workers: DataLoader(batches, batch_size=None, num_workers=workers),
        "single": lambda workers: DataLoader(single, batch_size=BATCH, num_workers=workers),
        "files": lambda workers: DataLoader(files, batch_size=BATCH, num_workers=workers, shuffle=True),
    }
    fingerprints = [fingerprint(way(0)) for way in ways.values()]
    assert len(fingerprints[0]) == archive.patches
    assert fingerprints[0] == fingerprints[1] == fingerprints[2], "the tensors differ"
    rows = []
    for workers in WORKERS:
        progress(f"{workers} workers")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for epoch in range(EPOCHS):
            batches.set_epoch(epoch)
            single.set_epoch(epoch)
            for name, way in ways.items():
                start = time.perf_counter()
                count = sum(len(batch["image"]) for batch in way(workers))
                seconds[name].append(time.perf_counter() - start)
                assert count >= archive.patches
        rate = {name: archive.patches / median(times) for name, times in seconds.items()}
        rows.append(
            [
                workers,
                *(f"{rate[name]:,.0f}" for name in ways),
                *(f"{60 * rate[name] / archive.patches:,.1f}" for name in ("batches", "files")),
                ratio(rate["batches"], rate["files"]),
            ]
        )
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    header = ["workers", "batches (patches/s)", "single (patches/s)", "GeoTIFFs (patches/s)"]
    header += ["batches (epochs/min)", "GeoTIFFs (epochs/min)", "batches to GeoTIFFs"]
    return (
        f"{archive.patches:,} synthetic patches, {size / 2**20:,.0f} MiB of GeoTIFFs and JSON; batches of {BATCH},"
        f" float32 of {len(BANDS)} x {SIZE} x {SIZE} pixels (the same from all ways, compared); median of {EPOCHS}"
        " epochs, the ways in turn, after one untimed: files and database are in the page cache."
        f" `batches`: `ArchiveDataset(batch_size={BATCH})`; `single`: patch by patch, collated by the DataLoader, which"
        f" starts its workers anew for each epoch. torch {version('torch')}, rasterio {version('rasterio')}.\n\n"
        + table(header, rows)
    )


def fingerprint(loader: Iterable[Batch]) -> list[tuple[int, ...]]:
    """Checksums of image and label of each patch, in ascending order."""
    return sorted(
        (zlib.crc32(image.numpy().tobytes()), zlib.crc32(label.numpy().tobytes()))
        for batch in loader
        for image, label in zip(batch["image"], batch["label"], strict=True)
    )


if __name__ == "__main__":
    main()
