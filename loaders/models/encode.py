"""`pgearth encode`: vectors and hash codes for all patches that lack them, in bulk: COPY out, compute, COPY in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector.psycopg import register_vector
from psycopg import Connection
from psycopg.types.json import Jsonb

from pgearth.loaders.models.code_index import build_code_index
from pgearth.loaders.models.pending import WITHOUT_EMBEDDING, WITHOUT_SEGMENT_CODES, pending_patches, read_pixels
from pgearth.loaders.models.versions import newest_version, parent, register, stored_encoder, version_name
from pgearth.loaders.server.connection import planner, session_lock
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.encoder import BATCH_SIZE, Encoder, hash_codes
from pgearth.pyfuncs.models.encoder import encode as encode_patches
from pgearth.pyfuncs.models.weights import dump
from pgearth.pyfuncs.pixels.segments import cut_segments, parse_segmentation, same_cut

CODES_PER_TRANSACTION = 10_000
PATCHES_CUT_AT_ONCE = 64
HASH_SAMPLE = 100_000
HASH_BITS = 128
HASH_SEED = 0


@dataclass(frozen=True)
class Encoded:
    """What a run of `encode_archive` stored, which patches it left out, and what searches use since then."""

    embeddings: int
    codes: int
    segment_codes: int
    left_out: Mapping[str, int]
    """Patches whose pixels lack some of an encoder's bands, by encoder."""
    made_current: Sequence[str]


def encode_archive(
    connection: Connection,
    reading: Connection,
    encoders: Sequence[str] = (),
    *,
    segments: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Encoded:
    """Give every patch that lacks one a vector by each of `encoders`: NAME:VERSION, or NAME for its newest version.

    Where that is a hash function, a vector by the encoder that it reads, then a code. Without `encoders`, vectors by
    `spectral` and codes by `lsh`, which are registered when they are not there; `lsh` is then fitted to the vectors of
    the archive. With `segments` (grid:2, slic:9: see parse_segmentation), segments of each patch are encoded and
    hashed, too, where the patch has no codes of segments. New codes are packed at the end. A version that has now
    encoded the whole archive for the first time is made current.

    Commits as it goes, so it may be interrupted and run again; patches that are stored meanwhile are the next run's.
    `connection` writes (autocommit); `reading` streams pixels. Raises PgearthError for an unknown or retired version,
    while another session encodes, when segments are stored that were cut otherwise, for a patch whose bands do not fit
    the cuts, and for one that an encoder fails on.
    """
    register_vector(connection)
    with encoding_alone(connection):
        named = [newest_version(connection, text) for text in encoders]
        work: list[tuple[Encoder, Encoder | None]] = [
            (version, None) if version.bits is None else (parent(connection, version), version) for version in named
        ]
        if not named:
            work = [(spectral_version(connection), None)]
        elif segments and all(hashing is None for _, hashing in work):
            raise PgearthError("Only a hash function makes codes of segments.", "Name one by --encoder.")
        embeddings = codes = segment_codes = 0
        left_out: dict[str, int] = {}
        hash_functions, made_current = [], []
        for encoder, hashing in work:
            name = version_name(encoder)
            if name not in left_out:
                stored, left_out[name] = store_embeddings(connection, reading, encoder, batch_size)
                embeddings += stored
                if make_current_once(connection, encoder):
                    made_current.append(name)
            if not named:
                hashing = lsh_version(connection, encoder)
            if hashing is None:
                continue
            hash_functions.append(hashing)
            codes += store_codes(connection, encoder, hashing)
            if segments:
                cut = parse_segmentation(segments, encoder.bands)
                segment_codes += store_segment_codes(connection, reading, encoder, hashing, cut)
        # At the end: codes of one hash function are a change to what is packed of the others.
        for hashing in hash_functions:
            if not is_packed(connection, hashing):
                build_code_index(connection, version_name(hashing))
            if make_current_once(connection, hashing):
                made_current.append(version_name(hashing))
        return Encoded(embeddings, codes, segment_codes, left_out, made_current)


@contextmanager
def encoding_alone(connection: Connection) -> Iterator[None]:
    """Keep other sessions from encoding this archive meanwhile. Raises PgearthError where one does."""
    with session_lock(connection, "pgearth encode") as locked:
        if not locked:
            raise PgearthError("Another session is encoding this archive.", "Wait for it to end, then run this again.")
        yield


def is_packed(connection: Connection, hashing: Encoder) -> bool:
    """Whether the codes of a hash function were packed after the last change (see eo.build_code_index)."""
    row = connection.execute(
        """
        select from eo.code_index i
        where i.encoder_id = %s and eo_internal.unproved_codes(i) is null and eo_internal.unproved_patches(i) is null
        """,
        (hashing.encoder_id,),
    ).fetchone()
    return row is not None


def make_current_once(connection: Connection, version: Encoder) -> bool:
    """Make a version current that has now encoded the whole archive, unless it was before or encoded nothing.

    Returns whether it was made current.
    """
    row = connection.execute(
        """
        select current_since is null
               and (exists (select from eo.embedding v where v.encoder_id = e.encoder_id)
                    or exists (select from eo.patch_bucket b where b.encoder_id = e.encoder_id))
        from eo.encoder e
        where encoder_id = %s
        """,
        (version.encoder_id,),
    ).fetchone()
    if row == (True,):
        connection.execute("select eo.make_current(%s)", (version_name(version),))
    return row == (True,)


def spectral_version(connection: Connection) -> Encoder:
    """The encoder `spectral`, registered where it is not there."""
    return register(
        connection,
        "spectral",
        "spectral",
        dump({}),
        bands=spectral.BANDS,
        dimension=spectral.DIMENSION,
        units=["reflectance10000"] * len(spectral.BANDS),
    )


def lsh_version(connection: Connection, encoder: Encoder) -> Encoder | None:
    """The newest `lsh` of an encoder; where there is none, one fitted to HASH_SAMPLE vectors; without vectors, None."""
    row = connection.execute(
        """
        select encoder_id from eo.encoder
        where name = 'lsh' and parent_id = %s and retired_at is null
        order by version desc
        limit 1
        """,
        (encoder.encoder_id,),
    ).fetchone()
    if row:
        return stored_encoder(connection, row[0])
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
        dump(lsh.fit(np.stack(sample), bits=HASH_BITS, seed=HASH_SEED)),
        bits=HASH_BITS,
        parent_id=encoder.encoder_id,
        training={"method": "random hyperplanes", "seed": HASH_SEED, "vectors": len(sample)},
    )


