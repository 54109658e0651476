"""Patches of the archive as training data for torch: the pixels and labels of any search, streamed over COPY BINARY.

Importing this module imports torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import psycopg
import torch
from numpy.typing import NDArray
from psycopg.sql import SQL
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from pgearth.pyfuncs import queries
from pgearth.pyfuncs.errors import UNDEFINED_OBJECT, PgearthError
from pgearth.pyfuncs.pixels.rasters import from_wkb, resample, valid_pixels

PATCHES_PER_QUERY = 512

Sample = dict[str, Any]
"""`image`, `patch_id` and, where there is a nomenclature, `label`: of one patch, or of a batch."""


class ArchiveDataset(IterableDataset[Sample]):
    """The patches that pass a search's filters, as tensors.

    A sample has `image`, float32 (bands, size, size) of digital numbers; `label`, float32 (classes), 1 for each of
    `classes` that the patch bears, itself or by a descendant, else 0; and `patch_id`. With `batch_size` samples are
    whole batches, for `DataLoader(dataset, batch_size=None)`, which is the fast way.

    Which patches those are is settled when the dataset is made, in one query: all processes that get a copy of it
    (workers of a DataLoader, forked or spawned) share that list, `patch_ids`, out among them, so that an epoch has each
    patch exactly once, whatever is loaded meanwhile. Pixels and labels are read when it is their turn, by each process
    through its own connection, and are those that the archive then has; a patch that has been deleted is an error.
    """

    def __init__(
        self,
        dsn: str,
        bands: Sequence[str],
        *,
        size: int = 120,
        scheme: str | None = None,
        level: int | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        nodata: float = 0,
        transform: Callable[[Sample], Any] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        **filters: Any,
    ) -> None:
        """Find the patches.

        `dsn` is a connection string of libpq. Bands are channels in this order; each is resampled to `size` pixels
        along each side (pixels.rasters.resample), and a band that a patch has in several resolutions is taken from the
        finest. Patches that lack one of the bands are left out and counted in `without_bands`. Pixels without data,
        and all that are resampled from one, become `nodata` (0, or NaN to tell them from dark ones).

        `scheme` is a nomenclature of eo.label (ben19, ben43, clc, nlcd; scl: scene classes), of it `level`, by default
        the deepest. Patches of which no labels are known are then left out and counted in `without_labels`.

        Without `shuffle` patches come by patch_id, else in an order that `seed` and the epoch (`set_epoch`) decide.
        `drop_last` leaves out as many at the end as it takes for all batches to be whole, and as many for each rank.
        `transform` is given each sample (each batch) and returns what is to take its place.

        In a torch.distributed run each rank gets its share of the list that rank 0 found. `rank` and `world_size`
        say otherwise; then each makes its own list, and they fit together if the archive did not change in between.

        `filters` are those of eo.filter, with the same names; areas as EWKT, such as 'SRID=4326;POLYGON(...)'. Raises
        PgearthError where no patch is left and for what does not exist: band, scheme, level, filter; psycopg's errors
        for filters that eo.filter refuses.
        """
        unknown = sorted(set(filters) - set(queries.FILTERS))
        if unknown:
            raise PgearthError(
                f"there is no filter {', '.join(unknown)}", hint=f"Filters are {', '.join(queries.FILTERS)}."
            )
        if isinstance(bands, str) or not bands or len(set(bands)) < len(bands):
            raise PgearthError(f"{bands!r} is no list of different bands", hint="Pass such as ['B04', 'B03', 'B02'].")
        if size < 1 or (batch_size is not None and batch_size < 1):
            raise PgearthError(
                f"size {size} and batch_size {batch_size} are not both at least 1", hint="Give numbers above 0."
            )
        if (rank is None) != (world_size is None) or not 0 <= (rank or 0) < (world_size or 1):
            raise PgearthError(f"there is no rank {rank} of {world_size}", hint="Ranks are 0 to world_size - 1.")
        self.bands = tuple(bands)
        self.size = size
        self.batch_size = batch_size
        self.transform = transform
        self._dsn = dsn
        self._scheme = scheme
        self._drop_last = drop_last
        self._shuffle = shuffle
        self._seed = seed
        self._nodata = nodata
        # In shared memory, so that workers that live on (persistent_workers) see it, too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if rank is None and distributed.is_available() and distributed.is_initialized():
            self._rank, self._world_size = distributed.get_rank(), distributed.get_world_size()
            found = _of_first_rank(lambda: find(dsn, self.bands, scheme, level, filters))
        else:
            self._rank, self._world_size = rank or 0, world_size or 1
            found = find(dsn, self.bands, scheme, level, filters)
        self.patch_ids = found.patch_ids
        self._cells = found.cells
        self._positions = found.positions
        self.classes = found.classes
        self.without_bands = found.without_bands
        self.without_labels = found.without_labels

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, 0 at first: with `shuffle` each has an order of its own."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Number of samples (of batches, with `batch_size`) of an epoch of this rank."""
        return -(-len(self._share()) // (self.batch_size or 1))

    def __iter__(self) -> Iterator[Any]:
        """Read an epoch: this rank's share of it, of which a worker of a DataLoader takes every so many-th batch.

        Raises PgearthError for a patch that no longer has what it had when the dataset was made.
        """
        order = np.arange(len(self.patch_ids))
        if self._shuffle:
            np.random.default_rng([self._seed, int(self._epoch)]).shuffle(order)
        order = order[self._share()]
        if worker := get_worker_info():
            batches = np.arange(len(order)) // (self.batch_size or 1)
            order = order[batches % worker.num_workers == worker.id]
        samples = self._samples(order)
        return samples if self.transform is None else map(self.transform, samples)

    def _share(self) -> range:
        """Places of this rank's patches in the order of an epoch."""
        count = len(self.patch_ids)
        if self._drop_last:
            count -= count % ((self.batch_size or 1) * self._world_size)
        return range(self._rank, count, self._world_size)

    def _samples(self, order: NDArray[np.intp]) -> Iterator[Sample]:
        """Read samples of the patches at these places of the list, in this order."""
        with (
            psycopg.connect(self._dsn, autocommit=True, application_name="pgearth training") as connection,
            # Closed before the connection is: a COPY that is under way holds the connection's lock.
            closing(self._patches(connection, order)) as patches,
        ):
            while batch := list(islice(patches, self.batch_size or 1)):
                images = np.empty((len(batch), len(self.bands), self.size, self.size), np.float32)
                labels = np.zeros((len(batch), len(self.classes)), np.float32)
                for image, label, rows in zip(images, labels, batch, strict=True):
                    self._fill(image, label, rows)
                ids = np.array([rows[0][0] for rows in batch])
                sample = {"image": torch.from_numpy(images), "patch_id": torch.from_numpy(ids)}
                if self.classes:
                    sample["label"] = torch.from_numpy(labels)
                yield sample if self.batch_size else {name: values[0] for name, values in sample.items()}

    def _patches(self, connection: psycopg.Connection, order: NDArray[np.intp]) -> Generator[list[Row], None, None]:
        """Read what is stored of these patches, in their order: for each a row per resolution, the finest first."""
        for start in range(0, len(order), PATCHES_PER_QUERY):
            chosen = order[start : start + PATCHES_PER_QUERY]
            parameters = {
                "patch_ids": self.patch_ids[chosen].tolist(),
                "cells": self._cells[chosen].tolist(),
                "bands": list(self.bands),
                "scheme": self._scheme,
            }
            with connection.cursor().copy(queries.TRAINING_COPY, parameters) as copy:
                copy.set_types(["int8", "int2[]", "text[]", "bytea"])
                for _, rows in groupby(copy.rows(), key=itemgetter(0)):
                    yield list(rows)

    def _fill(self, image: NDArray[np.float32], label: NDArray[np.float32], rows: list[Row]) -> None:
        """Put pixels into `image` (bands, size, size) and 1 into `label` (classes) where the patch has the class."""
        missing = {band: channel for channel, band in enumerate(self.bands)}
        patch_id, label_ids, _, _ = rows[0]
        for _, _, names, wkb in rows:
            if names is None or wkb is None:
                continue
            raster = from_wkb(wkb)
            for name, band, nodata in zip(names, raster.bands, raster.nodata, strict=True):
                if name in missing:
                    self._put(image[missing.pop(name)], band, nodata)
        if missing or (self.classes and label_ids is None):
            raise PgearthError(
                f"patch {patch_id} no longer has what it had when the dataset was made:"
                f" {', '.join(missing) or 'labels'}",
                sqlstate=UNDEFINED_OBJECT,
                hint="It was deleted or changed. Make the dataset again.",
            )
        for label_id in label_ids or ():
            label[self._positions.get(label_id, [])] = 1

    def _put(self, channel: NDArray[np.float32], band: NDArray[Any], nodata: float | None) -> None:
        """Put a band into a channel (size, size)."""
        valid = valid_pixels(band, nodata)
        if valid.all():
            channel[:] = resample(band, channel.shape)
            return
        channel[:] = resample(np.where(valid, band, np.float32(np.nan)), channel.shape)
        channel[np.isnan(channel)] = self._nodata


Row = tuple[int, list[int] | None, list[str] | None, bytes | None]
"""patch_id, label_ids, names of bands, raster WKB; None where there is none."""


@dataclass(frozen=True)
class Found:
    """What a dataset consists of: ids of its patches, ascending; names of its classes; which of them a label means."""

    patch_ids: NDArray[np.int64]
    cells: NDArray[np.str_]
    without_bands: int
    without_labels: int
    classes: tuple[str, ...]
    positions: dict[int, list[int]]


def find(dsn: str, bands: Sequence[str], scheme: str | None, level: int | None, filters: Mapping[str, Any]) -> Found:
    """Find the patches that pass the filters and have all bands (and labels, where there is a scheme).

    Raises PgearthError if there are none, or the scheme has no such level.
    """
    with psycopg.connect(dsn, application_name="pgearth training") as connection:
        classes: tuple[str, ...] = ()
        positions: dict[int, list[int]] = {}
        if scheme is not None:
            classes, positions = find_classes(connection, scheme, level)
        query = SQL(queries.TRAINING_PATCHES_QUERY).format(filter=queries.filter_call(filters))
        parameters = {
            **filters,
            "bands": list(bands),
            "scheme": scheme,
            "label_ids": list(positions),
        }
        row = connection.execute(query, parameters).fetchone()
    assert row is not None
    ids, cells, found, without_bands, without_labels, with_classes, stored = row
    if found == 0:
        raise PgearthError("no patch passes the filters", hint="Try them with eo.count_patches.")
    if without_bands == found:
        raise PgearthError(
            f"none of the {found:,} patches found has all of the bands {', '.join(bands)}",
            sqlstate=UNDEFINED_OBJECT,
            hint=f"They have {', '.join(stored)}." if stored else "They have no pixels.",
        )
    if scheme is not None and not with_classes:
        raise PgearthError(
            f"none of the {found - without_bands:,} patches found bears a label of {scheme}",
            hint="Their labels may be of another nomenclature or of a level above, or not be annotated yet.",
        )
    patch_ids = np.frombuffer(ids, ">i8").astype(np.int64)
    places = np.array(cells.split(",") if cells else [], np.str_)
    return Found(patch_ids, places, without_bands, without_labels, classes, positions)


def find_classes(
    connection: psycopg.Connection, scheme: str, level: int | None
) -> tuple[tuple[str, ...], dict[int, list[int]]]:
    """Names of the classes of a nomenclature's level (default: the deepest), and which of them each label_id means.

    Raises PgearthError if the nomenclature has no such level.
    """
    rows = connection.execute(queries.TRAINING_CLASSES_QUERY, {"scheme": scheme, "level": level}).fetchall()
    if not rows:
        known = connection.execute(queries.TRAINING_SCHEMES_QUERY).fetchall()
        raise PgearthError(
            f"there is no nomenclature {scheme}" + ("" if level is None else f" of level {level}"),
            sqlstate=UNDEFINED_OBJECT,
            hint="There are (with their levels): " + ", ".join(f"{name} {number}" for name, number in known),
        )
    positions: dict[int, list[int]] = defaultdict(list)
    for position, (_, label_ids) in enumerate(rows):
        for label_id in label_ids:
            positions[label_id].append(position)
    return tuple(name for name, _ in rows), dict(positions)


def _of_first_rank(make: Callable[[], Found]) -> Found:
    """What rank 0 makes, on every rank; its error is raised on every rank."""
    made: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            made = [make()]
        except Exception as error:
            made = [error]
    distributed.broadcast_object_list(made)
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]
