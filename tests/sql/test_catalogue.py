"""The rules of DESIGN.md section 5 that can be enforced, on the SQL files and on the catalogue of a migrated database."""

from __future__ import annotations

import ast
import importlib
import re

import psycopg
import pytest
from pglast import ast as nodes
from pglast import parse_sql

from pgearth.migrations.sqlfiles import SqlFile, sql_files
from tests.conftest import CHECKOUT
from tests.sql.call_graph import OWN_SCHEMAS, Routine, callees, parallel_labels, read_routines
from tests.stand_ins import NO_WEIGHTS

FILES = sql_files()
MANUAL = CHECKOUT / "docs" / "functions.md"
RERUNNABLE = (
    nodes.CreateFunctionStmt,
    nodes.ViewStmt,
    nodes.CommentStmt,
    nodes.GrantStmt,
    nodes.DoStmt,
)
# Types after `::` or as those of variables, and pgvector's operators; PostGIS's share their names with pg_catalog's.
TYPES = "geometry|geography|raster|vector|halfvec|geomval|box2d|box3d|addbandarg"
EXTENSION_TYPE = re.compile(rf"::\s*(?:{TYPES})\b|^\s+\w+ (?:{TYPES})(?:\[\])?(?:;| :=)", re.M)
EXTENSION_OPERATOR = re.compile(r"(?<!public\.)(?:<->|<~>|<#>|<=>|<%>)")
HEADER_ORDER = ["language", "volatility", "parallel", "security", "rows", "cost", "set"]
HEADER_WORDS = {
    "language": "language",
    "immutable": "volatility",
    "stable": "volatility",
    "volatile": "volatility",
    "security": "security",
    "rows": "rows",
    "cost": "cost",
    "set": "set",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_hold_rerunnable_statements_only(file: SqlFile) -> None:
    for statement in parse_sql(file.text):
        node = statement.stmt
        assert isinstance(node, RERUNNABLE), f"{file.name}: {type(node).__name__} belongs into a revision"
        if isinstance(node, nodes.CreateFunctionStmt):
            assert node.replace, f"{file.name}: create or replace"
        if isinstance(node, nodes.DoStmt | nodes.GrantStmt):
            assert file.name == "999_privileges.sql", f"{file.name}: privileges belong into 999_privileges.sql"


def headers(file: SqlFile) -> list[tuple[str, list[str]]]:
    """Name and header lines (between `returns`/arguments and the body) of each routine of a file."""
    found = []
    for match in re.finditer(
        r"^create or replace (?:function|procedure) (\S+?)\((.*?)^(?:as \$\$|begin atomic)", file.text, re.M | re.S
    ):
        lines = match.group(2).splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("language "))
        found.append((match.group(1), lines[start:]))
    return found


@pytest.mark.parametrize("file", [file for file in FILES if headers(file)], ids=lambda file: file.name)
def test_header_order(file: SqlFile) -> None:
    for name, lines in headers(file):
        kinds = [HEADER_WORDS[line.split()[0]] for line in lines]
        order = [HEADER_ORDER.index(kind) for kind in kinds]
        assert order == sorted(order), f"{file.name}: {name}: header order is {' / '.join(HEADER_ORDER)}"
        for line in lines:
            if HEADER_WORDS[line.split()[0]] == "volatility":
                assert "parallel" in line, f"{file.name}: {name}: parallel stands beside the volatility"


def test_every_function_comes_from_a_file(module_archive: psycopg.Connection) -> None:
    in_files = {name for file in FILES for name, _ in headers(file)}
    in_database = {
        name
        for (name,) in module_archive.execute(
            "select pronamespace::regnamespace || '.' || proname from pg_proc"
            " where pronamespace::regnamespace::text in ('eo', 'eo_internal')"
            # Tables depend on their triggers, and a domain on its check, so these are made by the revisions.
            " and prorettype <> 'trigger'::regtype and proname <> 'fail'"
        )
    }
    assert in_database == in_files


