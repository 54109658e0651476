"""Raster WKB against bytes from a real PostGIS 3.3.2, resampling against torch and GDAL."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.warp import Resampling, reproject

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import Raster, bands_from_wkb, from_wkb, resample, to_wkb

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]
TRANSFORM = (10.0, -20.0, 500000.0, 4600020.0, 0.5, 0.25)

# encode(ST_AsWKB(...), 'hex') of a raster of 2 columns and 1 row with TRANSFORM in EPSG:32633 and pixels 1, 0, after
# this common header: one band with the flags, nodata and pixels below
HEADER = (
    "0100000100000000000000244000000000000034c00000000080841e4100000000358c5141000000000000e03f000000000000d03f"
    "797f000002000100"
)
POSTGIS_BANDS = {
    "1BB": ("u1", "00000100"),
    "2BUI": ("u1", "01000100"),
    "4BUI": ("u1", "02000100"),
    "8BSI": ("i1", "03000100"),
    "8BUI": ("u1", "04000100"),
    "16BSI": ("i2", "05000001000000"),
    "16BUI": ("u2", "06000001000000"),
    "32BSI": ("i4", "07000000000100000000000000"),
    "32BUI": ("u4", "08000000000100000000000000"),
    "32BF": ("f4", "0a000000000000803f00000000"),
    "64BF": ("f8", "0b0000000000000000000000000000f03f0000000000000000"),
}
# 2 x 2 pixels in EPSG:4326: 8BUI of 1 with nodata 0, 32BF of 1.5 without, 64BF of -2.5 with nodata NaN, 16BSI of -7
# with nodata -9999
MIXED_BANDS = bytes.fromhex(
    "0100000400000000000000f03f000000000000f0bf0000000000000000000000000000000000000000000000000000000000000000e61000"
    "00020002004400010101010a000000000000c03f0000c03f0000c03f0000c03f4b000000000000f87f00000000000004c000000000000004"
    "c000000000000004c000000000000004c045f1d8f9fff9fff9fff9ff"
)
# a big-endian raster that PostGIS read, and what it wrote for it
BIG_ENDIAN = bytes.fromhex(
    "00000000024024000000000000c034000000000000411e84800000000041518c35000000003fe00000000000003fd000000000000000007f79"
    "0002000246ffff00010002012cffff0a000000003fc00000c0200000000000004be4e1c0"
)
LITTLE_ENDIAN = bytes.fromhex(
    "0100000200000000000000244000000000000034c00000000080841e4100000000358c5141000000000000e03f000000000000d03f797f0000"
    "0200020046ffff010002002c01ffff0a000000000000c03f000020c000000000c0e1e44b"
)
ALL_NODATA = bytes.fromhex(HEADER + "66000000000000")  # ST_SetBandIsNoData sets a third flag
OUT_OF_DATABASE = bytes.fromhex(
    "0100000100000000000000f03f000000000000f0bf0000000000000000000000000000000000000000000000000000000000000000"
    "0000000002000100c60000012f746d702f7067776b622f6f2e74696600"
)


@pytest.mark.parametrize("pixel_type", POSTGIS_BANDS)
def test_every_pixel_type_of_postgis_is_read(pixel_type: str) -> None:
    dtype, band = POSTGIS_BANDS[pixel_type]
    raster = from_wkb(bytes.fromhex(HEADER + band))
    assert raster.bands[0].dtype == dtype
    assert raster.bands[0].tolist() == [[1, 0]]
    assert (raster.transform, raster.srid, raster.nodata) == (TRANSFORM, 32633, (None,))


@pytest.mark.parametrize("pixel_type", ["8BSI", "8BUI", "16BSI", "16BUI", "32BSI", "32BUI", "32BF", "64BF"])
def test_written_bytes_are_those_of_postgis(pixel_type: str) -> None:
    dtype, band = POSTGIS_BANDS[pixel_type]
    raster = Raster((np.array([[1, 0]], dtype),), TRANSFORM, 32633, (None,))
    assert to_wkb(raster).hex() == HEADER + band


def test_bands_of_different_types_and_nodata() -> None:
    raster = from_wkb(MIXED_BANDS)
    assert [band.dtype.str[1:] for band in raster.bands] == ["u1", "f4", "f8", "i2"]
    assert [np.unique(band).tolist() for band in raster.bands] == [[1], [1.5], [-2.5], [-7]]
    assert raster.nodata[:2] == (0, None)
    assert np.isnan(raster.nodata[2])
    assert raster.nodata[3] == -9999
    assert (raster.transform, raster.srid) == ((1, -1, 0, 0, 0, 0), 4326)
    assert to_wkb(raster) == MIXED_BANDS


def test_big_endian_reads_like_what_postgis_made_of_it() -> None:
    raster = from_wkb(BIG_ENDIAN)
    assert raster.bands[0].tolist() == [[1, 2], [300, 65535]]
    assert raster.bands[1].tolist() == [[1.5, -2.5], [0, 3e7]]
    assert all(band.dtype.isnative for band in raster.bands)
    assert to_wkb(raster) == LITTLE_ENDIAN


def test_flag_of_an_empty_band_is_ignored() -> None:
    raster = from_wkb(ALL_NODATA)
    assert (raster.bands[0].tolist(), raster.nodata) == ([[0, 0]], (0,))


def test_reading_copies_nothing() -> None:
    assert np.shares_memory(from_wkb(MIXED_BANDS).bands[3], np.frombuffer(MIXED_BANDS, np.uint8))


@st.composite
def rasters(draw: st.DrawFn) -> Raster:
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    bands = tuple(draw(arrays(dtype, shape)) for dtype in dtypes)
    nodata = tuple(draw(st.none() | st.integers(0, 127) | st.just(band.flat[0].item())) for band in bands)
    transform = tuple(draw(st.lists(st.floats(allow_nan=False), min_size=6, max_size=6)))
    return Raster(bands, transform, draw(st.integers(0, 999_999)), nodata)


@given(rasters())
def test_round_trip(raster: Raster) -> None:
    result = from_wkb(to_wkb(raster))
    for before, after in zip(raster.bands, result.bands, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(np.array(raster.nodata, float), np.array(result.nodata, float))
    assert (result.transform, result.srid) == (raster.transform, raster.srid)


def test_transposed_and_big_endian_bands_are_written_in_row_order() -> None:
    band = np.arange(6, dtype=">u2").reshape(3, 2).T
    result = from_wkb(to_wkb(Raster((band,), TRANSFORM, 0, (None,))))
    assert result.bands[0].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("length", range(len(MIXED_BANDS)))
def test_truncated_wkb_is_refused(length: int) -> None:
    with pytest.raises(PgearthError, match=rf"not the WKB of a raster \({length} bytes\)") as error:
        from_wkb(MIXED_BANDS[:length])
    assert error.value.sqlstate == "22P03"


@pytest.mark.parametrize(
    ("wkb", "reason"),
    [
        (MIXED_BANDS + b"\0", "1 bytes too many"),
        (b"\2" + MIXED_BANDS[1:], "byte order 2"),
        (b"\1\1" + MIXED_BANDS[2:], "version 1"),
        (bytes.fromhex(HEADER + "0900000001000000"), "9"),  # no such pixel type
    ],
)
def test_malformed_wkb_is_refused(wkb: bytes, reason: str) -> None:
    with pytest.raises(PgearthError, match=reason) as error:
        from_wkb(wkb)
    assert error.value.sqlstate == "22P03"


def test_out_of_database_band_is_refused_with_the_way_out() -> None:
    with pytest.raises(PgearthError, match="band 1 of the raster is stored outside the database") as error:
        from_wkb(OUT_OF_DATABASE)
    assert error.value.sqlstate == "0A000"
    assert "ST_AsWKB(rast, true)" in str(error.value.hint)


@pytest.mark.parametrize(
    ("dtype", "nodata", "reason"),
    [
        ("u2", -1, "uint16 cannot hold the nodata value -1"),
        ("u2", 65536, "uint16 cannot hold the nodata value 65536"),
        ("i2", 0.5, "int16 cannot hold the nodata value 0.5"),
        ("u1", float("nan"), "uint8 cannot hold the nodata value nan"),
        ("i8", None, "no pixel type for int64"),
        ("?", None, "no pixel type for bool"),
        ("f2", None, "no pixel type for float16"),
    ],
)
def test_what_postgis_cannot_store_is_refused(dtype: str, nodata: float | None, reason: str) -> None:
    with pytest.raises(PgearthError, match=reason):
        to_wkb(Raster((np.zeros((1, 1), dtype),), TRANSFORM, 0, (nodata,)))


@pytest.mark.parametrize(
    ("shapes", "nodata"),
    [([], ()), ([(2, 2)], ()), ([(2, 2), (2, 3)], (None, None)), ([(2,)], (None,)), ([(0, 2)], (None,))],
)
def test_inconsistent_raster_is_refused(shapes: list[tuple[int, ...]], nodata: tuple[None, ...]) -> None:
    with pytest.raises(PgearthError):
        Raster(tuple(np.zeros(shape, np.uint8) for shape in shapes), TRANSFORM, 0, nodata)


def test_bands_by_name_mark_absent_pixels_alike() -> None:
    bands = (
        np.array([[7, 9]], np.uint16),
        np.array([[-9999, 9]], np.float32),
        np.array([[0, 9]], np.float64),
        np.array([[0, 9]], np.int16),
    )
    wkb = to_wkb(Raster(bands, TRANSFORM, 0, (7, -9999, 0, None)))
    result = bands_from_wkb(wkb, ["a", "b", "c", "d"])
    assert list(result) == ["a", "b", "c", "d"]
    assert result["a"].tolist() == [[0, 9]]
    np.testing.assert_array_equal(result["b"], [[np.nan, 9]])
    np.testing.assert_array_equal(result["c"], [[np.nan, 9]])
    assert result["d"].tolist() == [[0, 9]]
    assert [band.dtype.str[1:] for band in result.values()] == ["u2", "f4", "f8", "i2"]
    with pytest.raises(PgearthError, match="4 bands cannot have the names a, b"):
        bands_from_wkb(wkb, ["a", "b"])


def test_finer_by_a_whole_factor_repeats_pixels() -> None:
    band = np.arange(6, dtype=np.uint16).reshape(2, 3)
    result = resample(band, (6, 6))
    np.testing.assert_array_equal(result, np.kron(band, np.ones((3, 2), np.uint16)))
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(resample(torch.from_numpy(band.astype(np.int32)), (6, 6)).numpy(), result)


def test_coarser_by_a_whole_factor_is_gdals_average(sample: Path) -> None:
    with rasterio.open(next(sample.glob("bigearthnet-v1/S2/*_87_48/*_B04.tif"))) as dataset:
        band, transform, crs = dataset.read(1), dataset.transform, dataset.crs
    expected, _ = reproject(
        band.astype(np.float64),
        np.empty((40, 20)),
        src_transform=transform,
        src_crs=crs,
        dst_transform=transform @ Affine.scale(6, 3),
        dst_crs=crs,
        resampling=Resampling.average,
    )
    np.testing.assert_allclose(resample(band, (40, 20)), expected, rtol=1e-12)
    np.testing.assert_allclose(
        resample(torch.from_numpy(band.astype(np.int32)), (40, 20)).numpy(), expected, rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(31, 50), (7, 9), (40, 12)])
def test_other_factors_are_torchs_bilinear(shape: tuple[int, int]) -> None:
    bands = np.random.default_rng(1).integers(0, 10_000, (3, 20, 20)).astype(np.uint16)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(bands.astype(np.float64))[None], size=shape, mode="bilinear", align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(resample(bands, shape), expected, rtol=1e-9)
    np.testing.assert_allclose(resample(torch.from_numpy(bands.astype(np.int32)), shape).numpy(), expected, rtol=1e-9)
