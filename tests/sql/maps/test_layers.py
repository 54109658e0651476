"""Map layers against pyproj, shapely, pygeohash, the official colours, and the scene's own files read by rasterio."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psycopg
import pygeohash
import pyproj
import pytest
import rasterio
import shapely
from psycopg import errors, sql

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.products.load import Options, load_product
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.pyfuncs.pixels.rasters import from_wkb

LAYERS = {
    "map_patch": ("patch_id", "MULTIPOLYGON"),
    "map_patch_label": ("feature_id", "MULTIPOLYGON"),
    "map_collection": ("feature_id", "MULTIPOLYGON"),
    "map_corine": ("corine_id", "MULTIPOLYGON"),
    "map_nuts": ("place_id", "MULTIPOLYGON"),
    "map_cell": ("cell_id", "POLYGON"),
}
VIEWS = [(layer + suffix, key) for layer, (key, _) in LAYERS.items() for suffix in ("", "_3857")]
SCENE = "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947"
GRID = 9 * 120  # of the scene's 1098 pixels a side, those in whole patches


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """Real patches, scene, CORINE and NUTS, and a collection of the labelled patches."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    load_product(module_archive, scene_folder(sample), Options(grid="fixed:120"))
    load_corine(module_archive, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    load_nuts(module_archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    module_archive.execute("select eo.create_collection('one'), eo.create_collection('two')")
    for name in ("one", "two"):  # the same patches in both: their keys must differ
        module_archive.execute(
            "select eo.add_to_collection(%s, array(select patch_id from eo.patch where label_ids is not null))", (name,)
        )
    return module_archive


def scene_folder(sample: Path) -> Path:
    return sample / "sentinel2-cog" / "S2A_29RKH_20200219_0_L2A"


@pytest.fixture(scope="module")
def layer(filled: psycopg.Connection) -> str:
    """The scene's raster layer, by a writer."""
    filled.execute("set role eo_writer")
    row = filled.execute("select eo.make_raster_layer(%s)", (SCENE,)).fetchone()
    filled.execute("reset role")
    assert row is not None
    return row[0]


def test_types_and_reference_systems(archive: psycopg.Connection) -> None:
    assert archive.execute(
        """
        select f_table_name, f_geometry_column, type, srid, coord_dimension from geometry_columns
        where f_table_schema = 'eo' and f_table_name like 'map\\_%' order by 1
        """
    ).fetchall() == sorted(
        (layer + suffix, "geom", kind, srid, 2)
        for layer, (_, kind) in LAYERS.items()
        for suffix, srid in (("", 4326), ("_3857", 3857))
    )


@pytest.mark.parametrize(("view", "key"), VIEWS)
def test_the_first_column_is_an_integer_key(filled: psycopg.Connection, view: str, key: str) -> None:
    assert filled.execute(
        "select attname, format_type(atttypid, atttypmod) in ('integer', 'bigint') from pg_attribute"
        " where attrelid = %s::regclass and attnum = 1",
        (f"eo.{view}",),
    ).fetchone() == (key, True)
    rows, keys, distinct = filled.execute(
        f"select count(*), count({key}), count(distinct {key}) from eo.{view}".encode()
    ).fetchone() or (0, 0, 0)
    assert rows == keys == distinct > 0


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("map_patch", "select count(*) from eo.patch"),
        ("map_patch_label", "select sum(cardinality(label_ids)) from eo.patch"),
        ("map_collection", "select 2 * count(*) from eo.patch where label_ids is not null"),
        ("map_corine", "select 136"),
        ("map_nuts", "select 2010"),
        ("map_cell", "select count(distinct cell) from eo.patch"),
    ],
)
def test_no_row_is_lost_or_doubled(filled: psycopg.Connection, view: str, expected: str) -> None:
    for suffix in ("", "_3857"):
        assert (
            filled.execute(f"select count(*) from eo.{view}{suffix}".encode()).fetchone()
            == filled.execute(expected.encode()).fetchone()
        )