def test_search_path_is_pinned_where_it_must_be(module_archive: psycopg.Connection) -> None:
    """To schemas in which nobody else may create: a function of a stranger's that fits a call better would run instead."""
    for name, language, kind, definer, settings, atomic in module_archive.execute(
        """
        select oid::regprocedure::text, (select lanname from pg_language where oid = prolang), prokind::text, prosecdef,
               coalesce(proconfig, '{}'), prosqlbody is not null
        from pg_proc where pronamespace::regnamespace::text in ('eo', 'eo_internal')
        """
    ):
        if kind == "p":
            assert not settings and not definer, f"{name}: a procedure that commits cannot have settings"
        elif language == "sql":
            assert atomic, f"{name}: SQL functions are begin atomic"
            assert not settings, f"{name}: a setting would prevent inlining"
        else:
            assert "search_path=pg_catalog, eo, pg_temp" in settings, name
    unpinned_procedures = module_archive.execute(
        "select count(*) from pg_proc where pronamespace = 'eo_internal'::regnamespace and prokind = 'p'"
    ).fetchone()
    assert unpinned_procedures == (0,)


def test_nobody_else_may_create_in_the_search_path(module_archive: psycopg.Connection) -> None:
    """Also of functions of other schemas that belong to eo_owner."""
    paths = module_archive.execute(
        """
        select distinct btrim(schema, ' "')
        from pg_proc p, unnest(p.proconfig) as setting, string_to_table(split_part(setting, '=', 2), ',') as schema
        where p.proowner = 'eo_owner'::regrole and setting like 'search_path=%'
        """
    ).fetchall()
    assert set(paths) == {("pg_catalog",), ("eo",), ("pg_temp",)}
    assert (
        module_archive.execute(
            """
            select n.nspname, r.rolname from pg_namespace n, pg_roles r
            where n.nspname in ('pg_catalog', 'eo', 'eo_internal', 'eo_layers') and not r.rolsuper and r.rolname <> 'eo_owner'
              and has_schema_privilege(r.rolname, n.oid, 'create')
            """
        ).fetchall()
        == []
    )


def test_names_of_extensions_have_their_schema(routines: dict[int, Routine]) -> None:
    """Under the pinned search_path they are not found without, and a body is looked at only when it runs."""
    schemas: dict[str, set[str]] = {}
    for routine in routines.values():
        schemas.setdefault(routine.name.lower(), set()).add(routine.schema)
    for routine in routines.values():
        if routine.schema in OWN_SCHEMAS:
            missed = {name for schema, name in routine.names() if schema is None and schemas.get(name) == {"public"}}
            assert missed == set(), routine.signature
            if routine.language == "plpgsql":
                assert EXTENSION_TYPE.findall(routine.text) == [], routine.signature
                assert EXTENSION_OPERATOR.findall(routine.text) == [], routine.signature


@pytest.fixture(scope="module")
def routines(module_archive: psycopg.Connection) -> dict[int, Routine]:
    return read_routines(module_archive)


def test_parallel_safety_is_the_truth(module_archive: psycopg.Connection, routines: dict[int, Routine]) -> None:
    """As strict as what a routine does and calls, by its body; stricter only where it is volatile, which costs nothing."""
    labels = parallel_labels(routines)
    volatile = {oid for (oid,) in module_archive.execute("select oid from pg_proc where provolatile = 'v'")}
    own = {
        oid: routine
        for oid, routine in routines.items()
        if routine.schema in OWN_SCHEMAS and routine.language != "view"
    }
    wrong = {
        routine.signature: f"{routine.parallel}, should be {labels[oid]}"
        for oid, routine in own.items()
        if routine.parallel != labels[oid] and not (routine.parallel == "u" and oid in volatile)
    }
    assert wrong == {}
    # It would find nothing if it did not see what is called: from a search to PL/Python, through dynamic SQL, and a view.
    names = {oid: f"{routine.schema}.{routine.name}" for oid, routine in routines.items()}
    calls = {(names[oid], names[target]) for oid, targets in callees(routines).items() for target in targets}
    assert calls >= {
        ("eo.similar", "eo_internal.nearest_patches"),
        ("eo_internal.nearest_patches", "eo_internal.unfiltered_nearest"),
        ("eo_internal.unfiltered_nearest", "eo_internal.nearest_codes"),
        ("eo_internal.nearest_codes", "eo_internal.packed_codes"),
        ("eo_internal.hnsw_candidates", "eo.patches"),
        ("eo.contact_sheet", "eo.map_patch"),
        ("eo_internal.ranking_id", "eo_internal.encoder_id"),
    }
    python = {routine.name: routine.parallel for routine in own.values() if routine.language == "plpython3u"}
    assert python.pop("finds_package") == "s"  # it looks for a file and asks the database nothing
    assert set(python.values()) == {"u"}


