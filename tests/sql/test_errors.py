"""What users see of an error: a message, a SQLSTATE and a hint, and nothing of Python."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import psycopg
import pytest
import tifffile
from psycopg import errors
from psycopg.types.json import Jsonb
from pyproj import CRS

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.pyfuncs.models import encoder as encoders
from pgearth.pyfuncs.models import weights
from pgearth.pyfuncs.models.resnet import ResNet, weights_of
from tests.errors_for_people import assert_for_people
from tests.stand_ins import lsh_weights

PATCH = "S2A_MSIL2A_20170617T113321_4_55"


@pytest.fixture(scope="module")
def encoded(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches, encoded, hashed in windows too, with packed codes."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading, segments="grid:2")
    module_archive.execute("select eo.build_code_index(), eo.create_collection('mine')")
    return module_archive


def error_of(connection: psycopg.Connection, query: str, *parameters: object) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(query, parameters)
    assert_for_people(caught.value)
    return caught.value


WRONG = {
    "image that is none": ("select eo.encode_image('x')", "22P03"),
    "null as rasters": ("select eo.encode(array[null]::raster[])", "22004"),
    "no rasters": ("select eo.encode(null::raster[])", "22023"),
    "null among rasters": (
        "select eo.encode((select array_agg(r.rast order by resolution) from eo.patch_raster r join eo.patch p using (patch_id)"
        f" where p.name = '{PATCH}') || null::raster)",
        "22004",
    ),
    "no codes": ("select * from eo_internal.nearest_codes(2::smallint, '{}', '{}', 5, null)", "22023"),
    "null code": (
        "select * from eo_internal.nearest_codes(2::smallint, array[null]::bit varying[], '{}', 5, null)",
        "22023",
    ),
    "null codes": ("select * from eo_internal.nearest_codes(2::smallint, null, '{}', 5, null)", "22023"),
    "null negatives": (
        "select * from eo_internal.nearest_codes(2::smallint, array[repeat('1', 128)::bit varying], null, 5, null)",
        "22023",
    ),
    "short code": ("select * from eo_internal.nearest_codes(2::smallint, array[b'1'], '{}', 5, null)", "22023"),
    "short negative": (
        "select * from eo_internal.nearest_codes(2::smallint, array[repeat('1', 128)::bit varying], array[b'0'], 5, null)",
        "22023",
    ),
    "less than no codes": (
        "select * from eo_internal.nearest_codes(2::smallint, array[repeat('1', 128)::bit varying], '{}', -1, null)",
        "22023",
    ),
    "unknown hash function": (
        "select * from eo_internal.nearest_codes(99::smallint, array[b'1'], '{}', 5, null)",
        "42704",
    ),
    "encoder for a hash function": (
        "select * from eo_internal.nearest_codes(1::smallint, array[b'1'], '{}', 5, null)",
        "42704",
    ),
    "no hash function": ("select * from eo_internal.nearest_codes(null, array[b'1'], '{}', 5, null)", "42704"),
    "odd conditions": (
        """select * from eo_internal.nearest_packed_patches(2::smallint, array[repeat('1', 128)::bit varying], '{}', 5, 0, null,
           '{"boxes": 3}')""",
        "22023",
    ),
    "conditions that are no object": (
        """select * from eo_internal.nearest_packed_patches(2::smallint, array[repeat('1', 128)::bit varying], '{}', 5, 0, null,
           '["boxes", "patch_ids"]')""",
        "22023",
    ),
    "unknown SRID": ("select * from eo.search(eo.filter('SRID=999999;POINT(9 50)'::geometry))", "22023"),
    "no SRID": ("select eo.cell_of('POINT(9 50)'::geometry)", "22023"),
    "nowhere": ("select * from eo.cells('SRID=32633;POINT(1e30 0)'::geometry, 3)", "22023"),
    "geocentric": ("select * from eo.search(eo.filter('SRID=4978;POINT(4000000 500000)'::geometry))", "22023"),
    "geocentric cells": ("select * from eo.cells('SRID=4978;POINT Z(4000000 500000 4900000)'::geometry, 3)", "22023"),
    "a geocentric cell": ("select eo.cell_of('SRID=4936;POINT(4000000 500000)'::geometry)", "22023"),
    "a geocentric circle": ("select eo.circle('SRID=7789;POINT(4000000 500000)'::geometry, 1000)", "22023"),
    "a geocentric area of products": (
        "select * from eo.select_products(eo.product_filter('SRID=4978;POINT(4000000 500000)'::geometry))",
        "22023",
    ),
    "geocentric and empty": ("select * from eo.search(eo.filter('SRID=4978;POLYGON EMPTY'::geometry))", "22023"),
    "geocentric pieces": ("select eo.derive_nuts_parts('{32633}', 'SRID=4978;POINT(4000000 500000)')", "22023"),
    "not finite": ("select * from eo.cells('SRID=32633;POINT(nan 0)'::geometry, 3)", "22023"),
    "latitude 200": ("select eo.cell_of('SRID=4326;POINT(9 200)'::geometry)", "22023"),
    "a surface": ("select * from eo.search(eo.filter('SRID=4326;TIN(((0 0,0 1,1 1,0 0)))'::geometry))", "22023"),
    "a surface among others": (
        "select * from eo.search(eo.filter('SRID=4326;GEOMETRYCOLLECTION(POINT(0 0),TIN(((0 0,0 1,1 1,0 0))))'::geometry))",
        "22023",
    ),
    "a cell of no precision": ("select eo.cell_of('SRID=4326;POINT(9 50)'::geometry, 0)", "22023"),
    "a cell too precise": ("select eo.cell_of('SRID=4326;POINT(9 50)'::geometry, 2147483647)", "22023"),
    "pieces of nowhere": ("select eo.derive_corine_parts('{32633}', 'SRID=4326;POINT(9000 50)'::geometry)", "22023"),
    "no layer": ("select eo.drop_raster_layer('')", "22023"),
    "a number as area": ("""select * from eo.code_statistics('lsh', eo.filter(jsonb '{"area": 3}'))""", "22023"),
    "an area that is null": (
        "select * from eo.search(eo.filter((select st_union(geom) from eo.nuts where nuts_id = 'XX')))",
        "22004",
    ),
    "a null among labels": ("select * from eo.search(eo.filter(labels => '{Forests,null}'))", "22004"),
    "an order that is none": ("select * from eo.search(order_by => 'name')", "22023"),
    "a page after no patch": ("select * from eo.search(order_by => 'newest', after_patch_id => -1)", "P0002"),
    "a nomenclature that is none": ("select * from eo.label_statistics(nomenclature => 'x')", "42704"),
    "a null among tiles": ("select * from eo.product_statistics(eo.product_filter(tiles => '{null}'))", "22004"),
    "a null among levels": ("select * from eo.select_products(eo.product_filter(levels => '{L2A,null}'))", "22004"),
    "a null among a product's seasons": (
        "select * from eo.select_products(eo.product_filter(seasons => '{null}'))",
        "22004",
    ),
    "a null among products": (
        "select * from eo.product_statistics(eo.product_filter(product_ids => '{1,null}'))",
        "22004",
    ),
    "a list of two dimensions": ("select * from eo.search(eo.filter(labels => array[['Forests']]))", "22023"),
    "ids of two dimensions": ("select * from eo.search(eo.filter(patch_ids => '{{1}}'))", "22023"),
    "a null among patches to encode": ("select * from eo.encode(array[1, null]::bigint[])", "22004"),
    "a null among patches of a sheet": ("select eo.contact_sheet('{null}')", "22004"),
    "a null among patches to add": ("select eo.add_to_collection('mine', '{1,null}')", "22004"),
    "a null among patches to remove": ("select eo.remove_from_collection('mine', '{null}')", "22004"),
    "a null among collections": ("select * from eo.collection_patches('{mine,null}')", "22004"),
    "a null among positives": ("select * from eo.similar_to_examples('{null}')", "22004"),
    "a null among negatives": (f"select * from eo.similar_to_examples('{{{PATCH}}}', '{{null}}')", "22004"),
    "a null among examples": ("select eo.example_vector('{null}')", "22004"),
    "a null among unlike examples": (f"select eo.example_vector('{{{PATCH}}}', '{{null}}')", "22004"),
    "a null among those left out": (
        "select * from eo.similar_to_vector((select embedding from eo.embedding limit 1), exclude => '{null}')",
        "22004",
    ),
    "a null among labels to expand": ("select eo.label_members('{null}')", "22004"),
    "a null among labels to explain": ("select * from eo.label_meaning('{null}')", "22004"),
    "a null among codes of segments": ("select * from eo.similar_to_segments(array[null]::bit varying[])", "22004"),
    "a null among patches with codes": (
        "select eo.store_codes(2::smallint, array[null]::bigint[], '{0}', array[repeat('1', 128)::bit varying])",
        "22004",
    ),
    "a null among segments": (
        "select eo.store_codes(2::smallint, '{1}', array[null]::smallint[], array[repeat('1', 128)::bit varying])",
        "22004",
    ),
    "a null among codes to store": (
        "select eo.store_codes(2::smallint, '{1}', '{0}', array[null]::bit varying[])",
        "22004",
    ),
    "more patches than codes": (
        "select eo.store_codes(2::smallint, '{1,2}', '{0}', array[repeat('1', 128)::bit varying])",
        "22023",
    ),
    "cells that are none": ("call eo.annotate('{country}', cells => '{\"!\"}')", "22023"),
    "cells that no patch has": ("call eo.annotate('{country}', cells => '{gc7}')", "22023"),
    "a null among cells": ("call eo.annotate('{country}', cells => '{gc7x3,null}')", "22004"),
    "an annotation that is none": ("select * from eo.unannotated_cells('{foo}')", "22023"),
    "a null among annotations": ("select * from eo.unannotated_cells('{country,null}')", "22023"),
    "an unannotated cell that is none": ("select * from eo.unannotated_cells('{country}', cells => '{abc}')", "22023"),
    "a source to annotate that is none": ("call eo.annotate('{country}', source => 'bigearth')", "22023"),
    "several sources to annotate": ("select * from eo.unannotated_cells(source => 'bigearthnet')", "22023"),
    "no rule": ("call eo.annotate('{country}', rule => null)", "22023"),
    "no least overlap": ("call eo.annotate('{country}', minimal_overlap => null)", "22023"),
    "no size of batches": ("call eo.annotate('{country}', batch_size => null)", "22023"),
    "pieces in no reference system": ("select eo.derive_corine_parts('{999999}')", "22023"),
    "pieces in a geocentric one": ("select eo.derive_nuts_parts('{4978}')", "22023"),
    "pieces without SRID": ("select eo.derive_nuts_parts('{32633,0}')", "22023"),
    "a null among reference systems": ("select eo.derive_corine_parts('{32633,null}')", "22004"),
    "a null among bands of a layer": (
        "select eo.make_raster_layer((select name from eo.product limit 1), array['B02', null])",
        "22004",
    ),
    "a null among an image's bands": ("select eo.encode_image('x', bands => array['B02', null])", "22004"),
    "a null among bands of an image to search": (
        "select * from eo.similar_to_image('x', bands => array[null])",
        "22004",
    ),
    "a null among bands of an image in segments": ("select eo.segment_codes('x', bands => array[null])", "22004"),
    "no vector to hash": ("select eo.hash(null)", "22004"),
    "no code": ("select * from eo.similar_to_code(null)", "22023"),
    "no vector": ("select * from eo.similar_to_vector(null)", "22023"),
    "a vector too long to measure": (
        "select * from eo.similar_to_vector(array_fill(1e30::real, array[128])::vector)",
        "22003",
    ),
    "a collection without a name": ("select eo.create_collection('')", "22023"),
    "a collection called by a null": ("select eo.create_collection(null)", "22023"),
    "a collection of a blank name": ("select eo.create_collection(e' \\t\\n')", "22023"),
    "a collection of a long name": ("select eo.create_collection(repeat('x', 201))", "22023"),
    "fewer links than two": ("select eo.build_vector_index(m => 1)", "22023"),
    "more links than pgvector has": ("select eo.build_vector_index(m => 101)", "22023"),
    "a narrow search for links": ("select eo.build_vector_index(m => 16, ef_construction => 31)", "22023"),
    "a search for links too broad": ("select eo.build_vector_index(ef_construction => 1001)", "22023"),
    "no links": ("select eo.build_vector_index(m => null)", "22004"),
    "fewer than no results by vector": (
        "select * from eo.similar_to_vector((select embedding from eo.embedding limit 1), max_results => -1)",
        "22023",
    ),
    "fewer than no results by patch": (f"select * from eo.similar('{PATCH}', max_results => -1)", "22023"),
    "fewer than no results by code": (
        "select * from eo.similar_to_code((select code from eo.bucket limit 1), eo.filter(seasons => '{summer}'), -1)",
        "22023",
    ),
    "fewer than no results by examples": (
        f"select * from eo.similar_to_examples('{{{PATCH}}}', max_results => -5)",
        "22023",
    ),
    "fewer than no results by segments": (f"select * from eo.similar_segments('{PATCH}', max_results => -5)", "22023"),
    "fewer than no results by codes of segments": (
        "select * from eo.similar_to_segments(array[(select code from eo.bucket limit 1)], max_results => -1)",
        "22023",
    ),
    "fewer than no changes": (f"select * from eo.similar_change('{PATCH}', '{PATCH}', max_results => -1)", "22023"),
    "a product's area that is null": ("select * from eo.select_products(eo.product_filter(null))", "22004"),
    "relevance that is none": ("select * from eo.retrieval_metrics('lsh', relevance => 'jaccard:much')", "22023"),
    "WKB that is none": (
        "select * from eo_internal.encode(1::smallint, array[1], array['B02'], array['x'::bytea])",
        "22P03",
    ),
    "null as WKB": (
        "select * from eo_internal.encode(1::smallint, array[1], array['B02'], array[null::bytea])",
        "22004",
    ),
    "null as bands": (
        "select * from eo_internal.encode(1::smallint, array[1], array[null], array['x'::bytea])",
        "22004",
    ),
    "vector that is none": ("select * from eo_internal.hash(2::smallint, array['x'::bytea])", "22P03"),
    "no vectors": ("select * from eo_internal.hash(2::smallint, '{}')", "22P03"),
    "null as vector": ("select * from eo_internal.hash(2::smallint, array[null::bytea])", "22004"),
    "unknown encoder": ("select * from eo_internal.encode(99::smallint, '{}', '{}', '{}')", "42704"),
    "unknown encoder of a hash": (
        "select * from eo_internal.hash(99::smallint, array[vector_send('[1]'::vector)])",
        "42704",
    ),
}


@pytest.mark.parametrize(("query", "sqlstate"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(encoded: psycopg.Connection, query: str, sqlstate: str) -> None:
    error = error_of(encoded, query)
    assert error.sqlstate == sqlstate
    assert error.diag.message_hint


def test_every_geocentric_reference_system_is_known(encoded: psycopg.Connection) -> None:
    """By what their WKT begins with; one of a user's own, too, as WKT of either version alone. Others are none."""
    srids = [
        srid for (srid,) in encoded.execute("select srid from spatial_ref_sys where srtext ~ '^GEOCCS' order by srid")
    ]
    assert len(srids) > 100
    with encoded.transaction(force_rollback=True):
        for srid, version in ((990001, "WKT1_GDAL"), (990002, "WKT2_2019")):
            encoded.execute(
                "insert into spatial_ref_sys (srid, srtext, proj4text) values (%s, %s, '')",
                (srid, CRS.from_epsg(4978).to_wkt(version)),
            )
        for srid in [*srids, 990001, 990002]:
            with pytest.raises(errors.InvalidParameterValue, match=f"SRID {srid} is geocentric"), encoded.transaction():
                encoded.execute("select eo_internal.is_geographic(%s)", (srid,))
    for srid in (4326, 4979, 4807, 32633, 3857, 3413, 22300):
        geographic = encoded.execute("select eo_internal.is_geographic(%s)", (srid,)).fetchone()
        assert geographic == (CRS.from_epsg(srid).is_geographic,), srid


