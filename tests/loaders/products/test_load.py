"""Products: all four real layouts of Sentinel-2 against rasterio, numpy, pyproj and shapely, and all that can be wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pyproj
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window
from shapely.geometry import box, shape

from pgearth.loaders.products import load as product
from pgearth.loaders.products import patches
from pgearth.loaders.products.bands import StripReader, open_band
from pgearth.loaders.products.files import BandFile, Given
from pgearth.loaders.products.load import Options, load_product
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import from_wkb
from tests.waiting import PATIENCE, wait_for

COG = Path("sentinel2-cog/S2A_29RKH_20200219_0_L2A")
MAJORTOM = Path("majortom/199U_1099R/S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543")
SSL4EO_JUNE = Path("ssl4eo/s2a/0000200/20200604T054639_20200604T054831_T43RCP")
SSL4EO_AUGUST = Path("ssl4eo/s2a/0000200/20200813T054639_20200813T054952_T43RCP")
SSL4EO_JUNE_L1C = Path("ssl4eo/s2c/0000200/20200604T054639_20200604T054831_T43RCP")
SSL4EO_AUGUST_L1C = Path("ssl4eo/s2c/0000200/20200823T054639_20200823T055618_T43RCP")
JP2_L1C = Path("sentinel2-jp2/L1C_19UDP_20170729")
JP2_L2A = Path("sentinel2-jp2/L2A_19UDP_20170729")

TEN = ("B02", "B03", "B04", "B08")
TWENTY = ("B05", "B06", "B07", "B8A", "B11", "B12")
TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

# Product name, bands by resolution, and cloud cover as the metadata gives it (none for Major TOM).
SCENES = {
    COG: (
        "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947",
        {100: TEN, 200: (*TWENTY, "SCL"), 600: ("B01", "B09")},
        4.051854,
    ),
    MAJORTOM: (
        "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543",
        {10: TEN, 20: TWENTY, 60: ("B01", "B09")},
        None,
    ),
    SSL4EO_JUNE: (
        "S2B_MSIL2A_20200604T054639_N0214_R048_T43RCP_20200604T094332",
        {10: TEN, 20: TWENTY, 59: ("B01", "B09")},
        4.184628,
    ),
    SSL4EO_AUGUST: (
        "S2B_MSIL2A_20200813T054639_N0214_R048_T43RCP_20200813T083230",
        {10: TEN, 20: TWENTY, 59: ("B01", "B09")},
        1.948562,
    ),
    SSL4EO_JUNE_L1C: (
        "S2B_MSIL1C_20200604T054639_N0209_R048_T43RCP_20200604T083537",
        {10: TEN, 20: TWENTY, 59: ("B01", "B09", "B10")},
        0.8438,
    ),
    SSL4EO_AUGUST_L1C: (
        "S2B_MSIL1C_20200823T054639_N0209_R048_T43RCP_20200823T074854",
        {10: TEN, 20: TWENTY, 59: ("B01", "B09", "B10")},
        9.9194,
    ),
    JP2_L1C: (
        "S2A_MSIL1C_20170729T153601_N0205_R111_T19UDP_20170729T153557",
        {900: (*TWELVE[:10], "B10", *TWELVE[10:])},
        24.48,
    ),
    JP2_L2A: ("S2A_MSIL2A_20170729T153601_N0001_R111_T19UDP_20200401T051009", {900: TWELVE}, 0.0),
}

PATCHES = """
    select p.name, p.srid, p.west, p.south, p.east, p.north, p.tile_column, p.tile_row, p.scene_class_ids,
           p.cloud_or_shadow, ST_AsBinary(p.footprint), p.platform, p.sensing_time
    from eo.patch p join eo.product using (product_id)
    where eo.product.name = %s order by p.tile_row, p.tile_column
