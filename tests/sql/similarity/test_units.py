"""Uploads come in many honest forms: whatever is the stored patch finds it, whatever cannot be is refused by name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import rasterio
import rasterio.shutil
import tifffile
from affine import Affine
from psycopg import errors
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.models.units import UNITS, check_range, in_units
from pgearth.pyfuncs.pixels.uploads import Image, Scale, read_image
from tests.stand_ins import NO_WEIGHTS, literal

BANDS = list(spectral.BANDS)
SIDE = 120
NORTH_UP = Affine(10, 0, 5e5, 0, -10, 5e6)


@pytest.fixture(scope="module")
def encoded(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading)
    return module_archive


@pytest.fixture(scope="module")
def patch(sample: Path) -> tuple[str, np.ndarray]:
    """A stored patch: its name, and its bands upsampled to 10 m, (12, 120, 120)."""
    folder = sorted(path for path in (sample / "bigearthnet-v1" / "S2").iterdir() if path.is_dir())[3]
    bands = [rasterio.open(folder / f"{folder.name}_{band}.tif").read(1) for band in BANDS]
    return folder.name, np.stack([np.kron(b, np.ones((SIDE // len(b),) * 2, np.uint16)) for b in bands])


def geotiff(
    pixels: np.ndarray,
    *,
    names: list[str] | None = BANDS,
    transform: Affine = NORTH_UP,
    scale: float | None = None,
    offset: float | None = None,
    mask: np.ndarray | None = None,
    alpha: bool = False,
    **options: Any,
) -> bytes:
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "crs": "EPSG:32633", "compress": "deflate", **options}
    count, height, width = pixels.shape
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as file:
        with file.open(width=width, height=height, count=count, transform=transform, **profile) as dataset:
            if alpha:
                dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (count - 2), ColorInterp.alpha]
            dataset.write(pixels)
            if names:
                dataset.descriptions = [*names, *[None] * (count - len(names))]
            if scale is not None:
                dataset.scales, dataset.offsets = (scale,) * count, (offset or 0.0,) * count
            if mask is not None:
                dataset.write_mask(mask)
        return file.read()


def with_alpha(pixels: np.ndarray, valid: np.ndarray) -> bytes:
    alpha = np.where(valid, np.iinfo(pixels.dtype).max, 0).astype(pixels.dtype)
    return geotiff(np.concatenate([pixels, alpha[None]]), alpha=True)


WHOLE = {
    "as it is stored": lambda p: geotiff(p),
    "digital numbers with scale and offset": lambda p: geotiff(p + 1000, scale=0.0001, offset=-0.1),
    "double precision": lambda p: geotiff(p / 50.0, scale=0.005),
    "per cent": lambda p: geotiff((p / 100).astype(np.float32), scale=0.01),
    "south-up": lambda p: geotiff(p[:, ::-1], transform=Affine(10, 0, 5e5, 0, 10, 5e6 - 1200)),
    "mirrored": lambda p: geotiff(p[:, :, ::-1], transform=Affine(-10, 0, 5e5 + 1200, 0, -10, 5e6)),
    "both": lambda p: geotiff(p[:, ::-1, ::-1], transform=Affine(-10, 0, 5e5 + 1200, 0, 10, 5e6 - 1200)),
    "a mask that hides nothing": lambda p: geotiff(p, mask=np.full((SIDE, SIDE), 255, np.uint8)),
    "nodata that is no pixel": lambda p: geotiff(p, nodata=65535),
    "nodata nan": lambda p: geotiff(p.astype(np.float32), nodata=np.nan),
    "tiled, interleaved": lambda p: geotiff(p, tiled=True, blockxsize=64, blockysize=64, interleave="pixel"),
}  # fmt: skip


@pytest.mark.parametrize("form", WHOLE)
def test_the_stored_patch_comes_first(form: str, encoded: psycopg.Connection, patch: tuple[str, np.ndarray]) -> None:
    name, pixels = patch
    found = encoded.execute(
        "select name, distance from eo.similar_to_image(%s, max_results => 2)", (WHOLE[form](pixels),)
    ).fetchall()
    plain = encoded.execute("select eo.encode_image(%s)", (geotiff(pixels),)).fetchone()
    assert plain is not None
    assert found[0][0] == name
    assert found[0][1] < found[1][1]
    code = encoded.execute("select eo.hash(%s) = eo.hash(eo.encode_image(%s))", (plain[0], WHOLE[form](pixels)))
    assert code.fetchone() == (True,)


LEFT = np.arange(SIDE) < SIDE // 2
HALF = np.broadcast_to(LEFT, (SIDE, SIDE))
MASKED = {
    "internal mask": lambda p: geotiff(np.where(HALF, p, 30_000), mask=np.where(HALF, 255, 0).astype(np.uint8)),
    "internal mask beside overviews": lambda p: cog(np.where(HALF, p, 30_000)),
    "alpha": lambda p: with_alpha(np.where(HALF, p, 30_000).astype(np.uint16), HALF),
    "nodata": lambda p: geotiff(np.where(HALF, p, 65_535).astype(np.uint16), nodata=65_535),
    "scientific notation": lambda p: geotiff(np.where(HALF, p, 1e20).astype(np.float32), nodata=1e20),
    "nan": lambda p: geotiff(np.where(HALF, p, np.nan).astype(np.float32), nodata=np.nan),
    "nodata and a scale": lambda p: geotiff(np.where(HALF, p + 1000, 0).astype(np.uint16), nodata=0, scale=1e-4, offset=-0.1),
    "a mask that is turned": lambda p: geotiff(
        np.where(HALF, p, 30_000)[:, :, ::-1],
        mask=np.where(HALF, 255, 0).astype(np.uint8)[:, ::-1], transform=Affine(-10, 0, 5e5 + 1200, 0, -10, 5e6)),
}  # fmt: skip


def cog(pixels: np.ndarray) -> bytes:
    content = geotiff(pixels, mask=np.where(HALF, 255, 0).astype(np.uint8))
    with MemoryFile(content) as source, source.open() as dataset, MemoryFile() as target:
        rasterio.shutil.copy(dataset, target.name, driver="COG", overviews="FORCE_USE_EXISTING", blocksize=128)
        return target.read()


@pytest.mark.parametrize("form", MASKED)
def test_what_is_masked_has_no_data(form: str, encoded: psycopg.Connection, patch: tuple[str, np.ndarray]) -> None:
    _, pixels = patch
    expected = spectral.features({b: np.where(HALF, p, 0)[None] for b, p in zip(BANDS, pixels, strict=True)})[0]
    row = encoded.execute("select eo.encode_image(%s)", (MASKED[form](pixels),)).fetchone()
    assert row is not None
    np.testing.assert_allclose(row[0].to_numpy(), expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "reflectance from 0 to 1": (lambda p: geotiff((p / 10_000).astype(np.float32)), "22003", "Multiply reflectance"),
    "a picture of 8 bits, dark": (lambda p: geotiff((p / 100).clip(0, 90).astype(np.uint8)), "22003", "10,000"),
    "decibels": (lambda p: geotiff((10 * np.log10(p / 10_000 + 1e-9)).astype(np.float32)), "22003", "10,000"),
    "radiance in large numbers": (lambda p: geotiff(p.astype(np.float32) * 100), "22003", "10,000"),
    "nodata that is not declared": (lambda p: geotiff(np.where(HALF, p, -9999).astype(np.int16)), "22003", "10,000"),
    "infinite": (lambda p: geotiff(np.where(HALF, p, 3e38).astype(np.float32)), "22003", "10,000"),
    "a scale that is left over": (lambda p: geotiff((p / 10_000).astype(np.float32), scale=0.0001), "22003", "10,000"),
    "without data, zeros": (lambda p: geotiff(p * 0), "22023", "no data"),
    "without data, nan": (lambda p: geotiff(np.full(p.shape, np.nan, np.float32)), "22023", "no data"),
    "without data, nodata": (lambda p: geotiff(np.full_like(p, 7), nodata=7), "22023", "no data"),
    "without data, mask": (lambda p: geotiff(p, mask=np.zeros((SIDE, SIDE), np.uint8)), "22023", "no data"),
    "one band without data": (lambda p: geotiff(np.where(np.arange(len(p))[:, None, None] == 3, 0, p)), "22023", "no data"),
    "rotated": (lambda p: geotiff(p, transform=Affine(8, 6, 5e5, 6, -8, 5e6)), "0A000", "gdalwarp"),
    "a quarter turn": (lambda p: geotiff(p, transform=Affine(0, 10, 5e5, -10, 0, 5e6)), "0A000", "gdalwarp"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_is_refused(form: str, encoded: psycopg.Connection, patch: tuple[str, np.ndarray]) -> None:
    make, sqlstate, hint = REFUSED[form]
    for call in ("eo.encode_image(%s)", "eo.similar_to_image(%s)"):
        with pytest.raises(psycopg.Error) as refused:
            encoded.execute(f"select {call}".encode(), (make(patch[1]),))  # type: ignore[arg-type]
        assert refused.value.sqlstate == sqlstate
        assert hint in str(refused.value.diag.message_hint)
    if sqlstate == "22003":
        assert "spectral:1" in str(refused.value)


def rasters(connection: psycopg.Connection, change: str, name: str) -> list[tuple[Any, ...]]:
    """The distance of a stored patch's rasters, changed by an expression, from its stored vector."""
    return connection.execute(
        f"""
        select eo.encode(array_agg({change} order by number)) <->
               (select embedding from eo.embedding join eo.patch using (patch_id) where name = %s)
        from eo.encoder e
        cross join unnest(e.bands) with ordinality as wanted (band, number)
        join eo.patch p on p.name = %s
        join eo.patch_raster r on r.patch_id = p.patch_id and wanted.band = any (r.bands)
        cross join lateral (select st_band(r.rast, array_position(r.bands, wanted.band)) as one) b
        where e.name = 'spectral'
        """.encode(),
        (name, name),
    ).fetchall()


