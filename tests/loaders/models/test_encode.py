"""Codes of segments of real patches, against windows cut and encoded by hand; runs that fail and are run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
import rasterio
from click.testing import Result
from psycopg import errors
from rasterio.io import MemoryFile

import pgearth.loaders.models.encode
import pgearth.loaders.models.pending
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.weights import load
from pgearth.pyfuncs.pixels.segments import grid_segments

Segments = dict[str, dict[int, str]]


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches, encoded and hashed."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading)
    return module_archive


@pytest.fixture
def archive(filled: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Override of the shared fixture: the patches without codes of segments, each time."""
    yield filled
    filled.execute("reset role")
    filled.execute("select eo.drop_segment_codes()")


def by_hand(connection: psycopg.Connection, folder: Path, side: int) -> dict[int, str]:
    """Codes of the windows of a patch, row by row from 1, computed outside the database."""
    row = connection.execute("select weights, weights_sha256 from eo.encoder where name = 'lsh'").fetchone()
    assert row is not None
    patch = {band: rasterio.open(folder / f"{folder.name}_{band}.tif").read(1) for band in spectral.BANDS}
    codes = {}
    for number in range(side * side):
        y, x = divmod(number, side)
        window = {}
        for band, pixels in patch.items():
            size = len(pixels) // side
            window[band] = pixels[np.newaxis, y * size : (y + 1) * size, x * size : (x + 1) * size]
        codes[number + 1] = bit_string(lsh.hash_codes(load(*row), spectral.features(window))[0])
    return codes


def stored(connection: psycopg.Connection) -> Segments:
    """Codes of segments by patch name and segment."""
    segments: Segments = {}
    for name, segment, code in connection.execute(
        "select p.name, pb.segment, b.code::text from eo.patch p join eo.patch_bucket pb using (patch_id)"
        " join eo.bucket b using (encoder_id, bucket_no) where pb.segment > 0"
    ):
        segments.setdefault(name, {})[segment] = code
    return segments


def distance(one: str, other: str) -> int:
    return (int(one, 2) ^ int(other, 2)).bit_count()


def encode(connection: psycopg.Connection, side: int) -> int:
    with psycopg.connect(connection.info.dsn, autocommit=True) as reading:
        return encode_archive(connection, reading, segments=f"grid:{side}").segment_codes


@pytest.mark.parametrize("side", [2, 4])
def test_segments_of_real_patches(
    archive: psycopg.Connection, sample: Path, run_pgearth: Callable[..., Result], side: int
) -> None:
    whole = archive.execute("select * from eo.patch_bucket order by 1").fetchall()
    result = run_pgearth(archive, "encode", "--segments", f"grid:{side}")
    assert result.exit_code == 0, result.output
    assert f"0 patches encoded, 0 hashed, {11 * side * side} segments hashed." in result.output
    folders = [path for path in (sample / "bigearthnet-v1" / "S2").iterdir() if path.is_dir()]
    segments = stored(archive)
    assert segments == {folder.name: by_hand(archive, folder, side) for folder in folders}
    assert archive.execute("select * from eo.patch_bucket where segment = 0 order by 1").fetchall() == whole
    again = run_pgearth(archive, "encode", "--segments", f"grid:{side}")
    assert "0 segments hashed." in again.output
    for name, own in segments.items():
        found = archive.execute("select name, distance from eo.similar_segments(%s)", (name,)).fetchall()
        sums = {
            other: sum(min(distance(code, o) for o in others.values()) for code in own.values())
            for other, others in segments.items()
            if other != name
        }
        assert dict(found) == sums
        assert [summed for _, summed in found] == sorted(sums.values())