def test_a_vector_too_long_for_the_index(encoded: psycopg.Connection) -> None:
    query = "select * from eo.similar_to_vector(array_fill(%s::real, array[128])::vector, approximate => true)"
    with encoded.transaction(force_rollback=True):
        encoded.execute("select eo.build_vector_index()")
        assert encoded.execute(query, (65504,)).fetchall()
        error = error_of(encoded, query, -65520)
    assert error.sqlstate == "22003"
    assert "approximate false" in (error.diag.message_hint or "")


def test_an_index_of_vectors_too_long_for_it(encoded: psycopg.Connection) -> None:
    with encoded.transaction(force_rollback=True):
        encoded.execute("update eo.embedding set embedding = array_fill(70000::real, array[128])::vector")
        with encoded.transaction(force_rollback=True):
            error = error_of(encoded, "select eo.build_vector_index()")
        assert error.sqlstate == "22003"
        assert "65,504" in (error.diag.message_hint or "")
        # The exact search tells them all apart from what is shorter.
        row = encoded.execute(
            "select count(*), max(distance) from eo.similar_to_vector(array_fill(1e16::real, array[128])::vector, max_results => null)"
        ).fetchone()
        assert row is not None
        assert row[0] > 0
        assert row[1] == pytest.approx(1e16 * 128**0.5, rel=1e-5)