def store_embeddings(connection: Connection, reading: Connection, encoder: Encoder, batch_size: int) -> tuple[int, int]:
    """Encode the patches that lack a vector by an encoder; return how many, and how many lack some of its bands."""
    name = version_name(encoder)
    stored = 0
    patch_ids, left_out = pending_patches(connection, WITHOUT_EMBEDDING, encoder, encoder)
    with closing(read_pixels(reading, patch_ids, encoder.bands, f"encoding by {name}")) as chunks:
        for chunk in chunks:
            try:
                vectors = encode_patches(encoder, [bands for _, _, bands in chunk], batch_size=batch_size)
            except PgearthError as error:
                raise error.of(f"Patches {chunk[0][0]} to {chunk[-1][0]}") from error
            for (patch_id, _, _), finite in zip(chunk, np.isfinite(vectors).all(axis=1), strict=True):
                if not finite:
                    raise PgearthError(
                        f"Patch {patch_id}: {name} gives a vector that is not finite.",
                        "Its weights do not fit the patch's pixels: encode with another version, or train it again.",
                    )
            with connection.cursor().copy(
                "copy eo.embedding (patch_id, encoder_id, cell, embedding) from stdin (format binary)"
            ) as copy:
                copy.set_types(["int8", "int2", "text", "vector"])
                for (patch_id, cell, _), vector in zip(chunk, vectors, strict=True):
                    copy.write_row((patch_id, encoder.encoder_id, cell, vector))
            stored += len(chunk)
    return stored, left_out