@pytest.mark.parametrize("view", [layer for layer in LAYERS if layer != "map_nuts"])
def test_web_mercator_is_what_pyproj_makes_of_it(filled: psycopg.Connection, view: str) -> None:
    to_mercator = pyproj.Transformer.from_crs(4326, 3857, always_xy=True)
    rows = filled.execute(
        f"select ST_AsBinary(g.geom), ST_AsBinary(m.geom) from eo.{view} g join eo.{view}_3857 m using ({LAYERS[view][0]})".encode()
    ).fetchall()
    for degrees, metres in rows:
        expected = shapely.transform(
            shapely.from_wkb(degrees), lambda xy: np.column_stack(to_mercator.transform(*xy.T))
        )
        assert shapely.equals_exact(shapely.from_wkb(metres), expected, 0.01)


def test_patches_with_their_labels(filled: psycopg.Connection) -> None:
    names = dict(filled.execute("select label_id, name from eo.label").fetchall())
    expected = {
        patch_id: (shapely.from_wkb(footprint), label_ids and [names[label] for label in label_ids])
        for patch_id, footprint, label_ids in filled.execute(
            "select patch_id, ST_AsBinary(footprint), label_ids from eo.patch"
        )
    }
    for patch_id, labels, geom in filled.execute("select patch_id, labels, ST_AsBinary(geom) from eo.map_patch"):
        assert (shapely.from_wkb(geom), labels) == (
            expected[patch_id][0],
            ", ".join(expected[patch_id][1] or []) or None,
        )
    found: dict[int, list[str]] = {}
    for patch_id, label, geom in filled.execute(
        "select patch_id, label, ST_AsBinary(geom) from eo.map_patch_label order by label_id"
    ):
        found.setdefault(patch_id, []).append(label)
        assert shapely.from_wkb(geom) == expected[patch_id][0]
    assert found == {patch_id: labels for patch_id, (_, labels) in expected.items() if labels}


def test_labels_with_shares_come_largest_first(archive: psycopg.Connection) -> None:
    store_patch(archive, 5e5, 5e6, 32633)
    archive.execute("update eo.patch set label_ids = '{112, 211, 311}', label_fraction = '{0.2, 0.5, 0.3}'")
    assert archive.execute("select labels from eo.map_patch").fetchone() == (
        "Non-irrigated arable land, Broad-leaved forest, Discontinuous urban fabric",
    )
    assert archive.execute("select code, fraction from eo.map_patch_label order by label_id").fetchall() == [
        ("112", pytest.approx(0.2)), ("211", 0.5), ("311", pytest.approx(0.3)),
    ]  # fmt: skip


def test_cells_and_their_counts(filled: psycopg.Connection) -> None:
    alphabet = "0123456789bcdefghjkmnpqrstuvwxyz"
    expected = Counter(
        pygeohash.encode(y, x, precision=5)
        for x, y in filled.execute("select ST_X(ST_Centroid(footprint)), ST_Y(ST_Centroid(footprint)) from eo.patch")
    )
    rows = filled.execute("select cell_id, cell, patches, ST_AsBinary(geom) from eo.map_cell").fetchall()
    assert {cell: patches for _, cell, patches, _ in rows} == expected
    for cell_id, cell, _, geom in rows:
        assert cell_id == sum(alphabet.index(character) * 32 ** (4 - n) for n, character in enumerate(cell))
        latitude, longitude, latitude_error, longitude_error = pygeohash.decode_exactly(cell)
        box = shapely.box(
            longitude - longitude_error,
            latitude - latitude_error,
            longitude + longitude_error,
            latitude + latitude_error,
        )
        assert shapely.from_wkb(geom).symmetric_difference(box).area < 1e-12


def test_a_patch_beyond_web_mercator_is_loaded_and_only_left_out_there(archive: psycopg.Connection) -> None:
    store_patch(archive, -600, -600, 3995)  # the North Pole, in polar stereographic
    assert archive.execute("select ST_YMax(geom) > 89.9 from eo.map_patch").fetchone() == (True,)
    assert archive.execute("select patch_id, geom from eo.map_patch_3857").fetchall() == [(1, None)]
    assert archive.execute("select patches, geom from eo.map_cell_3857").fetchall() == [(1, None)]