def test_rasters_are_in_the_units_of_the_encoder(encoded: psycopg.Connection, patch: tuple[str, np.ndarray]) -> None:
    name, _ = patch
    assert rasters(encoded, "one", name) == [(0,)]
    for change in ("st_mapalgebra(one, '32BF', '[rast] / 10000.0')", "st_mapalgebra(one, '32BF', '[rast] * 100.0')"):
        with pytest.raises(errors.NumericValueOutOfRange, match="cannot be reflectance times 10,000") as refused:
            rasters(encoded, change, name)
        assert refused.value.diag.message_hint


def reads(*units: str | None) -> Encoder:
    names = tuple(f"b{number}" for number in range(len(units)))
    declared = None if None in units else tuple(str(unit) for unit in units)
    return Encoder(1, "own", 2, "onnx", names, None, 3, None, {}, None, declared)


def image(*bands: list[float], scales: dict[str, Scale] | None = None, dtype: str = "f4") -> Image:
    return Image({f"b{n}": np.array([band], dtype) for n, band in enumerate(bands)}, scales or {})


def test_every_unit() -> None:
    decibels, reflectance = reads("decibels"), reads("reflectance")
    assert in_units(decibels, image([-20, 3]))["b0"].tolist() == [[-20, 3]]
    for wrong in ([0.01, 0.3], [100, 4000], [-20, 500]):
        with pytest.raises(PgearthError, match=r"cannot be backscatter in decibels, which encoder own:2 reads"):
            in_units(decibels, image(wrong))
    assert in_units(reflectance, image([0, 0.9]))["b0"].dtype == np.float32
    with pytest.raises(PgearthError, match="cannot be reflectance from 0 to 1"):
        in_units(reflectance, image([100, 4000]))
    scaled = in_units(reflectance, image([1000, 4000, 0], scales={"b0": Scale(1e-4, -0.1)}, dtype="u2"))["b0"]
    np.testing.assert_allclose(scaled, [[0, 0.3, np.nan]], atol=1e-7)