WITHOUT_CODE = """
select coalesce(string_agg(int8send(e.patch_id), ''::bytea order by e.patch_id), '')
from eo.embedding e
where e.encoder_id = %(encoder)s and not exists (
    select from eo.patch_bucket b where b.patch_id = e.patch_id and b.encoder_id = %(hashing)s and b.segment = 0)
"""
VECTORS = """
select e.patch_id, e.embedding
from unnest(%(patch_ids)s::bigint[]) as wanted (patch_id)
cross join lateral (
    select v.patch_id, v.embedding
    from eo.embedding v
    where v.patch_id = wanted.patch_id and v.encoder_id = %(encoder)s
    offset 0
) e
"""


def store_codes(connection: Connection, encoder: Encoder, hashing: Encoder) -> int:
    """Hash the vectors that lack a code; return how many were stored."""
    with planner(connection, enable_nestloop="off"):
        row = connection.execute(
            WITHOUT_CODE, {"encoder": encoder.encoder_id, "hashing": hashing.encoder_id}
        ).fetchone()
    assert row is not None
    pending = np.frombuffer(row[0], ">i8").astype(np.int64)
    stored = 0
    with progress(range(0), f"hashing by {version_name(hashing)}", "patches", total=len(pending)) as bar:
        for start in range(0, len(pending), CODES_PER_TRANSACTION):
            chosen = pending[start : start + CODES_PER_TRANSACTION].tolist()
            with planner(connection, enable_seqscan="off"):
                rows = connection.execute(VECTORS, {"patch_ids": chosen, "encoder": encoder.encoder_id}).fetchall()
            codes = hash_codes(hashing, np.stack([vector.to_numpy() for _, vector in rows]))
            connection.execute(
                "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::text[]::bit varying[])",
                (hashing.encoder_id, [patch_id for patch_id, _ in rows], [0] * len(rows), codes),
            )
            stored += len(rows)
            bar.update(len(rows))
    return stored


def store_segment_codes(
    connection: Connection, reading: Connection, encoder: Encoder, hashing: Encoder, segmentation: Mapping[str, Any]
) -> int:
    """Hash the segments of each patch that lacks codes of segments; return how many were stored.

    They count from 1. All segments of a hash function are cut in one way, which its `segmentation` records: raises
    PgearthError when that is another one.
    """
    row = connection.execute(
        "select segmentation from eo.encoder where encoder_id = %s", (hashing.encoder_id,)
    ).fetchone()
    assert row is not None
    if row[0] is not None and not same_cut(row[0], segmentation):
        name = version_name(hashing)
        raise PgearthError(
            f"Segments of hash function {name} were cut as {json.dumps(row[0])}, not as {json.dumps(segmentation)}.",
            f"Cut them in the same way, or remove those first: select eo.drop_segment_codes('{name}')",
        )
    stored = 0
    pending, _ = pending_patches(connection, WITHOUT_SEGMENT_CODES, encoder, hashing)
    with closing(read_pixels(reading, pending, encoder.bands, "encoding segments")) as chunks:
        for chunk in chunks:
            patch_ids: list[int] = []
            segments: list[int] = []
            codes: list[str] = []
            for start in range(0, len(chunk), PATCHES_CUT_AT_ONCE):
                cut: list[dict[str, np.ndarray]] = []
                for patch_id, _, bands in chunk[start : start + PATCHES_CUT_AT_ONCE]:
                    try:
                        found = cut_segments(bands, encoder.bands, segmentation)
                    except PgearthError as error:
                        raise error.of(f"Patch {patch_id}") from error
                    patch_ids += [patch_id] * len(found)
                    segments += range(1, len(found) + 1)
                    cut += found
                codes += hash_codes(hashing, encode_patches(encoder, cut))
            with connection.transaction():
                connection.execute(
                    "update eo.encoder set segmentation = %s where encoder_id = %s and segmentation is null",
                    (Jsonb(segmentation), hashing.encoder_id),
                )
                connection.execute(
                    "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::text[]::bit varying[])",
                    (hashing.encoder_id, patch_ids, segments, codes),
                )
            stored += len(codes)
    return stored
