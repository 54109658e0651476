"""Contact sheets, decoded by Pillow, against the pictures of single patches."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import psycopg
import pytest
from PIL import Image
from psycopg import errors

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.pyfuncs.pixels.pictures import GAP, NO_PICTURE, TILE


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches of both sensors, read by a reader."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    module_archive.execute("set role eo_reader")
    return module_archive


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def sheet(archive: psycopg.Connection, *arguments: object) -> np.ndarray:
    places = ", ".join(["%s::bigint[]", "%s::double precision[]", "%s"][: len(arguments)])
    row = archive.execute(f"select eo.contact_sheet({places})".encode(), arguments).fetchone()
    assert row is not None
    return decoded(row[0])


def rows_of_tiles(picture: np.ndarray) -> list[int]:
    """Where the tiles of each row begin: the first of TILE lines that are not white near the left edge."""
    filled = (picture[:, GAP : GAP + TILE] != 255).any(axis=(1, 2))
    starts, line = [], 0
    while line < len(filled):
        if len(filled) >= line + TILE and filled[line : line + TILE].all():
            starts.append(line)
            line += TILE
        line += 1
    return starts


def test_tiles_are_the_pictures_of_the_patches(filled: psycopg.Connection) -> None:
    patches = filled.execute("select patch_id, name from eo.patch order by name limit 12").fetchall()
    ids = [patch_id for patch_id, _ in patches]
    picture = sheet(filled, ids, [n / 2 for n in range(12)], 5)
    assert picture.shape[1] == GAP + 5 * (TILE + GAP)
    tops = rows_of_tiles(picture)
    assert len(tops) == 3
    tiles = []
    for number, (_, name) in enumerate(patches):
        top, left = tops[number // 5], GAP + number % 5 * (TILE + GAP)
        tile = picture[top : top + TILE, left : left + TILE]
        row = filled.execute("select eo.rgb(%s)", (name,)).fetchone()
        assert row is not None
        np.testing.assert_array_equal(tile, decoded(row[0]).repeat(2, axis=0).repeat(2, axis=1))
        tiles.append(tile.tobytes())
        caption = picture[top + TILE : top + TILE + 60, left : left + TILE]
        assert 200 < (caption < 128).all(axis=-1).sum() < 6000, "text below the tile"
    assert len(set(tiles)) >= 9, "two patches each are of the same place"
    last_row = picture[tops[2] :, GAP + 2 * (TILE + GAP) :]
    assert (last_row == 255).all(), "no patch, no tile"


def test_what_is_written_shows(filled: psycopg.Connection) -> None:
    """The captions of sheets that differ in one thing differ, and only there."""
    ids = [
        filled.execute("select patch_id from eo.patch where label_ids is not null order by 1 limit 1").fetchone()[0]
    ] * 2  # type: ignore[index]
    without, with_distances, others = sheet(filled, ids), sheet(filled, ids, [1, 2], 5), sheet(filled, ids, [1, 3], 5)
    assert without.shape == with_distances.shape == others.shape
    first, second = np.s_[:, : GAP + TILE], np.s_[:, 2 * GAP + TILE :]
    assert (without[first] != with_distances[first]).any()
    np.testing.assert_array_equal(with_distances[first], others[first])
    assert (with_distances[second] != others[second]).any()
    assert (without[:, GAP : GAP + TILE] != without[:, 2 * GAP + TILE : 2 * GAP + 2 * TILE]).any(), "rank 1 and rank 2"


def test_long_labels_wrap_and_make_the_row_higher(filled: psycopg.Connection) -> None:
    patch_id = filled.execute("select min(patch_id) from eo.patch").fetchone()[0]  # type: ignore[index]
    before = sheet(filled, [patch_id])
    with filled.transaction(force_rollback=True):
        filled.execute("reset role")
        filled.execute(
            "update eo.patch set label_ids = array(select label_id from eo.label where scheme = 'clc' and level = 3 order by 1 limit 20)"
            " where patch_id = %s",
            (patch_id,),
        )
        after = sheet(filled, [patch_id])
    assert after.shape[0] > before.shape[0] + 100
    assert after.shape[1] == before.shape[1] == TILE + 2 * GAP
    assert (after[:, -GAP // 2 :] == 255).all(), "nothing runs over the edge"


def test_a_patch_without_pixels_is_grey(filled: psycopg.Connection) -> None:
    with filled.transaction(force_rollback=True):
        filled.execute("reset role")
        patch_id = filled.execute("select min(patch_id) from eo.patch").fetchone()[0]  # type: ignore[index]
        filled.execute("delete from eo.patch_raster where patch_id = %s", (patch_id,))
        without_pixels = sheet(filled, [patch_id])
        other = filled.execute("select max(patch_id) from eo.patch").fetchone()[0]  # type: ignore[index]
        filled.execute(
            "update eo.patch_raster set bands[1] = 'X' where patch_id = %s and bands[1] in ('B02', 'VV')", (other,)
        )
        without_colour = sheet(filled, [other])
    for picture in (without_pixels, without_colour):
        tile = picture[GAP : GAP + TILE, GAP : GAP + TILE]
        assert (tile == NO_PICTURE).all(axis=-1).mean() > 0.97
        assert (tile < 100).any(), "a note"
    assert (without_pixels[GAP : GAP + TILE] != without_colour[GAP : GAP + TILE]).any(), "another note"


def test_the_example_of_the_comment(archive: psycopg.Connection, filled_with_pixels: None) -> None:
    row = archive.execute(
        "select eo.contact_sheet(array_agg(patch_id order by rank), array_agg(distance order by rank))"
        " from eo.similar((select name from eo.patch where platform like 'sentinel-2%' order by 1 limit 1))"
    ).fetchone()
    assert row is not None
    assert decoded(row[0]).shape[1] == GAP + 5 * (TILE + GAP)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("null", errors.ProgramLimitExceeded, "shows 1 to 200 patches, not 0"),
        ("'{}'", errors.ProgramLimitExceeded, "shows 1 to 200 patches, not 0"),
        ("array_fill(1, array[201])", errors.ProgramLimitExceeded, "not 201"),
        ("array[-5]", errors.NoDataFound, "no patch -5"),
        ("array[1, null]", errors.NullValueNotAllowed, "a list has a null"),
        ("array[1, 1], array[0.5]", errors.InvalidParameterValue, "1 distances for 2 patches"),
        ("array[1], columns => 0", errors.InvalidParameterValue, "columns, not 0"),
    ],
)
def test_bad_input(filled: psycopg.Connection, arguments: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        filled.execute(f"select eo.contact_sheet({arguments})".encode())
