"""NUTS regions: the real file against itself, and everything that can be wrong with one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely

from loaders.errors import InputError
from loaders.nuts import load_nuts

NUTS = Path("nuts/NUTS_RG_10M_2021_4326.geojson")
CONTENTS = """
select (select count(*) from eo.nuts), (select count(*) from eo.nuts_part),
       (select count(*) from eo.load where state <> 'failed')
"""


def edition(path: Path, *features: dict) -> Path:
    """A file of regions: small squares with the official fields, or what `features` put in their place."""
    path.write_text(
        json.dumps(
            {
                "type": "FeatureCollection",
                "features": [
                    {
                        "type": "Feature",
                        "properties": {
                            "NUTS_ID": f"QQ{number}",
                            "LEVL_CODE": 1,
                            "CNTR_CODE": "DE",
                            "NAME_LATN": f"Region {number}",
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
    """Attributes and geometry per region, read by a plain JSON parser."""
    features = json.loads((sample / NUTS).read_text())["features"]
    return {
        feature["properties"]["NUTS_ID"]: (feature["properties"], shapely.geometry.shape(feature["geometry"]))
        for feature in features
    }


def test_real_file_attributes(loaded, official):
    archive, counts = loaded
    assert counts == Counter(regions=2010)
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
    assert "0 regions loaded" in result.output
    assert "1 layers skipped as loaded before" in result.output
    assert archive.execute("select count(*) from eo.nuts").fetchone() == (2010,)


def test_another_edition_is_refused(untouched, tmp_path):
    path = edition(tmp_path / "nuts2016.geojson", {}, {"NUTS_ID": "DE1"})
    with pytest.raises(InputError, match=r"feature 1: region DE1 is in the archive already.*\nHint: Only one edition"):
        load_nuts(untouched, path)


def test_other_reference_system(archive, tmp_path, official):
    """The edition in EPSG:3035 lies where that in EPSG:4326 lies."""
    names = ["NUTS_ID", "LEVL_CODE", "CNTR_CODE", "NAME_LATN"]
    regions = [region for region in official.values() if region[0]["CNTR_CODE"] == "EL"]
    there = pyproj.Transformer.from_crs(4326, 3035, always_xy=True).transform
    geometries = shapely.transform(np.array([geometry for _, geometry in regions]), there, interleaved=False)
    path = tmp_path / "nuts3035.gpkg"
    pyogrio.raw.write(
        path,
        geometry=np.array(shapely.to_wkb(geometries), dtype=object),
        field_data=[np.array([properties[name] for properties, _ in regions]) for name in names],
        fields=[name.lower() for name in names],
        geometry_type="Unknown",
        crs="EPSG:3035",
    )
    assert load_nuts(archive, path)["regions"] == len(regions) > 50
    rows = archive.execute("select nuts_id, ST_AsBinary(geom), country_code from eo.nuts").fetchall()
    for nuts_id, wkb, country in rows:
        assert country == "GR"
        moved = shapely.get_coordinates(shapely.from_wkb(wkb)) - shapely.get_coordinates(official[nuts_id][1])
        assert np.abs(moved).max() < 1e-8  # degrees: 1 mm, the accuracy of PROJ's inverse of the projection


def test_repaired_and_dropped(archive, tmp_path):
    bow_tie = {"type": "Polygon", "coordinates": [[[7, 50], [8, 51], [8, 50], [7, 51], [7, 50]]]}
    path = edition(tmp_path / "nuts.geojson", {"geometry": bow_tie}, {"geometry": None}, {})
    assert load_nuts(archive, path) == Counter(regions=2, repaired=1, dropped=1)
    assert archive.execute("select nuts_id, ST_Area(geom) from eo.nuts order by 1").fetchall() == [
        ("QQ1", 0.5),
        ("QQ3", 1.0),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"NUTS_ID": None}, "null is no region code of NUTS"),
        ({"NUTS_ID": "de 1"}, "de 1 is no region code of NUTS"),
        ({"NUTS_ID": "QQ1"}, "region QQ1 is in the archive already, or twice in the file"),
        ({"LEVL_CODE": 4}, "4 is no level of NUTS"),
        ({"CNTR_CODE": "DEU"}, "DEU is no country code of NUTS"),
        ({"NAME_LATN": None}, "null is no name in Latin script of NUTS"),
        ({"geometry": {"type": "Point", "coordinates": [7, 50]}}, "its geometry is a Point"),
    ],
)
def test_wrong_feature_is_named(untouched, tmp_path, wrong, message):
    path = edition(tmp_path / "nuts.geojson", {}, wrong)
    with pytest.raises(InputError, match=f"nuts.geojson: layer nuts, feature 1: {message}"):
        load_nuts(untouched, path)


def test_missing_field_lists_fields(untouched, sample):
    with pytest.raises(InputError, match=r"layer clc has no field with the region code.*NUTS_ID\n.*CODE_18, AREA_HA"):
        load_nuts(untouched, sample / "corine/clc2018_lanjaron_es.gpkg", layer="clc")


def test_not_a_vector_file(untouched, sample):
    with pytest.raises(InputError, match="cannot be read as a vector file"):
        load_nuts(untouched, sample / "corine/clc2018_lanjaron_es_25m.tif")