# A call of each argument that is a floating-point number.
FLOATS = {
    ("annotate", "minimal_overlap"): "call eo.annotate('{{country}}', minimal_overlap => {})",
    ("circle", "radius"): "select eo.circle('SRID=4326;POINT(9 50)', {})",
    ("filter", "max_cloud"): "select * from eo.search(eo.filter(max_cloud => {}))",
    ("product_filter", "max_cloud"): "select * from eo.select_products(eo.product_filter(max_cloud => {}))",
    ("rectangle", "west"): "select eo.rectangle({}, 50, 10, 51)",
    ("rectangle", "south"): "select eo.rectangle(9, {}, 10, 51)",
    ("rectangle", "east"): "select eo.rectangle(9, 50, {}, 51)",
    ("rectangle", "north"): "select eo.rectangle(9, 50, 10, {})",
}


def test_every_floating_point_number_is_tried(encoded: psycopg.Connection) -> None:
    """But distances of a contact sheet, which it only writes below its pictures."""
    found = encoded.execute(
        """
        select p.proname, argument.name
        from pg_proc p, unnest(p.proargnames[:p.pronargs], p.proargtypes::oid[]) as argument (name, type)
        where p.pronamespace = 'eo'::regnamespace
          and argument.type in ('real'::regtype, 'double precision'::regtype, 'real[]'::regtype, 'double precision[]'::regtype)
        """
    ).fetchall()
    assert {*found} - {("contact_sheet", "distances")} == FLOATS.keys()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "-1e30", "1e30"])