"""


def band_file(folder: Path, band: str) -> Path:
    """The file of a band in a sample, found without the loader."""
    short = band.replace("B0", "B")
    names = [f"{band}.tif", f"{short}.tif", f"{band}.jp2"]
    places = [folder, folder / "R10m", folder / "R20m", folder / "R60m"]
    return next(place / name for place in places for name in names if (place / name).exists())


def load(connection: psycopg.Connection, path: Path, grid: str = "fixed:120", bands=None, **given) -> dict[str, int]:
    """Load a product; its counts without the one of products."""
    nodata = given.pop("nodata", "keep")
    options = Options(Given(**given), grid, None if bands is None else tuple(bands), nodata)
    counts = load_product(connection, path, options)
    assert counts.pop("products", 0) + counts["loaded_before"] == 1
    return +counts


def snapshot(connection: psycopg.Connection, product: str) -> list[tuple]:
    """All that a scene left in the archive, but for generated numbers."""
    return connection.execute(
        """
        select q.name, q.platform, q.level, q.sensing_time, q.mgrs_tile, q.cloud_cover, md5(ST_AsEWKB(q.footprint)),
               p.name, p.source, p.cell, md5(ST_AsEWKB(p.footprint)), p.srid, p.west, p.south, p.east, p.north,
               p.tile_column, p.tile_row, p.scene_class_ids, p.cloud_or_shadow, r.resolution, r.bands,
               md5(ST_AsWKB(r.rast))
        from eo.product q join eo.patch p using (product_id) join eo.patch_raster r using (patch_id, cell)
        where q.name = %s order by p.name, r.resolution
        """,
        (product,),
    ).fetchall()


def assert_nothing_loaded(connection: psycopg.Connection) -> None:
    for table in ("eo.product", "eo.patch", "eo.patch_raster"):
        assert connection.execute(f"select count(*) from {table}").fetchone() == (0,), table
    assert connection.execute("select count(*) from eo.load where state <> 'failed'").fetchone() == (0,)


def rewrite(path: Path, target: Path | None = None, pixels: np.ndarray | None = None, **changes) -> Path:
    """Write a raster file anew with some of its pixels or its profile changed."""
    with rasterio.open(path) as file:
        profile, old = file.profile, file.read()
    pixels = old if pixels is None else pixels.reshape(-1, *pixels.shape[-2:])
    profile = {key: profile[key] for key in ("crs", "transform", "nodata")} | {
        "driver": "GTiff",
        "count": pixels.shape[0],
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
        **changes,
    }
    target = target or path
    target.unlink(missing_ok=True)
    with rasterio.open(target, "w", **profile) as file:
        file.write(pixels)
    return target


def read(path: Path, window: Window | None = None) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1, window=window)


@pytest.fixture(scope="module")
def loaded(module_archive, sample):
    """The archive with the eight real scenes, and the counts that their loads returned."""
    counts = {
        folder: load(module_archive, sample / folder, bands=TWELVE if folder == JP2_L2A else None) for folder in SCENES
    }
    return module_archive, counts


@pytest.fixture
def small(sample, tmp_path) -> Path:
    """A writable copy of a small scene: SSL4EO-S12, four patches."""
    return Path(shutil.copytree(sample / SSL4EO_JUNE, tmp_path / SSL4EO_JUNE.name, copy_function=shutil.copyfile))


@pytest.fixture
def cog(sample, tmp_path) -> Path:
    """A writable copy of the scene with SCL, 81 patches."""
    return Path(shutil.copytree(sample / COG, tmp_path / COG.name, copy_function=shutil.copyfile))


@pytest.mark.parametrize("folder", SCENES, ids=str)
def test_every_whole_window_is_a_patch(loaded, sample, folder):
    connection, counts = loaded
    name = SCENES[folder][0]
    finest = min((band_file(sample / folder, band) for band in TWELVE), key=lambda path: -rasterio.open(path).width)
    with rasterio.open(finest) as file:
        windows = {
            (column, row): Window(column * 120, row * 120, 120, 120)
            for row in range(file.height // 120)
            for column in range(file.width // 120)
        }
        bounds = {place: file.window_bounds(window) for place, window in windows.items()}
        srid = file.crs.to_epsg()
        assert all(file.read(1, window=window).any() for window in windows.values())  # so none of them is without data
    rows = connection.execute(PATCHES, (name,)).fetchall()
    assert counts[folder] == {"patches": len(windows)}
    assert [(row[6], row[7]) for row in rows] == list(windows)
    for row in rows:
        assert row[0] == f"{name}_120px_{row[6]}_{row[7]}"
        assert row[1] == srid
        assert row[2:6] == pytest.approx(bounds[row[6], row[7]], abs=1e-9)
    state = connection.execute(
        "select state, rows, loader from eo.load where source = %s", (f"{name}|fixed:120",)
    ).fetchone()
    assert state == ("done", len(windows), "product")


def test_number_of_patches(loaded):
    # 1098, 1068, 264 and 122 pixels of the finest band hold 9, 8, 2 and 1 windows of 120 per side.
    assert [counts["patches"] for counts in loaded[1].values()] == [81, 64, 4, 4, 4, 4, 1, 1]


def test_side_is_1200_m_at_true_resolution(loaded):
    sides = loaded[0].execute(
        "select distinct round((east - west)::numeric, 6), round((north - south)::numeric, 6) from eo.patch"
        " where name like %s",
        (SCENES[MAJORTOM][0] + "%",),
    )
    assert sides.fetchall() == [(1200, 1200)]


@pytest.mark.parametrize("folder", SCENES, ids=str)
def test_pixels(loaded, sample, folder):
    connection, _ = loaded
    name, resolutions, _ = SCENES[folder]
    finest = min(resolutions)
    files = {band: rasterio.open(band_file(sample / folder, band)) for bands in resolutions.values() for band in bands}
    seen = 0
    for column, row, west, north, resolution, bands, wkb in connection.execute(
        """
        select p.tile_column, p.tile_row, p.west, p.north, r.resolution, r.bands, ST_AsWKB(r.rast)
        from eo.patch p join eo.product q using (product_id) join eo.patch_raster r using (patch_id, cell)
        where q.name = %s
        """,
        (name,),
    ):
        raster = from_wkb(wkb)
        size = round(120 * finest / resolution)
        assert tuple(bands) == resolutions[resolution]
        for band, pixels, nodata in zip(bands, raster.bands, raster.nodata, strict=True):
            file = files[band]
            assert nodata == 0
            assert pixels.dtype == file.dtypes[0]
            window = Window(column * size, row * size, size, size)
            np.testing.assert_array_equal(pixels, file.read(1, window=window))
            # The raster lies where the file has these pixels, and less than half a pixel from the patch's corner.
            scale_x, scale_y, left, top, *skew = raster.transform
            assert ~file.transform @ (left, top) == pytest.approx((column * size, row * size), abs=1e-6)
            assert (scale_x, scale_y, *skew) == (file.transform.a, file.transform.e, 0, 0)
            assert abs(left - west) < 0.5 * scale_x and abs(top - north) < -0.5 * scale_y
            assert raster.srid == file.crs.to_epsg()
        seen += 1
    assert seen == len(resolutions) * loaded[1][folder]["patches"]


@pytest.mark.parametrize("folder", [COG, MAJORTOM, SSL4EO_AUGUST, JP2_L1C], ids=str)
def test_postgis_sees_the_same_pixels(loaded, sample, folder):
    name, resolutions, _ = SCENES[folder]
    last = loaded[0].execute(PATCHES, (name,)).fetchall()[-1]
    for resolution, bands in resolutions.items():
        size = round(120 * min(resolutions) / resolution)
        for number, band in enumerate(bands, start=1):
            (values,) = (
                loaded[0]
                .execute(
                    """
                select ST_DumpValues(rast, %s, false) from eo.patch_raster join eo.patch using (patch_id, cell)
                where name = %s and resolution = %s
                """,
                    (number, last[0], resolution),
                )
                .fetchone()
            )
            window = Window(last[6] * size, last[7] * size, size, size)
            np.testing.assert_array_equal(np.array(values), read(band_file(sample / folder, band), window))


@pytest.mark.parametrize("folder", [COG, MAJORTOM, SSL4EO_JUNE, JP2_L2A], ids=str)
def test_footprints_of_patches(loaded, folder):
    rows = loaded[0].execute(PATCHES, (SCENES[folder][0],)).fetchall()
    for row in rows:
        to_degrees = pyproj.Transformer.from_crs(row[1], 4326, always_xy=True)
        (stored,) = shapely.from_wkb(row[10]).geoms
        expected = shapely.transform(box(*row[2:6]), to_degrees.transform, interleaved=False)
        if expected.bounds[2] - expected.bounds[0] <= 1:
            assert expected.normalize().equals_exact(stored.normalize(), 1e-9)
        else:  # a straight edge of 110 km bends in degrees: vertices on it are stored, too
            dense = shapely.segmentize(box(*row[2:6]), 100)
            curved = shapely.transform(dense, to_degrees.transform, interleaved=False)
            assert stored.symmetric_difference(curved).area < 2e-5 * curved.area
            assert stored.symmetric_difference(expected).area > 1e-3 * curved.area


def test_scene_classes(loaded, sample):
    connection, _ = loaded
    classes = read(sample / COG / "SCL.tif")
    codes = dict(connection.execute("select label_id, code::integer from eo.label where scheme = 'scl'").fetchall())
    clouds = 0
    for row in connection.execute(PATCHES, (SCENES[COG][0],)):
        window = classes[row[7] * 60 : row[7] * 60 + 60, row[6] * 60 : row[6] * 60 + 60]
        expected = sorted(set(window.ravel().tolist()) - {0})
        assert [codes[label_id] for label_id in row[8]] == expected
        assert row[9] is bool({3, 8, 9, 10} & set(expected))
        clouds += row[9]
    assert 0 < clouds < 81
    unknown = connection.execute(
        "select bool_and(scene_class_ids is null and cloud_or_shadow is null and seasonal_snow is null) from eo.patch"
        " where name not like %s",
        (SCENES[COG][0] + "%",),
    )
    assert unknown.fetchone() == (True,)


PRODUCT = """
    select platform, level, sensing_time, mgrs_tile, cloud_cover, metadata, source_path, ST_AsBinary(footprint),
           ST_IsValid(footprint)
    from eo.product where name = %s
