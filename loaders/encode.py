"""`pgearth encode`: vectors and hash codes for all patches that lack them, in bulk: COPY out, compute, COPY in."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import click
import numpy as np
from pgvector.psycopg import register_vector
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.sql import SQL, Composed
from psycopg.types.json import Jsonb

from loaders.code_index import build_code_index
from loaders.database import connect
from loaders.errors import InputError
from loaders.progress import progress
from pyfuncs import lsh, spectral
from pyfuncs.db import ENCODER_QUERY, encoder_from_row
from pyfuncs.encoders import Encoder, hash_codes
from pyfuncs.encoders import encode as encode_patches
from pyfuncs.errors import PgearthError
from pyfuncs.rasters import bands_from_wkb
from pyfuncs.regions import grid_regions
from pyfuncs.weights import dump

PATCHES_PER_TRANSACTION = 1024
CODES_PER_TRANSACTION = 10_000
HASH_SAMPLE = 100_000
HASH_BITS = 128
HASH_SEED = 0


@dataclass(frozen=True)
class Encoded:
    """What a run of `encode_archive` stored."""

    embeddings: int
    codes: int
    region_codes: int


def encode_archive(connection: Connection, reading: Connection, regions: int | None = None) -> Encoded:
    """Encode every patch with the bands of `spectral` but no vector, then hash every vector without a code by `lsh`.

    Both encoders are registered when they are not there; `lsh` is then fitted to the vectors of the archive. With
    `regions`, the windows of a grid of regions x regions in each patch are encoded and hashed, too, where the patch has
    no codes of regions. New codes are packed at the end. Commits as it goes, so it may be interrupted and run again.
    `connection` writes (autocommit); `reading` streams pixels. Raises InputError when regions are stored that were cut
    otherwise, and for a patch whose bands do not divide into so many.
    """
    register_vector(connection)
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_lock(hashtextextended('pgearth encode', 0))")
        if cursor.fetchone() != (True,):
            raise InputError("Another session is encoding this archive.", "Wait for it to end, then run this again.")
        try:
            encoder = register(
                connection, "spectral", "spectral", bands=list(spectral.BANDS), weights={}, dimension=spectral.DIMENSION
            )
            embeddings = store_embeddings(connection, reading, encoder)
            hashing = known_hash(connection, encoder) or fit_hash(connection, encoder)
            if hashing is None:
                return Encoded(embeddings, 0, 0)
            codes = store_codes(connection, encoder, hashing)
            region_codes = store_region_codes(connection, reading, encoder, hashing, regions) if regions else 0
            if codes or region_codes:
                build_code_index(connection, f"{hashing.name}:{hashing.version}")
            return Encoded(embeddings, codes, region_codes)
        finally:
            if not connection.broken:
                cursor.execute("select pg_advisory_unlock(hashtextextended('pgearth encode', 0))")


def register(
    connection: Connection, name: str, architecture: str, weights: Mapping[str, np.ndarray], **columns: Any
) -> Encoder:
    """Store version 1 of an encoder unless it is stored, and read it back."""
    columns.setdefault("bands", [])
    row = connection.execute(
        """
        select eo.register_encoder(
            name => %(name)s, version => 1, architecture => %(architecture)s, bands => %(bands)s,
            weights => %(weights)s, dimension => %(dimension)s, bits => %(bits)s, parent_id => %(parent_id)s::smallint,
            training => %(training)s)
        """,
        {
            "name": name,
            "architecture": architecture,
            "weights": dump(weights),
            "dimension": None,
            "bits": None,
            "parent_id": None,
            "training": None,
            **columns,
        },
    ).fetchone()
    assert row is not None
    return stored_encoder(connection, row[0])


def stored_encoder(connection: Connection, encoder_id: int) -> Encoder:
    """Read an encoder with its weights."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(SQL(ENCODER_QUERY) + SQL("%s"), (encoder_id,))
        row = cursor.fetchone()
    assert row is not None
    return encoder_from_row(row)


