"""Vectors and hash codes of patches for benchmarks: made of each patch's real labels, place and seeded noise.

Learned vectors of a scene-retrieval network lie near each other where land cover is alike, change slowly with place
(climate, farming), and scatter, some patches more than others. So with D = 128 dimensions

    structure = normalised sum of the embeddings of the patch's labels + 0.35 * field(place)
    noise     = 0.2 * a * e / sqrt(D),  e standard normal in D dimensions, a lognormal(0, 1), one number per patch
    vector    = structure + noise

where the embedding of each of the 19 labels is a random vector, and the field is smooth: 64 random Fourier features of
a Gaussian kernel of length 100 km (Rahimi and Recht 2007), about 1 in norm.

A network that learns to hash is trained to put its outputs far from 0 (a quantisation loss); its codes therefore
repeat. So the bits are the signs of the vector after its structure was moved away from 0 by a margin:

    code_i = [structure_i + sign(structure_i) * margin * 0.2 / sqrt(D) + noise_i > 0]

The margin alone decides how often codes repeat; `python -m benchmarks.generator` finds the one with 40 % of the codes
distinct for each archive. Copies of the catalogue (archives beyond 549,488 patches) are later acquisitions of the same
places: the same labels, new noise, and the field of a place up to 50 km off, standing in for what a season changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from benchmarks.harness import ARCHIVES, DIMENSION, Archive, connect, progress

SEED = 20_260_101
LABELS = 19
FEATURES = 64
FIELD_LENGTH = 100.0  # km
FIELD_WEIGHT = 0.35
NOISE = 0.2
COPY_OFFSET = 50.0  # km
ROWS_AT_ONCE = 1 << 16
DISTINCT = 0.4
KM_PER_DEGREE = 111.32
LATITUDE = 55.0  # where degrees of longitude are turned into km: in the middle of the catalogue


@dataclass(frozen=True)
class Patches:
    """Patches of an archive, by patch_id: geohash cells, label sets (one bit per label), places (km)."""

    patch_ids: NDArray[np.int64]
    cells: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    places: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.patch_ids)


class Generator:
    """Vectors and codes by patch: a function of the patches, their order, and SEED."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self.embeddings = rng.standard_normal((LABELS, DIMENSION), np.float32)
        self.frequencies = rng.standard_normal((2, FEATURES), np.float32) / np.float32(FIELD_LENGTH)
        self.phases = rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)
        self.mixing = rng.standard_normal((FEATURES, DIMENSION), np.float32) / np.sqrt(DIMENSION * FEATURES / 2)
        self.mixing = self.mixing.astype(np.float32)

    def structure(self, patches: Patches, rows: slice) -> NDArray[np.float32]:
        """What labels and place contribute to the vectors of some rows."""
        present = (patches.labels[rows, None] >> np.arange(LABELS) & 1).astype(np.float32)
        land_cover = present @ self.embeddings
        land_cover /= np.linalg.norm(land_cover, axis=1, keepdims=True)
        field = np.cos(patches.places[rows] @ self.frequencies + self.phases) @ self.mixing
        return land_cover + np.float32(FIELD_WEIGHT) * field

    def noise(self, number: int, rows: int) -> NDArray[np.float32]:
        """Noise of the rows of a batch, by its number."""
        rng = np.random.default_rng([SEED, number])
        scale = NOISE / np.sqrt(DIMENSION) * np.exp(rng.standard_normal((rows, 1)))
        return rng.standard_normal((rows, DIMENSION), np.float32) * scale.astype(np.float32)

    def batches(
        self, patches: Patches, margin: float
    ) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.uint8]]]:
        """Yield rows, their vectors (n, 128) and their packed codes (n, 16), first bit first."""
        for number, first in enumerate(range(0, len(patches), ROWS_AT_ONCE)):
            rows = slice(first, min(first + ROWS_AT_ONCE, len(patches)))
            structure = self.structure(patches, rows)
            noise = self.noise(number, rows.stop - rows.start)
            shift = np.float32(margin * NOISE / np.sqrt(DIMENSION))
            code = np.packbits(structure + np.sign(structure) * shift + noise > 0, axis=1)
            yield rows, structure + noise, code

    def codes(self, patches: Patches, margin: float) -> NDArray[np.uint8]:
        """Packed codes (n, 16) of all patches."""
        codes = np.empty((len(patches), DIMENSION // 8), np.uint8)
        for rows, _, batch in self.batches(patches, margin):
            codes[rows] = batch
        return codes


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's mixing (Steele, Lea and Flood 2014), one to one."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def first_and_bucket(codes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Row of each distinct code's first appearance, in that order, and each row's place in that list."""
    halves = codes.view(np.uint64)
    _, first, group = np.unique(mix(mix(halves[:, 0]) + halves[:, 1]), return_index=True, return_inverse=True)
    assert (codes[first][group] == codes).all(), "two codes with one key: change the key"
    order = np.argsort(first)
    number = np.empty(len(first), np.int32)
    number[order] = np.arange(len(first), dtype=np.int32)
    return first[order], number[group]


def read_patches(connection: Connection, archive: Archive) -> Patches:
    """The patches of an archive, from a database with its part of the catalogue; a copy has the copy's place."""
    rows = connection.execute(
        """
        select p.patch_id, p.cell, ST_X(ST_Centroid(footprint)), ST_Y(ST_Centroid(footprint)),
            (select bit_or(1 << (l.label_id - ben19.first))
             from unnest(p.label_ids) as l (label_id),
                  (select min(label_id) as first from eo.label where scheme = 'ben19') ben19)
        from eo.patch p
        where p.patch_id <= %s
        order by p.patch_id
        """,
        (archive.catalogue,),
    ).fetchall()
    assert len(rows) == archive.catalogue, "the catalogue's patches are not numbered from 1 without gaps"
    patch_ids, cells, longitude, latitude, labels = (np.array(column) for column in zip(*rows, strict=True))
    del rows
    places = np.stack([longitude * np.cos(np.radians(LATITUDE)), latitude], axis=1) * KM_PER_DEGREE
    offsets = np.random.default_rng([SEED, 19]).uniform(-COPY_OFFSET, COPY_OFFSET, (archive.copies, 2))
    offsets[0] = 0
    copy, original = np.divmod(np.arange(archive.patches), archive.catalogue)
    return Patches(
        patch_ids=patch_ids[original] + copy * archive.catalogue,
        cells=cells.astype("S5")[original],
        labels=labels.astype(np.int64)[original],
        places=(places[original] + offsets[copy]).astype(np.float32),
    )


def fit_margin(connection: Connection, archive: Archive) -> float:
    """The margin at which DISTINCT of the archive's codes are distinct, by bisection."""
    patches = read_patches(connection, archive)
    low, high = 0.0, 8.0
    while high - low > 0.02:
        margin = (low + high) / 2
        distinct = len(first_and_bucket(Generator().codes(patches, margin))[0]) / len(patches)
        progress(f"{archive.name}: margin {margin:.3f}, {distinct:.3f} of the codes distinct")
        low, high = (margin, high) if distinct > DISTINCT else (low, margin)
    return (low + high) / 2


if __name__ == "__main__":
    with connect(ARCHIVES["549k"]) as database:
        for name in ("549k", "10m"):
            print(name, round(fit_margin(database, ARCHIVES[name]), 2))