def store_patch(archive: psycopg.Connection, west: float, south: float, srid: int) -> None:
    from datetime import UTC, datetime

    time = datetime(2018, 7, 1, tzinfo=UTC)
    write_products(archive, [Product("p", "sentinel-2a", "L2A", time)])
    with archive.transaction():
        write_patches(
            archive, "test", [Patch("p_0", "p", "sentinel-2a", time, srid, west, south, west + 1200, south + 1200)]
        )


@pytest.mark.parametrize(
    ("view", "index"),
    [
        ("map_patch", "patch_footprint"),
        ("map_patch_3857", "patch_footprint_3857"),
        ("map_patch_label", "patch_footprint"),
        ("map_patch_label_3857", "patch_footprint_3857"),
        ("map_corine", "corine_geom_4326"),
        ("map_corine_3857", "corine_geom_3857"),
        ("map_nuts", "nuts_geom"),
        ("map_nuts_3857", "nuts_geom_3857"),
    ],
)
def test_the_filter_that_qgis_sends_uses_an_index(filled: psycopg.Connection, view: str, index: str) -> None:
    """A few hundred rows would be scanned, so this shows that the index can serve the filter, not that it is cheapest."""
    with filled.transaction():
        filled.execute("set local enable_seqscan = off")
        bounds = "840000, 6750000, 860000, 6800000, 3857" if view.endswith("3857") else "7, 50, 8, 51, 4326"
        plan = "\n".join(
            line
            for (line,) in filled.execute(
                f"""explain select ST_AsBinary("geom", 'NDR') from "eo"."{view}"
                    where "geom" && ST_MakeEnvelope({bounds})""".encode()
            )
        )
    assert f"{index} on" in plan and "Index Cond" in plan, plan


def test_everyone_sees_their_own_collections(filled: psycopg.Connection) -> None:
    filled.execute("drop role if exists pgearth_ann")
    filled.execute("create role pgearth_ann in role eo_reader")
    owned = filled.execute("select count(*) from eo.map_collection").fetchone()
    assert owned is not None and owned[0] > 0
    with filled.transaction(force_rollback=True):
        filled.execute("set local role pgearth_ann")
        assert filled.execute("select count(*) from eo.map_collection").fetchone() == (0,)
        filled.execute("select eo.create_collection('hers')")
        filled.execute("select eo.add_to_collection('hers', array(select patch_id from eo.patch order by 1 limit 3))")
        for view in ("map_collection", "map_collection_3857"):
            rows = filled.execute(f"select collection, count(*) from eo.{view} group by 1".encode()).fetchall()
            assert rows == [("hers", 3)]


def styles(archive: psycopg.Connection) -> dict[str, ElementTree.Element]:
    return {
        name: ElementTree.fromstring(qml)
        for name, qml in archive.execute(
            "select f_table_name, styleqml::text from public.layer_styles"
            " where f_table_catalog = current_database() and f_table_schema = 'eo' and f_geometry_column = 'geom'"
            " and useasdefault and type is null"
        )
    }


def test_styles_bear_the_official_colours(archive: psycopg.Connection, sample: Path) -> None:
    with (sample / "nomenclature" / "clc2018_classes.csv").open() as file:
        official = {row["clc_code"]: row["hex"] for row in csv.DictReader(file)}
    assert len(official) == 44
    archive.execute("select eo.store_map_styles()")  # a clone has another name than its template
    found = styles(archive)
    assert found.keys() == {view for view, _ in VIEWS}
    for view in ("map_corine", "map_corine_3857"):
        symbols = {
            symbol.get("name"): symbol.find(".//prop[@k='color']").get("v")  # type: ignore[union-attr]
            for symbol in found[view].iter("symbol")
        }
        classes = {category.get("value"): symbols[category.get("symbol")] for category in found[view].iter("category")}
        assert classes == official
        assert found[view].find("renderer-v2").attrib == {"type": "categorizedSymbol", "attr": "label_id"}  # type: ignore[union-attr]
    values = {category.get("value") for category in found["map_patch_label"].iter("category")}
    assert values == {
        str(label_id)
        for (label_id,) in archive.execute(
            "select label_id from eo.label where scheme in ('ben19', 'ben43', 'nlcd') or scheme = 'clc' and level = 3"
        )
    }


