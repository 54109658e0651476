"""Encoding in SQL, in bulk and in Python give the same; queries by stored and by uploaded images; pictures."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest
import rasterio
from click.testing import Result
from PIL import Image
from psycopg import errors
from rasterio.io import MemoryFile

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import spectral
from tests.conftest import CHECKOUT

BANDS = list(spectral.BANDS)


@pytest.fixture(scope="module")
def encoded(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches (11 of Sentinel-2, 9 of Sentinel-1), encoded and hashed in bulk."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        result = encode_archive(module_archive, reading)
    assert (result.embeddings, result.codes) == (11, 11)
    return module_archive


def read_patch(folder: Path) -> dict[str, np.ndarray]:
    return {band: rasterio.open(folder / f"{folder.name}_{band}.tif").read(1) for band in BANDS}


def test_bulk_equals_sql_equals_python(encoded: psycopg.Connection, sample: Path) -> None:
    rows = encoded.execute(
        "select p.patch_id, p.name, e.embedding, b.code from eo.patch p join eo.embedding e using (patch_id)"
        " join eo.patch_bucket pb using (patch_id) join eo.bucket b using (bucket_no) order by 1"
    ).fetchall()
    assert len(rows) == 11
    patch_ids = [row[0] for row in rows]
    in_sql = encoded.execute("select patch_id, embedding from eo.encode(%s)", (patch_ids,)).fetchall()
    assert [patch_id for patch_id, _ in in_sql] == patch_ids
    reverse = encoded.execute("select patch_id from eo.encode(%s)", (patch_ids[::-1],)).fetchall()
    assert [patch_id for (patch_id,) in reverse] == patch_ids[::-1]
    for (_, name, stored, code), (_, from_sql) in zip(rows, in_sql, strict=True):
        patch = read_patch(sample / "bigearthnet-v1" / "S2" / name)
        vector = spectral.features({band: pixels[np.newaxis] for band, pixels in patch.items()})[0]
        np.testing.assert_array_equal(stored.to_numpy(), vector)
        np.testing.assert_array_equal(from_sql.to_numpy(), vector)
        assert encoded.execute("select eo.hash(%s)::text", (stored,)).fetchone() == (code,)


def test_pixels_are_looked_up_in_one_partition(encoded: psycopg.Connection) -> None:
    """By the patch's cell, which is looked up once."""
    plans: list[str] = []
    with psycopg.connect(encoded.info.dsn, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        connection.execute(
            "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
            "set auto_explain.log_analyze = on; set client_min_messages = log; set enable_seqscan = off"
        )
        connection.execute("select * from eo.encode(array(select min(patch_id) from eo.embedding))")
    scans = [re.findall(r"on patch_raster__\d .*", plan) for plan in plans if "on patch_raster__" in plan]
    assert len(scans) == 3
    for lines in scans:
        assert len([line for line in lines if "never executed" not in line]) == 1


def test_of_a_band_in_two_resolutions_the_finer_is_encoded(encoded: psycopg.Connection) -> None:
    """In SQL and in bulk; the coarser ones here show something else."""
    query = "select patch_id, embedding from eo.embedding order by patch_id limit 1"
    [(patch_id, before)] = encoded.execute(query).fetchall()
    encoded.execute(
        """
        insert into eo.patch_raster (patch_id, resolution, cell, bands, rast)
        select patch_id, 61, cell, array['B04'], st_band(rast, 1) from eo.patch_raster
        where patch_id = %s and resolution = 60
        """,
        (patch_id,),
    )
    [(_, in_sql)] = encoded.execute("select * from eo.encode(array[%s::bigint])", (patch_id,)).fetchall()
    encoded.execute("delete from eo.embedding where patch_id = %s", (patch_id,))
    with psycopg.connect(encoded.info.dsn, autocommit=True) as reading:
        assert encode_archive(encoded, reading).embeddings == 1
    [(_, in_bulk)] = encoded.execute(query).fetchall()
    encoded.execute("delete from eo.patch_raster where resolution = 61")
    np.testing.assert_array_equal(in_sql.to_numpy(), before.to_numpy())
    np.testing.assert_array_equal(in_bulk.to_numpy(), before.to_numpy())


def test_the_hash_is_the_published_recipe(encoded: psycopg.Connection) -> None:
    """Signs of random projections of standardised vectors, computed here with plain numpy."""
    rows = encoded.execute(
        "select e.embedding, b.code from eo.embedding e join eo.patch_bucket pb using (patch_id) join eo.bucket b using (bucket_no)"
        " order by patch_id"
    ).fetchall()
    vectors = np.stack([vector.to_numpy() for vector, _ in rows]).astype(np.float64)
    std = vectors.std(axis=0)
    std[np.ptp(vectors, axis=0) == 0] = 1
    planes = np.random.default_rng(0).standard_normal((128, vectors.shape[1]), np.float32).astype(np.float64)
    signs = ((vectors - vectors.mean(axis=0)) / std) @ planes.T
    decided = np.abs(signs) > 1e-9
    codes = np.array([[bit == "1" for bit in code] for _, code in rows])
    assert (codes == (signs > 0))[decided].all()
    assert decided.mean() > 0.999
    assert lsh.fit(vectors)["hyperplanes"].shape == (128, 128)
    assert len({bit_string(code) for code in codes}) == 11


def test_encoding_again_does_nothing_and_new_patches_are_added(
    encoded: psycopg.Connection, sample: Path, run_pgearth: Callable[..., Result]
) -> None:
    before = encoded.execute("select patch_id, bucket_no from eo.patch_bucket order by 1").fetchall()
    result = run_pgearth(encoded, "encode")
    assert result.exit_code == 0, result.output
    assert "0 patches encoded, 0 hashed" in result.output
    v2 = sample / "bigearthnet-v2"
    load_bigearthnet(encoded, v2, metadata=[v2 / "metadata.parquet"])
    result = run_pgearth(encoded, "encode")
    assert "1 patches encoded, 1 hashed" in result.output
    after = encoded.execute("select patch_id, bucket_no from eo.patch_bucket order by 1").fetchall()
    assert after[:-1] == before
    encoded.execute("delete from eo.patch where source = 'bigearthnet-v2'")


def test_rasters_as_argument(encoded: psycopg.Connection) -> None:
    """Bands of three resolutions, regrouped so that their order is the encoder's."""
    order = ", ".join(
        f"(select st_band(rast, array_position(bands, '{band}')) from eo.patch_raster r"
        f" where r.patch_id = p.patch_id and '{band}' = any (bands))"
        for band in BANDS
    )
    for (same,) in encoded.execute(
        f"select eo.encode(array[{order}]) = e.embedding from eo.patch p join eo.embedding e using (patch_id) limit 3".encode()
    ):
        assert same
    with pytest.raises(errors.InvalidParameterValue, match="4 bands, but the encoder reads 12") as caught:
        encoded.execute(
            "select eo.encode(array_agg(rast)) from eo.patch_raster where resolution = 10 group by patch_id having cardinality(min(bands)) = 4"
        )
    assert "B01, B02" in (caught.value.diag.message_hint or "")


def test_similar_by_example(encoded: psycopg.Connection) -> None:
    names = [name for (name,) in encoded.execute("select name from eo.patch join eo.embedding using (patch_id)")]
    found = encoded.execute("select rank, name from eo.similar(%s, max_results => 100)", (names[0],)).fetchall()
    assert [rank for rank, _ in found] == list(range(1, 11))
    assert {name for _, name in found} == set(names[1:])


def geotiff(patch: dict[str, np.ndarray], names: list[str], describe: bool = True, **profile: object) -> bytes:
    """The bands of a patch as one GeoTIFF at the finest resolution, coarser pixels repeated."""
    side = 120
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", width=side, height=side, count=len(names), dtype="uint16", crs="EPSG:32633", **profile,
            transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_300_000),
        ) as dataset:  # fmt: skip
            for number, name in enumerate(names, 1):
                factor = side // patch[name].shape[0]
                dataset.write(np.kron(patch[name], np.ones((factor, factor), np.uint16)), number)
                if describe:
                    dataset.set_band_description(number, name)
        return bytes(file.read())


