"""CORINE polygons: real files against oracles outside the loader, and everything that can be wrong with a file."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pyogrio
import pyproj
import pytest
import shapely
from shapely.geometry import LineString, MultiPolygon, Point, box

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.reference import polygons as vectors
from pgearth.loaders.reference.corine import CLASS_CODE, load_corine
from pgearth.loaders.reference.polygons import find_polygon_layer
from pgearth.pyfuncs.errors import PgearthError
from tests.waiting import wait_for

LANJARON = Path("corine/clc2018_lanjaron_es.gpkg")
MUENSTER = Path("corine/clc5_2018_muenster_de.gpkg")
CONTENTS = """
select (select count(*) from eo.corine), (select count(*) from eo_internal.corine_part),
       (select count(*) from eo.load where state <> 'failed')
"""
BOW_TIE = shapely.Polygon([(4000000, 3000000), (4000100, 3000100), (4000100, 3000000), (4000000, 3000100)])


def write_layer(path: Path, geometries: list, codes: list | np.ndarray, **options) -> Path:
    """Write polygons with their class codes in a field `Code_18`, in EPSG:3035."""
    pyogrio.raw.write(
        path,
        **{
            "geometry": np.array(shapely.to_wkb(geometries), dtype=object),
            "field_data": [codes if isinstance(codes, np.ndarray) else np.array(codes, dtype=object)],
            "fields": ["Code_18"],
            "geometry_type": "Unknown",
            "crs": "EPSG:3035",
            **options,
        },
    )
    return path


def squares(count: int) -> list[shapely.Polygon]:
    return [box(4000000 + 100 * i, 3000000, 4000100 + 100 * i, 3000100) for i in range(count)]


def snapshot(connection: psycopg.Connection) -> list[tuple]:
    return connection.execute(
        "select source, label_id, md5(ST_AsEWKB(geom)) from eo.corine order by 1, 2, 3"
    ).fetchall()


def stored_geometries(connection: psycopg.Connection, source: str) -> np.ndarray:
    """In the order of the file."""
    rows = connection.execute(
        "select ST_AsBinary(geom) from eo.corine where source = %s order by corine_id", (source,)
    ).fetchall()
    return shapely.from_wkb([wkb for (wkb,) in rows])


def pieces(connection: psycopg.Connection) -> list[tuple]:
    return connection.execute(
        "select srid, label_id, md5(ST_AsEWKB(geom)) from eo_internal.corine_part order by 1, 2, 3"
    ).fetchall()


def assert_nothing_loaded(connection: psycopg.Connection) -> None:
    assert connection.execute("select count(*) from eo.corine").fetchone() == (0,)
    assert connection.execute("select count(*) from eo.load where state <> 'failed'").fetchone() == (0,)


def native(path: Path, layer: str, field: str) -> tuple[np.ndarray, np.ndarray, str]:
    meta, _, wkb, (codes,) = pyogrio.raw.read(path, layer=layer, columns=[field])
    return shapely.from_wkb(wkb), codes, meta["crs"]


@pytest.fixture(scope="module")
def loaded(module_archive, sample):
    """The archive with both real files, and what the loads returned."""
    return (
        module_archive,
        load_corine(module_archive, sample / LANJARON),
        load_corine(module_archive, sample / MUENSTER),
    )


@pytest.fixture
def untouched(loaded):
    """The archive, for a test that must leave it as it is."""
    archive = loaded[0]
    before = archive.execute(CONTENTS).fetchone()
    yield archive
    assert archive.execute(CONTENTS).fetchone() == before


def test_real_files_counts(loaded, sample):
    archive, lanjaron, muenster = loaded
    assert lanjaron == Counter(polygons=136)
    assert muenster == Counter(polygons=1158)
    for path, layer, field in [(LANJARON, "clc", "CODE_18"), (MUENSTER, "clc5_2018_muenster", "CLC18")]:
        _, codes, _ = native(sample / path, layer, field)
        rows = archive.execute(
            "select label.code, count(*) from eo.corine join eo.label using (label_id) where source = %s group by 1",
            (f"{path.name}:{layer}",),
        ).fetchall()
        assert dict(rows) == Counter(codes)
    assert archive.execute("select bool_and(ST_IsValid(geom)) from eo.corine").fetchone() == (True,)


@pytest.mark.parametrize(
    ("path", "layer", "field"), [(LANJARON, "clc", "CODE_18"), (MUENSTER, "clc5_2018_muenster", "CLC18")]
)
def test_real_files_geometry_equals_that_of_postgis(loaded, sample, path, layer, field):
    """Same polygons, vertex by vertex, as PostGIS's own reprojection of the file's geometry."""
    geometries, _, crs = native(sample / path, layer, field)
    stored = stored_geometries(loaded[0], f"{path.name}:{layer}")
    rows = (
        loaded[0]
        .execute(
            "select ST_AsBinary(ST_Transform(ST_GeomFromWKB(wkb, %s), 3035))"
            " from unnest(%s::bytea[]) with ordinality as file (wkb, row) order by row",
            (pyproj.CRS(crs).to_epsg(), shapely.to_wkb(geometries).tolist()),
        )
        .fetchall()
    )
    oracle = shapely.from_wkb([wkb for (wkb,) in rows])
    assert shapely.get_num_coordinates(stored).tolist() == shapely.get_num_coordinates(oracle).tolist()
    assert np.abs(shapely.get_coordinates(stored) - shapely.get_coordinates(oracle)).max() < 1e-6  # metres


@pytest.mark.parametrize(
    ("path", "layer", "field"), [(LANJARON, "clc", "CODE_18"), (MUENSTER, "clc5_2018_muenster", "CLC18")]
)
def test_real_files_area_is_that_on_the_ellipsoid(loaded, sample, path, layer, field):
    """EPSG:3035 is of equal area: the area per class is the geodesic one of the file's polygons."""
    geometries, codes, crs = native(sample / path, layer, field)
    to_degrees = pyproj.Transformer.from_crs(crs, 4258, always_xy=True).transform
    geodesic: Counter[str] = Counter()
    for geometry, code in zip(shapely.transform(geometries, to_degrees, interleaved=False), codes, strict=True):
        area, _ = pyproj.Geod(ellps="GRS80").geometry_area_perimeter(shapely.orient_polygons(geometry))
        geodesic[code] += area
    stored = dict(
        loaded[0].execute(
            "select code, sum(ST_Area(geom)) from eo.corine join eo.label using (label_id)"
            " where source = %s group by 1",
            (f"{path.name}:{layer}",),
        )
    )
    # To 1e-5: an edge is a straight line here and a geodesic there.
    assert stored == pytest.approx(geodesic, rel=1e-5)


