"""MODIS: the sample's MCD43A4 and MOD13Q1 against GDAL, PROJ and the definition of the grid; what can be wrong."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from math import pi
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.shutil import copy
from rasterio.transform import from_origin
from rasterio.windows import Window

from pgearth.loaders.products.files import Given, ProductFiles
from pgearth.loaders.products.formats.known import open_product
from pgearth.loaders.products.formats.modis import SRID, granule_of
from pgearth.pyfuncs.errors import PgearthError

MCD43A4 = Path("modis/mcd43a4_h21v11_2017006")
GRANULE = "MCD43A4.A2017006.h21v11.006.2017018074804"
MOD13Q1 = Path("modis/mod13q1")
RADIUS = 6371007.181
TILE = 2 * pi * RADIUS / 36


def open_path(path: Path, **given) -> ProductFiles:
    return open_product(path, Given(**given))


def test_granule_in_a_folder(sample):
    files = open_path(sample / MCD43A4)
    product = files.product
    assert (product.name, product.platform, product.level) == (GRANULE, "terra+aqua", "L3")
    assert product.sensing_time == datetime(2017, 1, 6, tzinfo=UTC)
    assert product.processed_at == datetime(2017, 1, 18, 7, 48, 4, tzinfo=UTC)
    assert (product.processing_baseline, product.mgrs_tile, product.cloud_cover) == ("006", None, None)
    assert product.bytes == sum(file.stat().st_size for file in (sample / MCD43A4).iterdir())
    bands = [f"B0{number}" for number in range(1, 8)]
    assert [band.name for band in files.bands] == sorted([*bands, *(f"{band}QA" for band in bands)])
    assert files.expected == tuple(bands)
    assert product.scales == dict.fromkeys(bands, 0.0001)
    assert product.offsets == dict.fromkeys(bands, 0.0)
    assert (files.grid, files.classes, len(files.sources)) == ("aligned:120", None, 14)
    for band in files.bands:
        assert band.srid == SRID
        with band.open() as dataset:
            assert dataset.crs.to_epsg() is None
            assert dataset.nodata == band.nodata  # as NASA tags it
    assert files.named("b1") == "B01"


def test_grid_is_that_of_postgis(sample, archive):
    """The coordinate reference system of the files is the one that spatial_ref_sys has under the number."""
    band = open_path(sample / MCD43A4).bands[0]
    with band.open() as dataset:
        text, bounds = dataset.crs.to_wkt(), dataset.bounds
    (projection,) = archive.execute("select proj4text from spatial_ref_sys where srid = %s", (band.srid,)).fetchone()
    point = (bounds.left + 123_456, bounds.bottom + 234_567)
    expected = pyproj.Transformer.from_crs(text, 4326, always_xy=True).transform(*point)
    assert pyproj.Transformer.from_crs(projection, 4326, always_xy=True).transform(*point) == pytest.approx(expected)
    (x, y) = archive.execute(
        "select ST_X(p), ST_Y(p) from ST_Transform(ST_SetSRID(ST_Point(%s, %s), %s), 4326) p", (*point, band.srid)
    ).fetchone()
    assert (x, y) == pytest.approx(expected, abs=1e-9)


def test_footprint(sample):
    """Tile h21v11 spans 10 degrees of latitude; longitudes follow from x = R longitude cos(latitude)."""
    outline = shapely.from_wkb(open_path(sample / MCD43A4).product.footprint)
    assert outline.is_valid
    assert outline.bounds[1::2] == pytest.approx((-30, -20), abs=1e-6)
    west, east = (21 - 18) * TILE, (22 - 18) * TILE
    for latitude in (-20.5, -25, -29.5):
        across = outline.intersection(shapely.LineString([(0, latitude), (90, latitude)]))
        expected = [np.degrees(x / RADIUS / np.cos(np.radians(latitude))) for x in (west, east)]
        assert across.bounds[0::2] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("number", range(12))
def test_each_date_of_a_folder_is_a_product(sample, number):
    file = sorted((sample / MOD13Q1).iterdir())[number]
    files = open_path(file)
    product = files.product
    assert product.name == file.stem.replace("_NDVI", "")
    assert product.sensing_time.date().isoformat() == file.stem[-10:]
    assert (product.platform, product.scales, product.bytes) == ("terra", {"NDVI": 0.0001}, file.stat().st_size)
    assert files.sources == (file,)
    (band,) = files.bands
    assert (band.name, band.nodata, band.srid) == ("NDVI", -3000, SRID)
    with band.open() as dataset:
        pixels = band.read(dataset, Window(0, 0, dataset.width, dataset.height))
        inside = shapely.from_wkb(product.footprint).contains(shapely.Point(dataset.lnglat()))
    assert inside
    # valid from -2,000 to 10,000; these files' compression has blurred the fill value, and overshoots
    assert -3500 <= pixels.min() < pixels.max() <= 11_000


def test_one_file_stands_for_its_granule(sample):
    files = open_path(sample / MCD43A4 / f"{GRANULE}_B03qa.TIF")
    assert len(files.bands) == 14
    assert files.product.name == GRANULE


def test_several_granules_in_a_folder(sample):
    with pytest.raises(
        PgearthError, match="files of 12 MODIS products, such as TERRA_MODIS_012010_2013-09-14"
    ) as error:
        open_path(sample / MOD13Q1)
    assert "Name one file" in error.value.hint


@pytest.mark.parametrize(
    ("name", "granule", "platform", "day"),
    [
        ("MOD13Q1.A2013257.h12v10.061.2021226071112.hdf", "MOD13Q1.A2013257.h12v10.061.2021226071112", "terra", 257),
        ("MYD13Q1.A2013265.h12v10.006.2018226071112_EVI.tif", "MYD13Q1.A2013265.h12v10.006.2018226071112", "aqua", 265),
        ("AQUA_MODIS_012010_EVI_2013-01-09.tif", "AQUA_MODIS_012010_2013-01-09", "aqua", 9),
    ],
)
def test_names(name, granule, platform, day):
    known = granule_of(name)
    assert (known.name, known.platform) == (granule, platform)
    assert known.sensing_time.timetuple().tm_yday == day


@pytest.mark.parametrize("name", ["B02.tif", "MOD13Q1.hdf", "LC09_L2SP_010065_20220129_20220131_02_T1_SR_B1.TIF"])
def test_other_names(name):
    assert granule_of(name) is None


def test_impossible_date():
    with pytest.raises(PgearthError, match="2013399: no date"):
        granule_of("MOD13Q1.A2013399.h12v10.061.2021226071112.hdf")


def test_arguments_override_names(sample):
    when = datetime(2001, 1, 1, tzinfo=UTC)
    product = open_path(sample / MCD43A4, name="mine", sensing_time=when, platform="terra").product
    assert (product.name, product.sensing_time, product.platform) == ("mine", when, "terra")


def test_hdf_that_gdal_cannot_read(tmp_path):
    """HDF 4 begins with these four bytes; rasterio's GDAL has no driver for it."""
    file = tmp_path / "MOD13Q1.A2013257.h12v10.061.2021226071112.hdf"
    file.write_bytes(b"\x0e\x03\x13\x01" + bytes(1000))
    with pytest.raises(PgearthError, match=r"\.hdf: cannot be read .*no driver for HDF 4") as error:
        open_path(file)
    assert "gdal_translate" in error.value.hint and f"{file.stem}_B01.tif" in error.value.hint