@pytest.mark.parametrize("query", FLOATS.values(), ids=[".".join(argument) for argument in FLOATS])
def test_numbers_that_no_quantity_is(encoded: psycopg.Connection, query: str, number: str) -> None:
    """Case: max_cloud => 'nan' found everything, for a NaN is greater than any number."""
    error = error_of(encoded, query.format(f"'{number}'"))
    assert error.sqlstate == "22023"
    assert error.diag.message_hint


@pytest.mark.parametrize("number", ["-0.1", "100.1", "1e39", "1e400"])
def test_cloud_is_a_share_in_per_cent(encoded: psycopg.Connection, number: str) -> None:
    error = error_of(encoded, "select * from eo.search(eo.filter(%s::jsonb))", f'{{"max_cloud": {number}}}')
    assert error.sqlstate == "22023"
    assert error.diag.message_hint
    for limit in ("0", "100"):
        encoded.execute(
            "select eo.filter(%s::jsonb), eo.product_filter(max_cloud => %s)", (f'{{"max_cloud": {limit}}}', limit)
        )


def tiff(nodata: str) -> bytes:
    file = BytesIO()
    tifffile.imwrite(
        file,
        np.ones((4, 4), np.uint16),
        photometric="minisblack",
        extratags=[(42113, "s", 0, nodata, True)],
    )
    return file.getvalue()