def test_styles_follow_labels_and_the_name_of_the_database(archive: psycopg.Connection) -> None:
    archive.execute("update eo.label set name = 'a < \"b\" & c', color = '#012345' where label_id = 111")
    # What a restored dump, and somebody's own style, look like.
    archive.execute("update public.layer_styles set f_table_catalog = 'former'")
    archive.execute("update public.layer_styles set useasdefault = false where f_table_name = 'map_nuts'")
    archive.execute(
        "insert into public.layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, stylename, styleqml, useasdefault)"
        " values ('former', 'eo', 'map_nuts', 'geom', 'mine', '<qgis><mine/></qgis>', true), ('former', 'other', 'x', 'geom', 'x', '<qgis/>', true)"
    )
    assert styles(archive) == {}
    archive.execute("set role eo_writer")
    for _ in range(2):
        archive.execute("select eo.store_map_styles()")
    archive.execute("reset role")
    found = styles(archive)
    assert found.keys() == {view for view, _ in VIEWS}
    assert found["map_nuts"].find("mine") is not None
    category = found["map_corine"].find(".//category[@value='111']")
    assert category is not None and category.get("label") == '111 a < "b" & c'
    symbol = found["map_corine"].find(f".//symbol[@name='{category.get('symbol')}']//prop[@k='color']")
    assert symbol is not None and symbol.get("v") == "#012345"
    assert archive.execute(
        "select count(*), count(*) filter (where f_table_catalog = 'former') from public.layer_styles"
    ).fetchone() == (14, 1)


def read_layer(archive: psycopg.Connection, table: str, bands: int) -> tuple[np.ndarray, tuple[float, float]]:
    """The whole layer as one array (bands, height, width), put together in Python, and its upper left corner."""
    tiles = [
        from_wkb(wkb)
        for (wkb,) in archive.execute(sql.SQL("select ST_AsWKB(rast) from eo_layers.{}").format(sql.Identifier(table)))
    ]
    scale = tiles[0].transform[0]
    left = min(tile.transform[2] for tile in tiles)
    top = max(tile.transform[3] for tile in tiles)
    right = max(tile.transform[2] + scale * tile.bands[0].shape[1] for tile in tiles)
    bottom = min(tile.transform[3] - scale * tile.bands[0].shape[0] for tile in tiles)
    picture = np.zeros((bands, round((top - bottom) / scale), round((right - left) / scale)), tiles[0].bands[0].dtype)
    for tile in tiles:
        column, row = round((tile.transform[2] - left) / scale), round((top - tile.transform[3]) / scale)
        height, width = tile.bands[0].shape
        picture[:, row : row + height, column : column + width] = tile.bands
    return picture, (left, top)


def scene_bands(sample: Path, *names: str) -> np.ndarray:
    bands = []
    for name in names:
        with rasterio.open(scene_folder(sample) / f"{name}.tif") as dataset:
            bands.append(dataset.read(1))
    return np.stack(bands)


def test_a_raster_layer_is_the_scene_stretched(filled: psycopg.Connection, layer: str, sample: Path) -> None:
    assert (
        layer
        == f"{SCENE.lower()[:44]}_{filled.execute('select product_id from eo.product where name = %s', (SCENE,)).fetchone()[0]}"
    )  # type: ignore[index]
    picture, corner = read_layer(filled, layer, 3)
    assert corner == (199980, 2800020)
    scene = scene_bands(sample, "B04", "B03", "B02")[:, :GRID, :GRID].astype(float)
    valid = (scene != 0).all(axis=0)
    for band, pixels in zip(picture, scene, strict=True):
        low, high = np.percentile(pixels[valid], [2, 98])
        expected = np.where(valid, 1 + 254 * ((pixels - low) / (high - low)).clip(0, 1), 0)
        assert abs(band - expected).max() <= 0.51