def test_layers_of_hdf(sample, tmp_path, monkeypatch):
    """Layers of the same names in a format with subdatasets that GDAL does read, netCDF; it numbers them."""
    monkeypatch.setattr("pgearth.loaders.products.formats.modis.HDF_DRIVERS", ("netCDF",))
    with rasterio.open(sample / MCD43A4 / f"{GRANULE}_B01.TIF") as file:
        pixels = file.read(1)
    hdf = tmp_path / f"{GRANULE}.hdf"
    profile = {"driver": "GTiff", "width": 240, "height": 240, "count": 2, "dtype": "int16"}
    with rasterio.open(
        tmp_path / "both.tif", "w", crs="EPSG:4326", transform=from_origin(30, 0, 0.1, 0.1), **profile
    ) as file:
        file.write(np.stack([pixels, pixels // 2]))
        file.update_tags(1, NETCDF_VARNAME="Nadir_Reflectance_Band")
        file.update_tags(2, NETCDF_VARNAME="BRDF_Albedo_Band_Mandatory_Quality_Band")
    copy(tmp_path / "both.tif", hdf, driver="netCDF")
    (tmp_path / "both.tif").unlink()
    files = open_path(hdf)
    assert [band.name for band in files.bands] == ["B01", "B02QA"]
    assert files.expected == ("B01",)
    for band, expected in zip(files.bands, (pixels, pixels // 2), strict=True):
        with band.open() as dataset:
            np.testing.assert_array_equal(band.read(dataset, Window(0, 0, 240, 240)), expected)


def test_unreadable_band(sample, tmp_path):
    file = shutil.copyfile(sample / MCD43A4 / f"{GRANULE}_B01.TIF", tmp_path / f"{GRANULE}_B01.TIF")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(PgearthError, match=r"_B01\.TIF: cannot be read as a raster"):
        open_path(file)


def test_tile_at_the_edge_of_the_map(tmp_path):
    """Of tile h01v06, on the map's west edge, a part lies beyond the curve of the antimeridian."""
    file = tmp_path / "MOD13Q1.A2013257.h01v06.061.2021226071112_NDVI.tif"
    size = TILE / 24
    with rasterio.open(
        file,
        "w",
        driver="GTiff",
        width=24,
        height=24,
        count=1,
        dtype="int16",
        crs=f"+proj=sinu +R={RADIUS} +units=m",
        transform=from_origin((1 - 18) * TILE, (9 - 6) * TILE, size, size),
    ) as dataset:
        dataset.write(np.full((24, 24), 5, "int16"), 1)
    outline = shapely.from_wkb(open_path(file).product.footprint)
    assert outline.is_valid
    assert outline.bounds[0] == pytest.approx(-180, abs=1e-3)
    assert outline.bounds[2] < -160  # and not on the other side
    assert outline.bounds[1] == pytest.approx(20, abs=1e-6)