@pytest.fixture(scope="module")
def patch(sample: Path) -> dict[str, np.ndarray]:
    return read_patch(next(path for path in sorted((sample / "bigearthnet-v1" / "S2").iterdir()) if path.is_dir()))


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"compress": "deflate", "predictor": 2},
        {"compress": "lzw", "tiled": True},
        {"interleave": "pixel"},
        {"compress": "zstd"},
    ],
    ids=str,
)
def test_an_uploaded_image_is_encoded_as_in_python(
    encoded: psycopg.Connection, patch: dict[str, np.ndarray], profile: dict[str, object]
) -> None:
    upsampled = {
        band: np.kron(pixels, np.ones((120 // pixels.shape[0],) * 2, np.uint16))[np.newaxis]
        for band, pixels in patch.items()
    }
    expected = spectral.features(upsampled)[0]
    for names, arguments in ((BANDS, ""), (BANDS[::-1], "")):
        row = encoded.execute(
            f"select eo.encode_image(%s{arguments})".encode(), (geotiff(patch, names, **profile),)
        ).fetchone()
        assert row is not None
        np.testing.assert_array_equal(row[0].to_numpy(), expected)
    row = encoded.execute(
        "select eo.encode_image(%s, bands => %s)", (geotiff(patch, BANDS, describe=False, **profile), BANDS)
    ).fetchone()
    assert row is not None
    np.testing.assert_array_equal(row[0].to_numpy(), expected)


def test_similar_to_an_uploaded_copy_finds_the_original(
    encoded: psycopg.Connection, patch: dict[str, np.ndarray], sample: Path
) -> None:
    original = next(path.name for path in sorted((sample / "bigearthnet-v1" / "S2").iterdir()) if path.is_dir())
    found = encoded.execute(
        "select name, distance from eo.similar_to_image(%s, max_results => 3)", (geotiff(patch, BANDS),)
    ).fetchall()
    assert found[0][0] == original
    assert found[0][1] < found[1][1]


def test_a_real_upload_with_more_bands_than_the_encoder_reads(encoded: psycopg.Connection, sample: Path) -> None:
    image = (sample / "eurosat" / "MS" / "SeaLake" / "SeaLake_3000.tif").read_bytes()
    names = [f"B{number:02}" for number in range(1, 13)] + ["B8A"]
    found = encoded.execute(
        "select * from eo.similar_to_image(%s, max_results => 4, bands => %s)", (image, names)
    ).fetchall()
    assert len(found) == 4
    filtered = encoded.execute(
        "select p.season from eo.similar_to_image(%s, eo.filter(seasons => '{summer}'), max_results => 4, bands => %s) join eo.patch p using (patch_id)",
        (image, names),
    ).fetchall()
    assert set(filtered) == {("summer",)}


def test_bad_uploads(encoded: psycopg.Connection, patch: dict[str, np.ndarray], sample: Path) -> None:
    good = geotiff(patch, BANDS)
    for image, arguments, error, message in [
        (b"", "", errors.InvalidBinaryRepresentation, "0 bytes"),
        (b"not an image", "", errors.InvalidBinaryRepresentation, "12 bytes"),
        (good[: len(good) // 2], "", errors.InvalidBinaryRepresentation, "cannot read the image"),
        (
            (sample / "eurosat" / "RGB" / "Pasture" / "Pasture_300.jpg").read_bytes(),
            "",
            errors.InvalidBinaryRepresentation,
            "GeoTIFF",
        ),
        (geotiff(patch, BANDS, describe=False), "", errors.InvalidParameterValue, "does not name its bands"),
        (good, ", bands => '{B02}'", errors.InvalidParameterValue, "1 band names"),
        (geotiff(patch, BANDS[1:]), "", errors.InvalidParameterValue, "B01"),
    ]:
        with pytest.raises(error, match=message) as caught:
            encoded.execute(f"select * from eo.similar_to_image(%s{arguments})".encode(), (image,))
        assert caught.value.diag.message_hint, message
    assert encoded.execute("select 1").fetchone() == (1,), "the server must survive bad uploads"


def test_rgb(encoded: psycopg.Connection, sample: Path) -> None:
    for (name,) in encoded.execute("select name from eo.patch").fetchall():
        row = encoded.execute("select eo.rgb(%s)", (name,)).fetchone()
        assert row is not None
        picture = np.asarray(Image.open(io.BytesIO(row[0])))
        assert picture.shape == (120, 120, 3) and picture.dtype == np.uint8
        if name.startswith("S2"):
            red = rasterio.open(sample / "bigearthnet-v1" / "S2" / name / f"{name}_B04.tif").read(1).astype(float)
            low, high = np.percentile(red, [2, 98])
            np.testing.assert_allclose(picture[..., 0], np.clip((red - low) / (high - low), 0, 1) * 255, atol=1)


def test_readers_encode_and_search(encoded: psycopg.Connection) -> None:
    row = encoded.execute("select name from eo.patch join eo.embedding using (patch_id) limit 1").fetchone()
    assert row is not None
    with encoded.transaction():
        encoded.execute("set local role eo_reader")
        assert encoded.execute("select count(*) from eo.similar(%s)", row).fetchone() == (10,)
        assert encoded.execute("select length(eo.rgb(%s)) > 1000", row).fetchone() == (True,)
        assert encoded.execute(
            "select count(*) from eo.encode(array(select patch_id from eo.patch where name = %s))", row
        ).fetchone() == (1,)


def test_the_server_never_loads_a_second_gdal() -> None:
    """PostGIS has Debian's GDAL in the server's process; rasterio's own beside it crashes the server."""
    modules = (
        "border.codes, border.encoding, border.evaluation, border.pictures, border.runtime, queries, models.encoder,"
        " models.units, pixels.rasters, pixels.pictures, pixels.uploads, measures.retrieval, search.code_cache, service.client"
    )
    imports = "".join(f"import pgearth.pyfuncs.{module.strip()}; " for module in modules.split(","))
    code = f"import sys; {imports}print(sorted({{'rasterio', 'pyogrio', 'shapely', 'pyproj', 'torch'}} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
    for source in (CHECKOUT / "pyfuncs").rglob("*.py"):
        assert not any(
            f"import {name}" in source.read_text() for name in ("rasterio", "pyogrio", "shapely", "pyproj")
        ), source