def test_duplicate_is_skipped_and_counted(loaded, sample, run_pgearth):
    archive = loaded[0]
    before = snapshot(archive)
    result = run_pgearth(archive, "load", "corine", sample / LANJARON)
    assert result.exit_code == 0
    assert "0 polygons loaded" in result.output
    assert "1 layers skipped as loaded before" in result.output
    assert snapshot(archive) == before


def test_read_in_chunks(archive, sample, loaded, monkeypatch):
    monkeypatch.setattr(vectors, "FEATURES_AT_ONCE", 100)
    load_corine(archive, sample / MUENSTER)
    assert snapshot(archive) == [row for row in snapshot(loaded[0]) if row[0].startswith(MUENSTER.name)]


def test_any_reference_system(archive, sample, tmp_path):
    """One with a definition but no EPSG code: PostGIS alone could not reproject it."""
    geometries, codes, crs = native(sample / LANJARON, "clc", "CODE_18")
    definition = "+proj=laea +lat_0=37 +lon_0=-3.5 +ellps=GRS80 +units=m"
    there = pyproj.Transformer.from_crs(crs, definition, always_xy=True).transform
    path = write_layer(
        tmp_path / "own.gpkg", list(shapely.transform(geometries, there, interleaved=False)), codes, crs=definition
    )
    load_corine(archive, path)
    own = stored_geometries(archive, "own.gpkg:own")
    load_corine(archive, sample / LANJARON, replace=True)
    official = stored_geometries(archive, f"{LANJARON.name}:clc")
    assert shapely.get_num_coordinates(own).tolist() == shapely.get_num_coordinates(official).tolist()
    assert np.abs(shapely.get_coordinates(own) - shapely.get_coordinates(official)).max() < 0.001  # metres


def test_geometries_are_repaired_or_dropped_and_counted(archive, tmp_path):
    overlapping = MultiPolygon([box(4000000, 3000000, 4000100, 3000100), box(4000050, 3000050, 4000150, 3000150)])
    flat = shapely.Polygon([(4000000, 3000000), (4000100, 3000000), (4000200, 3000000)])
    path = write_layer(
        tmp_path / "invalid.gpkg",
        [BOW_TIE, overlapping, flat, None, shapely.Polygon(), *squares(1)],
        ["111", "112", "121", "122", "123", "124"],
    )
    counts = load_corine(archive, path)
    assert counts == Counter(polygons=3, repaired=3, dropped=3)
    rows = archive.execute(
        "select label_id, ST_Area(geom), ST_IsValid(geom), ST_AsBinary(geom) from eo.corine order by 1"
    ).fetchall()
    assert [(label_id, area, valid) for label_id, area, valid, _ in rows] == [
        (111, 5000, True),
        (112, 17500, True),
        (124, 10000, True),
    ]
    assert archive.execute(
        "select ST_Equals(ST_MakeValid(ST_GeomFromWKB(%s)), ST_GeomFromWKB(%s))", (BOW_TIE.wkb, rows[0][3])
    ).fetchone() == (True,)
    assert archive.execute("select rows, details from eo.load").fetchone() == (3, {"repaired": 3, "dropped": 3})


