"""Our raster WKB and PostGIS's: what one writes, the other reads as the same raster."""

from pathlib import Path

import numpy as np
import psycopg
import pytest
import rasterio

from pgearth.pyfuncs.pixels.rasters import Raster, from_wkb, to_wkb

TRANSFORM = (10.0, -20.0, 500000.0, 4600020.0, 0.5, 0.25)
BANDS = (
    ("8BSI", np.array([[-128, 0, 127], [1, 2, 3]], np.int8), -128),
    ("8BUI", np.array([[0, 128, 255], [1, 2, 3]], np.uint8), None),
    ("16BSI", np.array([[-32768, 0, 32767], [1, 2, 3]], np.int16), -9999),
    ("16BUI", np.array([[0, 256, 65535], [1, 2, 3]], np.uint16), 0),
    ("32BSI", np.array([[-(2**31), 0, 2**31 - 1], [1, 2, 3]], np.int32), 7),
    ("32BUI", np.array([[0, 2**31, 2**32 - 1], [1, 2, 3]], np.uint32), None),
    ("32BF", np.array([[-0.5, 1e-30, 3e38], [1, 2, 3]], np.float32), -0.5),
    ("64BF", np.array([[-0.1, 1e-300, 1e300], [1, 2, 3]], np.float64), None),
)


def test_postgis_reads_what_we_write(archive: psycopg.Connection) -> None:
    raster = Raster(tuple(band for _, band, _ in BANDS), TRANSFORM, 32633, tuple(nodata for _, _, nodata in BANDS))
    wkb = to_wkb(raster)
    geometry = archive.execute(
        """
        select ST_NumBands(r), ST_Width(r), ST_Height(r), ST_SRID(r), ST_ScaleX(r), ST_ScaleY(r),
               ST_UpperLeftX(r), ST_UpperLeftY(r), ST_SkewX(r), ST_SkewY(r)
        from ST_RastFromWKB(%s) as r
        """,
        (wkb,),
    ).fetchone()
    assert geometry == (len(BANDS), 3, 2, 32633, *TRANSFORM)
    for number, (pixel_type, band, nodata) in enumerate(BANDS, start=1):
        row = archive.execute(
            """
            select ST_BandPixelType(r, %(band)s), ST_BandNoDataValue(r, %(band)s), ST_DumpValues(r, %(band)s, false)
            from ST_RastFromWKB(%(wkb)s) as r
            """,
            {"band": number, "wkb": wkb},
        ).fetchone()
        assert row == (pixel_type, nodata, band.tolist())


def test_postgis_writes_back_what_we_wrote(archive: psycopg.Connection) -> None:
    wkb = to_wkb(Raster(tuple(band for _, band, _ in BANDS), TRANSFORM, 32633, (None,) * len(BANDS)))
    assert archive.execute("select ST_AsWKB(ST_RastFromWKB(%s))", (wkb,)).fetchone() == (wkb,)


@pytest.mark.parametrize(
    "pattern",
    ["bigearthnet-v1/S2/*_87_48/*_B02.tif", "bigearthnet-v1/S1/*/*_VV.tif", "bigearthnet-v2/*-S2/*/*/*_B01.tif"],
)
def test_a_real_image_becomes_the_raster_that_gdal_makes_of_it(
    archive: psycopg.Connection, sample: Path, pattern: str
) -> None:
    path = min(sample.glob(pattern))
    archive.execute("set postgis.gdal_enabled_drivers = 'GTiff'")
    row = archive.execute("select ST_AsWKB(ST_FromGDALRaster(%s))", (path.read_bytes(),)).fetchone()
    assert row is not None
    with rasterio.open(path) as dataset:
        scale_x, skew_x, left, skew_y, scale_y, top = dataset.transform[:6]
        transform = (scale_x, scale_y, left, top, skew_x, skew_y)
        bands = tuple(dataset.read())
        assert to_wkb(Raster(bands, transform, dataset.crs.to_epsg(), dataset.nodatavals)) == row[0]
    result = from_wkb(row[0])
    np.testing.assert_array_equal(result.bands[0], bands[0])
    assert result.transform == transform
