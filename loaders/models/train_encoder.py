"""`pgearth train encoder`: trains a network on patches of the archive and stores it as an encoder's next version."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import Connection

from pgearth.loaders.models.training_folder import training_folder
from pgearth.loaders.models.training_patches import choose_patches, require_writer, software
from pgearth.loaders.models.versions import check_definition, register, stored_units
from pgearth.loaders.server.connection import connect, dsn
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.models.weights import dump

if TYPE_CHECKING:
    from pgearth.pyfuncs.training.classifier import Settings
    from pgearth.pyfuncs.training.dataset import ArchiveDataset
    from pgearth.pyfuncs.training.loop import Metrics, Position

# A band that a patch has in several resolutions counts in its finest, as in training.
STATISTICS = """
select s.band, sum(s.pixels), sum(s.pixels * s.mean), sum(s.pixels * (s.std ^ 2 + s.mean ^ 2))
from (
    select distinct on (r.patch_id, b.band) b.band, b.mean::float8, b.std::float8,
           b.valid_fraction::float8 * ST_Width(r.rast) * ST_Height(r.rast) as pixels
    from eo.patch_raster r,
         unnest(r.bands, r.band_mean, r.band_std, r.valid_fraction) as b (band, mean, std, valid_fraction)
    where r.patch_id = any (%(patch_ids)s::bigint[]) and b.band = any (%(bands)s::text[])
    order by r.patch_id, b.band, r.resolution
) s
where s.pixels > 0 and s.mean is not null
group by s.band
"""
SIZE = """
select mode() within group (order by s.size)
from (
    select max(greatest(ST_Width(r.rast), ST_Height(r.rast))) as size
    from eo.patch_raster r
    where r.patch_id = any (%(patch_ids)s::bigint[]) and r.bands && %(bands)s::text[]
    group by r.patch_id
) s
"""


@dataclass(frozen=True)
class Order:
    """What is to be trained, on what: `filters` are arguments of eo.filter; see choose_patches, ArchiveDataset."""

    settings: Settings
    bands: Sequence[str]
    scheme: str
    level: int | None
    filters: Mapping[str, Any]
    validation_fraction: float | None

    def record(self) -> dict[str, Any]:
        """The order as JSON gives it back, without filters that were not given."""
        values = asdict(self)
        values["filters"] = {name: value for name, value in self.filters.items() if value is not None}
        record: dict[str, Any] = json.loads(json.dumps({**values.pop("settings"), **values}))
        return record


@dataclass(frozen=True)
class Data:
    """What a training reads, settled when it begins; `left_out` counts patches by what they lack."""

    training: ArchiveDataset
    validation: ArchiveDataset
    size: int  # pixels along each side to which all bands are resampled
    normalisation: dict[str, list[float]]
    left_out: dict[str, int]


def train_encoder(name: str, order: Order, workers: int = 0, folder: Path | None = None) -> Encoder:
    """Train an encoder and store it, when it is done, as the next version of `name`.

    With `folder` the training goes on, after it was killed, with its patches and statistics as they were when it began.
    Raises PgearthError for data that cannot be trained on, and where the folder has the training of another order.
    """
    from pgearth.pyfuncs.training import classifier

    settings = order.settings
    with connect(autocommit=True) as connection:
        require_writer(connection)
        check_definition(connection, name, settings.architecture, bands=order.bands, dimension=1)
    with training_folder(folder) as (plan, state):
        data = read_plan(plan, order) if plan and plan.exists() else None
        if data is None:
            with connect(autocommit=True) as connection:
                data = settle(connection, order)
            if plan:
                write_plan(plan, order, data)
        patches = len(data.training.patch_ids)
        with progress(range(0), "training", "patches", patches * settings.epochs) as bar:

            def on_batch(position: Position) -> None:
                bar.update(position.epoch * patches + position.patches - bar.n)

            def on_epoch(epoch: int, metrics: Metrics) -> None:
                bar.write(f"epoch {epoch + 1} of {settings.epochs}: {in_words(metrics)}")

            trained = classifier.train(
                settings,
                data.training,
                data.validation,
                data.normalisation,
                workers=workers,
                state=state,
                on_batch=on_batch,
                on_epoch=on_epoch,
            )
        with connect(autocommit=True) as connection:
            encoder = register(
                connection,
                name,
                settings.architecture,
                dump(trained.weights),
                bands=order.bands,
                dimension=trained.dimension,
                normalisation=data.normalisation,
                training=training_record(order, data, trained.best_epoch, trained.history),
                units=stored_units(connection, order.bands),
            )
    return encoder


def settle(connection: Connection, order: Order) -> Data:
    """Find the patches and the statistics of their bands."""
    chosen = choose_patches(connection, order.filters, order.validation_fraction, order.settings.seed)
    parameters = {"patch_ids": chosen.training, "bands": list(order.bands)}
    row = connection.execute(SIZE, parameters).fetchone()
    assert row is not None
    size = row[0] or 1  # without pixels there is no dataset either: it says so
    training, validation = datasets(order, size, chosen.training, chosen.validation)
    return Data(
        training,
        validation,
        size,
        band_statistics(connection, order.bands, training.patch_ids.tolist()),
        {
            "without bands": training.without_bands + validation.without_bands,
            "without labels": training.without_labels + validation.without_labels,
        },
    )


def datasets(
    order: Order, size: int, training: Sequence[int], validation: Sequence[int]
) -> tuple[ArchiveDataset, ArchiveDataset]:
    """Patches to train on, in random order, and patches to validate on, in batches."""
    from pgearth.pyfuncs.training.dataset import ArchiveDataset

    def dataset(patch_ids: Sequence[int], shuffle: bool) -> ArchiveDataset:
        return ArchiveDataset(
            dsn(),
            order.bands,
            size=size,
            scheme=order.scheme,
            level=order.level,
            batch_size=order.settings.batch_size,
            shuffle=shuffle,
            seed=order.settings.seed,
            nodata=math.nan,
            patch_ids=list(patch_ids),
        )

    return dataset(training, True), dataset(validation, False)


def band_statistics(connection: Connection, bands: Sequence[str], patch_ids: list[int]) -> dict[str, list[float]]:
    """Mean and standard deviation of each band over all valid pixels of the patches, from what is stored of each patch.

    Pooled by the law of total variance; the deviation of a constant band is said to be 1. Raises PgearthError for a
    band of which no statistics are stored.
    """
    rows = connection.execute(STATISTICS, {"patch_ids": patch_ids, "bands": list(bands)}).fetchall()
    sums = {band: numbers for band, *numbers in rows}
    statistics: dict[str, list[float]] = {"mean": [], "std": []}
    for band in bands:
        if band not in sums:
            raise PgearthError(
                f"Band {band}: no patch to train on has statistics of valid pixels.",
                "Leave the band out; or, where an earlier version loaded the patches, load them again.",
            )
        pixels, total, squares = sums[band]
        mean = total / pixels
        variance = squares / pixels - mean**2
        statistics["mean"].append(mean)
        # The variance of equal numbers can be a rounding error instead of 0.
        statistics["std"].append(math.sqrt(variance) if variance > 1e-12 * mean**2 else 1.0)
    return statistics


def write_plan(path: Path, order: Order, data: Data) -> None:
    """Store what read_plan reads."""
    from pgearth.pyfuncs.training import checkpoint

    checkpoint.write(
        path,
        {"training": data.training.patch_ids, "validation": data.validation.patch_ids},
        {
            "order": order.record(),
            "size": data.size,
            "normalisation": data.normalisation,
            "left_out": data.left_out,
        },
    )


def read_plan(path: Path, order: Order) -> Data:
    """The data of a training that was begun.

    Raises PgearthError, naming what differs, when it was begun with another order, and for patches that are gone since.
    """
    from pgearth.pyfuncs.training import checkpoint

    found = checkpoint.read(path)
    assert found is not None
    patch_ids, record = found
    for option, now in order.record().items():
        before = record["order"][option]
        if before != now:
            raise PgearthError(
                f"{path}: this training was begun with {option} {json.dumps(before)}, not {json.dumps(now)}",
                "Give the same options to go on with it, or name another folder.",
            )
    training, validation = datasets(
        order, record["size"], patch_ids["training"].tolist(), patch_ids["validation"].tolist()
    )
    gone = sum(map(len, patch_ids.values())) - len(training.patch_ids) - len(validation.patch_ids)
    if gone:
        raise PgearthError(
            f"{path}: {gone:,} patches of this training are gone or have lost bands or labels since it began",
            "Name another folder, to train from the beginning.",
        )
    return Data(training, validation, record["size"], record["normalisation"], record["left_out"])


def training_record(order: Order, data: Data, best_epoch: int, history: Sequence[Metrics]) -> dict[str, Any]:
    """What eo.encoder.training says of the training."""
    settings = asdict(order.settings)
    return {
        "method": "multi-label classification",
        "data": {
            "filters": order.record()["filters"],
            "scheme": order.scheme,
            "level": order.level,
            "classes": list(data.training.classes),
            "validation_fraction": order.validation_fraction,
            "patches": {
                "training": len(data.training.patch_ids),
                "validation": len(data.validation.patch_ids),
                **data.left_out,
            },
        },
        "seed": settings.pop("seed"),
        "parameters": {**settings, "size": data.size},
        "metrics": {"best_epoch": best_epoch + 1, **history[best_epoch], "epochs": list(history)},
        "software": software(),
    }


def in_words(metrics: Metrics) -> str:
    """Metrics of an epoch for people."""
    return (
        f"loss {metrics['loss']:.4f}; validation mAP {metrics['map_micro']:.3f} (macro {metrics['map_macro']:.3f}),"
        f" F1 {metrics['f1_micro']:.3f} (macro {metrics['f1_macro']:.3f})"
    )