def test_unclosed_rings_are_closed(archive, tmp_path):
    path = tmp_path / "unclosed.geojson"
    ring = [[7.0, 51.0], [7.1, 51.0], [7.1, 51.1], [7.0, 51.1]]
    feature = {
        "type": "Feature",
        "properties": {"Code_18": "311"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.warns(RuntimeWarning, match="Non closed ring"):
        assert load_corine(archive, path) == Counter(polygons=1, repaired=1)


def test_third_dimension_and_curves(archive, tmp_path):
    triangle = shapely.Polygon([(4000000, 3000000, 5), (4000100, 3000000, 5), (4000100, 3000100, 5)])
    path = write_layer(
        tmp_path / "curve.gpkg", [box(4000000, 3000000, 4001000, 3001000), triangle], ["311", "312"], SPATIAL_INDEX="NO"
    )
    circle = [(4000000.0, 3000000.0), (4001000.0, 3000000.0), (4000000.0, 3000000.0)]
    string = struct.pack("<BII6d", 1, 8, 3, *itertools.chain(*circle))
    curve = struct.pack("<BII", 1, 10, 1) + string  # CURVEPOLYGON(CIRCULARSTRING(...)), which shapely does not know
    with sqlite3.connect(path) as file:
        file.execute("update curve set geom = ? where fid = 1", (b"GP\0\1" + struct.pack("<i", 3035) + curve,))
    assert load_corine(archive, path) == Counter(polygons=2)
    rows = archive.execute("select ST_Area(geom), ST_NDims(geom) from eo.corine order by label_id").fetchall()
    assert rows[0][0] == pytest.approx(np.pi * 500**2, rel=0.002)
    assert rows[1] == (5000, 2)
    assert rows[0][1] == 2


@pytest.mark.parametrize("codes", [np.array([111, 523, 999]), np.array([111.0, 523.0, 999.0]), ["111", " 523", "999"]])
def test_types_of_codes(archive, tmp_path, codes):
    path = write_layer(tmp_path / "codes.gpkg", squares(3), codes)
    assert load_corine(archive, path) == Counter(polygons=2, unlabelled=1)
    assert archive.execute("select label_id from eo.corine order by 1").fetchall() == [(111,), (523,)]


@pytest.mark.parametrize(
    "field", ["Code_18", "CODE_18", "code_18", "CLC18", "CODE_12", "code_90", "clc_code", "CLC2018"]
)
def test_field_names_of_the_packages(tmp_path, field):
    path = write_layer(tmp_path / "names.gpkg", squares(1), ["111"], fields=[field])
    assert find_polygon_layer(path, [CLASS_CODE]).fields == (field,)


@pytest.mark.parametrize(("code", "shown"), [("600", "600"), ("31", "31"), (None, "null"), ("forest", "forest")])
def test_unknown_class_names_row_and_code(untouched, tmp_path, code, shown):
    path = write_layer(tmp_path / "unknown.gpkg", squares(3), ["111", "112", code])
    with pytest.raises(
        PgearthError, match=rf"unknown.gpkg: layer unknown, feature 3: {shown} in field Code_18 is no class"
    ):
        load_corine(untouched, path)
    assert untouched.execute("select count(*) from eo.load where error like '%%feature 3%%'").fetchone() == (1,)


def test_loads_after_the_file_was_mended(archive, tmp_path):
    path = write_layer(tmp_path / "mended.gpkg", squares(2), ["111", "600"])
    with pytest.raises(PgearthError):
        load_corine(archive, path)
    path.unlink()
    write_layer(path, squares(2), ["111", "112"])
    assert load_corine(archive, path) == Counter(polygons=2)


def test_several_layers(archive, tmp_path):
    path = write_layer(tmp_path / "two.gpkg", squares(1), ["111"], layer="europe")
    write_layer(path, squares(3)[1:], ["112", "112"], layer="guiana", append=True)
    with pytest.raises(PgearthError, match=r"several layers could be meant: europe, guiana\n.*--layer"):
        load_corine(archive, path)
    assert_nothing_loaded(archive)
    assert load_corine(archive, path, layer="guiana") == Counter(polygons=2)
    assert load_corine(archive, path, layer="europe") == Counter(polygons=1)
    with pytest.raises(PgearthError, match=r"there is no layer asia\n.*europe, guiana"):
        load_corine(archive, path, layer="asia")


def test_code_field(archive, tmp_path, run_pgearth):
    path = tmp_path / "change.gpkg"
    fields = [np.array(["111"], dtype=object), np.array(["112"], dtype=object)]
    write_layer(path, squares(1), [], field_data=fields, fields=["CODE_12", "CODE_18"])
    with pytest.raises(PgearthError, match=r"could be in any of the fields CODE_12, CODE_18"):
        load_corine(archive, path)
    with pytest.raises(PgearthError, match=r"such as kind\n.*CODE_12, CODE_18"):
        load_corine(archive, path, code_field="kind")
    assert_nothing_loaded(archive)
    result = run_pgearth(archive, "load", "corine", path, "--code-field", "code_12", "--layer", "change")
    assert result.exit_code == 0, result
    assert archive.execute("select label_id from eo.corine").fetchall() == [(111,)]


def test_missing_code_field_lists_fields(untouched, sample):
    with pytest.raises(
        PgearthError, match=r"no field with the CORINE class code, such as Code_18\n.*NUTS_ID, LEVL_CODE"
    ):
        load_corine(untouched, sample / "nuts/NUTS_RG_10M_2021_4326.geojson")


def test_no_polygon_layer(untouched, tmp_path):
    path = write_layer(tmp_path / "lines.gpkg", [LineString([(0, 0), (1, 1)])], ["111"], geometry_type="LineString")
    with pytest.raises(PgearthError, match=r"no layer of polygons\n.*lines \(LineString\)"):
        load_corine(untouched, path)


def test_feature_that_is_no_polygon(untouched, tmp_path):
    path = write_layer(tmp_path / "mixed.gpkg", [*squares(1), Point(4000000, 3000000)], ["111", "112"])
    with pytest.raises(PgearthError, match="feature 2: its geometry is a Point"):
        load_corine(untouched, path)


@pytest.mark.filterwarnings("ignore:.*crs:UserWarning")
def test_missing_reference_system(untouched, tmp_path):
    path = write_layer(tmp_path / "nowhere.shp", squares(1), ["111"], crs=None, geometry_type="Polygon")
    with pytest.raises(PgearthError, match=r"has no reference system\nHint: .*ogr2ogr -a_srs"):
        load_corine(untouched, path)


def test_wrong_reference_system(untouched, tmp_path):
    """Metres said to be degrees."""
    path = write_layer(tmp_path / "wrong.gpkg", squares(1), ["111"], crs="EPSG:4326")
    with pytest.raises(PgearthError, match=r"feature 1: its coordinates \(4000000.0, .*\) are not of WGS 84"):
        load_corine(untouched, path)


IN_DEGREES = {
    "beyond 180": box(179, 50, 181, 51),
    "beyond -180": box(-181, 50, -179, 51),
    "the short way": shapely.Polygon([(179, 50), (-179, 50), (-179, 51), (179, 51)]),
    "around the world": box(-180, 60, 180, 62),
    "half around it": box(-90, 60, 90, 62),
    "on the pole": shapely.Polygon([(0, 88), (90, 88), (180, 88), (-90, 88)]),
}


@pytest.mark.parametrize("together", [False, True], ids=["alone", "of several parts"])
@pytest.mark.parametrize("outline", IN_DEGREES.values(), ids=IN_DEGREES)
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4258"])
def test_outlines_across_the_antimeridian_are_refused(untouched, tmp_path, outline, crs, together):
    """In degrees, an edge would say neither which way round it goes, nor remain an area in the map of Europe."""
    if together:
        outline = shapely.MultiPolygon([box(7, 40, 8, 41), outline])
    path = write_layer(tmp_path / "far.gpkg", [box(7, 50, 8, 51), outline], ["111", "112"], crs=crs)
    with pytest.raises(PgearthError, match=r"layer far, feature 2: its outline crosses the antimeridian.*\nHint: Cut"):
        load_corine(untouched, path)


@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:32660", "EPSG:3995"])
def test_outlines_across_the_antimeridian_in_another_projection(untouched, tmp_path, crs):
    there = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform
    outline = shapely.transform(shapely.segmentize(box(179, 65, 181, 66), 0.1), there, interleaved=False)
    path = write_layer(tmp_path / "far.gpkg", [outline], ["111"], crs=crs)
    with pytest.raises(PgearthError, match="feature 1: its outline crosses the antimeridian"):
        load_corine(untouched, path)


@pytest.mark.parametrize(
    ("outline", "crs", "called"),
    [
        (box(7, 89, 8, 90.5), "EPSG:4326", "WGS 84"),
        (box(1000, 50, 1001, 51), "EPSG:4326", "WGS 84"),
        (box(4e10, 3e10, 5e10, 4e10), "EPSG:3035", "ETRS89-extended / LAEA Europe"),
        (box(-2e8, 0, -1.9e8, 1e6), "EPSG:3035", "ETRS89-extended / LAEA Europe"),
        (shapely.Polygon([(4e6, 3e6), (4.1e6, 3e6), (4.1e6, np.inf)]), "EPSG:3035", "ETRS89-extended / LAEA Europe"),
    ],
)
def test_outlines_off_the_globe_are_refused(untouched, tmp_path, outline, crs, called):
    path = write_layer(tmp_path / "far.gpkg", [outline], ["111"], crs=crs, SPATIAL_INDEX="NO")
    with pytest.raises(PgearthError, match=rf"far.gpkg: layer far, feature 1: its coordinates .* are not of {called}"):
        load_corine(untouched, path)


def test_longitudes_from_0_to_360_and_overseas(archive, tmp_path):
    """Iceland counted eastwards; Guadeloupe and Réunion; what ends at the antimeridian; a map in grads."""
    places = [box(340, 64, 341, 65), box(-61.5, 16, -61.4, 16.1), box(55.4, -21.1, 55.5, -21), box(179, 65, 180, 66)]
    load_corine(archive, write_layer(tmp_path / "overseas.gpkg", places, ["111", "112", "121", "122"], crs="EPSG:4326"))
    rows = archive.execute(
        "select ST_X(c), ST_Y(c) from (select ST_Centroid(ST_Transform(geom, 4326)) as c from eo.corine"
        " order by corine_id) c"
    ).fetchall()
    right = [(-19.5, 64.5), (-61.45, 16.05), (55.45, -21.05), (179.5, 65.5)]
    assert np.abs(np.array(rows) - right).max() < 0.01
    there = pyproj.Transformer.from_crs(4326, 4807, always_xy=True).transform
    grads = shapely.transform(box(2.2, 48.8, 2.4, 48.9), there, interleaved=False)
    assert grads.bounds[3] > 54
    load_corine(archive, write_layer(tmp_path / "paris.gpkg", [grads], ["111"], crs="EPSG:4807"))
    rows = archive.execute(
        "select ST_X(c), ST_Y(c) from (select ST_Centroid(ST_Transform(geom, 4326)) as c from eo.corine"
        " where source like 'paris%') c"
    ).fetchall()
    assert np.abs(np.array(rows) - [(2.3, 48.85)]).max() < 0.01


def test_a_feature_with_parts_overseas(archive, tmp_path):
    parts = [box(2, 48, 3, 49), box(-61.5, 16, -61.4, 16.1), box(55.4, -21.1, 55.5, -21)]
    load_corine(archive, write_layer(tmp_path / "france.gpkg", [shapely.MultiPolygon(parts)], ["111"], crs="EPSG:4326"))
    [(found,)] = archive.execute("select ST_AsBinary(ST_Transform(geom, 4326)) from eo.corine").fetchall()
    assert shapely.from_wkb(found).symmetric_difference(shapely.MultiPolygon(parts)).area < 1e-3


def test_damaged_reference_system(untouched, tmp_path):
    path = write_layer(tmp_path / "one.shp", squares(1), ["111"], geometry_type="Polygon")
    projection = bytearray(path.with_suffix(".prj").read_bytes())
    projection[10] ^= 128
    path.with_suffix(".prj").write_bytes(projection)
    with pytest.raises(PgearthError, match=r"one\.shp: its reference system cannot be read\nHint: .*ogr2ogr -a_srs"):
        load_corine(untouched, path)


def test_reference_system_without_place(untouched, tmp_path):
    local = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    path = write_layer(tmp_path / "local.gpkg", squares(1), ["111"], crs=local)
    with pytest.raises(PgearthError, match="no way from its reference system"):
        load_corine(untouched, path)


def test_not_a_vector_file(untouched, sample, tmp_path):
    (tmp_path / "text.gpkg").write_text("no GeoPackage")
    for path in (tmp_path / "text.gpkg", sample / "corine/clc2018_lanjaron_es_25m.tif", tmp_path):
        with pytest.raises(PgearthError, match="cannot be read as a vector file"):
            load_corine(untouched, path)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_truncated_file(untouched, sample, tmp_path, suffix):
    geometries, codes, _ = native(sample / LANJARON, "clc", "CODE_18")
    path = write_layer(
        tmp_path / f"cut{suffix}", list(geometries), codes, crs="EPSG:25830", geometry_type="MultiPolygon"
    )
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(PgearthError, match=f"cut{suffix}"):
        load_corine(untouched, path)


def test_nomenclature_not_loaded(archive, sample):
    archive.execute("delete from eo.label")
    with pytest.raises(PgearthError, match="pgearth load nomenclature"):
        load_corine(archive, sample / LANJARON)


# Being killed


LOADS_HALF_AND_WAITS = """
import sys, time
from pathlib import Path
from pgearth.loaders.reference import corine
from pgearth.loaders.server import connection as database
from pgearth.loaders.reference import polygons as vectors
read = vectors.PolygonLayer.read
def half(self, srid):
    for number, polygon in enumerate(read(self, srid)):
        if number == 600:
            print("half", flush=True)
            time.sleep(600)
        yield polygon
vectors.PolygonLayer.read = half
corine.load_corine(database.connect(autocommit=True), Path(sys.argv[1]))
"""

LOADS = """
import sys
from pathlib import Path
from pgearth.loaders.reference import corine
from pgearth.loaders.server import connection as database
corine.load_corine(database.connect(autocommit=True), Path(sys.argv[1]))
"""


def start(connection: psycopg.Connection, program: str, path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PGEARTH_DSN": connection.info.dsn},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until(connection: psycopg.Connection, condition: str) -> None:
    wait_for(lambda: connection.execute(f"select {condition}").fetchone() == (True,))


def patch_over_muenster(connection: psycopg.Connection) -> None:
    when = datetime(2018, 6, 1, tzinfo=UTC)
    write_products(connection, [Product("product", "sentinel-2a", "L2A", when)])
    with connection.transaction():
        write_patches(
            connection,
            "test",
            [Patch("patch", "product", "sentinel-2a", when, 32632, 404000, 5757000, 405200, 5758200)],
        )


ALONE = "not exists (select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid())"


def test_killed_inside_the_transaction(archive, sample, loaded):
    process = start(archive, LOADS_HALF_AND_WAITS, sample / MUENSTER)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    kill(process)
    wait_until(archive, ALONE)
    assert archive.execute("select count(*) from eo.corine").fetchone() == (0,)
    assert archive.execute("select state from eo.load").fetchall() == [("running",)]
    assert load_corine(archive, sample / MUENSTER) == Counter(polygons=1158)
    assert snapshot(archive) == [row for row in snapshot(loaded[0]) if row[0].startswith(MUENSTER.name)]
    assert archive.execute("select state, rows from eo.load").fetchall() == [("done", 1158)]


def test_killed_between_load_and_derivation(archive, sample, loaded):
    """The load is committed, its pieces are not: the next run derives them."""
    patch_over_muenster(archive)
    with psycopg.connect(archive.info.dsn) as lock:
        lock.execute("lock table eo.patch in access exclusive mode")
        process = start(archive, LOADS, sample / MUENSTER)
        wait_until(archive, "exists (select from eo.load where state = 'done')")
        kill(process)
        archive.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid not in (%s, %s)",
            (archive.info.backend_pid, lock.info.backend_pid),
        )
    wait_until(archive, ALONE)
    assert pieces(archive) == []
    counts = load_corine(archive, sample / MUENSTER)
    assert (counts["skipped"], counts["polygons"]) == (1, 0)
    assert counts["pieces"] == len(pieces(archive)) > 0
    clean = loaded[0]
    patch_over_muenster(clean)
    load_corine(clean, sample / MUENSTER)
    assert pieces(archive) == pieces(clean)
    assert load_corine(archive, sample / MUENSTER)["pieces"] == 0


# Editions


def land_cover(path: Path, *classes: tuple[str, shapely.Geometry], field: str = "Code_18") -> Path:
    return write_layer(path, [place for _, place in classes], [code for code, _ in classes], fields=[field])


X, Y = 4_321_000, 3_210_000


def place(west: float, east: float, north: float = 1200) -> shapely.Polygon:
    """Part of the one patch, or beyond it: metres from its south-west corner."""
    return box(X + west, Y, X + east, Y + north)


@pytest.fixture
def patched(archive: psycopg.Connection) -> psycopg.Connection:
    """One patch in EPSG:3035 itself, so that nothing is rounded."""
    when = datetime(2018, 6, 1, tzinfo=UTC)
    write_products(archive, [Product("product", "sentinel-2a", "L2A", when)])
    with archive.transaction():
        write_patches(archive, "test", [Patch("patch", "product", "sentinel-2a", when, 3035, X, Y, X + 1200, Y + 1200)])
    return archive


def annotate(connection: psycopg.Connection, anew: bool = False) -> tuple:
    connection.execute(f"call eo.annotate('{{land_cover}}', \"replace\" => {anew})".encode())
    row = connection.execute("select label_ids, label_fraction, label_edition from eo.patch").fetchone()
    assert row is not None
    return row


def edition(connection: psycopg.Connection) -> list[tuple]:
    return connection.execute("select reference, edition from eo.edition").fetchall()


@pytest.mark.parametrize(
    ("name", "field", "year"),
    [
        ("land.gpkg", "Code_18", "2018"),
        ("land.gpkg", "CODE_90", "1990"),
        ("land.gpkg", "CLC2012", "2012"),
        ("U2018_CLC2012_V2020_20u1.gpkg", "code", "2012"),
        ("clc5_2018_muenster.gpkg", "clc_code", "2018"),
        ("CLC06_BE.gpkg", "code_06", "2006"),
    ],
)
def test_the_edition_is_told_by_the_names(archive, tmp_path, name, field, year):
    load_corine(archive, land_cover(tmp_path / name, ("111", place(0, 1)), field=field))
    assert edition(archive) == [("corine", year)]


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("land.gpkg", "code", "its edition is not told by its names"),
        ("CLC2012.gpkg", "Code_18", "its edition could be that of 2012 or 2018"),
    ],
)
def test_an_edition_that_is_not_told_is_asked_for(archive, tmp_path, run_pgearth, name, field, message):
    path = land_cover(tmp_path / name, ("111", place(0, 1)), field=field)
    with pytest.raises(PgearthError, match=rf"{message}\n.*--edition"):
        load_corine(archive, path)
    with pytest.raises(PgearthError, match="18 is no edition"):
        load_corine(archive, path, edition="18")
    assert_nothing_loaded(archive)
    result = run_pgearth(archive, "load", "corine", path, "--edition", "2018")
    assert result.exit_code == 0, result
    assert edition(archive) == [("corine", "2018")]


