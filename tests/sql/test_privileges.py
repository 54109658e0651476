"""Who may do what: the whole matrix of roles and functions, and of roles and tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.reference.nuts import load_nuts
from tests.stand_ins import NO_WEIGHTS

WRITER_ONLY = {
    "build_code_index",
    "build_vector_index",
    "annotate",
    "evaluate",
    "derive_corine_parts",
    "derive_nuts_parts",
    "drop_segment_codes",
    "make_current",
    "register_encoder",
    "retire_encoder",
    "store_codes",
    "build_plain_code_index",
    "make_raster_layer",
    "drop_raster_layer",
    "store_map_styles",
}
READER = {
    "code_statistics",
    "explain_similarity",
    "retrieval_metrics",
    "product_statistics",
    "select_products",
    "similar_to_examples",
    "count_patches",
    "filter",
    "product_filter",
    "patch_statistics",
    "add_to_collection",
    "collection_patches",
    "create_collection",
    "drop_collection",
    "remove_from_collection",
    "bucket_members",
    "buckets_within",
    "cell_box",
    "cell_neighbours",
    "cell_of",
    "reference_map",
    "unannotated_cells",
    "cells",
    "circle",
    "rectangle",
    "encode",
    "encode_image",
    "hash",
    "label_meaning",
    "help",
    "label_members",
    "label_statistics",
    "patches",
    "place",
    "segment_codes",
    "rgb",
    "runtime",
    "search",
    "similar",
    "similar_change",
    "similar_segments",
    "similar_to_code",
    "similar_to_image",
    "similar_to_segments",
    "example_vector",
    "similar_to_vector",
    "within_distance",
    "contact_sheet",
}
INTERNAL_READER = {
    "band_statistics",
    "examples",
    "filtered_patches",
    "among",
    "area_of_geojson",
    "country_codes",
    "did_you_mean",
    "everywhere",
    "given_area",
    "given_cloud",
    "given_from_time",
    "refuse_times",
    "given_list",
    "source_meant",
    "tiles_meant",
    "is_geographic",
    "patch_cells",
    "annotation_kinds",
    "labelled_features",
    "ranking_id",
    "products",
    "example_embedding",
    "left_out",
    "same_place",
    "hnsw_candidates",
    "vector_index_name",
    "cell_prefixes",
    "cells_of_part",
    "inlined",
    "texts",
    "cells_of",
    "check_image",
    "check_patches",
    "given_positives",
    "hash_function_of",
    "image_code",
    "check_precision",
    "check_radius",
    "check_max_results",
    "encoder_id",
    "version_id",
    "example_code",
    "inner_box",
    "label_groups",
    "label_ids",
    "meant_labels",
    "country_code",
    "folded_name",
    "frequent_values",
    "is_stored",
    "known_values",
    "names_of_place",
    "trigrams",
    "values_meant",
    "relation",
    "search_area",
    "seasons",
    "unwound_area",
    "unwound_line",
    "unwound_ring",
    "wrapped_area",
    "with_far_edges",
    "line_in_degrees",
    "footprint",
    "patch_centre",
    "on_sinusoidal_map",
    "near",
    "near_segments",
    "own_collection",
    "patch_extent",
    "annotatable",
    "annotations",
    "unannotated_in",
    "unannotated_places",
    "cells_of_places",
    "land_cover_near",
    "land_cover_shares",
    "unit_areas",
    "units_in",
    "check_area",
    "land_cover_raster",
    "unannotated",
    "pieces",
    "multicode_distances",
    "bit_masks",
    "code_score",
    "code_substrings",
    "nearest_codes",
    "nearest_packed_patches",
    "packed_conditions",
    "nearest_patches",
    "infiltered_nearest",
    "postfiltered_nearest",
    "prefiltered_nearest",
    "unfiltered_nearest",
    "fail",
    "located",
    "has_python",
    "nearest_codes_query",
    "nearest_codes_sql",
    "probe_codes",
    "require_python",
    "cell_number",
    "change_guard",
    "check_cover",
    "edition",
    "gives_way",
    "unproved_codes",
    "unproved_patches",
    "watched_triggers",
    "fill_symbol",
    "map_styles",
    "product_tiles",
}
INTERNAL_WRITER = {
    "annotate_cells",
    "annotate_scene_classes",
    "derive_parts",
    "keep_buckets",
    "drop_raster_layer",
    "finish_raster_layer",
    "make_overview",
    "make_web_mercator_layers",
}
OWNER_ONLY = {
    "check_encoder",
    "check_image_pixels",
    "encode_rasters",
    "code_statistics",
    "retrieval_metrics",
    "encode",
    "encode_image",
    "hash_image",
    "hash_segments",
    "ensure_partition",
    "forget_pieces",
    "note_patch_change",
    "finds_package",
    "hash",
    "pack_codes",
    "packed_codes",
    "packed_patches",
    "python_runtime",
    "remove_packed_files",
    "rgb_png",
    "stretch_limits",
    "stretched",
    "overview_tile",
    "contact_sheet",
}


def may_execute(archive: psycopg.Connection, role: str, schema: str) -> set[str]:
    return {
        name
        for (name,) in archive.execute(
            "select distinct proname from pg_proc where pronamespace = %s::regnamespace"
            " and has_function_privilege(%s, oid, 'execute')",
            (schema, role),
        )
    }


@pytest.fixture
def outsider(module_archive: psycopg.Connection) -> str:
    """A login role that was granted nothing."""
    module_archive.execute("drop role if exists pgearth_outsider")
    module_archive.execute("create role pgearth_outsider")
    return "pgearth_outsider"


@pytest.fixture
def reader(module_archive: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A session of eo_reader's; what it does is rolled back."""
    with module_archive.transaction(force_rollback=True):
        module_archive.execute("set local role eo_reader")
        yield module_archive