def test_operators_and_casts_in_use_are_parallel_safe(module_archive: psycopg.Connection) -> None:
    """The call graph does not follow them: those that are not safe are few, and none of them is used."""
    unsafe = module_archive.execute(
        """
        select format('%s %s', oprname, oprleft::regtype) from pg_operator o join pg_proc p on p.oid = o.oprcode
        where p.proparallel <> 's'
        union
        select format('%s as %s', castsource::regtype, casttarget::regtype) from pg_cast c join pg_proc p on p.oid = c.castfunc
        where p.proparallel <> 's'
        """
    ).fetchall()
    assert set(unsafe) == {("&& geography",), ("&& gidx",), ("raster as geometry",)}


def test_filters_are_inlined(module_archive: psycopg.Connection) -> None:
    """The hot SQL functions must not show up as function scans, or no index is used."""
    plan = "\n".join(
        line
        for (line,) in module_archive.execute(
            "explain select * from eo.patches(eo.filter(area => st_makeenvelope(9, 50, 9.1, 50.1, 4326), from_time => '2018-01-01'))"
        )
    )
    assert "Function Scan" not in plan
    assert "patch_footprint" in plan or "patch_sensing_time" in plan or "Seq Scan on patch" in plan


def test_no_overloads_that_differ_only_by_defaults(module_archive: psycopg.Connection) -> None:
    required: dict[tuple[str, tuple[str, ...]], str] = {}
    for name, signature, types, defaults in module_archive.execute(
        "select pronamespace::regnamespace || '.' || proname, oid::regprocedure::text, proargtypes::regtype[]::text[], pronargdefaults"
        " from pg_proc where pronamespace::regnamespace::text in ('eo', 'eo_internal')"
    ):
        key = (name, tuple(types[: len(types) - defaults]))
        assert key not in required, f"{signature} and {required[key]}: a call with the required arguments is ambiguous"
        required[key] = signature


def test_everything_public_has_a_comment(module_archive: psycopg.Connection) -> None:
    missing = module_archive.execute(
        """
        select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'eo'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
          and obj_description(c.oid, 'pg_class') is null
        union all
        select c.oid::regclass || '.' || a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'eo'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
          and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null
        union all
        select oid::regprocedure::text from pg_proc
        where pronamespace = 'eo'::regnamespace and obj_description(oid, 'pg_proc') is null
        union all
        select oid::regtype::text from pg_type
        where typnamespace = 'eo'::regnamespace and typtype = 'e' and obj_description(oid, 'pg_type') is null
        """
    ).fetchall()
    assert missing == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_comments_are_short(file: SqlFile) -> None:
    """A sentence or two; the manual is in docs/."""
    comments = [node.stmt for node in parse_sql(file.text) if isinstance(node.stmt, nodes.CommentStmt)]
    assert [comment.comment for comment in comments if len(comment.comment) > 400] == []