def test_another_edition_is_refused_or_takes_the_place(patched, tmp_path, run_pgearth):
    """2012 and then 2018: fractions never sum to two, and what was annotated with 2012 is known to be."""
    old = [
        land_cover(tmp_path / "a.gpkg", ("111", place(0, 600)), field="code_12"),
        land_cover(tmp_path / "b.gpkg", ("112", place(600, 1200)), field="code_12"),
    ]
    new = land_cover(tmp_path / "c.gpkg", ("211", place(0, 1200)), field="code_18")
    for path in old:
        load_corine(patched, path)
    assert annotate(patched) == ([111, 112], [0.5, 0.5], "2012")
    before = snapshot(patched), pieces(patched)
    with pytest.raises(PgearthError, match=r"it is of CORINE Land Cover 2018, but the archive holds 2012\n.*--replace"):
        load_corine(patched, new)
    assert (snapshot(patched), pieces(patched)) == before
    result = run_pgearth(patched, "load", "corine", new, "--replace")
    assert result.exit_code == 0, result
    assert "1 patches are annotated with another edition (eo.patch.label_edition)" in result.output
    assert patched.execute("select distinct source from eo.corine").fetchall() == [("c.gpkg:c",)]
    assert edition(patched) == [("corine", "2018")]
    assert annotate(patched) == ([111, 112], [0.5, 0.5], "2012")
    assert annotate(patched, anew=True) == ([211], [1.0], "2018")
    # The ledger knows that the old files are no longer there.
    with pytest.raises(PgearthError, match="the archive holds 2018"):
        load_corine(patched, old[0])
    assert load_corine(patched, old[0], replace=True)["polygons"] == 1
    assert load_corine(patched, old[1])["polygons"] == 1
    assert annotate(patched, anew=True) == ([111, 112], [0.5, 0.5], "2012")