def test_a_grid_is_not_mixed_with_another(archive: psycopg.Connection) -> None:
    assert encode(archive, 2) == 44
    codes = stored(archive)
    with pytest.raises(PgearthError, match=r'were cut as .*"side": 2.*, not as .*"side": 4') as caught:
        encode(archive, 4)
    assert "eo.drop_segment_codes('lsh:1')" in caught.value.hint
    assert stored(archive) == codes
    assert archive.execute("select eo.drop_segment_codes('lsh:1')").fetchone() == (44,)
    assert encode(archive, 4) == 11 * 16
    assert archive.execute("select segmentation from eo.encoder where name = 'lsh'").fetchone() == (
        {"method": "grid", "side": 4},
    )


def test_segments_of_whole_pixels_only(archive: psycopg.Connection) -> None:
    """Bands of 60 m have 20 x 20 pixels: thirds of them would show other ground than thirds of the finer bands."""
    with pytest.raises(PgearthError, match="20 x 20 pixels does not divide into 3 x 3 segments") as caught:
        encode(archive, 3)
    assert "2, 4 or 5" in caught.value.hint
    assert stored(archive) == {}
    assert encode(archive, 2) == 44, "what failed must not stand in the way of another grid"


def test_a_run_that_broke_off_is_taken_up(archive: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encode(archive, 2) == 44
    complete = stored(archive)
    archive.execute("select eo.drop_segment_codes()")
    monkeypatch.setattr(pgearth.loaders.models.pending, "PATCHES_PER_TRANSACTION", 3)
    hash_codes = pgearth.loaders.models.encode.hash_codes
    calls = 0

    def fail_at_the_third(*arguments: object) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return hash_codes(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pgearth.loaders.models.encode, "hash_codes", fail_at_the_third)
        encode(archive, 2)
    assert len(stored(archive)) == 6, "two transactions of three patches"
    assert encode(archive, 2) == 44 - 6 * 4
    assert stored(archive) == complete


def test_segment_codes_of_an_uploaded_image(archive: psycopg.Connection, sample: Path) -> None:
    folder = next(path for path in sorted((sample / "bigearthnet-v1" / "S2").iterdir()) if path.is_dir())
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", width=120, height=120, count=12, dtype="uint16", crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_300_000),
        ) as dataset:  # fmt: skip
            for number, band in enumerate(spectral.BANDS, 1):
                pixels = rasterio.open(folder / f"{folder.name}_{band}.tif").read(1)
                dataset.write(np.kron(pixels, np.ones((120 // len(pixels),) * 2, np.uint16)), number)
                dataset.set_band_description(number, band)
        image = bytes(file.read())
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="not known how to cut") as caught:
        archive.execute("select eo.segment_codes(%s)", (image,))
    assert "--segments" in (caught.value.diag.message_hint or "")
    encode(archive, 2)
    archive.execute("set role eo_reader")
    # Statistics of pixels that are repeated are those of the pixels, but for percentiles that fall between two of them.
    stored_codes = [code for _, code in sorted(by_hand(archive, folder, 2).items())]
    row = archive.execute("select eo.segment_codes(%s)::text[]", (image,)).fetchone()
    assert row is not None
    assert [len(code) for code in row[0]] == [128] * 4
    for code, like, other in zip(row[0], stored_codes, stored_codes[1:] + stored_codes[:1], strict=True):
        assert distance(code, like) < 8 < distance(code, other)
    found = archive.execute(
        "select name from eo.similar_to_segments(eo.segment_codes(%s), max_results => 3)", (image,)
    ).fetchall()
    assert found[0] == (folder.name,)
    for query, error, message in [
        ("eo.segment_codes(null)", errors.NullValueNotAllowed, "no image"),
        ("eo.segment_codes('not an image')", errors.InvalidBinaryRepresentation, "12 bytes"),
    ]:
        with pytest.raises(error, match=message):
            archive.execute(f"select {query}".encode())


def test_grid_segments_cover_the_patch() -> None:
    pixels = {"fine": np.arange(144).reshape(12, 12), "coarse": np.arange(16).reshape(4, 4)}
    segments = grid_segments(pixels, 2)
    for name, whole in pixels.items():
        np.testing.assert_array_equal(
            np.block([[segments[0][name], segments[1][name]], [segments[2][name], segments[3][name]]]), whole
        )
