"""Patches that lack vectors or codes, and their pixels, which are read ahead of what computes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.sql import SQL, Composed

from pgearth.loaders.server.connection import planner
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.pixels.rasters import bands_from_wkb

PATCHES_PER_TRANSACTION = 512
PENDING = SQL(
    """
with lacking as materialized (
    select r.patch_id, count(distinct band) filter (where band = any (%(bands)s::text[])) = %(count)s as complete
    from eo.patch_raster r, unnest(r.bands) as band
    where not exists (select from {} v
                      where v.patch_id = r.patch_id and v.cell = r.cell and v.encoder_id = %(encoder_id)s)
    group by r.patch_id
)
select coalesce(string_agg(int8send(patch_id), ''::bytea order by patch_id) filter (where complete), ''),
       count(*) filter (where not complete)
from lacking
"""
)
WITHOUT_EMBEDDING = PENDING.format(SQL("eo.embedding"))
WITHOUT_SEGMENT_CODES = PENDING.format(SQL("(select * from eo.patch_bucket where segment > 0)"))
# In the order of patch_id, so that pixels come as they lie; the coarsest bands first, so that the finest prevail. What
# is outside of the subquery is done as rows are sent, not before they are sorted.
PIXELS = """
copy (
    select s.patch_id, s.cell, s.bands, ST_AsWKB(s.rast, true)
    from (
        select r.patch_id, r.cell, r.bands, r.rast
        from unnest(%(patch_ids)s::bigint[]) as wanted (patch_id)
        join eo.patch p on p.patch_id = wanted.patch_id
        join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell and r.bands && %(bands)s::text[]
        order by r.patch_id, r.resolution desc
        offset 0
    ) s
) to stdout (format binary)
"""
PatchPixels = tuple[int, str, dict[str, np.ndarray]]
"""patch_id, cell and bands (name to pixels)."""


def pending_patches(
    connection: Connection, pending: Composed, encoder: Encoder, version: Encoder
) -> tuple[NDArray[np.int64], int]:
    """Patches without a row of `version` that have all bands of `encoder`, by patch_id, and how many lack some."""
    parameters = {"bands": list(encoder.bands), "count": len(encoder.bands), "encoder_id": version.encoder_id}
    with planner(connection, enable_nestloop="off"):
        row = connection.execute(pending, parameters).fetchone()
    assert row is not None
    return np.frombuffer(row[0], ">i8").astype(np.int64), row[1]


def read_pixels(
    reading: Connection, patch_ids: NDArray[np.int64], bands: Sequence[str], description: str
) -> Generator[list[PatchPixels], None, None]:
    """Yield patches as many at a time as are stored in a transaction, and show progress.

    A thread of their own reads the next ones while the caller works on these.
    """

    def read(start: int) -> list[PatchPixels]:
        chosen = patch_ids[start : start + PATCHES_PER_TRANSACTION].tolist()
        with reading.cursor().copy(PIXELS, {"patch_ids": chosen, "bands": list(bands)}) as copy:
            copy.set_types(["int8", "text", "text[]", "bytea"])
            patches = []
            for (patch_id, cell), rasters in groupby(copy.rows(), key=itemgetter(0, 1)):
                pixels: dict[str, np.ndarray] = {}
                for _, _, names, wkb in rasters:
                    pixels.update(bands_from_wkb(wkb, names))
                patches.append((patch_id, cell, pixels))
            return patches

    with (
        progress(range(0), description, "patches", total=len(patch_ids)) as bar,
        ThreadPoolExecutor(1, "reading") as pool,
    ):
        following = pool.submit(read, 0)
        for start in range(0, len(patch_ids), PATCHES_PER_TRANSACTION):
            chunk = following.result()
            following = pool.submit(read, start + PATCHES_PER_TRANSACTION)
            yield chunk
            bar.update(len(chunk))