"""


def metadata_file(folder: Path) -> dict | None:
    files = list(folder.glob("*.json"))
    return json.loads(files[0].read_text()) if files else None


@pytest.mark.parametrize("folder", SCENES, ids=str)
def test_product(loaded, sample, folder):
    name, _, cloud_cover = SCENES[folder]
    platform, level, sensing_time, tile, clouds, metadata, path, footprint, valid = (
        loaded[0].execute(PRODUCT, (name,)).fetchone()
    )
    document = metadata_file(sample / folder)
    assert (platform, level, tile) == (f"sentinel-2{name[2].lower()}", name[7:10], name[39:44])
    assert clouds == (cloud_cover if cloud_cover is None else pytest.approx(cloud_cover, rel=1e-6))
    assert (metadata, path) == (document, str((sample / folder).resolve()))
    assert valid
    outline = shapely.from_wkb(footprint)
    if folder == COG:
        assert sensing_time == datetime(2020, 2, 19, 11, 34, 25, 405000, UTC)
        expected = shape(document["geometry"])
    elif folder == MAJORTOM:
        assert sensing_time == datetime(2020, 2, 23, 3, 27, 39, tzinfo=UTC)
        with rasterio.open(sample / folder / "B02.tif") as file:
            expected = box(*file.bounds)
        expected = shapely.transform(
            shapely.segmentize(expected, 10),
            pyproj.Transformer.from_crs(32648, 4326, always_xy=True).transform,
            interleaved=False,
        )
    elif folder in (JP2_L1C, JP2_L2A):
        assert sensing_time == datetime(2017, 7, 29, 15, 35, 57, 455000, UTC)
        expected = shapely.transform(
            shapely.segmentize(shape(document["tileDataGeometry"]), 100),
            pyproj.Transformer.from_crs(32619, 4326, always_xy=True).transform,
            interleaved=False,
        )
    else:
        assert sensing_time == datetime.fromtimestamp(document["system:time_start"] / 1000, UTC)
        expected = shapely.Polygon(document["system:footprint"]["coordinates"])
    # straight edges between the corners, instead of more vertices, would differ by 1.7e-3 for a whole tile
    assert outline.symmetric_difference(expected).area < 2e-5 * expected.area


def test_patches_have_platform_and_time_of_their_product(loaded):
    differing = loaded[0].execute(
        "select count(*) from eo.patch p join eo.product q using (product_id)"
        " where (p.platform, p.sensing_time, p.source) is distinct from (q.platform, q.sensing_time, 'product')"
    )
    assert differing.fetchone() == (0,)


def test_second_load_is_skipped(loaded, sample):
    connection, _ = loaded
    before = snapshot(connection, SCENES[MAJORTOM][0])
    assert load(connection, sample / MAJORTOM) == {"loaded_before": 1}
    assert snapshot(connection, SCENES[MAJORTOM][0]) == before


def test_other_contents_under_a_loaded_name(archive, small):
    load(archive, small)
    os.utime(small / "B2.tif", (0, 0))
    assert load(archive, small) == {"loaded_before": 1}, "a copy is the same scene"
    with rasterio.open(small / "B2.tif", "r+") as dataset:
        dataset.update_tags(edited="yes")
    with pytest.raises(PgearthError, match="loaded before, with other contents"):
        load(archive, small)
    assert load(archive, small, name="beside") == {"patches": 4}
    names = {name for (name,) in archive.execute("select name from eo.patch where name like 'beside%'")}
    assert names == {f"beside_120px_{column}_{row}" for column in (0, 1) for row in (0, 1)}


def test_scl_in_another_crs(archive, sample, run_pgearth):
    with pytest.raises(
        PgearthError, match=r"R20m/SCL\.jp2: EPSG:32701, while EPSG:32619 is that of 12 of the 13"
    ) as error:
        load(archive, sample / JP2_L2A)
    assert_nothing_loaded(archive)
    option, bands = re.search(r"(--bands) (\S+)", error.value.hint).groups()
    assert bands.split(",") == list(TWELVE)
    result = run_pgearth(archive, "load", "product", "--grid", "fixed:120", sample / JP2_L2A, option, bands)
    assert result.exit_code == 0, result.output
    assert archive.execute("select bands from eo.patch_raster").fetchall() == [(list(TWELVE),)]


def test_command(archive, sample, run_pgearth):
    paths = [sample / SSL4EO_JUNE, sample / SSL4EO_JUNE_L1C]
    result = run_pgearth(archive, "load", "product", "--grid", "fixed:120", *paths)
    assert result.exit_code == 0, result.output
    assert (
        "2 products loaded, 0 loaded before, 0 failed; 8 patches loaded, 0 of them masked; 0 without data and 0 with nodata"
        in result.output
    )
    result = run_pgearth(archive, "load", "product", "--grid", "fixed:120", *paths, sample / SSL4EO_AUGUST)
    assert (
        "1 products loaded, 2 loaded before, 0 failed; 4 patches loaded, 0 of them masked; 0 without data and 0 with nodata"
        in result.output
    )
    assert archive.execute("select count(*), count(distinct name) from eo.patch").fetchone() == (12, 12)


def change_item(folder: Path, key: str, value: object) -> None:
    """Change a property of the product's STAC item; a value that is no JSON of Python's is written as it is."""
    [item] = [path for path in folder.glob("*.json") if "eo:cloud_cover" in path.read_text()]
    document = json.loads(item.read_text())
    document["properties"][key] = value
    item.write_text(json.dumps(document))


BAD_VALUES = {
    "NUL in a text": ("title", "a\0b"),
    "half a character": ("title", "\ud800"),
    "too large": ("eo:cloud_cover", 1e300),
    "not a number": ("eo:cloud_cover", float("nan")),
    "more than all": ("eo:cloud_cover", 100.5),
    "a text": ("eo:cloud_cover", "clear"),
    "a list": ("eo:cloud_cover", [1, 2]),
}


@pytest.mark.parametrize(("key", "value"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_product_among_others(archive, sample, cog, run_pgearth, key, value):
    """What the database, or whatever reads it, refuses of one product leaves the others as they are."""
    change_item(cog, key, value)
    paths = [sample / SSL4EO_JUNE, cog, sample / SSL4EO_AUGUST]
    result = run_pgearth(archive, "load", "product", "--grid", "fixed:120", *paths)
    assert "2 products loaded, 0 loaded before, 1 failed; 8 patches loaded" in result.output
    assert isinstance(result.exception, PgearthError)
    assert result.exception.message.startswith(str(cog)) and result.exception.hint
    assert archive.execute("select count(*) from eo.product").fetchone() == (2,)


def test_bad_products_in_processes_of_their_own(archive, sample, cog, small, run_pgearth):
    change_item(cog, "title", "a\0b")
    other = small.with_name("S2B_MSIL2A_20200604T054639_N0214_R048_T43RCP_20200604T054831")
    small.rename(other)
    band_file(other, "B02").write_bytes(b"junk")
    paths = [cog, other, sample / SSL4EO_AUGUST]
    result = run_pgearth(archive, "load", "product", "--grid", "fixed:120", "--jobs", "3", *paths)
    assert "1 products loaded, 0 loaded before, 2 failed; 4 patches loaded" in result.output
    assert str(cog) in result.exception.message and str(other) in result.exception.message


def test_a_fault_of_ours_in_one_product(archive, sample, run_pgearth, monkeypatch):
    """Reported as such, after the others are loaded."""
    failing = product.choose_bands

    def choose_bands(path, *arguments):
        return {}["B02"] if path == sample / SSL4EO_JUNE else failing(path, *arguments)

    monkeypatch.setattr(product, "choose_bands", choose_bands)
    result = run_pgearth(
        archive, "load", "product", "--grid", "fixed:120", sample / SSL4EO_JUNE, sample / SSL4EO_AUGUST
    )
    assert "1 products loaded, 0 loaded before, 1 failed" in result.output
    assert f"{sample / SSL4EO_JUNE}: pgearth did not expect this: KeyError" in result.exception.message


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("server closed the connection"),
        psycopg.errors.DiskFull("no space"),
        psycopg.errors.AdminShutdown("terminating"),
        psycopg.errors.InsufficientPrivilege("permission denied"),
        psycopg.errors.UndefinedFunction("eo_internal.footprint"),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
    ],
    ids=repr,
)
def test_what_would_meet_the_next_product_too_ends_the_load(archive, sample, run_pgearth, monkeypatch, error):
    seen = []

    def fail(connection, path, options):
        seen.append(path)
        raise error

    monkeypatch.setattr(product, "load_product", fail)
    result = run_pgearth(archive, "load", "product", sample / SSL4EO_JUNE, sample / SSL4EO_AUGUST)
    assert result.exception is error
    assert len(seen) == 1


def test_command_refuses_what_it_cannot_mean(archive, sample, run_pgearth):
    paths = [sample / SSL4EO_JUNE, sample / SSL4EO_JUNE_L1C]
    for arguments in (
        [*paths, "--name", "x"],
        [*paths, "--time", "2020-06-04T05:46:39"],
        [paths[0], "--time", "yesterday"],
        [sample / "none"],
        [],
    ):
        assert run_pgearth(archive, "load", "product", "--grid", "fixed:120", *arguments).exit_code == 2
    assert_nothing_loaded(archive)


def test_selected_bands(archive, small):
    load(archive, small, bands=["b2", "B8A", " B12 "])
    rows = archive.execute(
        "select resolution, bands, count(*) from eo.patch_raster group by 1, 2 order by 1"
    ).fetchall()
    assert rows == [(10, ["B02"], 4), (20, ["B8A", "B12"], 4)]


def test_windows_count_pixels_of_the_finest_band_selected(archive, sample):
    # 534 pixels of 20 m hold 4 windows of 120 pixels, 2,400 m, per side
    assert load(archive, sample / MAJORTOM, bands=["B05", "B01"]) == {"patches": 16}
    sides = archive.execute("select distinct round(east - west), round(north - south) from eo.patch").fetchall()
    assert sides == [(2400, 2400)]
    sizes = archive.execute(
        "select distinct resolution, ST_Width(rast), ST_Height(rast) from eo.patch_raster order by 1"
    )
    assert sizes.fetchall() == [(20, 120, 120), (60, 40, 40)]


@pytest.mark.parametrize("bands", [["SCL"], ["B13"], ["B02", "red"], []])
def test_impossible_band_selection(archive, sample, bands):
    with pytest.raises(PgearthError, match=r"no such band|no reflectance band"):
        load(archive, sample / COG, bands=bands)
    assert_nothing_loaded(archive)


def test_safe_folder(archive, sample, tmp_path):
    safe = tmp_path / "S2B_MSIL2A_20200223T032739_N0214_R018_T48QUE_20200223T183543.SAFE"
    images = safe / "GRANULE" / "L2A_T48QUE_A015490_20200223T033743" / "IMG_DATA"
    for resolution, bands in SCENES[MAJORTOM][1].items():
        folder = images / f"R{resolution}m"
        folder.mkdir(parents=True)
        for band in bands:
            with rasterio.open(sample / MAJORTOM / f"{band}.tif") as file:
                rewrite(
                    sample / MAJORTOM / f"{band}.tif",
                    folder / f"T48QUE_20200223T032739_{band}_{resolution}m.jp2",
                    file.read()[:, : 2400 // resolution, : 3600 // resolution],
                    driver="JP2OpenJPEG",
                    QUALITY=100,
                    REVERSIBLE="YES",
                    blockxsize=64,
                    blockysize=64,
                )
    assert load(archive, safe) == {"patches": 6}
    row = archive.execute("select name, platform, level, mgrs_tile, sensing_time from eo.product").fetchone()
    assert row == (safe.name[:-5], "sentinel-2b", "L2A", "48QUE", datetime(2020, 2, 23, 3, 27, 39, tzinfo=UTC))
    for column, tile_row, resolution, bands, wkb in archive.execute(
        "select tile_column, tile_row, resolution, bands, ST_AsWKB(rast)"
        " from eo.patch_raster join eo.patch using (patch_id, cell)"
    ):
        size = 1200 // resolution
        window = Window(column * size, tile_row * size, size, size)
        for band, pixels in zip(bands, from_wkb(wkb).bands, strict=True):
            np.testing.assert_array_equal(pixels, read(sample / MAJORTOM / f"{band}.tif", window))


def test_finest_of_several_resolutions_is_taken(archive, small):
    with rasterio.open(small / "B2.tif") as file:
        coarse = file.read(1)[::2, ::2]
        transform = file.transform @ Affine.scale(2)
    (small / "R10m").mkdir()
    (small / "B2.tif").rename(small / "R10m" / "B02.tif")
    rewrite(small / "R10m" / "B02.tif", small / "B02_20m.tif", coarse, transform=transform)
    load(archive, small, bands=["B02", "B03"])
    assert archive.execute("select distinct resolution, bands from eo.patch_raster").fetchall() == [
        (10, ["B02", "B03"])
    ]


def test_patches_without_data_are_dropped_and_counted(archive, cog):
    # All bands are nodata in windows (0, 0) and (8, 8); all but B09 in (1, 0); B02 alone in (2, 0).
    for band in (*TWELVE, "SCL"):
        pixels = read(cog / f"{band}.tif")
        size = 120 * pixels.shape[0] // 1098
        blank = [(0, 0), (8, 8)]
        blank += [(1, 0)] if band != "B09" else []
        blank += [(2, 0)] if band == "B02" else []
        for column, row in blank:
            pixels[row * size : (row + 1) * size, column * size : (column + 1) * size] = 0
        rewrite(cog / f"{band}.tif", pixels=pixels)
    assert load(archive, cog) == {"patches": 79, "without_data": 2}
    (details,) = archive.execute("select details from eo.load").fetchone()
    assert details == {"without_data": 2}
    places = set(archive.execute("select tile_column, tile_row from eo.patch").fetchall())
    assert places == {(column, row) for column in range(9) for row in range(9)} - {(0, 0), (8, 8)}
    classes = archive.execute(
        "select scene_class_ids, cloud_or_shadow from eo.patch where (tile_column, tile_row) = (1, 0)"
    )
    assert classes.fetchone() == (None, None)  # no SCL pixel is valid there


def test_nodata_of_the_file(archive, small):
    pixels = read(small / "B2.tif")
    pixels[:120, :120] = 7
    pixels[120:240, 120:240] = 0  # valid, for this file says that 7 is nodata
    rewrite(small / "B2.tif", pixels=pixels, nodata=7)
    assert load(archive, small, bands=["B02"]) == {"patches": 3, "without_data": 1}
    assert archive.execute("select distinct ST_BandNoDataValue(rast) from eo.patch_raster").fetchall() == [(7,)]


def test_floating_point_bands_with_nan(archive, small):
    pixels = read(small / "B2.tif").astype("float32") / 10_000
    pixels[:120, 120:240] = np.nan
    rewrite(small / "B2.tif", pixels=pixels, nodata=np.nan)
    with pytest.raises(PgearthError, match=r"B2\.tif: floating-point pixels, whose units no tag and no metadata tell"):
        load(archive, small, bands=["B02"])
    assert load(archive, small, bands=["B02"], scale=1.0) == {"patches": 3, "without_data": 1}
    (wkb,) = archive.execute(
        "select ST_AsWKB(rast) from eo.patch_raster join eo.patch using (patch_id, cell)"
        " where (tile_column, tile_row) = (1, 1)"
    ).fetchone()
    np.testing.assert_array_equal(from_wkb(wkb).bands[0], pixels[120:240, 120:240] * np.float32(10_000))


def test_every_block_is_decoded_once(sample, monkeypatch):
    """B02 of the COG has blocks of 512 x 512 pixels, which nine strips of 120 rows cross."""
    path = sample / COG / "B02.tif"
    windows = []
    read_block = BandFile.read

    def recorded(file: BandFile, dataset, window: Window) -> np.ndarray:
        windows.append((window.col_off, window.row_off, window.width, window.height))
        return read_block(file, dataset, window)

    monkeypatch.setattr(BandFile, "read", recorded)
    with (
        ThreadPoolExecutor(2) as threads,
        closing(StripReader(open_band(BandFile("B02", str(path))), threads)) as reader,
    ):
        strips = []
        for row in range(9):
            strips.append(reader.read(row * 120, (row + 1) * 120))
            assert len(reader.decoded) + len(reader.free) <= 2
    np.testing.assert_array_equal(np.vstack(strips), read(path)[:1080])
    with rasterio.open(path) as file:
        blocks = [(w.col_off, w.row_off, w.width, w.height) for _, w in file.block_windows(1)]
    assert windows == blocks


# ---- bad input ----


def cut_off(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def remove(folder: Path) -> None:
    (folder / "B5.tif").unlink()


def remove_all(folder: Path) -> None:
    for file in folder.glob("B*.tif"):
        file.unlink()


def cut_header(folder: Path) -> None:
    cut_off(folder / "B3.tif", 0.001)


def cut_pixels(folder: Path) -> None:
    cut_off(folder / "B3.tif", 0.75)  # of 264 rows; the first strip, 120 rows, is there


def no_raster(folder: Path) -> None:
    (folder / "B3.tif").write_text("<html>404 Not Found</html>")


def empty_file(folder: Path) -> None:
    (folder / "B3.tif").write_bytes(b"")


def no_crs(folder: Path) -> None:
    rewrite(folder / "B3.tif", crs=None)


def no_crs_at_all(folder: Path) -> None:
    for file in folder.glob("B*.tif"):
        rewrite(file, crs=None)


def other_crs(folder: Path) -> None:
    rewrite(folder / "B3.tif", crs="EPSG:32643")


def crs_unknown_to_epsg(folder: Path) -> None:
    for file in folder.glob("B*.tif"):
        rewrite(file, crs=CRS.from_string("+proj=aea +lat_1=12 +lat_2=47 +lon_0=75 +datum=WGS84 +units=m"))


def local_crs(folder: Path) -> None:
    for file in folder.glob("B*.tif"):
        rewrite(file, crs=CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'))


def shifted(folder: Path) -> None:
    with rasterio.open(folder / "B11.tif") as file:
        transform = file.transform @ Affine.translation(3, 0)
    rewrite(folder / "B11.tif", transform=transform)


def shifted_within_resolution(folder: Path) -> None:
    with rasterio.open(folder / "B4.tif") as file:
        transform = file.transform @ Affine.translation(0, 0.2)
    rewrite(folder / "B4.tif", transform=transform)


def clipped(folder: Path) -> None:
    rewrite(folder / "B11.tif", pixels=read(folder / "B11.tif")[:-12])


def rotated(folder: Path) -> None:
    with rasterio.open(folder / "B3.tif") as file:
        transform = file.transform @ Affine.rotation(3)
    rewrite(folder / "B3.tif", transform=transform)


def south_up(folder: Path) -> None:
    with rasterio.open(folder / "B3.tif") as file:
        transform = file.transform @ Affine.translation(0, 264) @ Affine.scale(1, -1)
    rewrite(folder / "B3.tif", transform=transform)


def three_bands(folder: Path) -> None:
    rewrite(folder / "B3.tif", pixels=np.stack([read(folder / "B3.tif")] * 3))


def resized(folder: Path, size: int) -> None:
    with rasterio.open(folder / "B11.tif") as file:
        transform = file.transform @ Affine.scale(132 / size)
    rewrite(folder / "B11.tif", pixels=np.ones((size, size), "uint16"), transform=transform)


def uneven(folder: Path) -> None:
    resized(folder, 264 * 2 // 5)  # 2.5 pixels of the finest band


def not_dividing_the_window(folder: Path) -> None:
    resized(folder, 264 // 7)  # 7 pixels, of which 120 is no multiple


def twice(folder: Path) -> None:
    shutil.copyfile(folder / "B3.tif", folder / "B03.tif")


def too_small(folder: Path) -> None:
    for file in folder.glob("B*.tif"):
        pixels = read(file)
        rewrite(file, pixels=pixels[:, : pixels.shape[1] * 108 // 264])


def virtual_raster(folder: Path) -> None:
    source = (folder / "B3.tif").rename(folder / "source.tif")
    (folder / "B3.tif").write_text(
        f'<VRTDataset rasterXSize="264" rasterYSize="264"><SRS>EPSG:4326</SRS><GeoTransform>73, 1e-4, 0, 30, 0, -1e-4'
        f'</GeoTransform><VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{source}'
        f"</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def complex_numbers(folder: Path) -> None:
    rewrite(folder / "B3.tif", pixels=read(folder / "B3.tif").astype("complex64"))


BAD = {
    remove: "no file for band B05",
    remove_all: "no file for bands B01, B02",
    cut_header: r"B3\.tif: cannot be read as a raster",
    cut_pixels: r"B3\.tif: cannot be read as a raster \(.*Y offset",
    no_raster: r"B3\.tif: cannot be read as a raster",
    empty_file: r"B3\.tif: cannot be read as a raster",
    no_crs: r"B3\.tif: no coordinate reference system",
    no_crs_at_all: r"B1\.tif: no coordinate reference system",
    other_crs: r"B3\.tif: EPSG:32643, while EPSG:4326 is that of 11 of the 12 bands",
    crs_unknown_to_epsg: r"B1\.tif: the coordinate reference system is not one of EPSG's",
    local_crs: r"B1\.tif: the coordinate reference system is not one of EPSG's",
    shifted: r"different footprints among bands: .*/B11\.tif covers .*, .*B2\.tif",
    shifted_within_resolution: r"different footprints among bands: .*/B4\.tif covers .*, .*B2\.tif",
    clipped: r"different footprints among bands: .*/B11\.tif covers .*, .*B2\.tif",
    rotated: r"B3\.tif: the grid is rotated, not north-up, or missing",
    south_up: r"B3\.tif: the grid is rotated, not north-up, or missing",
    three_bands: r"B3\.tif: 3 bands where one is expected",
    uneven: r"B11\.tif: pixels of .* m do not go evenly into windows of 120 pixels",
    not_dividing_the_window: r"B11\.tif: pixels of .* m do not go evenly into windows of 120 pixels",
    twice: r"band B03 is there twice: B03\.tif and B3\.tif",
    too_small: "smaller than one patch: 108 x 264 pixels",
    virtual_raster: r"B3\.tif: cannot be read as a raster",
    complex_numbers: r"B3\.tif: PostGIS has no pixel type for complex64",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_bad_scene(archive, small, damage):
    damage(small)
    with pytest.raises(PgearthError, match=BAD[damage]) as error:
        load(archive, small)
    assert str(small) in str(error.value)
    assert error.value.hint
    assert_nothing_loaded(archive)


def test_error_in_the_middle_is_recorded_and_repaired(archive, small, sample):
    cut_pixels(small)
    with pytest.raises(PgearthError):
        load(archive, small)
    state, message = archive.execute("select state, error from eo.load").fetchone()
    assert (state, "B3.tif" in message) == ("failed", True)
    shutil.copyfile(sample / SSL4EO_JUNE / "B3.tif", small / "B3.tif")
    assert load(archive, small) == {"patches": 4}
    assert archive.execute("select state, error from eo.load").fetchall() == [("done", None)]


@pytest.mark.parametrize("share", [0.02, 0.4, 0.8])
def test_truncated_jpeg_2000(archive, small, share):
    """GDAL's driver, reading several blocks at once, would return zeros for the missing ones without an error."""
    pixels = read(small / "B3.tif")
    path = rewrite(
        small / "B3.tif", small / "B03.jp2", pixels, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", blockxsize=64,
        blockysize=64,
    )  # fmt: skip
    (small / "B3.tif").unlink()
    cut_off(path, share)
    with pytest.raises(PgearthError, match=r"B03\.jp2: cannot be read as a raster"):
        load(archive, small)
    assert_nothing_loaded(archive)