def test_clients_list_what_is_for_people(module_archive: psycopg.Connection) -> None:
    """In schema eo: partitions, pieces and other derived tables are in eo_internal. Layers have one geometry type and one SRID."""
    module_archive.execute("select eo.register_encoder('x', 1, 'spectral', '{B02}', %s, dimension => 3)", (NO_WEIGHTS,))
    module_archive.execute("select eo.derive_corine_parts('{32632}'), eo.derive_nuts_parts('{32632}')")
    documented = re.findall(r"^### eo\.(\w+)$", MANUAL.read_text().partition("\n## Tables\n")[2], re.M)
    assert [name for name in documented if "__" in name or name in ("corine_part", "nuts_part", "patch_change")] == []
    listed = module_archive.execute("select table_name from information_schema.tables where table_schema = 'eo'")
    assert sorted(name for (name,) in listed) == sorted(documented)
    layers = [f"map_{name}" for name in ("patch", "patch_label", "collection", "corine", "nuts", "cell")]
    geometries = module_archive.execute(
        "select f_table_name, type, srid from geometry_columns where f_table_schema = 'eo'"
    ).fetchall()
    assert sorted(name for name, *_ in geometries) == sorted(
        ["corine", "nuts", "patch", "product", *layers, *(f"{layer}_3857" for layer in layers)]
    )
    assert [name for name, kind, srid in geometries if kind == "GEOMETRY" or srid == 0] == []
    assert module_archive.execute("select r_table_name from raster_columns where r_table_schema = 'eo'").fetchall() == [
        ("patch_raster",)
    ]


def test_python_bodies_are_thin(module_archive: psycopg.Connection) -> None:
    bodies = module_archive.execute(
        "select oid::regprocedure::text, prosrc from pg_proc where prolang = (select oid from pg_language where lanname = 'plpython3u')"
        " and pronamespace::regnamespace::text in ('eo', 'eo_internal')"
    ).fetchall()
    assert len(bodies) >= 4
    for name, source in bodies:
        lines = [line for line in source.strip().splitlines() if line.strip()]
        assert len(lines) <= 6, name
        # `return` at top level parses inside a function only.
        tree = ast.parse("def body():\n" + "\n".join("    " + line for line in lines))
        kinds = {type(statement) for statement in tree.body[0].body}  # type: ignore[attr-defined]
        assert kinds <= {ast.Import, ast.ImportFrom, ast.Return, ast.Expr}, name


def test_python_functions_return_their_errors(module_archive: psycopg.Connection) -> None:
    """PL/Python shows a traceback of what a body raises; only bodies that import nothing of ours have nothing to raise."""
    functions = module_archive.execute(
        "select oid::regprocedure::text, prosrc, proargnames[cardinality(proargnames)],"
        " proallargtypes[cardinality(proallargtypes)]::regtype::text"
        " from pg_proc where prolang = (select oid from pg_language where lanname = 'plpython3u')"
        " and pronamespace::regnamespace::text in ('eo', 'eo_internal')"
    ).fetchall()
    assert len(functions) > 10
    for name, source, last, type_of_last in functions:
        if imported := re.search(r"from pgearth\.pyfuncs\.border import (\w+)", source):
            assert (last, type_of_last) == ("failure", "eo_internal.failure"), f"{name}: its last column is its failure"
            module = importlib.import_module(f"pgearth.pyfuncs.border.{imported[1]}")
            for called in re.findall(rf"{imported[1]}\.(\w+)\(", source):
                assert hasattr(getattr(module, called), "__wrapped__"), f"{imported[1]}.{called}: decorate it by answer"
        else:
            assert re.findall(r"import (\w+)", source) == ["find_spec"], f"{name}: what it imports may raise"


def test_python_functions_are_not_public(module_archive: psycopg.Connection) -> None:
    """A public name is never PL/Python itself: it checks its arguments in SQL first."""
    assert (
        module_archive.execute(
            "select oid::regprocedure::text from pg_proc where pronamespace = 'eo'::regnamespace"
            " and prolang = (select oid from pg_language where lanname = 'plpython3u')"
        ).fetchall()
        == []
    )


def test_errors_carry_a_code_and_a_hint() -> None:
    for file in FILES:
        for match in re.finditer(r"raise exception .*?;", file.text, re.S):
            assert "errcode" in match.group() and "hint" in match.group(), f"{file.name}: {match.group()[:80]}"