def known_hash(connection: Connection, encoder: Encoder) -> Encoder | None:
    """The stored `lsh` of an encoder, if there is one."""
    row = connection.execute(
        "select encoder_id from eo.encoder where name = 'lsh' and version = 1 and parent_id = %s", (encoder.encoder_id,)
    ).fetchone()
    return stored_encoder(connection, row[0]) if row else None


def fit_hash(connection: Connection, encoder: Encoder) -> Encoder | None:
    """Fit `lsh` to the encoder's vectors (at most HASH_SAMPLE, by patch_id); None when there are none yet."""
    sample = [
        vector.to_numpy()
        for (vector,) in connection.execute(
            "select embedding from eo.embedding where encoder_id = %s order by patch_id limit %s",
            (encoder.encoder_id, HASH_SAMPLE),
        )
    ]
    if not sample:
        return None
    return register(
        connection,
        "lsh",
        "lsh",
        lsh.fit(np.stack(sample), bits=HASH_BITS, seed=HASH_SEED),
        bits=HASH_BITS,
        parent_id=encoder.encoder_id,
        training=Jsonb({"method": "random hyperplanes", "seed": HASH_SEED, "vectors": len(sample)}),
    )


PENDING = SQL(
    """
select r.patch_id
from eo.patch_raster r, unnest(r.bands) as band
where band = any (%(bands)s::text[])
  and not exists (select from {} stored where stored.patch_id = r.patch_id and stored.encoder_id = %(encoder_id)s)
group by r.patch_id
having count(distinct band) = cardinality(%(bands)s::text[])
"""
)
WITHOUT_EMBEDDING = PENDING.format(SQL("eo.embedding"))
WITHOUT_REGION_CODES = PENDING.format(SQL("(select * from eo.patch_bucket where segment > 0)"))
PendingPatch = tuple[int, str, dict[str, np.ndarray]]
"""patch_id, cell and bands (name to pixels)."""


def store_embeddings(connection: Connection, reading: Connection, encoder: Encoder) -> int:
    """Encode the patches that lack a vector; return how many were stored."""
    stored = 0
    parameters = {"bands": list(encoder.bands), "encoder_id": encoder.encoder_id}
    with closing(pending_patches(connection, reading, WITHOUT_EMBEDDING, parameters, "encoding")) as chunks:
        for chunk in chunks:
            vectors = encode_patches(encoder, [bands for _, _, bands in chunk])
            with connection.cursor().copy(
                "copy eo.embedding (patch_id, encoder_id, cell, embedding) from stdin (format binary)"
            ) as copy:
                copy.set_types(["int8", "int2", "text", "vector"])
                for (patch_id, cell, _), vector in zip(chunk, vectors, strict=True):
                    copy.write_row((patch_id, encoder.encoder_id, cell, vector))
            stored += len(chunk)
    return stored


def pending_patches(
    connection: Connection, reading: Connection, pending: Composed, parameters: dict[str, Any], description: str
) -> Generator[list[PendingPatch], None, None]:
    """Yield the pending patches by patch_id, as many at a time as are stored in a transaction, and show progress.

    To be closed after an error: the COPY that it is in must end before the connection can.
    """
    row = connection.execute(SQL("select count(*) from ({}) pending").format(pending), parameters).fetchone()
    assert row is not None
    with (
        progress(range(0), description, "patches", total=row[0]) as bar,
        closing(stream_patches(reading, pending, parameters)) as patches,
    ):
        while chunk := list(islice(patches, PATCHES_PER_TRANSACTION)):
            yield chunk
            bar.update(len(chunk))


def stream_patches(
    reading: Connection, pending: Composed, parameters: dict[str, Any]
) -> Generator[PendingPatch, None, None]:
    """Yield the pending patches by patch_id."""
    query = SQL(
        """
        copy (
            select r.patch_id, r.cell, r.bands, ST_AsWKB(r.rast)
            from eo.patch_raster r
            where r.patch_id in ({})
            order by r.patch_id, r.resolution
        ) to stdout (format binary)
        """
    ).format(pending)
    with reading.cursor().copy(query, parameters) as copy:
        copy.set_types(["int8", "text", "text[]", "bytea"])
        for (patch_id, cell), rasters in groupby(copy.rows(), key=lambda row: row[:2]):
            bands: dict[str, np.ndarray] = {}
            for _, _, names, wkb in rasters:
                bands.update(bands_from_wkb(wkb, names))
            yield patch_id, cell, bands