def test_missing_bands_are_all_named_and_the_hint_works(archive, small):
    for band in ("B1", "B9"):
        (small / f"{band}.tif").unlink()
    with pytest.raises(PgearthError, match="no file for bands B01, B09") as error:
        load(archive, small)
    bands = re.search(r"--bands (\S+)", error.value.hint)[1]
    assert load(archive, small, bands=bands.split(",")) == {"patches": 4}


def test_unknown_scene_class(archive, cog):
    classes = read(cog / "SCL.tif")
    classes[500, 500] = 12
    rewrite(cog / "SCL.tif", pixels=classes)
    with pytest.raises(PgearthError, match=r"SCL\.tif: unknown scene class 12"):
        load(archive, cog)
    assert_nothing_loaded(archive)


@pytest.mark.parametrize(("shift", "fits"), [(0.49, True), (0.51, False)])
def test_shift_between_resolutions(archive, small, shift, fits):
    """SSL4EO-S12 snaps each resolution to its own grid: the 60 m bands lie 0.42 of their pixels west of the 10 m."""
    with rasterio.open(small / "B2.tif") as fine, rasterio.open(small / "B1.tif") as coarse:
        delivered = (fine.transform.c - coarse.transform.c) / coarse.transform.a
        transform = coarse.transform @ Affine.translation(delivered - shift, 0)
    assert delivered == pytest.approx(0.4167, abs=1e-4)
    for band in ("B1", "B9"):
        rewrite(small / f"{band}.tif", transform=transform)
    if fits:
        assert load(archive, small) == {"patches": 4}
    else:
        with pytest.raises(PgearthError, match=r"different footprints among bands: .*B1\.tif covers"):
            load(archive, small)
        assert_nothing_loaded(archive)