def test_a_replacement_that_fails_leaves_what_was(patched, tmp_path):
    path = land_cover(tmp_path / "a.gpkg", ("111", place(0, 1200)))
    load_corine(patched, path)
    before = snapshot(patched)
    path.unlink()
    land_cover(path, ("111", place(0, 600)), ("600", place(600, 1200)))
    with pytest.raises(PgearthError, match="600 in field Code_18"):
        load_corine(patched, path, replace=True)
    assert snapshot(patched) == before
    # The ledger says that the load failed; its polygons of before are not stored twice.
    path.unlink()
    land_cover(path, ("112", place(0, 1200)))
    load_corine(patched, path)
    assert annotate(patched) == ([112], [1.0], "2018")


def test_files_of_an_edition_that_overlap(patched, tmp_path):
    """Two clips: whole polygons in both, ones cut at the edge of a clip, and ones in the second only."""
    load_corine(patched, land_cover(tmp_path / "west.gpkg", ("111", place(0, 300)), ("112", place(300, 700))))
    counts = load_corine(
        patched,
        land_cover(tmp_path / "east.gpkg", ("111", place(0, 300)), ("112", place(300, 900)), ("211", place(900, 1200))),
    )
    assert counts["polygons"] == 2 and counts["overlapping"] == 2
    assert annotate(patched) == (
        [111, 112, 211],
        [pytest.approx(0.25), pytest.approx(0.5), pytest.approx(0.25)],
        "2018",
    )
    assert patched.execute("select bool_and(ST_IsValid(geom)), sum(ST_Area(geom)) from eo.corine").fetchone() == (
        True,
        1200 * 1200,
    )