def test_functions_of_eo(module_archive: psycopg.Connection, outsider: str) -> None:
    assert may_execute(module_archive, "eo_reader", "eo") == READER
    assert may_execute(module_archive, "eo_writer", "eo") == READER | WRITER_ONLY
    assert may_execute(module_archive, "eo_owner", "eo") == READER | WRITER_ONLY
    assert may_execute(module_archive, outsider, "eo") == set()


def test_functions_of_eo_internal(module_archive: psycopg.Connection, outsider: str) -> None:
    assert may_execute(module_archive, "eo_reader", "eo_internal") == INTERNAL_READER
    assert may_execute(module_archive, "eo_writer", "eo_internal") == INTERNAL_READER | INTERNAL_WRITER
    assert may_execute(module_archive, "eo_owner", "eo_internal") == INTERNAL_READER | INTERNAL_WRITER | OWNER_ONLY
    assert may_execute(module_archive, outsider, "eo_internal") == set()


def test_only_the_owner_calls_python(module_archive: psycopg.Connection) -> None:
    callers = module_archive.execute(
        """
        select r.rolname, p.oid::regprocedure::text
        from pg_proc p, (values ('eo_reader'), ('eo_writer')) r (rolname)
        where p.prolang = (select oid from pg_language where lanname = 'plpython3u')
          and p.pronamespace::regnamespace::text in ('eo', 'eo_internal')
          and has_function_privilege(r.rolname, p.oid, 'execute')
        """
    ).fetchall()
    assert callers == []


def test_security_definer_functions_do_not_belong_to_a_superuser(module_archive: psycopg.Connection) -> None:
    assert (
        module_archive.execute(
            """
        select p.oid::regprocedure::text from pg_proc p join pg_roles r on r.oid = p.proowner
        where p.pronamespace::regnamespace::text in ('eo', 'eo_internal') and r.rolname <> 'eo_owner'
        """
        ).fetchall()
        == []
    )
    assert module_archive.execute(
        "select rolsuper, rolcanlogin from pg_roles where rolname = 'eo_owner'"
    ).fetchone() == (
        False,
        False,
    )


def test_tables(module_archive: psycopg.Connection, outsider: str) -> None:
    tables = [
        name
        for (name,) in module_archive.execute(
            "select oid::regclass::text from pg_class where relnamespace = 'eo'::regnamespace and relkind in ('r', 'p', 'v', 'm')"
        )
    ]
    assert "eo.patch" in tables
    for table in tables:
        own_rows = table in ("eo.collection", "eo.collection_patch", "eo.feedback")
        of_packing = table == "eo.code_index"
        for role, allowed in {
            "eo_reader": {"select", "insert", "update", "delete"} if own_rows else {"select"},
            "eo_writer": {"select"} if of_packing else {"select", "insert", "update", "delete"},
            outsider: set(),
        }.items():
            held = {
                privilege
                for privilege in ("select", "insert", "update", "delete", "truncate", "references", "trigger")
                if module_archive.execute("select has_table_privilege(%s, %s, %s)", (role, table, privilege)).fetchone()
                == (True,)
            }
            assert held == allowed, (table, role)


