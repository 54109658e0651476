"""The map layers in QGIS itself: its own drawing, offscreen, of real data, as a role that only reads.

`make test-qgis` installs QGIS and runs these; plain `make test` leaves them out (pyproject.toml, norecursedirs).
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pyarrow.compute
import pyarrow.parquet
import pytest
from PIL import Image

from pgearth.loaders.datasets.bigearthnet.catalogue import load_bigearthnet_metadata
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.demo.demo import load_corine_grid
from pgearth.loaders.products.load import Options, load_product
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nuts import load_nuts
from tests.conftest import CHECKOUT

PICTURES = CHECKOUT / "build" / "qgis"
DEBIAN_PYTHON = "/usr/bin/python3"
SCENE = "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947"
CATALOGUE_PRODUCT = "S2A_MSIL2A_20171221T112501_N9999_R037_T29SND"  # 8,184 patches in Portugal
KEYS = {
    "map_patch": "patch_id",
    "map_patch_label": "feature_id",
    "map_collection": "feature_id",
    "map_corine": "corine_id",
    "map_nuts": "place_id",
    "map_cell": "cell_id",
}
VIEWS = {layer + suffix: key for layer, key in KEYS.items() for suffix in ("", "_3857")}
MUENSTER = [843000, 6781000, 857000, 6795000]
PORTUGAL = [-970000, 4720000, -890000, 4800000]
SIDE = 1080  # pixels of the scene's whole patches


@pytest.fixture(scope="module")
def filled(
    module_archive: psycopg.Connection, sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> psycopg.Connection:
    """A tile of the catalogue, patches with pixels, a scene, CORINE, NUTS; a reader with a collection of their own."""
    catalogue = pyarrow.parquet.read_table(sample / "bigearthnet-v2" / "metadata.parquet")
    rows = catalogue.filter(pyarrow.compute.match_substring(catalogue["patch_id"], CATALOGUE_PRODUCT))
    assert rows.num_rows > 1000
    path = tmp_path_factory.mktemp("catalogue") / "metadata.parquet"
    pyarrow.parquet.write_table(rows, path)
    load_bigearthnet_metadata(module_archive, [path])
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    load_product(module_archive, sample / "sentinel2-cog" / "S2A_29RKH_20200219_0_L2A", Options(grid="fixed:120"))
    load_corine(module_archive, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    load_corine(module_archive, sample / "corine" / "clc5_2018_muenster_de.gpkg")
    load_corine_grid(module_archive)
    load_nuts(module_archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    module_archive.execute("select eo.create_collection('of another')")
    module_archive.execute("select eo.add_to_collection('of another', array(select patch_id from eo.patch limit 100))")
    module_archive.execute("drop role if exists pgearth_qgis")
    module_archive.execute("create role pgearth_qgis in role eo_reader")
    module_archive.execute("set role pgearth_qgis")
    module_archive.execute("select eo.create_collection('watered crops')")
    module_archive.execute(
        "select eo.add_to_collection('watered crops', array(select patch_id from eo.search("
        " eo.filter(labels => '{Inland waters, Permanent crops}', label_match => 'at_least', sources => '{bigearthnet-v2}'),"
        " max_results => null)))"
    )
    module_archive.execute("reset role")
    module_archive.execute("select eo.store_map_styles()")
    module_archive.execute("analyze")
    return module_archive


@pytest.fixture(scope="module")
def qgis(filled: psycopg.Connection) -> Iterator[SimpleNamespace]:
    """What QGIS says of all layers, and the maps that it drew into build/qgis."""
    row = filled.execute("select eo.make_raster_layer(%s)", (SCENE,)).fetchone()
    assert row is not None
    raster = row[0]
    scene_extent = [199980, 2692020, 307980, 2800020]
    PICTURES.mkdir(parents=True, exist_ok=True)
    maps: dict[str, dict[str, Any]] = {
        "corine": {"layers": ["map_corine_3857"], "extent": MUENSTER, "crs": "EPSG:3857", "size": [700, 700]},
        "corine_and_patches": {
            "layers": ["map_patch_3857", "map_corine_3857"], "extent": MUENSTER, "crs": "EPSG:3857", "size": [500, 500],
        },
        "labels": {
            "layers": ["map_collection", "map_nuts", "map_patch_label"],
            "filters": {"map_nuts": "level = 3"},
            "extent": PORTUGAL, "crs": "EPSG:3857", "size": [500, 500],
        },
        "cells": {"layers": ["map_cell_3857"], "extent": PORTUGAL, "crs": "EPSG:3857", "size": [300, 300]},
        "countries": {
            "layers": ["map_nuts"], "filters": {"map_nuts": "level = 0"},
            "extent": [-10, 35, 30, 65], "crs": "EPSG:4326", "size": [400, 300],
        },
        "scene": {"layers": [raster], "extent": scene_extent, "crs": "EPSG:32629", "size": [SIDE, SIDE]},
        "scene_overview": {
            "layers": [raster], "extent": scene_extent, "crs": "EPSG:32629", "size": [SIDE // 4, SIDE // 4],
        },
        "scene_and_patches": {
            "layers": ["map_patch", raster], "extent": scene_extent, "crs": "EPSG:32629", "size": [500, 500],
        },
    }  # fmt: skip
    request = {
        "connection": {
            "host": filled.info.host, "port": str(filled.info.port), "database": filled.info.dbname, "user": filled.info.user,
        },
        "vectors": VIEWS,
        "rasters": [raster],
        "maps": [{"file": str(PICTURES / f"{name}.png"), **drawing} for name, drawing in maps.items()],
    }  # fmt: skip
    ran = subprocess.run(
        [DEBIAN_PYTHON, Path(__file__).with_name("open_layers.py")],
        input=json.dumps(request),
        env={**os.environ, "PGOPTIONS": "-c role=pgearth_qgis", "XDG_RUNTIME_DIR": str(PICTURES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    yield SimpleNamespace(**json.loads(ran.stdout), raster=raster, maps=maps)


def picture(name: str) -> np.ndarray:
    with Image.open(PICTURES / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


def one(archive: psycopg.Connection, query: str, *parameters: object) -> Any:
    row = archive.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_a_layer(filled: psycopg.Connection, qgis: SimpleNamespace, view: str) -> None:
    layer = qgis.vectors[view]
    assert layer["valid"], layer
    assert layer["geometry"] == ("Polygon" if "cell" in view else "MultiPolygon")
    assert layer["crs"] == ("EPSG:3857" if view.endswith("_3857") else "EPSG:4326")
    assert layer["key"] == [VIEWS[view]]
    with filled.transaction():
        filled.execute("set local role pgearth_qgis")
        expected = one(filled, f"select count(*) from eo.{view}")
    assert layer["features"] == layer["read"] == expected > 0
    assert layer["styled"]


def test_a_reader_sees_their_own_collection_only(filled: psycopg.Connection, qgis: SimpleNamespace) -> None:
    assert one(filled, "select count(*) from eo.map_collection where collection = 'of another'") == 100
    own = one(filled, "select count(*) from eo.map_collection where collection = 'watered crops'")
    assert qgis.vectors["map_collection"]["read"] == own > 0


def official_colors(sample: Path) -> dict[str, str]:
    with (sample / "nomenclature" / "clc2018_classes.csv").open() as file:
        return {row["clc_code"]: row["hex"].lower() for row in csv.DictReader(file)}


@pytest.mark.parametrize("view", ["map_corine", "map_corine_3857", "map_patch_label", "map_patch_label_3857"])
def test_default_styles_are_in_the_official_colours(qgis: SimpleNamespace, sample: Path, view: str) -> None:
    layer = qgis.vectors[view]
    assert layer["renderer"] == "categorizedSymbol"
    official = official_colors(sample)
    assert {code: layer["colors"].get(code) for code in official} == official
    assert (layer["colors"].keys() == official.keys()) == ("corine" in view)


@pytest.mark.parametrize(
    ("layer", "renderer", "symbols"),
    [("map_patch", "singleSymbol", 1), ("map_collection", "singleSymbol", 1), ("map_nuts", "categorizedSymbol", 4), ("map_cell", "graduatedSymbol", 6)],
)  # fmt: skip
def test_other_default_styles(qgis: SimpleNamespace, layer: str, renderer: str, symbols: int) -> None:
    for view in (layer, f"{layer}_3857"):
        assert (qgis.vectors[view]["renderer"], qgis.vectors[view]["symbols"]) == (renderer, symbols)


def test_corine_is_drawn_where_it_is_in_its_colours(
    filled: psycopg.Connection, qgis: SimpleNamespace, sample: Path
) -> None:
    """Points inside polygons, away from their edges, bear the colour of the class."""
    image = picture("corine")
    west, south, east, north = MUENSTER
    points = filled.execute(
        """
        select l.code, ST_X(center), ST_Y(center)
        from eo.corine c
        join eo.label l using (label_id), ST_MaximumInscribedCircle(ST_Transform(c.geom, 3857)) as circle
        where radius > 100 and center && ST_MakeEnvelope(%s, %s, %s, %s, 3857)
        """,
        MUENSTER,
    ).fetchall()
    assert len(points) > 100
    assert len({code for code, _, _ in points}) >= 8
    official = official_colors(sample)
    for code, x, y in points:
        column = int((x - west) / (east - west) * image.shape[1])
        row = int((north - y) / (north - south) * image.shape[0])
        assert "#" + bytes(image[row, column]).hex() == official[code], (code, x, y)


@pytest.mark.parametrize(
    ("name", "least", "most", "colors"),
    [
        ("corine_and_patches", 0.9, 1.0, 12),
        ("labels", 0.9, 1.0, 20),
        ("cells", 0.9, 1.0, 3),
        ("countries", 0.01, 0.3, 2),
        ("scene_and_patches", 0.9, 1.0, 1000),
    ],
)
def test_maps_are_not_blank(qgis: SimpleNamespace, name: str, least: float, most: float, colors: int) -> None:
    image = picture(name)
    assert image.shape[1::-1] == tuple(qgis.maps[name]["size"])
    assert least < (image != 255).any(axis=-1).mean() <= most
    assert len(np.unique(image.reshape(-1, 3), axis=0)) >= colors


def test_a_raster_layer_opens_as_one_picture(qgis: SimpleNamespace) -> None:
    assert qgis.rasters[qgis.raster] == {
        "valid": True,
        "crs": "EPSG:32629",
        "extent": [199980, 2692020, 307980, 2800020],
        "size": [SIDE, SIDE],
        "bands": 3,
        "renderer": "multibandcolor",
    }


def test_the_scene_is_drawn_from_the_pixels(filled: psycopg.Connection, qgis: SimpleNamespace) -> None:
    """Pixel for pixel at full size, within a pixel; each patch like its own quicklook, whose stretch is another."""
    image = picture("scene")
    stored = np.zeros(image.shape, np.uint8)
    tiles = filled.execute(
        f"""
        select p.name, p.tile_column, p.tile_row, ST_DumpValues(t.rast, 1, false), ST_DumpValues(t.rast, 2, false),
               ST_DumpValues(t.rast, 3, false)
        from eo_layers.{qgis.raster} t join eo.patch p using (patch_id)
        """.encode()
    ).fetchall()
    assert len(tiles) == 81
    for _, column, row, *bands in tiles:
        stored[120 * row : 120 * (row + 1), 120 * column : 120 * (column + 1)] = np.moveaxis(np.array(bands), 0, -1)
    # QGIS 3.22 draws the right half of a picture of this size a pixel further right.
    same, shifted = (image == stored).all(axis=-1), (image[:, 1:] == stored[:, :-1]).all(axis=-1)
    with_data = (stored > 0).all(axis=-1)
    assert same[:, : SIDE // 2 - 1][with_data[:, : SIDE // 2 - 1]].mean() > 0.999
    assert (same[:, 1:] | shifted)[with_data[:, 1:]].mean() > 0.99
    for name, column, row, *_ in [tile for tile in tiles if tile[1] < 4][::5]:
        with Image.open(io.BytesIO(one(filled, "select eo.rgb(%s)", name))) as quicklook:
            expected = np.asarray(quicklook)
        drawn = image[120 * row : 120 * (row + 1), 120 * column : 120 * (column + 1)]
        inside = ((drawn > 5) & (drawn < 250) & (expected > 0) & (expected < 255)).all(axis=-1)
        assert inside.sum() > 1000
        for band in range(3):
            assert np.corrcoef(drawn[..., band][inside], expected[..., band][inside])[0, 1] > 0.98, name


def test_a_small_picture_comes_from_an_overview(filled: psycopg.Connection, qgis: SimpleNamespace) -> None:
    """Each of its pixels is one of the overview's there; hardly any is one of the layer's."""
    small = picture("scene_overview")
    found = {}
    for table, factor in ((f"o_2_{qgis.raster}", 2), (qgis.raster, 4)):
        stored = np.zeros((SIDE, SIDE, 3), np.uint8)  # of the overview, a quarter and its padding
        scale = 400 / factor
        for x, y, *bands in filled.execute(
            f"""
            select ST_UpperLeftX(rast), ST_UpperLeftY(rast), ST_DumpValues(rast, 1, false), ST_DumpValues(rast, 2, false),
                   ST_DumpValues(rast, 3, false)
            from eo_layers.{table}
            """.encode()
        ):
            column, row = round((x - 199980) / scale), round((2800020 - y) / scale)
            stored[row : row + 120, column : column + 120] = np.moveaxis(np.array(bands), 0, -1)
        length = factor * (SIDE // 4)
        near = [
            np.roll(stored[:length, :length], shift, axis=1)[row::factor, column::factor]
            for row in range(factor)
            for column in range(factor)
            for shift in (0, 1)
        ]
        found[table] = np.mean(np.any([(small == pixels).all(axis=-1) for pixels in near], axis=0))
    of_overview, of_layer = found.values()
    assert of_overview > 0.95
    assert of_layer < 0.5


def test_the_picture_of_the_documentation(qgis: SimpleNamespace) -> None:
    """Three maps side by side: build/qgis/qgis.png, which docs/qgis.md shows a copy of."""
    images = [picture(name) for name in ("corine_and_patches", "labels", "scene_and_patches")]
    border = np.full((500, 10, 3), 255, np.uint8)
    together = Image.fromarray(np.hstack([images[0], border, images[1], border, images[2]]))
    path = PICTURES / "qgis.png"
    together.quantize(128).save(path, optimize=True)
    assert 20_000 < path.stat().st_size < 500_000