def test_the_same_land_in_another_projection_is_not_stored_twice(archive, sample, tmp_path):
    """Reprojected, the edges differ by less than a millimetre: nothing is left between them."""
    load_corine(archive, sample / LANJARON)
    before = snapshot(archive)
    geometries, codes, crs = native(sample / LANJARON, "clc", "CODE_18")
    there = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform
    path = write_layer(
        tmp_path / "degrees.gpkg", list(shapely.transform(geometries, there, interleaved=False)), codes, crs="EPSG:4326"
    )
    assert load_corine(archive, path) == Counter(polygons=0, overlapping=136)
    assert snapshot(archive) == before


def test_polygons_that_overlap_in_a_file_are_an_error(patched, tmp_path):
    load_corine(patched, land_cover(tmp_path / "a.gpkg", ("111", place(0, 1200)), ("112", place(600, 1200))))
    with pytest.raises(psycopg.errors.DataException, match=r"overlap: they cover 1.5\d* times the patch") as caught:
        annotate(patched)
    assert "--replace" in (caught.value.diag.message_hint or "")
    assert patched.execute("select label_ids from eo.patch").fetchone() == (None,)


@pytest.mark.parametrize("role", ["origin", "replica"])
def test_pieces_of_polygons_that_changed_are_made_again(patched, tmp_path, role):
    """However they changed; of those that are gone, too."""
    load_corine(patched, land_cover(tmp_path / "a.gpkg", ("111", place(0, 600)), ("112", place(600, 1200))))
    assert annotate(patched) == ([111, 112], [0.5, 0.5], "2018")
    patched.execute(f"set session_replication_role = {role}".encode())
    patched.execute("update eo.corine set label_id = 211 where label_id = 111")
    patched.execute("delete from eo.corine where label_id = 112")
    patched.execute("reset session_replication_role")
    assert annotate(patched, anew=True) == ([211], [0.5], "2018")