def test_a_raster_layer_is_registered_with_overviews(filled: psycopg.Connection, layer: str) -> None:
    rows = filled.execute(
        """
        select r_table_name, srid, scale_x, scale_y, same_alignment, num_bands, pixel_types, nodata_values, out_db,
               spatial_index, ST_AsText(extent)
        from raster_columns where r_table_schema = 'eo_layers' and r_table_name ~ %s order by scale_x
        """,
        (f"{layer}$",),
    ).fetchall()

    def outline(side: int) -> str:  # an overview's tiles reach beyond the layer's east and south edges
        east, south = 199980 + side, 2800020 - side
        return f"POLYGON((199980 {south},199980 2800020,{east} 2800020,{east} {south},199980 {south}))"

    assert rows == [
        (prefix + layer, 32629, scale, -scale, True, 3, ["8BUI"] * 3, [0.0] * 3, [False] * 3, True, outline(side))
        for prefix, scale, side in (("", 100, 108_000), ("o_2_", 200, 120_000), ("o_4_", 400, 144_000))
    ]
    assert filled.execute(
        "select o_table_name, r_table_schema, r_table_name, overview_factor from raster_overviews where r_table_name = %s order by 4",
        (layer,),
    ).fetchall() == [(f"o_{factor}_{layer}", "eo_layers", layer, factor) for factor in (2, 4)]
    picture, _ = read_layer(filled, layer, 3)
    for factor in (2, 4):
        overview, corner = read_layer(filled, f"o_{factor}_{layer}", 3)
        assert corner == (199980, 2800020)
        inside = overview[:, : GRID // factor, : GRID // factor]
        assert not overview.any(
            where=np.pad(
                np.zeros(inside.shape, bool),
                [(0, 0)] + [(0, n - GRID // factor) for n in overview.shape[1:]],
                constant_values=True,
            )
        )
        means = picture.reshape(3, GRID // factor, factor, GRID // factor, factor).mean(axis=(2, 4))
        with_data = (picture.reshape(3, GRID // factor, factor, GRID // factor, factor) > 0).all(axis=(2, 4))
        assert with_data.mean() > 0.9
        assert abs(inside - means)[with_data].max() <= 0.5 * np.log2(factor)  # rounded at each halving
    for table in (layer, f"o_2_{layer}"):
        assert filled.execute(
            "select attname from pg_index join pg_attribute on attrelid = indrelid and attnum = any (indkey)"
            " where indisprimary and indrelid = ('eo_layers.' || %s)::regclass and atttypid = 'integer'::regtype",
            (table,),
        ).fetchall() == [("rid",)]
        for role, privilege, held in (("eo_reader", "select", True), ("eo_reader", "update", False)):
            assert filled.execute(
                "select has_table_privilege(%s, 'eo_layers.' || %s, %s)", (role, table, privilege)
            ).fetchone() == (held,)


def test_native_pixels_another_name_and_dropping(filled: psycopg.Connection, layer: str, sample: Path) -> None:
    name = "swir"
    call = "select eo.make_raster_layer(%s, %s, false, %s)"
    assert filled.execute(call, (SCENE, ["B12", "B11"], name)).fetchone() == (name,)
    before = layer_tables(filled)
    assert filled.execute(call, (SCENE, ["B8A"], name)).fetchone() == (name,)
    assert layer_tables(filled) == before, "made anew"
    picture, _ = read_layer(filled, name, 1)
    np.testing.assert_array_equal(picture, scene_bands(sample, "B8A")[:, : GRID // 2, : GRID // 2])
    filled.execute("select eo.drop_raster_layer(%s)", (name,))
    assert {table for table in layer_tables(filled) if name in table} == set()
    assert layer in layer_tables(filled)
    with pytest.raises(errors.UndefinedTable, match="no raster layer"):
        filled.execute("select eo.drop_raster_layer(%s)", (name,))


def layer_tables(archive: psycopg.Connection) -> set[str]:
    return {
        name
        for (name,) in archive.execute(
            "select relname from pg_class where relnamespace = 'eo_layers'::regnamespace and relkind = 'r'"
        )
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["none", ["B04"], None], errors.NoDataFound, 'no product "none"'),
        ([SCENE, ["B04", "B12"], None], errors.NoDataFound, "no pixels of B04, B12 at one resolution"),
        ([SCENE, ["B99"], None], errors.NoDataFound, "B99"),
        ([SCENE, [], None], errors.NoDataFound, "at one resolution"),
        ([SCENE, ["B04"], ""], errors.InvalidParameterValue, 'cannot be called ""'),
        ([SCENE, ["B04"], "x" * 56], errors.InvalidParameterValue, "cannot be called"),
        ([SCENE, ["B04"], 'a"; drop table eo.patch'], errors.InvalidParameterValue, "cannot be called"),
    ],
)
def test_bad_input(filled: psycopg.Connection, arguments: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        filled.execute("select eo.make_raster_layer(%s, %s::text[], true, %s)", arguments)


def test_tiles_off_the_grid_are_refused(filled: psycopg.Connection) -> None:
    before = layer_tables(filled)
    with filled.transaction(force_rollback=True):
        filled.execute(
            """
            update eo.patch_raster set rast = ST_SetUpperLeft(rast, ST_UpperLeftX(rast) + 30, ST_UpperLeftY(rast))
            where resolution = 100 and patch_id = (select max(patch_id) from eo.patch where name like %s)
            """,
            (f"{SCENE}%",),
        )
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="do not lie on one grid"), filled.transaction():
            filled.execute("select eo.make_raster_layer(%s, layer => 'crooked')", (SCENE,))
    assert layer_tables(filled) == before


def test_a_reader_makes_and_drops_no_layers(filled: psycopg.Connection, layer: str) -> None:
    for call in ("eo.make_raster_layer('x')", "eo.drop_raster_layer('x')", "eo.store_map_styles()"):
        with pytest.raises(errors.InsufficientPrivilege), filled.transaction():
            filled.execute("set local role eo_reader")
            filled.execute(f"select {call}".encode())


@pytest.mark.parametrize("view", ["geometry_columns", "geography_columns", "raster_columns", "raster_overviews"])
@pytest.mark.parametrize("path", ["public", "pg_catalog", "eo"])
def test_postgis_catalogues_can_be_selected_whole(filled: psycopg.Connection, layer: str, view: str, path: str) -> None:
    """PostGIS reads numbers out of the text of constraints, of any table that one may read: none of ours misleads it."""
    filled.execute("select eo.derive_corine_parts('{32630}'), eo.derive_nuts_parts('{32630}')")
    with psycopg.connect(filled.info.dsn, autocommit=True, options="-c role=eo_reader") as reader:
        # PostGIS's own functions cast to geometry by its bare name.
        reader.execute(f"set search_path = {path}, public".encode())
        rows = reader.execute(f"select * from public.{view}".encode()).fetchall()
    assert len(rows) >= {"geography_columns": 0, "raster_overviews": 1}.get(view, 10)


def test_a_raster_layer_is_described_whole(filled: psycopg.Connection, layer: str) -> None:
    """What PostGIS's AddRasterConstraints would have told raster_columns."""
    for table in (layer, f"o_2_{layer}"):
        row = filled.execute(
            """
            select c.srid, c.scale_x, c.scale_y, c.blocksize_x, c.blocksize_y, c.same_alignment, c.num_bands, c.pixel_types,
                   c.nodata_values, c.out_db, c.spatial_index, st_area(c.extent) > 0, c.extent is not null
            from raster_columns c where c.r_table_schema = 'eo_layers' and c.r_table_name = %s
            """,
            (table,),
        ).fetchone()
        scale = 100.0 if table == layer else 200.0
        assert row == (
            32629, scale, -scale, 120, 120, True, 3, ["8BUI"] * 3, [0.0] * 3, [False] * 3, True, True, True,
        )  # fmt: skip
    row = filled.execute(
        "select o_table_schema, r_table_schema, r_table_name, overview_factor from raster_overviews where o_table_name = %s",
        (f"o_2_{layer}",),
    ).fetchone()
    assert row == ("eo_layers", "eo_layers", layer, 2)
