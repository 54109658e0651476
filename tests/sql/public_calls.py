"""A call of every public function, with plausible arguments, on an archive of real data that has something to say to each.

Tests that run every function share it. Calls name everything with its schema, so they mean the same under any search_path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import rasterio
from psycopg import sql
from rasterio.io import MemoryFile

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.products.load import Options, load_product
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.pyfuncs.models import spectral
from tests.stand_ins import NO_WEIGHTS, lsh_weights

SCENE = "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947"
AREA = "'SRID=4326;POLYGON((-12 50,-12 56,0 56,0 50,-12 50))'::public.geometry"

CALLS: dict[str, list[str]] = {
    "add_to_collection": ["'mine', {patch_ids}"],
    "bucket_members": ["{code}"],
    "buckets_within": ["{code}, 40"],
    "build_code_index": ["", "'lsh'"],
    "build_plain_code_index": [""],
    "build_vector_index": ["", "m => 8"],
    "cell_box": ["'gc7x3'"],
    "cell_neighbours": ["'gc7x3'"],
    "cell_of": ["public.st_point(-8::float8, 53::float8, 4326)"],
    "cells": [
        f"{AREA}, 4",
        # Across the antimeridian, with it cut out; about a pole in its own reference system, with a hole; a line and a point.
        "'SRID=4326;POLYGON((170 -20,170 -10,190 -10,190 -20,170 -20))'::public.geometry, 3",
        "'SRID=3413;POLYGON((-2e6 -2e6,2e6 -2e6,2e6 2e6,-2e6 2e6,-2e6 -2e6),(5e5 5e5,6e5 5e5,6e5 6e5,5e5 5e5))'::public.geometry, 2",
        "'SRID=32601;GEOMETRYCOLLECTION(LINESTRING(-2e5 6e6,2e5 6e6),POINT(5e5 6e6))'::public.geometry, 4",
    ],
    "circle": [
        "public.st_point(-8::float8, 53::float8, 4326), 1000::float8",
        "public.st_point(0::float8, 89.5::float8, 4326), 500000::float8",
        "public.st_point(179.9::float8, 53::float8, 4326), 50000::float8",
    ],
    "code_statistics": ["", "'lsh', eo.filter(seasons => '{{summer}}')"],
    "collection_patches": ["'{{mine}}'"],
    "contact_sheet": ["{patch_ids}, '{{0,1}}'"],
    "count_patches": ["", "exact => false", f"eo.filter(area => {AREA})"],
    "create_collection": ["'yours'"],
    "derive_corine_parts": ["", "'{{32630}}'"],
    "derive_nuts_parts": ["", "'{{32630}}'"],
    "drop_collection": ["'mine'"],
    "drop_raster_layer": ["{layer}"],
    "drop_segment_codes": [""],
    "encode": [
        "{patch_ids}",
        "(select pg_catalog.array_agg(r.rast order by r.resolution) from eo.patch_raster r where r.patch_id = {patch_id})",
    ],
    "encode_image": ["{image}"],
    "evaluate": ["'lsh', k => 3", "'spectral', k => 3, relevance => 'jaccard:0.5'"],
    "example_vector": ["{names}", "array[{name}], array[{other}]"],
    "explain_similarity": ["{name}, {other}", "{name}, {other}, 'lsh'"],
    "filter": [
        "",
        f"area => {AREA}, labels => '{{{{Forests}}}}', label_match => 'at_least'",
        """pg_catalog.jsonb '{{"countries": ["IE"], "area": {{"type": "Point", "coordinates": [-8, 53]}}}}'""",
    ],
    "hash": ["{vector}"],
    "label_meaning": ["'{{forest,clc:3,Transitional woodland/shrub}}'"],
    "help": ["", "'similar'"],
    "label_members": ["'{{Forests,clc:3,311}}'"],
    "label_statistics": ["", "eo.filter(seasons => '{{summer}}'), 'scl'"],
    "make_current": ["'lsh:1'"],
    "make_raster_layer": [f"'{SCENE}'"],
    "patch_statistics": ["'season'", "'country'"],
    "patches": [
        f"eo.filter(area => {AREA})",
        "eo.filter(labels => '{{Forests,Pastures}}', label_match => 'at_least')",
        "eo.filter(cells => '{{gc7x3b}}', max_cloud => 100, scene_classes => '{{Vegetation}}')",
    ],
    "place": ["'Bavaria'", "'ile-de-france'", "'EL'"],
    "product_filter": ["", f"area => {AREA}, platforms => '{{{{sentinel-2a}}}}', max_cloud => 50"],
    "product_statistics": ["", "eo.product_filter(platforms => '{{sentinel-2a}}')"],
    "rectangle": ["-12, 50, 0, 56", "170, 50, -170, 56"],
    "reference_map": ["{name}"],
    "segment_codes": ["{image}"],
    "register_encoder": [
        "'new', 1, 'spectral', '{{B02}}', {no_weights}, dimension => 3",
        "'newer', null, 'lsh', '{{}}', {lsh_weights}, bits => 8, parent_id => {encoder_id}::smallint",
    ],
    "remove_from_collection": ["'mine', {patch_ids}"],
    "retire_encoder": ["'old:1'"],
    "retrieval_metrics": [
        "'lsh', k => 3, archive => eo.filter(sources => '{{bigearthnet-v1}}')",
        "'spectral', k => 3, max_queries => 5",
    ],
    "rgb": ["{name}"],
    "runtime": [""],
    "search": [
        f"eo.filter(area => {AREA}, labels => '{{{{Forests}}}}')",
        "max_results => null",
        "eo.filter(patch_ids => {patch_ids}), order_by => 'newest'",
    ],
    "select_products": ["", f"eo.product_filter(area => {AREA}), per_season => 2, each_year => true"],
    "similar": [
        "{name}, max_results => 3",
        "{name}, eo.filter(seasons => '{{summer}}'), 5, exclude_same_place => true",
        f"{{name}}, eo.filter(area => {AREA}, max_cloud => 100)",
    ],
    "similar_change": ["{name}, {other}"],
    "similar_segments": ["{name}", "{name}, eo.filter(labels => '{{Forests}}'), 3"],
    "similar_to_code": ["{code}, max_results => 3", "{code}, eo.filter(labels => '{{Forests}}'), 3"],
    "similar_to_examples": ["{names}", "array[{name}], array[{other}], max_results => 3, exclude_same_place => true"],
    "similar_to_image": ["{image}, max_results => 3"],
    "similar_to_segments": ["{segment_codes}, max_results => 3"],
    "similar_to_vector": [
        "{vector}, max_results => 3",
        "{vector}, max_results => 3, approximate => true",
        "{vector}, eo.filter(platforms => '{{sentinel-2a}}'), 2, approximate => true, exclude => {names},"
        " exclude_same_place => true",
    ],
    "store_codes": [
        "{hash_id}::smallint, array[{patch_id}]::bigint[], '{{0}}'::smallint[], array[{code}]",
        "{hash_id}::smallint, array[{patch_id}]::bigint[], '{{90}}'::smallint[], array[~{code}]",
    ],
    "store_map_styles": [""],
    "unannotated_cells": ["", "cells => '{{gc7x3}}', \"replace\" => true"],
    "within_distance": ["{code}, 40", "{code}, 40, eo.filter(seasons => '{{summer}}')"],
}
"""Arguments of calls by function; a name with several functions has a call of each."""

PROCEDURES = {"annotate": '"replace" => true'}
"""Arguments of calls of procedures, which commit and so stand in no query."""


def fill(connection: psycopg.Connection, sample: Path) -> dict[str, sql.Composable]:
    """Load real data, encode and index it; return what stands for the fields of CALLS."""
    load_bigearthnet(connection, sample / "bigearthnet-v1")
    load_product(connection, sample / "sentinel2-cog" / "S2A_29RKH_20200219_0_L2A", Options(grid="fixed:120"))
    load_corine(connection, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    load_nuts(connection, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    with psycopg.connect(connection.info.dsn, autocommit=True) as reading:
        encode_archive(connection, reading, segments="grid:2")
    connection.execute("call eo.annotate()")
    connection.execute("select eo.register_encoder('old', 1, 'spectral', '{B02}', %s, dimension => 3)", (NO_WEIGHTS,))
    connection.execute("select eo.build_code_index(), eo.build_vector_index()")
    layer = value(connection, f"select eo.make_raster_layer('{SCENE}')")
    patch_id, name, code, vector = connection.execute(
        """
        select p.patch_id, p.name, b.code::text, e.embedding::text
        from eo.patch p join eo.patch_bucket pb using (patch_id) join eo.bucket b using (encoder_id, bucket_no)
        join eo.embedding e using (patch_id)
        where pb.segment = 0 and p.source = 'bigearthnet-v1' order by p.name limit 1
        """
    ).fetchone() or (0, "", "", "")
    other_id, other = connection.execute(
        "select patch_id, name from eo.patch join eo.embedding using (patch_id)"
        " where source = 'bigearthnet-v1' order by name offset 1 limit 1"
    ).fetchone() or (0, "")
    values: dict[str, tuple[Any, str]] = {
        "patch_id": (patch_id, "bigint"),
        "patch_ids": ([patch_id, other_id], "bigint[]"),
        "name": (name, "text"),
        "other": (other, "text"),
        "names": ([name, other], "text[]"),
        "code": (code, "bit varying"),
        "segment_codes": (
            value(
                connection,
                "select array_agg(code::text) from eo.patch_bucket join eo.bucket using (encoder_id, bucket_no)"
                f" where segment > 0 and patch_id = {patch_id}",
            ),
            "bit varying[]",
        ),
        "vector": (vector, "public.vector"),
        "image": (upload(sample, name), "bytea"),
        "layer": (layer, "text"),
        "no_weights": (NO_WEIGHTS, "bytea"),
        "lsh_weights": (lsh_weights(8, spectral.DIMENSION), "bytea"),
        "encoder_id": (value(connection, "select encoder_id from eo.encoder where name = 'spectral'"), "smallint"),
        "hash_id": (value(connection, "select encoder_id from eo.encoder where name = 'lsh'"), "smallint"),
    }
    connection.execute("analyze")
    return {field: sql.SQL("{}::" + kind).format(sql.Literal(given)) for field, (given, kind) in values.items()}  # type: ignore[arg-type]


def value(connection: psycopg.Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def upload(sample: Path, name: str) -> bytes:
    """A patch as one GeoTIFF with described bands, at the finest resolution."""
    with MemoryFile() as file:
        profile = {"driver": "GTiff", "width": 120, "height": 120, "count": len(spectral.BANDS), "dtype": "uint16"}
        with file.open(
            **profile, crs="EPSG:32633", transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_300_000)
        ) as image:
            for number, band in enumerate(spectral.BANDS, 1):
                with rasterio.open(sample / "bigearthnet-v1" / "S2" / name / f"{name}_{band}.tif") as source:
                    pixels = source.read(1)
                image.write(pixels.repeat(120 // len(pixels), 0).repeat(120 // len(pixels), 1), number)
                image.set_band_description(number, band)
        return bytes(file.read())


def calls(values: dict[str, sql.Composable]) -> list[tuple[str, sql.Composed]]:
    """Every call: the function's name, and the call as it stands in `from`."""
    return [
        (name, sql.SQL(f'eo."{name}"({arguments})').format(**values))  # type: ignore[arg-type]
        for name, several in CALLS.items()
        for arguments in several
    ]


def check_that_no_function_is_left_out(connection: psycopg.Connection) -> None:
    for name, kind, functions in connection.execute(
        "select proname, prokind::text, count(*) from pg_proc where pronamespace = 'eo'::regnamespace group by 1, 2"
    ):
        given = int(name in PROCEDURES) if kind == "p" else len(CALLS.get(name, []))
        assert given >= functions, f"tests/sql/public_calls.py has no call of eo.{name}"
