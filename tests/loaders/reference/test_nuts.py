"""NUTS units: the real file against itself, and everything that can be wrong with one."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.pyfuncs.errors import PgearthError

NUTS = Path("nuts/NUTS_RG_10M_2021_4326.geojson")
CONTENTS = """
select (select count(*) from eo.nuts), (select count(*) from eo_internal.nuts_part),
       (select count(*) from eo.load where state <> 'failed')
"""


def place(nuts_id: str | None) -> dict:
    """The level and the country that fit an id."""
    return {"NUTS_ID": nuts_id, "LEVL_CODE": len(nuts_id or "LV1") - 2, "CNTR_CODE": (nuts_id or "LV")[:2]}


def edition(path: Path, *features: dict) -> Path:
    """A file of places: small squares with the official fields, or what `features` put in their place."""
    path.write_text(
        json.dumps(
            {
                "type": "FeatureCollection",
                "features": [
                    {
                        "type": "Feature",
                        "properties": {
                            **place(feature.get("NUTS_ID", f"LV{number}")),
                            "NAME_LATN": f"Place {number}",
                            **{key: value for key, value in feature.items() if key != "geometry"},
                        },
                        "geometry": feature.get(
                            "geometry", shapely.geometry.mapping(shapely.box(number, 50, number + 1, 51))
                        ),
                    }
                    for number, feature in enumerate(features, 1)
                ],
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def loaded(module_archive, sample):
    return module_archive, load_nuts(module_archive, sample / NUTS)


@pytest.fixture
def untouched(loaded):
    """The archive, for a test that must leave it as it is."""
    archive = loaded[0]
    before = archive.execute(CONTENTS).fetchone()
    yield archive
    assert archive.execute(CONTENTS).fetchone() == before


@pytest.fixture(scope="module")
def official(sample):
    """Attributes and geometry per place, read by a plain JSON parser."""
    features = json.loads((sample / NUTS).read_text())["features"]
    return {
        feature["properties"]["NUTS_ID"]: (feature["properties"], shapely.geometry.shape(feature["geometry"]))
        for feature in features
    }


def test_real_file_attributes(loaded, official):
    archive, counts = loaded
    assert counts == Counter(places=2010)
    rows = archive.execute("select nuts_id, level, country_code, name from eo.nuts").fetchall()
    iso = {"EL": "GR", "UK": "GB"}
    assert set(rows) == {
        (
            nuts_id,
            properties["LEVL_CODE"],
            iso.get(properties["CNTR_CODE"], properties["CNTR_CODE"]),
            properties["NAME_LATN"],
        )
        for nuts_id, (properties, _) in official.items()
    }
    countries = {country for _, _, country, _ in rows}
    assert {"GR", "GB"} <= countries
    assert not {"EL", "UK"} & countries


def test_real_file_geometry(loaded, official):
    rows = loaded[0].execute("select nuts_id, ST_AsBinary(geom), ST_IsValid(geom) from eo.nuts").fetchall()
    for nuts_id, wkb, valid in rows:
        assert valid
        stored, original = shapely.from_wkb(wkb), official[nuts_id][1]
        assert stored.geom_type == "MultiPolygon"
        assert stored.area == pytest.approx(original.area, rel=1e-12)
        assert shapely.equals(stored, original)


def test_duplicate_is_skipped_and_counted(loaded, sample, run_pgearth):
    archive = loaded[0]
    result = run_pgearth(archive, "load", "nuts", sample / NUTS)
    assert result.exit_code == 0
    assert "0 places loaded" in result.output
    assert "1 layers skipped as loaded before" in result.output
    assert archive.execute("select count(*) from eo.nuts").fetchone() == (2010,)


def test_a_place_is_not_stored_twice(untouched, tmp_path):
    path = edition(tmp_path / "nuts2021.geojson", {}, {"NUTS_ID": "DE1"})
    with pytest.raises(PgearthError, match=r"feature 1: place DE1 is in the archive already.*\nHint: .*--replace"):
        load_nuts(untouched, path)


def test_another_edition_is_refused(untouched, tmp_path):
    """Also where it holds no place of those in the archive."""
    path = edition(tmp_path / "NUTS_RG_10M_2016_4326.geojson", {})
    with pytest.raises(PgearthError, match=r"it is of NUTS 2016, but the archive holds 2021\nHint: .*--replace"):
        load_nuts(untouched, path)


@pytest.mark.parametrize("name", ["places.geojson", "NUTS_2016_2021.geojson"])
def test_an_edition_that_is_not_told_is_asked_for(archive, tmp_path, run_pgearth, name):
    path = edition(tmp_path / name, {})
    with pytest.raises(PgearthError, match=r"its edition .*\nHint: .*--edition"):
        load_nuts(archive, path)
    result = run_pgearth(archive, "load", "nuts", path, "--edition", "2016")
    assert result.exit_code == 0, result
    assert archive.execute("select reference, edition from eo.edition").fetchall() == [("nuts", "2016")]


def patches_over_squares(connection):
    """A patch in each of three places of `edition`, and one that knows its country from its data set."""
    when = datetime(2018, 6, 1, tzinfo=UTC)
    write_products(connection, [Product("product", "sentinel-2a", "L2A", when)])
    with connection.transaction():
        write_patches(
            connection,
            "test",
            [
                Patch(
                    f"patch-{number}", "product", "sentinel-2a", when, 4326, number + 0.4, 50.4, number + 0.41, 50.41,
                    country="BE" if number == 3 else None,
                )
                for number in (1, 2, 3)
            ],
        )  # fmt: skip


PLACES = "select name, country_codes, nuts_ids, nuts_edition from eo.patch order by name"
LEVEL_3 = [{"NUTS_ID": f"DE11{number}"} for number in (1, 2, 3)]


@pytest.mark.parametrize("recipe", ["--replace", "rows deleted"])
def test_annotated_anew_with_another_edition(archive, tmp_path, run_pgearth, recipe):
    """Replaced means replaced: what no place of the new edition meets is not known, but by its data set."""
    patches_over_squares(archive)
    load_nuts(archive, edition(tmp_path / "nuts2021.geojson", *LEVEL_3))
    assert "3 patches visited, 3 changed" in run_pgearth(archive, "annotate", "--country").output
    assert archive.execute(PLACES).fetchall() == [
        ("patch-1", ["DE"], ["DE111"], "2021"),
        ("patch-2", ["DE"], ["DE112"], "2021"),
        ("patch-3", ["DE"], ["DE113"], "2021"),
    ]
    other = edition(tmp_path / "nuts2016.geojson", {"NUTS_ID": "LU000"})
    options = ["--replace"]
    if recipe == "rows deleted":
        archive.execute("delete from eo.nuts")
        archive.execute("delete from eo.load where loader = 'nuts'")
        options = []
    result = run_pgearth(archive, "load", "nuts", other, *options)
    assert result.exit_code == 0, result
    assert ("3 patches are annotated with another edition" in result.output) == bool(options)
    assert archive.execute("select reference, edition from eo.edition").fetchall() == [("nuts", "2016")]
    # Asked for without --replace, what is known stays, and says where it is from.
    assert "0 patches visited, 0 changed" in run_pgearth(archive, "annotate", "--country").output
    assert archive.execute("select distinct nuts_edition from eo.patch").fetchall() == [("2021",)]
    assert "3 patches visited, 3 changed" in run_pgearth(archive, "annotate", "--country", "--replace").output
    assert archive.execute(PLACES).fetchall() == [
        ("patch-1", ["LU"], ["LU000"], "2016"),
        ("patch-2", None, None, None),
        ("patch-3", ["BE"], None, None),
    ]
    assert "3 patches visited, 0 changed" in run_pgearth(archive, "annotate", "--country", "--replace").output
    assert "2 patches visited, 0 changed" in run_pgearth(archive, "annotate", "--country").output


def test_a_part_of_the_archive_annotated_anew(archive, tmp_path):
    patches_over_squares(archive)
    load_nuts(archive, edition(tmp_path / "nuts2021.geojson", *LEVEL_3))
    archive.execute("call eo.annotate('{country}')")
    load_nuts(archive, edition(tmp_path / "nuts2016.geojson", {"NUTS_ID": "LU000"}), replace=True)
    cells = [cell for (cell,) in archive.execute("select cell from eo.patch where name <> 'patch-3'")]
    archive.execute("call eo.annotate('{country}', cells => %s, \"replace\" => true)", (cells,))
    assert archive.execute("select nuts_ids, nuts_edition from eo.patch order by name").fetchall() == [
        (["LU000"], "2016"),
        (None, None),
        (["DE113"], "2021"),
    ]


def test_levels_in_files_of_their_own(archive, tmp_path):
    """Countries first, whose pieces are then of no use where places of level 3 follow."""
    patches_over_squares(archive)
    squares = shapely.geometry.mapping(shapely.box(1, 50, 4, 51))
    countries = edition(tmp_path / "levl_0_2021.geojson", {"NUTS_ID": "DE", "geometry": squares})
    load_nuts(archive, countries)
    archive.execute("call eo.annotate('{country}')")
    assert archive.execute("select distinct nuts_ids from eo.patch").fetchall() == [([],)]
    assert load_nuts(archive, edition(tmp_path / "levl_3_2021.geojson", *LEVEL_3))["places"] == 3
    archive.execute("call eo.annotate('{country}', \"replace\" => true)")
    assert archive.execute("select distinct level from eo_internal.nuts_part").fetchall() == [(3,)]
    assert archive.execute("select nuts_ids from eo.patch order by name").fetchall() == [
        (["DE111"],),
        (["DE112"],),
        (["DE113"],),
    ]


def test_other_reference_system(archive, tmp_path, official):
    """The edition in EPSG:3035 lies where that in EPSG:4326 lies."""
    names = ["NUTS_ID", "LEVL_CODE", "CNTR_CODE", "NAME_LATN"]
    places = [place for place in official.values() if place[0]["CNTR_CODE"] == "EL"]
    there = pyproj.Transformer.from_crs(4326, 3035, always_xy=True).transform
    geometries = shapely.transform(np.array([geometry for _, geometry in places]), there, interleaved=False)
    path = tmp_path / "nuts2021_3035.gpkg"
    pyogrio.raw.write(
        path,
        geometry=np.array(shapely.to_wkb(geometries), dtype=object),
        field_data=[np.array([properties[name] for properties, _ in places]) for name in names],
        fields=[name.lower() for name in names],
        geometry_type="Unknown",
        crs="EPSG:3035",
    )
    assert load_nuts(archive, path)["places"] == len(places) > 50
    rows = archive.execute("select nuts_id, ST_AsBinary(geom), country_code from eo.nuts").fetchall()
    for nuts_id, wkb, country in rows:
        assert country == "GR"
        moved = shapely.get_coordinates(shapely.from_wkb(wkb)) - shapely.get_coordinates(official[nuts_id][1])
        assert np.abs(moved).max() < 1e-8  # degrees: 1 mm, the accuracy of PROJ's inverse of the projection


def test_repaired_and_dropped(archive, tmp_path):
    bow_tie = {"type": "Polygon", "coordinates": [[[7, 50], [8, 51], [8, 50], [7, 51], [7, 50]]]}
    path = edition(tmp_path / "nuts2021.geojson", {"geometry": bow_tie}, {"geometry": None}, {})
    assert load_nuts(archive, path) == Counter(places=2, repaired=1, dropped=1)
    assert archive.execute("select nuts_id, ST_Area(geom) from eo.nuts order by 1").fetchall() == [
        ("LV1", 0.5),
        ("LV3", 1.0),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"NUTS_ID": None}, "null is no place code of NUTS"),
        ({"NUTS_ID": "de 1"}, "de 1 is no place code of NUTS"),
        ({"NUTS_ID": "LV1"}, "place LV1 is in the archive already, or twice in the file"),
        ({"LEVL_CODE": 4}, "4 is no level of NUTS"),
        ({"CNTR_CODE": "DEU"}, "DEU is no country code of NUTS"),
        ({"NUTS_ID": "DE123", "LEVL_CODE": 0}, "place DE123 cannot be of level 0"),
        ({"NUTS_ID": "DE", "LEVL_CODE": 3}, "place DE cannot be of level 3"),
        ({"LEVL_CODE": -1}, "-1 is no level of NUTS"),
        ({"LEVL_CODE": 1.5}, "1.5 is no level of NUTS"),
        ({"NUTS_ID": "DE1", "CNTR_CODE": "FR"}, "place DE1 cannot be of country FR"),
        ({"NUTS_ID": "GR1"}, "place GR1: GR is no country code of NUTS, which has EL for it"),
        ({"NUTS_ID": "QQ1"}, "place QQ1: QQ is no country's code"),
        ({"NUTS_ID": "DÉ1"}, "DÉ1 is no place code of NUTS"),
        ({"NUTS_ID": "LV2\n"}, r"'LV2\\n' is no place code of NUTS"),
        ({"NUTS_ID": "\x1fLV2"}, r"'\\x1fLV2' is no place code of NUTS"),
        ({"NUTS_ID": "LV\x072"}, r"'LV\\x072' is no place code of NUTS"),
        ({"CNTR_CODE": "LV\t"}, r"'LV\\t' is no country code of NUTS"),
        ({"NAME_LATN": "Ri\x1b[31mga"}, r"'Ri\\x1b\[31mga' is no name in Latin script of NUTS"),
        ({"NAME_LATN": "Ri\x9bga"}, r"'Ri\\x9bga' is no name in Latin script of NUTS"),
        ({"NAME_LATN": None}, "null is no name in Latin script of NUTS"),
        ({"geometry": {"type": "Point", "coordinates": [7, 50]}}, "its geometry is a Point"),
    ],
)
def test_wrong_feature_is_named(untouched, tmp_path, wrong, message):
    path = edition(tmp_path / "nuts2021.geojson", {}, wrong)
    with pytest.raises(PgearthError, match=f"nuts2021.geojson: layer nuts2021, feature 1: {message}"):
        load_nuts(untouched, path)


def around(west: float, east: float, south: float = 50, north: float = 51) -> dict:
    """A rectangle of four corners, as GeoJSON."""
    return shapely.geometry.mapping(shapely.box(west, south, east, north))


SPLIT = shapely.union_all([shapely.box(179, 50, 180, 51), shapely.box(-180, 50, -178, 51)])


@pytest.mark.parametrize(
    ("outline", "right"),
    [
        (around(179, 182), SPLIT),
        (around(-181, -178), SPLIT),
        (around(340, 350), shapely.box(-20, 50, -10, 51)),
        # The short way between vertices, and parts that are cut already.
        ({"type": "Polygon", "coordinates": [[[179, 50], [-178, 50], [-178, 51], [179, 51], [179, 50]]]}, SPLIT),
        (shapely.geometry.mapping(SPLIT), SPLIT),
        # Up to a pole, and half the world.
        (around(10, 20, 80, 90), shapely.box(10, 80, 20, 90)),
        (around(-90, 90), shapely.box(-90, 50, 90, 51)),
    ],
)
def test_outlines_lie_where_all_others_do(archive, tmp_path, outline, right):
    """Cut at 180 degrees of longitude, by the rule of footprints and of areas."""
    assert load_nuts(archive, edition(tmp_path / "nuts2021.geojson", {"geometry": outline})) == Counter(places=1)
    ((wkb, valid),) = archive.execute("select ST_AsBinary(geom), ST_IsValid(geom) from eo.nuts").fetchall()
    assert valid and shapely.equals(shapely.from_wkb(wkb), right)


def test_patches_across_the_antimeridian_are_in_their_place(archive, tmp_path):
    when = datetime(2018, 6, 1, tzinfo=UTC)
    write_products(archive, [Product("product", "sentinel-2a", "L2A", when)])
    with archive.transaction():
        bounds = {"before": (499980, 499990), "after": (716000, 716010), "elsewhere": (600000, 600010)}
        patches = [
            Patch(name, "product", "sentinel-2a", when, 32660, west, 5540000, east, 5540010)
            for name, (west, east) in bounds.items()
        ]
        write_patches(archive, "test", patches)
    path = edition(
        tmp_path / "nuts2021.geojson", {"NUTS_ID": "LV001", "geometry": around(179.9, 180.2, 49, 52)},
        {"NUTS_ID": "LV002", "geometry": around(176, 177.5, 49, 52)},
    )  # fmt: skip
    load_nuts(archive, path)
    archive.execute("call eo.annotate('{country}')")
    assert archive.execute("select name, nuts_ids from eo.patch order by name").fetchall() == [
        ("after", ["LV001"]),
        ("before", ["LV002"]),
        ("elsewhere", None),
    ]


def test_a_place_about_a_pole_in_a_map_of_the_pole(archive, tmp_path):
    """The rule holds for outlines that a reprojection brings into degrees."""
    path = tmp_path / "nuts2021.gpkg"
    circle = shapely.Point(0, 0).buffer(1_000_000)
    names = {"NUTS_ID": "NO1", "LEVL_CODE": "1", "CNTR_CODE": "NO", "NAME_LATN": "Pole"}
    pyogrio.raw.write(
        path,
        geometry=np.array([circle.wkb], dtype=object),
        field_data=[np.array([value], dtype=object) for value in names.values()],
        fields=list(names),
        geometry_type="Polygon",
        crs="EPSG:3995",
    )
    load_nuts(archive, path)
    ((west, south, east, north, has_pole),) = archive.execute(
        "select ST_XMin(geom), ST_YMin(geom), ST_XMax(geom), ST_YMax(geom), ST_Covers(geom, ST_Point(0, 90, 4326))"
        " from eo.nuts"
    ).fetchall()
    assert (west, east, north, has_pole) == (-180, 180, 90, True)
    assert 80 < south < 82


@pytest.mark.parametrize(
    "outline",
    [around(1, 2, 89, 91), around(1, 2, -91, -89), around(359, 361), around(-400, -390), around(4000000, 4000100)],
)
def test_outlines_off_the_globe_are_refused(untouched, tmp_path, outline):
    path = edition(tmp_path / "nuts2021.geojson", {}, {"geometry": outline})
    with pytest.raises(
        PgearthError, match=r"layer nuts2021, feature 1: its coordinates \(.*\) are not of WGS 84\nHint"
    ):
        load_nuts(untouched, path)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vertices_that_are_nowhere_are_refused(untouched, tmp_path, wrong):
    path = tmp_path / "nuts2021.gpkg"
    outline = shapely.Polygon([(1, 50), (2, 50), (2, wrong), (1, 51)])
    names = place("LV1") | {"LEVL_CODE": "1", "NAME_LATN": "Nowhere"}
    pyogrio.raw.write(
        path,
        geometry=np.array([outline.wkb], dtype=object),
        field_data=[np.array([value], dtype=object) for value in names.values()],
        fields=list(names),
        geometry_type="Polygon",
        crs="EPSG:4326",
        SPATIAL_INDEX="NO",
    )
    with pytest.raises(PgearthError, match=r"feature 1: its coordinates \(.*\) are not of WGS 84"):
        load_nuts(untouched, path)


def test_missing_field_lists_fields(untouched, sample):
    with pytest.raises(PgearthError, match=r"layer clc has no field with the place code.*NUTS_ID\n.*CODE_18, AREA_HA"):
        load_nuts(untouched, sample / "corine/clc2018_lanjaron_es.gpkg", layer="clc")


def test_not_a_vector_file(untouched, sample):
    with pytest.raises(PgearthError, match="cannot be read as a vector file"):
        load_nuts(untouched, sample / "corine/clc2018_lanjaron_es_25m.tif")
