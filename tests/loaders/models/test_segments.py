"""Codes of segments (SLIC) of real patches, against segments cut and encoded by hand, stored and of an uploaded image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest
import rasterio
from click.testing import Result
from rasterio.io import MemoryFile
from skimage.segmentation import slic

import pgearth.pyfuncs.pixels.segments
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.weights import load

Patch = dict[str, np.ndarray]
SEGMENTS = 6


@pytest.fixture(scope="module")
def segmented(module_archive: psycopg.Connection, run_pgearth: Callable[..., Result], sample: Path) -> str:
    """The real BigEarthNet v1 patches with codes of segments, and what the command said."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    result = run_pgearth(module_archive, "encode", "--segments", f"slic:{SEGMENTS}")
    assert result.exit_code == 0, result.output
    return result.output


def patches(sample: Path) -> dict[str, Patch]:
    """The pixels of the sample's patches."""
    return {
        folder.name: {band: rasterio.open(folder / f"{folder.name}_{band}.tif").read(1) for band in spectral.BANDS}
        for folder in sorted((sample / "bigearthnet-v1" / "S2").iterdir())
        if folder.is_dir()
    }


def by_hand(connection: psycopg.Connection, patch: Patch) -> list[str]:
    """Codes of the segments of a patch, computed outside the database."""
    row = connection.execute("select weights, weights_sha256 from eo.encoder where name = 'lsh'").fetchone()
    assert row is not None
    image = np.dstack([patch[band] for band in ("B02", "B03", "B04", "B08")]).astype(float)
    image = (image - image.mean((0, 1))) / image.std((0, 1))
    labels = slic(image, SEGMENTS, compactness=0.3, convert2lab=False, channel_axis=-1)
    factors = {band: 120 // len(pixels) for band, pixels in patch.items()}
    step = max(factors.values())
    codes = []
    for label in dict.fromkeys(labels.ravel().tolist()):
        inside = labels == label
        rows, columns = np.nonzero(inside)
        north, west = rows.min() // step * step, columns.min() // step * step
        south, east = rows.max() // step * step + step, columns.max() // step * step + step
        segment = {}
        for band, pixels in patch.items():
            k = factors[band]
            covered = sum(inside[y::k, x::k].astype(int) for y in range(k) for x in range(k))
            whole = np.where(2 * covered >= k * k, pixels, 0)
            segment[band] = whole[np.newaxis, north // k : south // k, west // k : east // k]
        codes.append(bit_string(lsh.hash_codes(load(*row), spectral.features(segment))[0]))
    return codes


def distance(one: str, other: str) -> int:
    return (int(one, 2) ^ int(other, 2)).bit_count()


def test_segments_of_real_patches(module_archive: psycopg.Connection, segmented: str, sample: Path) -> None:
    expected = {name: by_hand(module_archive, patch) for name, patch in patches(sample).items()}
    stored = module_archive.execute(
        "select p.name, array_agg(b.code::text order by pb.segment), array_agg(pb.segment order by pb.segment)"
        " from eo.patch p join eo.patch_bucket pb using (patch_id) join eo.bucket b using (encoder_id, bucket_no)"
        " where pb.segment > 0 group by 1"
    ).fetchall()
    assert {name: codes for name, codes, _ in stored} == expected
    assert all(segments == list(range(1, len(codes) + 1)) for _, codes, segments in stored)
    assert f"{sum(map(len, expected.values()))} segments hashed." in segmented
    (segmentation,) = module_archive.execute("select segmentation from eo.encoder where name = 'lsh'").fetchone() or ()
    assert segmentation.pop("library").startswith("scikit-image ")
    assert segmentation == {
        "method": "slic",
        "segments": SEGMENTS,
        "compactness": 0.3,
        "bands": ["B02", "B03", "B04", "B08"],
    }
    for name, own in expected.items():
        sums = {
            other: sum(min(distance(code, o) for o in codes) for code in own)
            for other, codes in expected.items()
            if other != name
        }
        found = module_archive.execute("select name, distance from eo.similar_segments(%s)", (name,)).fetchall()
        assert dict(found) == sums
        assert [summed for _, summed in found] == sorted(sums.values())


def test_an_uploaded_image_is_cut_alike(module_archive: psycopg.Connection, segmented: str, sample: Path) -> None:
    name, patch = next(iter(patches(sample).items()))
    upload = {band: np.kron(pixels, np.ones((120 // len(pixels),) * 2, np.uint16)) for band, pixels in patch.items()}
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", width=120, height=120, count=12, dtype="uint16", crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_300_000),
        ) as dataset:  # fmt: skip
            for number, (band, pixels) in enumerate(upload.items(), 1):
                dataset.write(pixels, number)
                dataset.set_band_description(number, band)
        image = bytes(file.read())
    row = module_archive.execute("select eo.segment_codes(%s)::text[]", (image,)).fetchone()
    assert row is not None
    assert row[0] == by_hand(module_archive, upload)
    found = module_archive.execute(
        "select name from eo.similar_to_segments(eo.segment_codes(%s), max_results => 1)", (image,)
    ).fetchone()
    assert found == (name,)


def test_segments_are_not_mixed_with_windows(
    module_archive: psycopg.Connection,
    segmented: str,
    run_pgearth: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But with segments that another version of the library cut: the next run takes up what is there."""
    assert ", 0 segments hashed." in run_pgearth(module_archive, "encode", "--segments", f"slic:{SEGMENTS}").output
    for other in ("grid:2", "slic:7"):
        result = run_pgearth(module_archive, "encode", "--segments", other)
        assert isinstance(result.exception, PgearthError)
        assert "eo.drop_segment_codes('lsh:1')" in result.exception.hint
    for wrong in (
        "2",
        "grid",
        "grid:",
        "grid:1",
        "grid:101",
        "slic:1001",
        "slic:-9",
        "slic:²",
        "SLIC:9",
        "grid:2:2",
        ":2",
    ):
        result = run_pgearth(module_archive, "encode", "--segments", wrong)
        assert isinstance(result.exception, PgearthError), wrong
        assert "grid:SIDE" in result.exception.hint
    cut = pgearth.pyfuncs.pixels.segments.slic_segmentation
    monkeypatch.setattr(
        pgearth.pyfuncs.pixels.segments, "slic_segmentation", lambda *given: cut(*given) | {"library": "scikit-image 9"}
    )
    assert run_pgearth(module_archive, "encode", "--segments", f"slic:{SEGMENTS}").exit_code == 0