# ---- interruption ----

KILLED = """
import os, signal, sys
from pathlib import Path
import psycopg
from pgearth.loaders.products import patches
from pgearth.loaders.products import load as product
from pgearth.loaders.products.load import Options, load_product

write, calls = patches.to_wkb, 0

def killed_at(raster):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(raster)

patches.to_wkb = killed_at
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    load_product(connection, Path(sys.argv[2]), Options(grid="fixed:120"))
"""


def test_killed_inside_the_transaction(archive, loaded, sample):
    """81 patches with three rasters each: killed before anything is sent, and after a batch of 64 patches is."""
    others = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'"
    )
    for call in (1, 230):
        process = subprocess.run(
            [sys.executable, "-c", KILLED, archive.info.dsn, str(sample / COG), str(call)],
            capture_output=True,
            cwd=Path(patches.__file__).parent.parent,
            timeout=PATIENCE,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
        wait_for(lambda: archive.execute(others).fetchone() == (0,))  # the server has noticed
        assert archive.execute("select state from eo.load").fetchall() == [("running",)]
        assert archive.execute("select count(*) from eo.product").fetchone() == (0,)
        assert snapshot(archive, SCENES[COG][0]) == []
    assert load(archive, sample / COG) == {"patches": 81}
    rows = snapshot(archive, SCENES[COG][0])
    assert len(rows) == 243
    assert rows == snapshot(loaded[0], SCENES[COG][0])
    assert archive.execute("select state, rows from eo.load").fetchall() == [("done", 81)]