@pytest.mark.parametrize("nodata", ["nothing", "--", "1 2", "0x10"])
def test_a_nodata_tag_that_is_no_number(encoded: psycopg.Connection, nodata: str) -> None:
    error = error_of(encoded, "select eo.encode_image(%s, bands => '{B02}')", tiff(nodata))
    assert error.sqlstate == "22P03"
    assert nodata in str(error)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"mean": np.zeros(128, np.float32)},
        {"mean": np.zeros(128), "std": np.ones(128), "hyperplanes": np.ones((64, 7))},
        {"mean": np.zeros(128), "std": np.ones(128), "hyperplanes": np.ones(3)},
        {"mean": np.zeros(128), "std": np.ones(128), "hyperplanes": np.ones((63, 128))},
        {"mean": np.float64(0), "std": np.ones(128), "hyperplanes": np.ones((64, 128))},
        {"mean": np.zeros(128), "std": np.ones(128), "hyperplanes": np.ones((64, 127))},
        b"no safetensors",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"",
    ],
    ids=[
        "none",
        "lacking",
        "of another shape",
        "of no matrix",
        "of other bits",
        "scalar",
        "of vectors of another length",
        "text",
        "huge header",
        "empty",
    ],
)
def test_malformed_weights(encoded: psycopg.Connection, tensors: dict[str, np.ndarray] | bytes) -> None:
    """They are refused, and where an older version has stored them, a search says what they are."""
    content = tensors if isinstance(tensors, bytes) else weights.dump(tensors)
    name = f"wrong{hashlib.sha256(content).hexdigest()[:8]}"
    register = "select eo.register_encoder(%s, 1, 'lsh', '{}', %s, bits => 64, parent_id => 1::smallint)"
    refused = error_of(encoded, register, name, content)
    assert refused.sqlstate in ("22P03", "22023")
    assert refused.diag.message_hint
    assert encoded.execute("select count(*) from eo.encoder where name = %s", (name,)).fetchone() == (0,)
    encoded.execute(
        "insert into eo.encoder (name, version, architecture, bands, bits, weights, weights_sha256, parent_id)"
        " values (%(name)s, 1, 'lsh', '{}', 64, %(weights)b, encode(sha256(%(weights)b), 'hex'), 1)",
        {"name": name, "weights": content},
    )
    error = error_of(encoded, "select eo.hash((select embedding from eo.embedding limit 1), %s)", name)
    assert error.sqlstate in ("22P03", "22023")


