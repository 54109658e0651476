"""Every public function with nasty arguments: it answers, or says what is wrong in a way that helps; the server stays up.

PGEARTH_EXAMPLES=N tries N calls of each function, other ones in every run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.migrations.sqlfiles import sql_files
from tests.conftest import EXAMPLES
from tests.errors_for_people import assert_for_people

PATCH = "S2A_MSIL2A_20170617T113321_4_55"
NAMES = sorted(
    {name for file in sql_files() for name in re.findall(r"^create or replace function eo\.(\w+)\(", file.text, re.M)}
)
ALLOWED = re.compile(
    r"22...|23...|0A000|53...|54...|55..."
    r"|42704|42883|42P01|42710|42P07"  # undefined or taken: object, function, table
    r"|P0002|2BP01"  # no_data_found, dependent_objects_still_exist
)

TEXTS = ["", " ", "\t\n", "x" * 1000, "'", '"', "%s", "{}", "a:b:c", ":", "0", "-1", "null", "\u0130", "e\u0301", "\u202e\U0001f30d", "\x01",
         "../../etc", PATCH, "spectral", "lsh", "lsh:1", "lsh:99", "spectral:1", "scl", "ben19", "season", "Coniferous forest", "clc:3", "311",
         "DE", "sentinel-2a", "summer", "test", "u33", "any", "jaccard:0.5", "jaccard:nan", "same"]  # fmt: skip
INTEGERS = ["-2147483648", "-1", "0", "1", "2", "7", "64", "100000", "2147483647"]
SRIDS = ["0", "4326", "3857", "32633", "3413", "999999"]
SHAPES = ["POINT EMPTY", "POINT(9 50)", "POINT(500000 5500000)", "POINT(-180 90)", "POINT(1e30 -1e30)", "POINT(NaN NaN)",
          "POINT ZM(9 50 1 1)", "LINESTRING EMPTY", "LINESTRING(9 50,9 50)", "LINESTRING(-179 10,179 -10)", "POLYGON EMPTY",
          "POLYGON((9 50,9 51,10 51,10 50,9 50))", "POLYGON((0 0,1 1,1 0,0 1,0 0))", "POLYGON((0 0,0 0,0 0,0 0))",
          "POLYGON((-400 -100,400 -100,400 100,-400 100,-400 -100))", "POLYGON((0 0,0 1e300,1e300 1e300,1e300 0,0 0))",
          "MULTIPOLYGON EMPTY", "MULTIPOINT(9 50,10 51)", "GEOMETRYCOLLECTION EMPTY",
          "GEOMETRYCOLLECTION(POINT(9 50),LINESTRING(0 0,1 1),POLYGON((9 50,9 51,10 51,9 50)))",
          "CIRCULARSTRING(0 0,1 1,2 0)", "CURVEPOLYGON(CIRCULARSTRING(0 0,4 0,4 4,0 4,0 0))",
          "COMPOUNDCURVE(CIRCULARSTRING(0 0,1 1,1 0),(1 0,0 1))", "MULTISURFACE(CURVEPOLYGON(CIRCULARSTRING(0 0,4 0,4 4,0 4,0 0)))",
          "TIN(((0 0,0 1,1 1,0 0)))", "POLYHEDRALSURFACE(((0 0,0 1,1 1,0 0)))", "TRIANGLE((0 0,0 9,9 0,0 0))"]  # fmt: skip
TIMES = ["infinity", "-infinity", "4713-01-01 BC", "294276-12-31", "epoch", "2017-06-13", "2018-01-01 00:00:60+14"]
DOCUMENTS = ["null", "1", "[]", "{}", '"x"', "true", '{"splits": ["test"]}', '{"splits": "test"}', '{"splits": [null, 1]}', '{"area": 3}',
             '{"area": "POINT(1 1)"}', '{"labels": {"a": 1}}', '{"patch_ids": ["x"]}', '{"patch_ids": [1e30]}', '{"from_time": "never"}',
             '{"max_cloud": "much"}', '{"label_match": "maybe"}', '{"unknown": 1}', '{"seasons": ["summer"]}', '{"mean": [], "std": []}',
             '[{"splits": ["test"]}]', '{"": null}', '{"cells": ["!"]}', '{"seasonal_snow": "perhaps"}', '{"area": null}', '{"area": {}}',
             '{"area": {"type": "Point", "coordinates": [9, 1e30]}}', '{"area": {"type": "Polygon", "coordinates": []}}',
             '{"area": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0], [0, 0]]]}}',
             '{"area": {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null}]}}',
             '{"area": {"type": "LineString", "coordinates": [[-179, 10], [179, -10]]}}', '{"from_time": "0000-02-30", "to_time": "24:00"}']  # fmt: skip
RASTERS = ["null", "st_makeemptyraster(0, 0, 0, 0, 1)", "st_makeemptyraster(9, 9, 0, 0, 1)",
           "st_addband(st_makeemptyraster(1, 1, 0, 0, 1, -1, 0, 0, 4326), '8BUI'::text, 1)",
           "st_addband(st_makeemptyraster(2, 3, 0, 0, 1), '64BF'::text, 'NaN'::float8, 'NaN'::float8)",
           "st_addband(st_makeemptyraster(5, 5, 0, 0, 1), '1BB'::text, 1, 0)"]  # fmt: skip


def literal(text: str) -> str:
    """A text as it stands in SQL."""
    return "'" + text.replace("'", "''") + "'"


def one_of(*expressions: str) -> SearchStrategy[str]:
    return st.sampled_from(expressions)


def array_of(elements: SearchStrategy[str]) -> SearchStrategy[str]:
    """Arrays of up to four elements, nulls among them, and of two dimensions."""
    lists = st.lists(st.one_of(st.just("null"), elements), max_size=4).map(lambda values: f"array[{', '.join(values)}]")
    return st.one_of(lists, elements.map(lambda value: f"array[[{value}], [{value}]]"))


def filter_of(
    kind: str, types: dict[str, tuple[str, str]], values: dict[str, SearchStrategy[str]]
) -> SearchStrategy[str]:
    """A filter of up to three conditions, mostly as its constructor makes it, else as a row that someone put together.

    `types` are those of a condition as an argument and as an attribute.
    """

    def write(chosen: dict[str, str], by_constructor: bool) -> str:
        if by_constructor:
            return f"{kind}({', '.join(f'{name} => {value}::{types[name][0]}' for name, value in chosen.items())})"
        row = (f"{chosen.get(name, 'null')}::{attribute}" for name, (_, attribute) in types.items())
        return f"row({', '.join(row)})::{kind}"

    def conditions(by_constructor: bool) -> SearchStrategy[str]:
        of = {name: values[argument if by_constructor else attribute] for name, (argument, attribute) in types.items()}
        return (
            st.lists(st.sampled_from(sorted(types)), max_size=3, unique=True)
            .flatmap(
                lambda names: st.fixed_dictionaries(
                    {name: st.one_of(of[name], of[name], st.just("null")) for name in names}
                )
            )
            .map(lambda chosen: write(chosen, by_constructor))
        )

    return st.sampled_from([True, True, False]).flatmap(conditions)


def mutated(image: bytes) -> SearchStrategy[str]:
    """A file, cut off or with some of its bytes replaced."""

    def change(cut: int, replaced: list[tuple[int, int]]) -> str:
        content = bytearray(image)
        for place, value in replaced:
            content[place] = value
        return f"'\\x{content[: len(image) - cut].hex()}'"

    # What a TIFF consists of stands at its beginning.
    places = st.one_of(st.integers(0, 400), st.integers(0, len(image) - 1))
    return st.builds(
        change,
        st.one_of(st.just(0), st.integers(0, len(image))),
        st.lists(st.tuples(places, st.integers(0, 255)), max_size=4),
    )


def expressions(
    image: bytes, patch_ids: list[int], filters: dict[str, dict[str, tuple[str, str]]]
) -> dict[str, SearchStrategy[str]]:
    """What stands for an argument, by its type; `filters` are types of filters with the types of their conditions."""
    integers = one_of(*INTEGERS)
    texts = st.sampled_from(TEXTS).map(literal)
    numbers = one_of("'NaN'", "'Infinity'", "'-Infinity'", "-1", "0", "-0.0", "0.5", "1", "91", "181", "1e30", "1e-40")
    ids = one_of(*map(str, patch_ids), "-1", "0", "9223372036854775807", "-9223372036854775808")
    bits = st.one_of(
        one_of("''", "'1'", f"'{'01' * 64}'", f"'{'1' * 127}'", f"'{'0' * 1000}'"),
        st.text("01", min_size=128, max_size=128).map(literal),
    )
    values = {
        "boolean": one_of("true", "false"),
        "smallint": one_of("-32768", "-1", "0", "1", "2", "32767"),
        "integer": integers,
        "bigint": ids,
        "real": numbers,
        "double precision": st.one_of(numbers, one_of("1e308", "-1e308")),
        "text": texts,
        "text[]": array_of(texts),
        "integer[]": array_of(st.one_of(integers, one_of(*SRIDS))),
        "smallint[]": array_of(one_of("-1", "0", "1", "32767")),
        "bigint[]": array_of(ids),
        "double precision[]": array_of(numbers.map(lambda number: f"{number}::float8")),
        "timestamp with time zone": st.sampled_from(TIMES).map(literal),
        "geometry": st.builds(
            lambda srid, shape: literal(f"SRID={srid};{shape}"), st.sampled_from(SRIDS), st.sampled_from(SHAPES)
        ),
        "eo.season[]": array_of(one_of("'summer'", "'winter'")),
        "eo_internal.label_group[]": array_of(one_of("row('{1001}')", "row('{}')", "row('{-1,null}')", "row(null)")),
        "eo.label_match": one_of("'some'", "'at_least'", "'exactly'"),
        "jsonb": st.sampled_from(DOCUMENTS).map(literal),
        "bytea": st.one_of(
            one_of("''", "'\\x00'", "'\\x49492a00'", "'\\x4d4d002b00080000'", "'\\x89504e470d0a1a0a'"), mutated(image)
        ),
        "bit varying": bits,
        "bit varying[]": array_of(bits.map(lambda code: f"{code}::bit varying")),
        "vector": one_of("'[1]'", "'[0,0,0]'", f"'[{','.join(['1e30'] * 128)}]'", f"'[{','.join(['0'] * 128)}]'"),
        "raster[]": array_of(one_of(*RASTERS)),
    }
    return values | {kind: filter_of(kind, types, values) for kind, types in filters.items()}


@dataclass(frozen=True)
class Function:
    """A public function: its arguments' names and types, and how many of the last may be left out."""

    name: str
    arguments: tuple[tuple[str, str], ...]
    defaults: int


