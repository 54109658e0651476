"""Grids and what is computed of their patches, against numpy, PostGIS, rasterio and pygeohash."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pygeohash
import pytest
import rasterio
import shapely
from rasterio import Affine
from rasterio.vrt import WarpedVRT

from pgearth.loaders.datasets.bigearthnet.names import patch_bounds
from pgearth.loaders.products.files import Given
from pgearth.loaders.products.formats.known import open_product
from pgearth.loaders.products.grids import parse_grid
from pgearth.loaders.products.load import Options, load_product
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import band_statistics, from_wkb, valid_pixels

NAME = "S2A_MSIL2A_20200620T103000_N0214_R001_T32UPU_20200620T170000"
BANDS = {10: ("B02", "B03"), 20: ("B05", "SCL"), 60: ("B01",)}
SIDE = 3600  # metres


def make_product(folder: Path, west: float, north: float, crs: str = "EPSG:32632", scale: float = 1.0) -> Path:
    """A product of 3.6 km of smooth pixels, some of them nodata, with scene classes."""
    for resolution, bands in BANDS.items():
        side = SIDE // resolution
        y, x = np.mgrid[:side, :side] * resolution
        for number, band in enumerate(bands):
            pixels = (1000 + number * 500 + x / 5 + 300 * np.sin(y / 400)).astype("uint16")
            if band == "SCL":
                pixels = np.select([x < 1200, x < 1800, y < 2400], [4, 9, 11], 5).astype("uint8")
            if band == "B02":
                pixels[5:7, 5] = 0
            if band == "B01":
                pixels[30, 30] = 0
            path = folder / f"R{resolution}m" / f"{band}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                path, "w", driver="GTiff", height=side, width=side, count=1, dtype=pixels.dtype, crs=crs, nodata=0,
                transform=Affine(resolution * scale, 0, west, 0, -resolution * scale, north),
            ) as file:  # fmt: skip
                file.write(pixels, 1)
    (folder / "tileInfo.json").write_text(json.dumps({"productName": NAME, "timestamp": "2020-06-20T10:30:00Z"}))
    return folder


def load(archive, folder: Path, grid: str, nodata="keep") -> dict[str, int]:
    counts = load_product(archive, folder, Options(Given(), grid, tuple(b for g in BANDS.values() for b in g), nodata))
    return dict(+counts)


def place(column: int, row: int) -> tuple[float, float]:
    """Upper left corner of a patch of the tile."""
    west, _, _, north = patch_bounds("32UPU", column, row)
    return west, north


def file(folder: Path, band: str) -> Path:
    return next(folder.glob(f"R*m/{band}.tif"))


@pytest.mark.parametrize(
    "text", ["fixed", "aligned", "aligned:0", "fixed:0", "fixed:70000", "cell:0:8", "cell:11:8", "cell:5", "tiles", ""]
)
def test_no_grid(text):
    with pytest.raises(PgearthError) as error:
        parse_grid(text)
    assert "Grids are" in error.value.hint


def test_a_crop_has_the_windows_of_its_tile(archive, tmp_path):
    west, north = place(7, 3)
    load(archive, make_product(tmp_path / "p", west - 600, north + 240), "bigearthnet")
    rows = archive.execute(
        "select name, tile_column, tile_row, west, south, east, north from eo.patch order by 3, 2"
    ).fetchall()
    expected = [(c, r) for r in (3, 4) for c in (7, 8)]
    assert [(row[1], row[2]) for row in rows] == expected
    for name, column, row, *bounds in rows:
        assert name == f"{NAME}_{column}_{row}"
        assert tuple(bounds) == patch_bounds("32UPU", column, row)
    for band, wkb in archive.execute(
        "select r.bands[1], ST_AsWKB(rast) from eo.patch_raster r join eo.patch using (patch_id, cell)"
        " where (tile_column, tile_row) = (8, 4)"
    ):
        with rasterio.open(file(tmp_path / "p", band)) as dataset:
            window = dataset.window(*patch_bounds("32UPU", 8, 4))
            np.testing.assert_array_equal(from_wkb(wkb).bands[0], dataset.read(1, window=window))


@pytest.mark.parametrize(
    ("shift", "crs", "scale"),
    [(3.0, "EPSG:32632", 1.0), (10.0, "EPSG:32632", 1.0), (0.0, "EPSG:32632", 0.77), (0.0, "EPSG:4326", 1e-5)],
)
def test_pixels_beside_the_grid_are_refused_with_a_grid_that_works(archive, tmp_path, shift, crs, scale):
    west, north = place(7, 3) if scale > 0.1 else (11.0, 48.0)
    folder = make_product(tmp_path / "p", west + shift, north, crs, scale)
    with pytest.raises(PgearthError) as error:
        load(archive, folder, "bigearthnet")
    assert "--grid fixed:120" in error.value.hint
    assert archive.execute("select count(*) from eo.product").fetchone() == (0,)
    assert load(archive, folder, "fixed:120")["patches"] == 9


@pytest.mark.parametrize(
    ("grid", "paired"), [("aligned:120", True), ("aligned:60", True), ("aligned:360", False), ("fixed:120", False)]
)
def test_crops_of_two_dates_have_the_same_places(archive, tmp_path, grid, paired):
    """Two crops of a tile whose corners differ by 70 and 30 pixels of 10 m; at 360 pixels no window is whole in them."""
    west, north = 600_120, 5_400_000
    for date, shift in (("20200620", (0, 0)), ("20200625", (720, -360))):
        folder = make_product(tmp_path / date, west + shift[0], north + shift[1])
        (folder / "tileInfo.json").unlink()
        options = Options(
            Given(f"crop-{date}", datetime.strptime(f"{date}+0000", "%Y%m%d%z"), "sentinel-2a", offset=0.0), grid
        )
        options = replace(options, bands=("B01", "B02", "B03", "B05", "SCL"))
        if grid == "aligned:360":
            with pytest.raises(PgearthError, match="no window of the grid is whole in it") as error:
                load_product(archive, folder, options)
            assert "--grid fixed:360" in error.value.hint
        else:
            assert load_product(archive, folder, options)["patches"] > 0
    pairs = archive.execute("select before_name, after_name from eo.change").fetchall()
    assert bool(pairs) is paired
    size = int(grid.partition(":")[2])
    for name, column, row, *bounds in archive.execute(
        "select name, tile_column, tile_row, west, south, east, north from eo.patch where name like '%aligned%'"
    ):
        side = size * 10
        assert bounds == [column * side, -(row + 1) * side, (column + 1) * side, -row * side]
        assert name.endswith(f"_aligned{size}_{column}_{row}")


def test_pixels_of_aligned_windows(archive, tmp_path):
    folder = make_product(tmp_path / "p", 600_120 + 60, 5_400_000 - 120)
    load(archive, folder, "aligned:60")
    rows = archive.execute(
        "select r.bands, p.west, p.south, p.east, p.north, ST_AsWKB(rast)"
        " from eo.patch_raster r join eo.patch p using (patch_id, cell)"
    ).fetchall()
    assert len(rows) > 30
    for bands, *bounds, wkb in rows:
        for band, pixels in zip(bands, from_wkb(wkb).bands, strict=True):
            with rasterio.open(file(folder, band)) as dataset:
                np.testing.assert_array_equal(pixels, dataset.read(1, window=dataset.window(*bounds)))


def test_default_grid_of_a_product_without_a_tile(tmp_path):
    folder = make_product(tmp_path / "p", 600_120, 5_400_000)
    assert open_product(folder, Given()).grid == "bigearthnet"
    (folder / "tileInfo.json").unlink()
    when = datetime(2020, 6, 20, tzinfo=UTC)
    assert open_product(folder, Given("mine", when, "sentinel-2a")).grid == "aligned:120"


def test_windows_too_small_to_be_counted(archive, tmp_path):
    with pytest.raises(PgearthError, match="too small to be counted from the projection's origin") as error:
        load(archive, make_product(tmp_path / "p", 600_120, 5_400_000), "aligned:6")
    assert "fixed" in error.value.hint


def test_none_stores_the_product_only(archive, tmp_path):
    assert load(archive, make_product(tmp_path / "p", *place(0, 0)), "none") == {"products": 1}
    counts = archive.execute("select (select count(*) from eo.product), (select count(*) from eo.patch)").fetchone()
    assert counts == (1, 0)


def test_statistics_and_scene_classes(archive, tmp_path):
    folder = make_product(tmp_path / "p", *place(0, 0))
    assert load(archive, folder, "bigearthnet") == {"products": 1, "patches": 9}
    differing = archive.execute(
        """
        select count(*), count(*) filter (where (s).count <> round(valid_fraction[n] * ST_Width(rast) * ST_Height(rast))
            or abs((s).min - band_min[n]) > 1e-3 or abs((s).max - band_max[n]) > 1e-3
            or abs((s).mean - band_mean[n]) > 1e-3 or abs((s).stddev - band_std[n]) > 1e-3)
        from eo.patch_raster, generate_subscripts(bands, 1) n, ST_SummaryStats(rast, n) s
        """
    )
    assert differing.fetchone() == (45, 0)
    with rasterio.open(file(folder, "SCL")) as dataset:
        classes = dataset.read(1)
    for column, row, ids, shares, cloud, snow in archive.execute(
        "select tile_column, tile_row, scene_class_ids, scene_class_fraction, cloud_or_shadow, seasonal_snow from eo.patch"
    ):
        window = classes[row * 60 : row * 60 + 60, column * 60 : column * 60 + 60]
        codes, numbers = np.unique(window, return_counts=True)
        assert ids == [2000 + int(code) for code in codes]
        assert shares == pytest.approx(numbers / 3600, abs=1e-6)
        assert (cloud, snow) == (9 in codes, 11 in codes)


def test_nodata_dropped_and_masked(archive, tmp_path):
    folder = make_product(tmp_path / "p", *place(0, 0))
    assert load(archive, folder, "bigearthnet", "drop") == {"products": 1, "patches": 7, "with_nodata_dropped": 2}
    archive.execute("truncate eo.load, eo.product cascade")
    assert load(archive, folder, "bigearthnet", "mask") == {"products": 1, "patches": 9, "masked": 2}
    missing = np.zeros((360, 360), bool)
    missing[5:7, 5] = missing[180:186, 180:186] = True
    for column, row, resolution, wkb in archive.execute(
        "select tile_column, tile_row, resolution, ST_AsWKB(rast) from eo.patch_raster join eo.patch using (patch_id, cell)"
    ):
        factor, side = resolution // 10, 1200 // resolution
        window = missing[row * 120 : row * 120 + 120, column * 120 : column * 120 + 120]
        expected = window.reshape(side, factor, side, factor).any(axis=(1, 3))
        for band in from_wkb(wkb).bands:
            np.testing.assert_array_equal(band == 0, expected)


@pytest.mark.parametrize("nodata", [0, None, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_band_statistics(dtype, nodata):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 9, (3, 4, 6, 5)).astype(dtype)
    pixels[0, 1] = 0 if nodata is None else nodata
    if pixels.dtype.kind == "f":
        pixels[1, 2, 3] = np.nan
    for index in np.ndindex(3, 4):
        band = pixels[index]
        values = band[~np.isnan(band)] if nodata is None else band[~np.isnan(band) & (band != nodata)]
        found = band_statistics(pixels, nodata)[index]
        assert valid_pixels(band, nodata).sum() == values.size
        if not values.size:
            assert np.isnan(found[:4]).all() and found[4] == 0
            continue
        expected = [
            values.min(),
            values.max(),
            values.astype(float).mean(),
            values.astype(float).std(),
            values.size / 30,
        ]
        assert found == pytest.approx(expected, abs=1e-12)


def test_cells_are_warped_exactly(archive, tmp_path):
    """Against GDAL's warped virtual raster over the whole file, which knows no strips."""
    folder = make_product(tmp_path / "p", *place(40, 40))
    counts = load(archive, folder, "cell:6:48")
    rows = archive.execute(
        "select p.name, p.west, p.south, p.east, p.north, p.srid, p.cell, r.bands, ST_AsWKB(r.rast)"
        " from eo.patch p join eo.patch_raster r using (patch_id, cell) order by 1"
    ).fetchall()
    assert counts["patches"] == len(rows) > 20
    outline = shapely.from_wkb(archive.execute("select ST_AsBinary(footprint) from eo.product").fetchone()[0])
    partly = 0
    for name, west, south, east, north, srid, cell, bands, wkb in rows:
        code = name.removeprefix(f"{NAME}_")
        latitude, longitude, d_latitude, d_longitude = pygeohash.decode_exactly(code)
        expected = (longitude - d_longitude, latitude - d_latitude, longitude + d_longitude, latitude + d_latitude)
        assert (west, south, east, north) == pytest.approx(expected, abs=1e-9)
        assert (srid, cell) == (4326, code[:5])
        assert shapely.box(west, south, east, north).intersects(outline)
        transform = Affine((east - west) / 48, 0, west, 0, -(north - south) / 48, north)
        raster = from_wkb(wkb)
        partly += bool((raster.bands[0] == 0).any())
        for band, pixels in zip(bands, raster.bands, strict=True):
            with (
                rasterio.open(file(folder, band)) as source,
                WarpedVRT(
                    source, crs="EPSG:4326", transform=transform, width=48, height=48, nodata=0,
                    resampling=rasterio.enums.Resampling.nearest if band == "SCL" else rasterio.enums.Resampling.bilinear,
                ) as warped,
            ):  # fmt: skip
                expected_pixels = warped.read(1).astype(int)
            # the approximate transformer may differ by an eighth of a pixel at the most
            assert (np.abs(pixels.astype(int) - expected_pixels) <= (0 if band == "SCL" else 4)).mean() > 0.98
    assert partly
    differing = archive.execute("select count(*) from eo.patch where cell <> ST_GeoHash(ST_Centroid(footprint), 5)")
    assert differing.fetchone() == (0,)


def test_failed_products_are_listed_and_the_others_loaded(archive, tmp_path, run_pgearth):
    good = make_product(tmp_path / "good", *place(0, 0))
    bad = make_product(tmp_path / "bad", *place(0, 0))
    file(bad, "B03").write_bytes(b"no raster")
    result = run_pgearth(
        archive, "load", "product", bad, good, "--jobs", "2", "--bands", "B02,B03", "--grid", "fixed:60"
    )
    assert result.exit_code == 1
    assert "1 products loaded, 0 loaded before, 1 failed; 36 patches" in result.output
    assert "B03.tif" in str(result.exception)