def test_reflectance_whose_file_says_that_it_is() -> None:
    """GDAL writes no scale of 1, but others do."""
    metadata = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">1</Item></GDALMetadata>'
    file = BytesIO()
    tifffile.imwrite(
        file,
        np.array([[0.1234, 0.5]], np.float32),
        photometric="minisblack",
        metadata=None,
        extratags=[(42112, 2, None, metadata, True)],
    )
    uploaded = read_image(file.getvalue(), ["b0"])
    assert uploaded.scales == {"b0": Scale(1.0, 0.0)}
    assert in_units(reads("reflectance10000"), uploaded)["b0"].tolist() == [[1234, 5000]]


def test_numbers_below_the_offset_are_stored_as_one() -> None:
    """As the loaders of Sentinel-2 do; 0 would be no data."""
    scaled = in_units(
        reads("reflectance10000"), image([0, 900, 1000, 1001, 5000], scales={"b0": Scale(1e-4, -0.1)}, dtype="u2")
    )
    assert scaled["b0"].tolist() == [[0, 1, 1, 1, 4000]]
    assert scaled["b0"].dtype == np.uint16


def test_an_encoder_that_declares_nothing() -> None:
    undeclared = reads(None, None)
    assert in_units(undeclared, image([0.1], [4000]))["b0"].tolist() == [[np.float32(0.1)]]
    in_units(undeclared, image([0.1], [4000], scales={"b0": Scale(1.0, 0.0), "other": Scale(2, 0)}))
    with pytest.raises(
        PgearthError, match=r"band b1 of the image has the scale 0.0001 and the offset 0.0, but encoder"
    ):
        in_units(undeclared, image([0.1], [4000], scales={"b1": Scale(1e-4, 0.0)}))