def test_internal_tables(archive: psycopg.Connection, outsider: str) -> None:
    """Readers may read what functions that run as their caller read; writers delete pieces with polygons, and no more."""
    archive.execute("select eo.register_encoder('x', 1, 'spectral', '{B02}', %s, dimension => 3)", (NO_WEIGHTS,))
    archive.execute("select eo.derive_corine_parts('{32632}'), eo.derive_nuts_parts('{32632}')")
    held = archive.execute(
        """
        select distinct regexp_replace(c.relname, '__.*', '__'), r.rolname, privilege
        from pg_class c, pg_roles r,
             unnest('{select,insert,update,delete,truncate,references,trigger}'::text[]) as privilege
        where c.relnamespace = 'eo_internal'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
          and r.rolname in ('eo_reader', 'eo_writer', %s) and has_table_privilege(r.oid, c.oid, privilege)
        """,
        (outsider,),
    ).fetchall()
    read = {"corine_part", "nuts_part", "patch_change", "corine_part__", "nuts_part__", "embedding__", "patch_raster__"}
    assert set(held) == {(table, role, "select") for table in read for role in ("eo_reader", "eo_writer")} | {
        (table, "eo_writer", "delete") for table in ("corine_part", "nuts_part")
    }


@pytest.mark.parametrize(
    "statement",
    [
        "insert into eo.load (loader, source, checksum, state) values ('x', 'x', 'x', 'done')",
        "update eo.label set name = 'x'",
        "delete from eo.label",
        "truncate eo.load",
        "create table eo.mine (id integer)",
        "create function eo.mine() returns integer language sql as 'select 1'",
        "select eo_internal.python_runtime()",
        "select eo_internal.ensure_partition('eo.embedding', 7)",
        "select eo.register_encoder('x', 1, 'spectral', '{}', '', dimension => 1)",
        "select eo.derive_corine_parts()",
        "call eo.annotate()",
        "select eo.evaluate('lsh')",
        "do language plpython3u 'pass'",
    ],
)
def test_a_reader_cannot(reader: psycopg.Connection, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "select count(*) from eo.patch",
        "select * from eo.search(eo.filter(labels => array['Forests']))",
        "select * from eo.label_statistics()",
        "select * from eo.runtime()",
        "select eo.cell_of(st_point(7.6, 51.9, 4326))",
    ],
)
def test_a_reader_can(reader: psycopg.Connection, statement: str) -> None:
    reader.execute(statement)


def test_a_writer_registers_and_stores(archive: psycopg.Connection) -> None:
    archive.execute("set role eo_writer")
    row = archive.execute(
        "select eo.register_encoder('x', 1, 'spectral', '{B02}', %s, dimension => 3)", (NO_WEIGHTS,)
    ).fetchone()
    assert row is not None
    assert archive.execute(
        sql.SQL("select count(*) from eo_internal.{}").format(sql.Identifier(f"embedding__{row[0]}"))
    ).fetchone() == (0,)


def test_a_writer_does_the_whole_job(archive: psycopg.Connection, sample: Path) -> None:
    """Load, annotate and encode as a role that is only eo_writer."""
    v1 = sample / "bigearthnet-v1"
    with (
        psycopg.connect(archive.info.dsn, autocommit=True, options="-c role=eo_writer") as writer,
        psycopg.connect(archive.info.dsn, autocommit=True, options="-c role=eo_writer") as reading,
    ):
        assert writer.execute("select current_user").fetchone() == ("eo_writer",)
        load_nomenclature(writer)
        load_bigearthnet(writer, v1, lists=v1 / "lists")
        load_corine(writer, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
        load_nuts(writer, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
        writer.execute("call eo.annotate()")
        assert encode_archive(writer, reading).codes == 11


def test_functions_of_public_are_left_alone(archive: psycopg.Connection, outsider: str) -> None:
    assert archive.execute(
        "select has_function_privilege(%s, 'st_area(geometry)', 'execute')", (outsider,)
    ).fetchone() == (True,)