def test_a_network_without_its_weights(encoded: psycopg.Connection, sample: Path) -> None:
    normalisation = Jsonb({"mean": [1], "std": [1]})
    encoded.execute(
        "insert into eo.encoder (name, version, architecture, bands, dimension, weights, weights_sha256, normalisation)"
        " values ('hollow', 1, 'resnet18', '{B02}', 512, %(weights)b, encode(sha256(%(weights)b), 'hex'), %(normalisation)s)",
        {"weights": weights.dump({}), "normalisation": normalisation},
    )
    error = error_of(encoded, "select eo.encode_image(%s, 'hollow', '{B02}')", tiff("0"))
    assert error.sqlstate == "22P03"


@pytest.fixture(scope="module")
def network() -> dict[str, np.ndarray]:
    """Weights of a narrow ResNet-18 of two bands: vectors of 32 dimensions."""
    return weights_of(ResNet("resnet18", [0, 0], [1, 1], 4))


TWO_BANDS = {"mean": [400, 600.5], "std": [500, 1]}


@pytest.mark.parametrize(
    ("change", "arguments", "sqlstate", "message"),
    [
        ({}, {"architecture": "resnet19"}, "22023", 'no architecture "resnet19" of encoders'),
        ({}, {"architecture": "lsh"}, "22023", 'no architecture "lsh" of encoders'),
        ({}, {"architecture": ""}, "22023", 'no architecture "" of encoders'),
        ({}, {"architecture": "resnet50"}, "22P03", "have .* as layer1"),
        ({}, {"architecture": "spectral"}, "22P03", "nothing to be trained"),
        ({}, {"architecture": "onnx"}, "22P03", "cannot load the model"),
        ({"bn1.weight": None}, {}, "22P03", "have .* as bn1"),
        ({"bn1.weight": np.ones(8, np.float32)}, {}, "22P03", "have .* as bn1"),
        ({"bn1.weight": np.ones((), np.float32)}, {}, "22P03", "have .* as bn1"),
        ({"bn1.weight": np.ones(0, np.float32)}, {}, "22P03", "have .* as bn1"),
        ({"fc.weight": np.ones((10, 32), np.float32)}, {}, "22P03", "fc.weight instead of nothing"),
        ({"conv1.weight": np.full((4, 2, 7, 7), np.nan, np.float32)}, {}, "22P03", "conv1.weight that are not finite"),
        ({}, {"bands": ["B02"], "normalisation": {"mean": [0], "std": [1]}}, "22P03", "as conv1.weight"),
        ({}, {"dimension": 64}, "22P03", "32 dimensions instead of 64"),
        ({}, {"normalisation": None}, "22023", "no mean and std"),
        ({}, {"normalisation": {"mean": [0, 0]}}, "22023", "no mean and std"),
        ({}, {"normalisation": {"mean": [0, 0], "std": [1]}}, "22023", "no mean and std"),
        ({}, {"normalisation": {"mean": [0, 0], "std": [1, 0]}}, "22023", "no mean and std"),
        ({}, {"normalisation": {"mean": ["0", 0], "std": [1, 1]}}, "22023", "no mean and std"),
        ({}, {"normalisation": [[0, 0], [1, 1]]}, "22023", "no mean and std"),
        ({}, {"bands": ["B02", None]}, "22004", "a list has a null"),
        ({}, {"bands": ["B02", ""]}, "22023", "cannot have the bands"),
        ({}, {"bands": ["B02", "B02"]}, "22023", "cannot have the bands"),
        ({}, {"bands": []}, "22023", "cannot have the bands"),
        ({}, {"dimension": None}, "22023", "no dimensions and no bits"),
        ({}, {"bits": 8}, "22023", "32 dimensions and 8 bits"),
        ({}, {"dimension": 0}, "22023", "dimension is 0"),
        ({}, {"dimension": 16001}, "22023", "dimension is 16001"),
        ({}, {"input_size": 0}, "22023", "input_size 0"),
        ({}, {"version": 0}, "22023", "version 0"),
    ],
)  # fmt: skip
def test_encoders_that_do_not_fit_together(
    encoded: psycopg.Connection,
    network: dict[str, np.ndarray],
    change: dict[str, np.ndarray | None],
    arguments: dict[str, object],
    sqlstate: str,
    message: str,
) -> None:
    """Nothing is stored of them, while the same without the change is."""
    tensors = {name: tensor for name, tensor in {**network, **change}.items() if tensor is not None}
    good = {"architecture": "resnet18", "bands": ["B02", "B03"], "weights": weights.dump(network), "dimension": 32}
    good |= {"bits": None, "input_size": None, "version": 1, "normalisation": Jsonb(TWO_BANDS)}
    given = good | {"weights": weights.dump(tensors)} | arguments
    if arguments.get("normalisation") is not None:
        given["normalisation"] = Jsonb(given["normalisation"])
    register = """
        select eo.register_encoder('narrow', %(version)s, %(architecture)s, %(bands)s::text[], %(weights)s, %(dimension)s,
                                   %(bits)s, input_size => %(input_size)s, normalisation => %(normalisation)s)
    """
    before = encoded.execute("select count(*), max(encoder_id) from eo.encoder").fetchone()
    with pytest.raises(psycopg.Error, match=message) as caught:
        encoded.execute(register, given)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_hint
    assert_for_people(caught.value)
    assert encoded.execute("select count(*), max(encoder_id) from eo.encoder").fetchone() == before
    with encoded.transaction(force_rollback=True):
        encoded.execute(register, good)