def test_bands_of_several_units_and_without_data() -> None:
    both = reads("reflectance10000", "decibels")
    in_units(both, image([500, 3000], [-20, -5]))
    with pytest.raises(PgearthError, match="decibels"):
        in_units(both, image([500, 3000], [500, 3000]))
    check_range(both, {"b0": np.zeros((2, 2), np.uint16), "b1": np.full((2, 2), np.nan)})
    check_range(both, {"b0": np.array([[200.0, np.inf]]), "b1": np.full((2, 2), np.nan)})


@pytest.mark.parametrize(
    ("tag", "dtype", "expected"),
    [
        ("none", "u2", [1, 2, 3]),
        ("NONE", "f4", [1, 2, 3]),
        ("nan", "u2", [1, 2, 3]),
        ("-9999", "u2", [1, 2, 3]),
        ("1e20", "u1", [1, 2, 3]),
        ("2e0", "u2", [1, 0, 3]),
        ("+2.000", "i4", [1, 0, 3]),
        ("-inf", "f4", [1, 2, 3]),
        ("-3.4028234663852886e+38", "f4", [1, 2, 3]),
    ],
)
def test_tags_of_nodata(tag: str, dtype: str, expected: list[float]) -> None:
    assert read_image(tagged(tag, dtype), ["a"]).bands["a"].tolist() == [expected]


@pytest.mark.parametrize("tag", ["zero", "1,5", "0 0", "--1"])
def test_tags_of_nodata_that_are_no_numbers(tag: str) -> None:
    with pytest.raises(PgearthError, match=r"nodata value, .*, is no number") as refused:
        read_image(tagged(tag, "u2"), ["a"])
    assert (refused.value.sqlstate, bool(refused.value.hint)) == ("22P03", True)


@pytest.mark.parametrize(
    ("names", "bands", "hidden"),
    [
        (None, ["B02", "B03"], True),  # named by its descriptions: nobody names the third
        (["a", "b"], ["a", "b"], True),
        (["a", "b", "Alpha"], ["a", "b"], True),
        (["a", "b", "c"], ["a", "b", "c"], False),  # GDAL tags bands so that are none
    ],
)
def test_bands_that_are_tagged_as_alpha(names: list[str] | None, bands: list[str], hidden: bool) -> None:
    pixels = np.array([[[1, 2]], [[3, 4]], [[0, 255]]], np.uint8)
    image = read_image(geotiff(pixels, names=["B02", "B03"], alpha=True), names).bands
    assert list(image) == bands
    assert image[bands[0]].tolist() == [[0 if hidden else 1, 2]]


def tagged(nodata: str, dtype: str) -> bytes:
    """An image of the pixels 1, 2, 3 with a text as its nodata tag."""
    file = BytesIO()
    tifffile.imwrite(
        file,
        np.array([[1, 2, 3]], dtype),
        photometric="minisblack",
        metadata=None,
        extratags=[(42113, 2, None, nodata, True)],
    )
    return file.getvalue()


def test_units_are_declared(encoded: psycopg.Connection) -> None:
    stored = encoded.execute("select units from eo.encoder where name = 'spectral'").fetchone()
    assert stored == (["reflectance10000"] * 12,)
    register = (
        f"select eo.register_encoder('own', 1, 'spectral', '{{B02,VV}}', {literal(NO_WEIGHTS)}, 3, units => %s::text[])"
    )
    for wrong in (["metres", "decibels"], ["decibels"]):
        with pytest.raises(errors.InvalidParameterValue, match="are not the units of 2 bands") as refused:
            encoded.execute(register.encode(), (wrong,))
        assert all(unit in str(refused.value.diag.message_hint) for unit in UNITS)
    first = encoded.execute(register.encode(), (["reflectance10000", "decibels"],)).fetchone()
    assert encoded.execute(register.encode(), (["reflectance10000", "decibels"],)).fetchone() == first
    assert encoded.execute(register.encode(), (None,)).fetchone() == first  # as registered before units were declared
    with pytest.raises(errors.UniqueViolation):
        encoded.execute(register.encode(), (["reflectance", "decibels"],))
    with pytest.raises(errors.CheckViolation):
        encoded.execute("update eo.encoder set units = '{metres,metres}' where name = 'own'")
    encoded.execute("delete from eo.encoder where name = 'own'")
