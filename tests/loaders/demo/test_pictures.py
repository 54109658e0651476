"""The demo's picture of a query by example, against the pictures that SQL makes of the patch and of its neighbours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import psycopg
from PIL import Image, ImageChops

from pgearth.loaders.demo.pictures import NEIGHBOURS, TITLE_HEIGHT, query_by_example


def image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_the_query_stands_apart_from_its_neighbours(
    archive: psycopg.Connection, filled_with_pixels: None, tmp_path: Path
) -> None:
    (query,) = archive.execute(
        "select name from eo.patch join eo.patch_bucket using (patch_id, cell) order by patch_id limit 1"
    ).fetchone() or ("",)
    nearest = archive.execute(
        "select rank, name, patch_id, distance from eo.similar(%s, max_results => %s) order by rank",
        (query, NEIGHBOURS),
    ).fetchall()
    assert [row[0] for row in nearest] == list(range(1, len(nearest) + 1)) and query not in [row[1] for row in nearest]
    sheet, patch = archive.execute(
        "select eo.contact_sheet(%s::bigint[], %s::double precision[], 3), eo.rgb(%s)",
        ([row[2] for row in nearest], [row[3] for row in nearest], query),
    ).fetchone() or (b"", b"")
    picture = Image.open(query_by_example(archive, query, {"LSH": "lsh"}, tmp_path / "query.png")).convert("RGB")
    # On the right the nearest, of which the first has rank 1; on the left the query alone, and its name below.
    neighbours = image(sheet)
    width, height = neighbours.size
    right = picture.crop((picture.width - width, TITLE_HEIGHT, picture.width, TITLE_HEIGHT + height))
    assert ImageChops.difference(right, neighbours).getbbox() is None
    left = np.asarray(picture.crop((0, TITLE_HEIGHT, picture.width - width, picture.height)))
    shown = image(patch)
    rows, columns = np.nonzero((left != 255).any(axis=2))
    corner = (int(columns.min()), int(rows.min()))
    side = int(np.flatnonzero((left[: corner[1] + 20] != 255).any(axis=(0, 2))).max()) + 1 - corner[0]
    expected = shown.resize((side, side), Image.Resampling.NEAREST)
    tile = Image.fromarray(left).crop((*corner, corner[0] + side, corner[1] + side))
    assert ImageChops.difference(tile, expected).getbbox() is None
    assert (left[corner[1] + side :] != 255).any(), "its name"