def store_codes(connection: Connection, encoder: Encoder, hashing: Encoder) -> int:
    """Hash the vectors that lack a code; return how many were stored."""
    stored = 0
    query = """
        select e.patch_id, e.embedding
        from eo.embedding e
        where e.encoder_id = %s and not exists (
            select from eo.patch_bucket b where b.patch_id = e.patch_id and b.encoder_id = %s and b.segment = 0)
        order by e.patch_id
        limit %s
    """
    while rows := connection.execute(query, (encoder.encoder_id, hashing.encoder_id, CODES_PER_TRANSACTION)).fetchall():
        codes = hash_codes(hashing, np.stack([vector.to_numpy() for _, vector in rows]))
        connection.execute(
            "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::text[]::bit varying[])",
            (hashing.encoder_id, [patch_id for patch_id, _ in rows], [0] * len(rows), codes),
        )
        stored += len(rows)
    return stored


def store_region_codes(
    connection: Connection, reading: Connection, encoder: Encoder, hashing: Encoder, side: int
) -> int:
    """Hash the windows of a grid of side x side in each patch that lacks codes of regions; return how many were stored.

    Segments count the windows row by row from 1. All regions of a hash function are cut in one way, which its
    `segmentation` records: raises InputError when that is another one.
    """
    segmentation = {"method": "grid", "side": side}
    row = connection.execute(
        "select segmentation from eo.encoder where encoder_id = %s", (hashing.encoder_id,)
    ).fetchone()
    assert row is not None
    if row[0] not in (None, segmentation):
        name = f"{hashing.name}:{hashing.version}"
        raise InputError(
            f"Regions of hash function {name} were cut as {json.dumps(row[0])}, not as {json.dumps(segmentation)}.",
            f"Cut them in the same way, or remove those first: select eo.drop_region_codes('{name}')",
        )
    segments = list(range(1, side * side + 1))
    stored = 0
    parameters = {"bands": list(encoder.bands), "encoder_id": hashing.encoder_id}
    with closing(pending_patches(connection, reading, WITHOUT_REGION_CODES, parameters, "encoding regions")) as chunks:
        for chunk in chunks:
            windows = []
            for patch_id, _, bands in chunk:
                try:
                    windows += grid_regions({name: bands[name] for name in encoder.bands}, side)
                except PgearthError as error:
                    raise InputError(f"Patch {patch_id}: {error}", error.hint or "") from error
            codes = hash_codes(hashing, encode_patches(encoder, windows))
            with connection.transaction():
                connection.execute(
                    "update eo.encoder set segmentation = %s where encoder_id = %s and segmentation is null",
                    (Jsonb(segmentation), hashing.encoder_id),
                )
                connection.execute(
                    "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::text[]::bit varying[])",
                    (
                        hashing.encoder_id,
                        [patch_id for patch_id, _, _ in chunk for _ in segments],
                        segments * len(chunk),
                        codes,
                    ),
                )
            stored += len(codes)
    return stored


@click.command()
@click.option(
    "--regions",
    type=click.IntRange(min=2, max=100),
    help="Also hash the windows of a grid of so many by so many in each patch (2: quadrants), for eo.similar_regions.",
)
def encode(regions: int | None) -> None:
    """Compute vectors (encoder `spectral`) and hash codes (`lsh`) of all patches that lack them.

    Sentinel-2 patches with their twelve bands are encoded; others are left out. It may be interrupted and run again.
    """
    with connect(autocommit=True) as connection, connect(autocommit=True) as reading:
        result = encode_archive(connection, reading, regions)
    message = f"{result.embeddings:,} patches encoded, {result.codes:,} hashed"
    click.echo(message + (f", {result.region_codes:,} regions hashed." if regions else "."))