def test_hash_functions_that_do_not_fit_together(encoded: psycopg.Connection) -> None:
    register = "select eo.register_encoder('sixteen', 1, %s, %s::text[], %s, bits => %s, parent_id => %s::smallint)"
    content = lsh_weights(16, 128)
    for arguments, sqlstate in [
        (("resnet18", [], content, 16, 1), "22023"),
        (("simhash", [], content, 16, 1), "22023"),
        (("sign", [], content, 16, 1), "22P03"),
        (("milan", [], content, 16, 1), "22P03"),
        (("lsh", ["B02"], content, 16, 1), "22023"),
        (("lsh", [], content, 17, 1), "22P03"),
        (("lsh", [], content, 64001, 1), "22023"),
        (("lsh", [], content, 16, None), "22023"),
        (("lsh", [], content, 16, 2), "22023"),
        (("lsh", [], weights.dump({**weights.load(content, hashlib.sha256(content).hexdigest()), "std": np.full(128, np.nan)}), 16, 1), "22P03"),
    ]:  # fmt: skip
        error = error_of(encoded, register, *arguments)
        assert error.sqlstate == sqlstate, error
        assert error.diag.message_hint, error
    with encoded.transaction(force_rollback=True):
        encoded.execute(register, ("lsh", [], content, 16, 1))


def test_the_architectures_are_those_that_python_computes(encoded: psycopg.Connection) -> None:
    for bits, known in ((None, encoders._ENCODE), (8, encoders._HASH)):
        error = error_of(
            encoded,
            "select eo.register_encoder('x', 1, '?', %s::text[], '', %s, %s, 1::smallint)",
            ["B02"] if bits is None else [],
            8 if bits is None else None,
            bits,
        )
        listed = (error.diag.message_hint or "").removeprefix("There are: ").removesuffix(".").split(", ")
        assert sorted(listed) == sorted(known)


def test_an_encoder_of_another_dimension(encoded: psycopg.Connection, sample: Path) -> None:
    encoded.execute(
        "insert into eo.encoder (name, version, architecture, bands, dimension, weights, weights_sha256)"
        " select 'short', 1, architecture, bands, 1, weights, weights_sha256 from eo.encoder where name = 'spectral'"
    )
    query = "select * from eo.encode(array(select patch_id from eo.embedding limit 1), 'short')"
    assert error_of(encoded, query).sqlstate == "22P03"


