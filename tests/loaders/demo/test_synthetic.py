"""The synthetic archive: deterministic, without seams, its pixels true to its land cover, restartable."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pyogrio
import pyproj
import pytest
import shapely
from click.testing import Result
from scipy.spatial import cKDTree

import pgearth.loaders.demo.synthetic.archive
from pgearth.loaders.archive.write import Patch
from pgearth.loaders.demo.synthetic.archive import load_synthetic, synthetic_patches
from pgearth.loaders.demo.synthetic.blocks import PATCHES_PER_BLOCK, TILES, nth_block
from pgearth.loaders.demo.synthetic.land_cover import (
    SHEET,
    SITE_SPACING,
    class_codes,
    land_cover,
    site_classes,
    site_places,
)
from pgearth.loaders.demo.synthetic.pixels import CROPS, PIXEL, block_pixels, ground
from pgearth.loaders.reference.corine import store_polygons
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import bands_from_wkb
from tests.waiting import wait_for

DATA = Path(pgearth.loaders.demo.synthetic.__file__).parents[2] / "reference" / "data"
PATCHES = PATCHES_PER_BLOCK + 31  # a summer, and a beginning of autumn in the same place


def pixels_of(patch: Patch) -> dict[str, np.ndarray]:
    return {
        name: band.astype(float)
        for raster in patch.rasters
        for name, band in bands_from_wkb(raster.wkb, raster.bands).items()
    }


def autocorrelation(image: np.ndarray) -> float:
    """Lag-1 spatial autocorrelation, mean of both directions."""
    deviation = image - image.mean()
    products = (deviation[1:] * deviation[:-1]).mean(), (deviation[:, 1:] * deviation[:, :-1]).mean()
    return float(np.mean(products) / (deviation**2).mean())


def snapshot(connection: psycopg.Connection) -> dict[str, list[tuple]]:
    """Everything stored but keys and times of loading."""
    queries = {
        "products": "select name, platform, level, sensing_time, mgrs_tile, metadata, ST_AsBinary(footprint)"
        " from eo.product order by name",
        "patches": "select p.name, source, product.name, cell, p.platform, p.sensing_time, srid, west, south, east,"
        " north, tile_column, tile_row, split, seasonal_snow, cloud_or_shadow"
        " from eo.patch p join eo.product using (product_id) order by p.name",
        "pixels": "select name, resolution, bands, md5(ST_AsWKB(rast)) from eo.patch_raster"
        " join eo.patch using (patch_id, cell) order by name, resolution",
        "land cover": "select source, label_id, md5(ST_AsEWKB(geom)) from eo.corine order by 1, 2, 3",
        "pieces": "select srid, label_id, md5(ST_AsEWKB(geom)) from eo_internal.corine_part order by 1, 2, 3",
    }
    return {name: connection.execute(query).fetchall() for name, query in queries.items()}


@pytest.fixture(scope="module")
def made(module_archive: psycopg.Connection) -> psycopg.Connection:
    """The synthetic archive, made in one go and annotated."""
    counts = load_synthetic(module_archive, PATCHES)
    assert (counts["patches"], counts["patches stored before"]) == (PATCHES, 0)
    assert counts["polygons"] > counts["pieces"] > 100
    module_archive.execute("call eo.annotate()")
    return module_archive


# The landscape


def test_tables_list_the_same_level_3_classes() -> None:
    with (DATA / "synthetic_spectra.csv").open() as file:
        spectra = [(row["code"], row["state"]) for row in csv.DictReader(file)]
    with (DATA / "labels.csv").open() as file:
        known = {row["code"] for row in csv.DictReader(file) if (row["scheme"], row["level"]) == ("clc", "3")}
    assert spectra == [(code, state) for code in class_codes() for state in ("dormant", "growing")]
    assert known.issuperset(class_codes())


def test_land_cover_is_that_of_the_nearest_site() -> None:
    """Voronoi cells by definition, around the corner of four sheets; they cover it once and only once."""
    corner_column, corner_row = 43 * SHEET, 347 * SHEET
    x, y = corner_column * SITE_SPACING, corner_row * SITE_SPACING
    box = shapely.box(x - 3000, y - 3000, x + 3000, y + 3000)
    cover = land_cover(0, *box.bounds)
    columns = range(corner_column - 12, corner_column + 12)
    rows = range(corner_row - 12, corner_row + 12)
    sites, classes = site_places(0, columns, rows).reshape(-1, 2), site_classes(0, columns, rows).ravel()
    points = np.random.default_rng(1).uniform(box.bounds[:2], box.bounds[2:], (20_000, 2))
    _, nearest = cKDTree(sites).query(points)
    point, polygon = shapely.STRtree(cover.polygons).query(shapely.points(points), predicate="within")
    assert point.tolist() == list(range(len(points)))
    assert cover.classes[polygon].tolist() == classes[nearest].tolist()
    assert len(np.unique(classes[nearest])) > 5
    clipped = shapely.area(shapely.intersection(cover.polygons, box))
    assert clipped.sum() == pytest.approx(box.area, rel=1e-12)


@pytest.mark.parametrize("row", [345, 346])
def test_land_cover_leaves_no_gap_along_the_edge_of_a_sheet(row: int) -> None:
    side = SHEET * SITE_SPACING
    sheet = shapely.box(43 * side, row * side, 44 * side, (row + 1) * side)
    clipped = shapely.area(shapely.intersection(land_cover(0, *sheet.bounds).polygons, sheet))
    assert clipped.sum() == pytest.approx(sheet.area, rel=1e-12)


def test_tiles_show_the_same_where_they_overlap() -> None:
    """But for the sensor's noise, of 1 digital number: every other part of the pixels is a function of place."""
    east, west = nth_block(0), nth_block(4 * (49 + 6))
    assert (east.tile, west.tile, east.sensing_time) == ("32UPV", "32UNV", west.sensing_time)
    assert east.bounds[3] == west.bounds[3]
    overlap = west.bounds[2] - east.bounds[0]
    assert overlap == 9180
    west_images = block_pixels(0, west)
    for resolution, pixels in block_pixels(0, east).items():
        columns = round(overlap / resolution)
        difference = pixels[:, :, :columns].astype(int) - west_images[resolution][:, :, -columns:]
        assert 1 < difference.std() < 1.6
        assert np.abs(difference).max() < 12