def test_polygons_of_an_unknown_edition(patched, tmp_path):
    """As an archive has that was filled before editions had names, by files whose names do not tell."""
    load_corine(patched, land_cover(tmp_path / "a.gpkg", ("111", place(0, 600))))
    patched.execute("delete from eo.edition")
    assert annotate(patched) == ([111], [0.5], "unknown")
    path = land_cover(tmp_path / "b.gpkg", ("112", place(600, 1200)))
    with pytest.raises(PgearthError, match=r"holds an unknown edition\n.*--replace.*insert it into eo.edition"):
        load_corine(patched, path)
    patched.execute("insert into eo.edition values ('corine', '2018')")
    load_corine(patched, path)
    assert annotate(patched, anew=True) == ([111, 112], [0.5, 0.5], "2018")


def test_labels_that_nothing_meets_any_more(patched, tmp_path):
    """What an annotation found gives way to nothing; what the data set says stays."""
    when = datetime(2018, 6, 1, tzinfo=UTC)
    with patched.transaction():
        write_patches(
            patched,
            "labelled",
            [Patch("own", "product", "sentinel-2a", when, 3035, X, Y, X + 1200, Y + 1200, label_ids=[523])],
        )
    query = "select name, label_ids, label_fraction, label_edition from eo.patch order by name"
    load_corine(patched, land_cover(tmp_path / "a.gpkg", ("111", place(0, 600)), field="code_12"))
    annotate(patched)
    assert patched.execute(query).fetchall() == [("own", [523], None, None), ("patch", [111], [0.5], "2012")]
    load_corine(patched, land_cover(tmp_path / "b.gpkg", ("112", place(5000, 6000))), replace=True)
    annotate(patched, anew=True)
    assert patched.execute(query).fetchall() == [("own", [523], None, None), ("patch", None, None, None)]
    load_corine(patched, land_cover(tmp_path / "c.gpkg", ("112", place(0, 600))))
    annotate(patched, anew=True)
    assert patched.execute(query).fetchall() == [("own", [112], [0.5], "2018"), ("patch", [112], [0.5], "2018")]
    # By a rule that finds no label, though there is land cover.
    patched.execute("call eo.annotate('{land_cover}', minimal_overlap => 0.9, \"replace\" => true)")
    assert patched.execute(query).fetchall() == [("own", None, None, None), ("patch", None, None, None)]