@dataclass(frozen=True)
class Archive:
    """A filled archive, its functions by name, and what stands for their arguments."""

    connection: psycopg.Connection
    functions: dict[str, list[Function]]
    expressions: dict[str, SearchStrategy[str]]

    def calls(self, name: str) -> SearchStrategy[str]:
        """Calls of the functions of a name."""
        return st.one_of([self.calls_of(function) for function in self.functions[name]])

    def calls_of(self, function: Function) -> SearchStrategy[str]:
        """Calls of a function; of the arguments that may be left out, most are."""
        arguments = []
        required = len(function.arguments) - function.defaults
        for number, (name, kind) in enumerate(function.arguments):
            given = st.one_of(self.expressions[kind], self.expressions[kind], st.just("null")).map(
                lambda value, name=name, kind=kind: f'"{name}" => {value}::{kind}'
            )
            # An array of rasters tells eo.encode from its namesake even where it is null.
            arguments.append(given if number < required else st.one_of(st.none(), st.none(), given))
        return st.tuples(*arguments).map(
            lambda values: f'select * from eo."{function.name}"({", ".join(value for value in values if value)})'
        )


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection, sample: Path) -> Iterator[Archive]:
    """Override of the shared fixture: the real BigEarthNet v1 patches, encoded, with segments and packed codes."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading, segments="grid:2")
    module_archive.execute("select eo.build_code_index()")
    module_archive.execute("set statement_timeout = '2min'")
    functions: dict[str, list[Function]] = {}
    for name, names, types, defaults in module_archive.execute(
        """
        select proname, proargnames[1:pronargs], array(select format_type(t, null) from unnest(proargtypes) t), pronargdefaults
        from pg_proc where pronamespace = 'eo'::regnamespace and prokind = 'f'
        """
    ):
        functions.setdefault(name, []).append(Function(name, tuple(zip(names or [], types, strict=True)), defaults))
    filters: dict[str, dict[str, tuple[str, str]]] = {}
    for kind, attribute, argument_type, attribute_type in module_archive.execute(
        """
        select format_type(t.oid, null), a.attname, format_type(argument.type, null), format_type(a.atttypid, null)
        from pg_type t
        join pg_proc p on p.pronamespace = t.typnamespace and p.proname = t.typname and p.pronargs > 1
        cross join lateral unnest(p.proargnames, p.proargtypes::oid[]) as argument (name, type)
        join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and a.attname = argument.name
        where t.oid in ('eo.filter'::regtype, 'eo.product_filter'::regtype) order by t.oid, a.attnum
        """
    ):
        filters.setdefault(kind, {})[attribute] = (argument_type, attribute_type)
    patch_ids = [patch_id for (patch_id,) in module_archive.execute("select patch_id from eo.patch order by 1 limit 3")]
    image = (sample / "bigearthnet-v1" / "S2" / PATCH / f"{PATCH}_B02.tif").read_bytes()
    yield Archive(module_archive, functions, expressions(image, patch_ids, filters))
    # The server has survived all of it.
    module_archive.execute("reset statement_timeout")


def test_every_function_is_tried(archive: Archive) -> None:
    assert archive.functions.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nasty_arguments(archive: Archive, name: str) -> None:
    @settings(max_examples=EXAMPLES or 30)
    @given(archive.calls(name))
    def call(query: str) -> None:
        try_query(archive.connection, query)

    call()


def try_query(connection: psycopg.Connection, query: str) -> None:
    """Run a query and undo it. Fails for an error that is not for people, and where the server goes down."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(query.encode())  # and not fetched: Python has no time before the year 1
    except psycopg.Error as error:
        assert not connection.closed, f"the server went down: {query}"
        assert ALLOWED.fullmatch(error.sqlstate or ""), f"{error.sqlstate} {error}\n{query}"
        assert_for_people(error)


def test_damaged_weights(archive: Archive) -> None:
    """Of a hash function, in the safetensors format, stored as they are."""
    row = archive.connection.execute("select weights from eo.encoder where name = 'lsh'").fetchone()
    assert row is not None

    @settings(max_examples=EXAMPLES or 30)
    @given(mutated(bytes(row[0])))
    def hash_with(weights: str) -> None:
        try_query(
            archive.connection,
            "select eo.hash((select embedding from eo.embedding limit 1), 'damaged:' || version)"
            " from (select 1 as version, eo.register_encoder('damaged', 1, 'lsh', '{}', "
            + weights
            + "::bytea, bits => 128,"
            " parent_id => (select encoder_id from eo.encoder where name = 'spectral'))) registered",
        )

    hash_with()