def test_errors_of_sql_in_python_keep_what_they_say(encoded: psycopg.Connection) -> None:
    """The message, the SQLSTATE and the hint of an error that a query of Python raises."""
    encoded.execute(
        """
        create or replace function pg_temp.raising() returns void language plpgsql as $$
        begin
            raise exception 'no "%" today', 'rain' using errcode = '22ABC', hint = 'Wait for it.', detail = 'It is dry.';
        end
        $$;
        create or replace function pg_temp.calls(query text, out failure eo_internal.failure, out nothing integer) language plpython3u as $$
        from pgearth.pyfuncs.border.session import answer
        return answer(lambda session, query: session.plpy.execute(query))(plpy, GD, query)
        $$
        """
    )
    error = error_of(encoded, "select pg_temp.calls('select pg_temp.raising()')")
    assert (error.sqlstate, error.diag.message_primary, error.diag.message_hint) == (
        "22ABC",
        'no "rain" today: It is dry.',
        "Wait for it.",
    )
    error = error_of(encoded, "select pg_temp.calls('select 1 / 0')")
    assert isinstance(error, errors.DivisionByZero)
    assert error.diag.message_primary == "division by zero"
    assert error.diag.message_hint is None
    with encoded.transaction(force_rollback=True):
        encoded.execute("set local statement_timeout = '50ms'")
        assert isinstance(error_of(encoded, "select pg_temp.calls('select pg_sleep(60)')"), errors.QueryCanceled)


@pytest.mark.parametrize(
    ("exception", "sqlstate"),
    [
        ("KeyError('B02')", "XX000"),
        ("ZeroDivisionError()", "XX000"),
        ("UnicodeDecodeError('utf-8', b'\\\\xff', 0, 1, 'odd')", "XX000"),
        ("ValueError('nul \\\\0 and \\\\udcff surrogate')", "XX000"),
        ("RecursionError('deep')", "XX000"),
        ("SystemExit(3)", "XX000"),
        ("plpy.Error('plain')", "XX000"),
        ("MemoryError()", "53200"),
        ("ModuleNotFoundError('No module named torch', name='torch')", "55000"),
        ("PermissionError(13, 'Permission denied', 'pgearth/1')", "58030"),
        ("TimeoutError('too late')", "58030"),
    ],
)
def test_what_we_did_not_expect(encoded: psycopg.Connection, exception: str, sqlstate: str) -> None:
    """A bug of ours says so; its traceback goes to the server's log, and to a session that wants to see the log."""
    encoded.execute(
        f"""
        create or replace function pg_temp.breaks(out failure eo_internal.failure, out nothing integer) language plpython3u as $$
        from pgearth.pyfuncs.border.session import answer
        def body(session):
            raise {exception}
        return answer(body)(plpy, GD)
        $$
        """
    )
    error = error_of(encoded, "select pg_temp.breaks()")
    assert error.sqlstate == sqlstate
    assert error.diag.message_hint
    log: list[str] = []
    encoded.add_notice_handler(lambda notice: log.append(str(notice.message_primary)))
    encoded.execute("set client_min_messages = log")
    error_of(encoded, "select pg_temp.breaks()")
    encoded.execute("reset client_min_messages")
    if sqlstate == "XX000":
        assert "this is a bug in pgearth" in str(error)
        assert "Traceback" in log[0] and exception.partition("(")[0] in log[0]
    else:
        assert log == []


def test_a_package_that_is_not_found(encoded: psycopg.Connection, sample: Path) -> None:
    """Searches run in plain SQL, all else says what is to be done; a session's modules are as if it were not installed."""
    with psycopg.connect(encoded.info.dsn, autocommit=True) as connection:
        query = "select * from eo.similar(%s, max_results => 5)"
        expected = connection.execute(query, (PATCH,)).fetchall()
        connection.execute("do language plpython3u $$ import sys; sys.modules['pgearth.pyfuncs'] = None $$")
        error = error_of(connection, "select eo.rgb(%s)", PATCH)
        assert error.sqlstate == "55000"
        assert "Install" in (error.diag.message_hint or "")
        assert connection.execute(query, (PATCH,)).fetchall() == expected
        [note] = connection.execute("select note from eo.runtime() where component = 'PL/Python'").fetchall()
        assert "does not find the package" in note[0]


def test_a_library_that_is_not_found(encoded: psycopg.Connection) -> None:
    """The border itself imports the standard library only: what it needs else is missed where errors are caught."""
    script = """
import sys
before = set(sys.modules)
import pgearth.pyfuncs.border.codes, pgearth.pyfuncs.border.encoding, pgearth.pyfuncs.border.evaluation
import pgearth.pyfuncs.border.pictures, pgearth.pyfuncs.border.runtime
found = {name.partition('.')[0] for name in set(sys.modules) - before} - {'pgearth'}
print(sorted(found - sys.stdlib_module_names))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    with psycopg.connect(encoded.info.dsn, autocommit=True) as connection:
        connection.execute("do language plpython3u $$ import sys; sys.modules['PIL'] = None $$")
        error = error_of(connection, "select eo.rgb(%s)", PATCH)
        assert error.sqlstate == "55000"
        assert "PIL" in str(error)