def test_no_seam_between_neighbouring_blocks() -> None:
    """The step of the pixels from block to block is one of the steps inside the blocks."""
    here, east, south = nth_block(0), nth_block(4), nth_block(4 * 7)
    assert here.product == east.product == south.product
    images = block_pixels(0, here)
    for neighbour, axis in ((east, 2), (south, 1)):
        for resolution, beyond in block_pixels(0, neighbour).items():
            both = np.concatenate([images[resolution], beyond], axis)
            steps = np.abs(np.diff(both.astype(float), axis=axis)).mean(axis=(0, 3 - axis))
            seam = beyond.shape[axis] - 1
            assert steps[seam] < np.percentile(np.delete(steps, seam), 99.9)


def test_ten_million_patches_are_all_different_and_in_germany(sample: Path) -> None:
    blocks = [nth_block(number) for number in range(10_300_000 // PATCHES_PER_BLOCK + 1)]
    assert len({(block.product, block.column, block.row) for block in blocks}) == len(blocks)
    assert max(block.sensing_time for block in blocks).year < 2021
    seasons = {(block.sensing_time.month % 12) // 3 for block in blocks[:4]}
    assert seasons == {0, 1, 2, 3}
    _, _, wkb, (level, country) = pyogrio.raw.read(
        sample / "nuts/NUTS_RG_10M_2021_4326.geojson", columns=["LEVL_CODE", "CNTR_CODE"]
    )
    germany = shapely.from_wkb(wkb[(level == 0) & (country == "DE")])[0]
    to_utm = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform
    germany = shapely.transform(germany, to_utm, interleaved=False)
    places = {block.bounds for block in blocks}
    assert len(places) == len(TILES) * 49
    assert all(germany.contains(shapely.box(*bounds)) for bounds in places)


# Pixels


def test_same_bytes_whatever_the_batches_and_the_process() -> None:
    once = list(synthetic_patches(3, range(150, 190)))  # of two blocks
    program = (
        "from hashlib import sha256; from pgearth.loaders.demo.synthetic.archive import synthetic_patches;"
        "batches = [list(synthetic_patches(3, numbers)) for numbers in (range(150, 153), range(153, 190))];"
        "print(sha256(repr(batches[0] + batches[1]).encode()).hexdigest())"
    )
    batches = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert batches.stdout.strip() == hashlib.sha256(repr(once).encode()).hexdigest()


def test_another_seed_makes_another_landscape() -> None:
    patch, other = next(synthetic_patches(0, range(1))), next(synthetic_patches(1, range(1)))
    assert [getattr(patch, name) == getattr(other, name) for name in ("name", "rasters")] == [True, False]
    bands, other_bands = pixels_of(patch), pixels_of(other)
    assert all((bands[name] != other_bands[name]).mean() > 0.9 for name in bands)


def test_pixels_are_correlated_in_space_as_in_real_patches() -> None:
    """In every patch and 10 m band, in four tiles and seasons; and no pixel is the nodata value."""
    found = []
    for block in (0, 197, 394, 591):
        for patch in synthetic_patches(0, range(block * PATCHES_PER_BLOCK, block * PATCHES_PER_BLOCK + 60)):
            bands = pixels_of(patch)
            assert [bands[name].shape for name in ("B02", "B8A", "B09")] == [(120, 120), (60, 60), (20, 20)]
            assert len(bands) == 12
            assert all(band.min() >= 1 and band.max() < 10_000 for band in bands.values())
            found += [autocorrelation(bands[name]) for name in ("B02", "B03", "B04", "B08")]
    assert min(found) > 0.7 and max(found) < 0.99
    assert 0.85 < np.median(found) < 0.97


def test_vegetation_index_by_class_and_season() -> None:
    ndvi: dict[str, dict[str, float]] = {}
    for name, number in (("summer", 0), ("winter", 2)):
        block = nth_block(number)
        _, _, red, infrared = block_pixels(0, block)[10].astype(float)
        index = (infrared - red) / (infrared + red)
        codes = np.array(class_codes())[ground(0, *block.bounds).cover // CROPS]
        ndvi[name] = {code: index[codes == code].mean() for code in np.unique(codes)}
    summer, winter = ndvi["summer"], ndvi["winter"]
    assert min(summer[forest] for forest in ("311", "312", "313")) > 0.7
    assert 0.1 < summer["111"] < summer["112"] < 0.5
    assert summer["512"] < 0
    assert winter["311"] < summer["311"] - 0.3
    assert winter["312"] > summer["312"] - 0.1
    assert winter["211"] < summer["211"] - 0.2


# The archive


def test_counts_and_ledger(made: psycopg.Connection) -> None:
    assert made.execute("select count(*) from eo.patch where source = 'synthetic'").fetchone() == (PATCHES,)
    rasters = made.execute("select resolution, count(*) from eo.patch_raster group by 1 order by 1").fetchall()
    assert rasters == [(10, PATCHES), (20, PATCHES), (60, PATCHES)]
    products = made.execute(
        "select product.name, count(*), bool_and(ST_Covers(ST_Buffer(product.footprint::geography, 5)::geometry,"
        " p.footprint)) from eo.product join eo.patch p using (product_id) group by 1 order by 1"
    ).fetchall()
    assert products == [
        ("SYNTHETIC_32UPV_20180716", PATCHES_PER_BLOCK, True),
        ("SYNTHETIC_32UPV_20181016", 31, True),
    ]
    loads = made.execute("select source, rows from eo.load where source like '%%patches%%' order by load_id").fetchall()
    assert loads == [("seed 0, patches 0 to 168", 169), ("seed 0, patches 169 to 199", 31)]
    assert made.execute("select distinct state from eo.load").fetchall() == [("done",)]


def test_annotation_equals_the_share_of_pixels(made: psycopg.Connection) -> None:
    """Polygons annotated by PostGIS, after the way to EPSG:3035 and back, against pixels counted."""
    rows = made.execute(
        "select west, north, label_ids, label_fraction from eo.patch"
        " where product_id = (select min(product_id) from eo.product)"
    ).fetchall()
    assert len(rows) == PATCHES_PER_BLOCK
    west, _, _, north = nth_block(0).bounds
    classes = np.array(class_codes()).astype(int)[ground(0, *nth_block(0).bounds).cover // CROPS]
    for patch_west, patch_north, label_ids, label_fraction in rows:
        row, column = round((north - patch_north) / PIXEL), round((patch_west - west) / PIXEL)
        counted = Counter(classes[row : row + 120, column : column + 120].ravel().tolist())
        annotated = dict(zip(label_ids, label_fraction, strict=True))
        assert sum(annotated.values()) == pytest.approx(1, abs=1e-5)
        for label_id in counted.keys() | annotated.keys():
            assert counted[label_id] / 120**2 == pytest.approx(annotated.get(label_id, 0), abs=0.005)


def test_labels_explain_the_pixels(made: psycopg.Connection) -> None:
    """What is stored, end to end: reflectances of patches are those of their classes, mixed by the annotated shares."""
    rows = made.execute(
        "select label_ids, label_fraction, bands, ST_AsWKB(rast) from eo.patch"
        " join eo.patch_raster using (patch_id, cell)"
        " where product_id = (select min(product_id) from eo.product) and resolution = 10"
    ).fetchall()
    codes = [int(code) for code in class_codes()]
    shares = np.zeros((len(rows), len(codes)))
    near_infrared = np.zeros(len(rows))
    for number, (label_ids, label_fraction, bands, wkb) in enumerate(rows):
        shares[number, [codes.index(label_id) for label_id in label_ids]] = label_fraction
        near_infrared[number] = bands_from_wkb(wkb, bands)["B08"].mean()
    spectrum, *_ = np.linalg.lstsq(shares, near_infrared, rcond=None)
    unexplained = near_infrared - shares @ spectrum
    assert (unexplained**2).mean() < 0.05 * near_infrared.var()
    by_code = dict(zip(codes, spectrum, strict=True))
    assert by_code[311] > by_code[312] > 1000 > by_code[512]


def test_a_second_run_changes_nothing(made: psycopg.Connection, run_pgearth: Callable[..., Result]) -> None:
    before = snapshot(made)
    result = run_pgearth(made, "synthetic", "--patches", str(PATCHES))
    assert result.exit_code == 0, result.output
    assert f"0 patches stored, {PATCHES} stored before; 0 land-cover polygons stored; 0 pieces" in result.output
    assert snapshot(made) == before


def test_grows_to_the_same_archive(
    archive: psycopg.Connection, made: psycopg.Connection, run_pgearth: Callable[..., Result]
) -> None:
    """A few patches, all of them without pixels in batches of another size, then all with pixels."""
    result = run_pgearth(archive, "synthetic", "--patches", "20")
    assert "seed 0: 20 patches stored, 0 stored before" in result.output
    assert archive.execute("select count(*) from eo.patch").fetchone() == (20,)
    result = run_pgearth(archive, "synthetic", "--patches", str(PATCHES), "--without-pixels")
    assert f"{PATCHES - 20} patches stored, 20 stored before" in result.output
    assert archive.execute("select count(*) from eo.patch_raster").fetchone() == (60,)
    counts = load_synthetic(archive, PATCHES)
    assert (counts["patches"], counts["patches stored before"], counts["polygons"]) == (0, PATCHES, 0)
    assert snapshot(archive) == snapshot(made)


def test_without_pixels_beyond_one_batch(archive: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgearth.loaders.demo.synthetic.archive, "PATCHES_PER_TILE", 300)
    monkeypatch.setattr(pgearth.loaders.demo.synthetic.archive, "block_pixels", None)
    assert load_synthetic(archive, 1001, seed=5, pixels=False)["patches"] == 1001
    archive.execute("call eo.annotate()")
    covered = "select count(*), min(share)::float, max(share)::float from eo.patch,"
    covered += " lateral (select sum(s) from unnest(label_fraction) s) total (share)"
    assert archive.execute(covered).fetchone() == (1001, pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert archive.execute("select distinct season::text from eo.patch order by 1").fetchall() == [
        ("autumn",),
        ("spring",),
        ("summer",),
        ("winter",),
    ]


# What cannot be made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--patches", "0"), "0 patches cannot be made\nHint: Ask for at least 1."),
        (("--patches", "-3"), "-3 patches cannot be made"),
        (("--patches", "1", "--seed", "-1"), "-1 is no seed"),
        (("--patches", "many"), "'many' is not a valid integer"),
        ((), "Missing option '--patches'"),
    ],
)
def test_impossible_numbers(
    made: psycopg.Connection, run_pgearth: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    result = run_pgearth(made, "synthetic", *arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert made.execute("select count(*) from eo.patch").fetchone() == (PATCHES,)


def test_another_landscape_in_the_same_place(made: psycopg.Connection) -> None:
    with pytest.raises(
        PgearthError, match=r"has land cover of synthetic, seed 0 in the same place\nHint: .*PGEARTH_DSN"
    ):
        load_synthetic(made, 1, seed=1)
    assert made.execute("select count(*) from eo.patch").fetchone() == (PATCHES,)
    made.execute("delete from eo.load where state = 'failed'")


def test_real_land_cover_in_the_same_place(archive: psycopg.Connection) -> None:
    to_laea = pyproj.Transformer.from_crs(32632, 3035, always_xy=True).transform
    west, south, _, _ = nth_block(0).bounds
    square = shapely.transform(shapely.box(west, south, west + 100, south + 100), to_laea, interleaved=False)
    ewkb = shapely.to_wkb(shapely.set_srid(shapely.multipolygons([square]), 3035), include_srid=True)
    store_polygons(archive, "clc2018.gpkg:clc", [(311, ewkb)])
    with pytest.raises(PgearthError, match=r"land cover of clc2018\.gpkg:clc in the same place"):
        load_synthetic(archive, 1)
    assert archive.execute("select count(*) from eo.patch").fetchone() == (0,)


def test_nomenclature_not_loaded(archive: psycopg.Connection) -> None:
    archive.execute("delete from eo.label")
    with pytest.raises(PgearthError, match="pgearth load nomenclature"):
        load_synthetic(archive, 1)
    assert archive.execute("select count(*) from eo.load").fetchone() == (0,)


# Being killed


WAITS = """
import sys, time
import pgearth.loaders.demo.synthetic.archive as synthetic
from pgearth.loaders.server.connection import connect
make = getattr(synthetic, sys.argv[1])
calls = 0
def make_and_wait(*arguments):
    global calls
    calls += 1
    result = make(*arguments)
    if calls < int(sys.argv[2]):
        return result
    print("there", flush=True)
    time.sleep(600)
setattr(synthetic, sys.argv[1], make_and_wait)
synthetic.load_synthetic(connect(autocommit=True), int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("function", "call", "patches_left", "running"),
    [
        pytest.param("store_polygons", 2, 0, 1, id="inside land cover"),
        pytest.param("load_item", 6, PATCHES_PER_BLOCK, 0, id="between the batches"),
        pytest.param("patch_pixels", 3 * (PATCHES_PER_BLOCK + 10), PATCHES_PER_BLOCK, 1, id="inside the second batch"),
    ],
)
def test_killed(
    archive: psycopg.Connection,
    made: psycopg.Connection,
    function: str,
    call: int,
    patches_left: int,
    running: int,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, function, str(call), str(PATCHES)],
        env={**os.environ, "PGEARTH_DSN": archive.info.dsn},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    alone = "select count(*) = 1 from pg_stat_activity where datname = current_database()"
    wait_for(lambda: archive.execute(alone).fetchone() == (True,))
    assert archive.execute("select count(*) from eo.patch").fetchone() == (patches_left,)
    assert archive.execute("select count(*) from eo.load where state = 'running'").fetchone() == (running,)
    assert load_synthetic(archive, PATCHES)["patches"] == PATCHES - patches_left
    assert snapshot(archive) == snapshot(made)
