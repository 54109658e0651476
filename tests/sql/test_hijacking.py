"""A stranger's functions and operators in public, which fit our calls better than what is meant: none of them ever runs.

As where a database was upgraded from PostgreSQL 14 or older, everybody may create in public. The traps bear the names of
all functions that bodies in sql/ call, of pg_catalog's and of the extensions', with argument types that would fit better:
without polymorphism, without implicit casts, without defaults. Each raises an error, whoever runs it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from click.testing import Result
from psycopg import errors, sql
from pytest_postgresql.janitor import DatabaseJanitor

from pgearth.loaders.server.migrate import upgrade
from pgearth.pyfuncs import queries as db
from pgearth.pyfuncs.errors import PgearthError
from tests.sql.call_graph import CALL, OWN_SCHEMAS, read_routines
from tests.sql.public_calls import CALLS, PROCEDURES, calls, check_that_no_function_is_left_out, fill

STRANGER = "pgearth_stranger"
ELEMENTS = ["text", "smallint", "integer", "bigint", "double precision", "real", "bit varying", "bytea"]
ARRAYS = [f"{element}[]" for element in [*ELEMENTS, "public.geometry", "public.raster"]]
ANY = [
    *ELEMENTS,
    "numeric",
    "boolean",
    "jsonb",
    "timestamptz",
    "name",
    "regclass",
    "public.geometry",
    "text[]",
    "bigint[]",
]
BETTER: dict[str, list[str]] = {
    "anyelement": ANY,
    "anycompatible": ANY,
    "anynonarray": ANY,
    '"any"': ANY,
    "anyarray": ARRAYS,
    "anycompatiblearray": ARRAYS,
    "double precision": ["integer", "bigint", "numeric", "real"],
    "numeric": ["integer", "bigint", "double precision", "real"],
    "real": ["integer", "numeric", "double precision"],
    "bigint": ["integer", "smallint"],
    "integer": ["smallint", "bigint"],
    "text": ["name", "character varying", "regclass", "integer", "bigint"],
    "name": ["text"],
    "bit": ["bit varying"],
    "timestamp with time zone": ["date"],
    "box2d": ["public.geometry"],
    "box3d": ["public.geometry"],
    "public.box2d": ["public.geometry"],
    "public.box3d": ["public.geometry"],
    "public.geography": ["public.geometry"],
    "public.geometry": ["public.raster", "public.box2d", "text"],
    "public.vector": ["public.halfvec", "real[]"],
}
"""Types of arguments that our calls might have where a function takes the type on the left."""
OPERAND_TYPES = [
    "text", "smallint", "integer", "bigint", "numeric", "real", "double precision", "bit varying", "bit", "jsonb",
    "text[]", "smallint[]", "bigint[]", "timestamptz", "interval", "boolean", "name",
    "public.geometry", "public.box2d", "public.raster", "public.vector", "public.halfvec",
]  # fmt: skip
OPERATORS = [
    "=",
    "<>",
    "<",
    ">",
    "<=",
    ">=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "||",
    "&&",
    "@",
    "@>",
    "<@",
    "~",
    "^@",
    "<->",
    "<~>",
    "->",
]
TRAP = """
create function public.{name}({arguments}) returns {returns} language plpgsql immutable parallel safe
as $trap$ begin raise exception 'trap: {name}({arguments}) ran as %%', current_user using errcode = 'XT001'; end $trap$
"""


def called_names(connection: psycopg.Connection) -> set[str]:
    """Functions that our bodies call, that the bodies of the extensions' functions among these call, and PL/Python's queries."""
    routines = read_routines(connection)
    names = {name for routine in routines.values() if routine.schema in OWN_SCHEMAS for _, name in routine.names()}
    names |= {
        match[4].lower() for query in vars(db).values() if isinstance(query, str) for match in CALL.finditer(query)
    }
    while True:
        bodies = connection.execute(
            """
            select string_agg(p.prosrc, ' ') from pg_proc p join pg_language l on l.oid = p.prolang
            where p.pronamespace = 'public'::regnamespace and l.lanname in ('sql', 'plpgsql') and p.proname = any (%s)
            """,
            (list(names),),
        ).fetchone()
        more = {match[4].lower() for match in CALL.finditer((bodies or ("",))[0] or "")} - names
        if not more:
            return names
        names |= more


def better_signatures(types: list[str], defaults: int, variadic: bool) -> Iterator[tuple[str, ...]]:
    """Signatures that a call of a function of these argument types could fit better."""
    yield tuple(types)
    if variadic:
        for count in range(1, 4):
            yield from itertools.product(*([kind] for kind in types[:-1]), *(["text", "integer"],) * count)
        return
    for left_out in range(defaults + 1):
        given = types[: len(types) - left_out]
        yield tuple(given)
        for kind in set(given) & set(BETTER):
            for better in BETTER[kind]:
                yield tuple(better if other == kind else other for other in given)
                for place in (place for place, other in enumerate(given) if other == kind):
                    yield (*given[:place], better, *given[place + 1 :])


def set_traps(connection: psycopg.Connection, names: set[str]) -> None:
    """Create the traps as the stranger; what exists already in public, or cannot be, is left out."""
    functions = connection.execute(
        """
        select p.proname, array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as a (t, n) order by n),
               p.pronargdefaults, p.provariadic <> 0
        from pg_proc p
        where p.pronamespace in ('pg_catalog'::regnamespace, 'public'::regnamespace) and p.proname = any (%s)
        """,
        (list(names),),
    ).fetchall()
    wanted: set[tuple[str, tuple[str, ...]]] = set()
    for name, types, defaults, variadic in functions:
        qualified = [
            re.sub(r"^(geometry|raster|geography|vector|halfvec|box2d|box3d)", r"public.\1", kind) for kind in types
        ]
        wanted |= {(name, signature) for signature in better_signatures(qualified, defaults, variadic)}
    statements = [
        TRAP.format(name=f'"{name}"', arguments=", ".join(signature), returns="integer").replace("%%", "%")
        for name, signature in sorted(wanted)
        if not any(
            kind.startswith(("any", '"any"', "internal", "trigger", "record", "cstring", "-")) for kind in signature
        )
    ]
    for left, right in itertools.product(OPERAND_TYPES, repeat=2):
        statements.append(
            TRAP.format(name="pgearth_operator", arguments=f"{left}, {right}", returns="boolean").replace("%%", "%")
        )
        for symbol in OPERATORS:
            statements.append(
                f"create operator public.{symbol} (leftarg = {left}, rightarg = {right}, function = public.pgearth_operator)"
            )
    connection.execute(f"set role {STRANGER}; create temp table trap_statement (statement text)")
    connection.cursor().executemany(
        "insert into trap_statement values (%s)", [(statement,) for statement in statements]
    )
    connection.execute(
        """
        do $$
        declare
            wanted text;
        begin
            for wanted in select statement from pg_temp.trap_statement loop
                begin
                    execute wanted;
                exception when others then
                    null;
                end;
            end loop;
        end
        $$;
        drop table pg_temp.trap_statement;
        reset role;
        """
    )


@pytest.fixture
def stranger(cluster: SimpleNamespace) -> None:
    make_stranger(cluster)


def make_stranger(cluster: SimpleNamespace) -> None:
    with psycopg.connect(
        host=cluster.host, port=cluster.port, user=cluster.user, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(
            f"do $$ begin if to_regrole('{STRANGER}') is null then create role {STRANGER}; end if; end $$"
        )


@pytest.fixture(scope="module")
def values(cluster: SimpleNamespace, module_archive: psycopg.Connection, sample: Path) -> dict[str, sql.Composable]:
    """A filled archive whose public everybody may create in, full of traps."""
    make_stranger(cluster)
    found = fill(module_archive, sample)
    module_archive.execute("select eo.create_collection('mine')")
    module_archive.execute(f"grant create on schema public to public; grant eo_reader to {STRANGER}")
    set_traps(module_archive, called_names(module_archive))
    return found


def test_the_traps_are_set(module_archive: psycopg.Connection, values: dict[str, sql.Composable]) -> None:
    """And work: called by their names, or found because they fit better, as case A3 had it."""
    count = module_archive.execute(
        "select count(*), count(*) filter (where proname like 'st\\_%%') from pg_proc where proowner = %s::regrole",
        (STRANGER,),
    ).fetchone()
    assert count is not None and count[0] > 1500 and count[1] > 100
    for call in (
        "array_to_string('{a}'::text[], 'b'::text)",
        "cardinality('{1}'::bigint[])",
        "public.st_xmin(public.st_point(1::float8, 2::float8))",
        "1::real < 2::integer",
        "b'1'::bit varying operator(public.<~>) b'1'::bit varying",
    ):
        with pytest.raises(psycopg.Error, match="trap: "):
            module_archive.execute(f"select {call}".encode())


@pytest.mark.parametrize("name", CALLS)
def test_no_function_runs_a_strangers(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable], name: str
) -> None:
    """Neither as eo_owner nor as the writer who calls it, whose own search_path has public."""
    check_that_no_function_is_left_out(module_archive)
    with psycopg.connect(module_archive.info.dsn, autocommit=True, options="-c role=eo_writer") as writer:
        for function, call in calls(values):
            if function == name:
                with writer.transaction(force_rollback=True):
                    if name in ("add_to_collection", "remove_from_collection", "drop_collection", "collection_patches"):
                        writer.execute("select eo.create_collection('mine')")
                    writer.execute(sql.SQL("select pg_catalog.count(*) from {} f").format(call)).fetchall()


@pytest.mark.parametrize("name", PROCEDURES)
def test_no_procedure_runs_a_strangers(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable], name: str
) -> None:
    with psycopg.connect(module_archive.info.dsn, autocommit=True, options="-c role=eo_writer") as writer:
        writer.execute(f"call eo.{name}({PROCEDURES[name]})".encode())


def test_views_and_triggers_run_no_strangers(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable]
) -> None:
    views = module_archive.execute(
        "select oid::regclass::text from pg_class where relnamespace = 'eo'::regnamespace and relkind = 'v'"
    ).fetchall()
    assert len(views) > 10
    with psycopg.connect(module_archive.info.dsn, autocommit=True, options="-c role=eo_writer") as writer:
        for (view,) in views:
            writer.execute(f"select * from {view}".encode()).fetchall()
        with writer.transaction(force_rollback=True):
            writer.execute("update eo.patch set split = 'test'")
            writer.execute("update eo.patch_bucket set segment = segment")
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            writer.execute("delete from eo.bucket")


@pytest.fixture
def old_database(cluster: SimpleNamespace, stranger: None) -> Iterator[psycopg.Connection]:
    """A database with the extensions, in whose public everybody may create, and without an archive."""
    janitor = DatabaseJanitor(user=cluster.user, host=cluster.host, port=cluster.port, dbname="pgearth_old")
    janitor.drop()
    with (
        janitor,
        psycopg.connect(
            host=cluster.host, port=cluster.port, user=cluster.user, dbname="pgearth_old", autocommit=True
        ) as connection,
    ):
        for extension in ("postgis", "postgis_raster", "vector"):
            connection.execute(f"create extension {extension}".encode())
        connection.execute("grant create on schema public to public")
        yield connection


def url(connection: psycopg.Connection) -> str:
    info = connection.info
    return f"postgresql+psycopg://{info.user}@/{info.dbname}?host={info.host}&port={info.port}"


def test_a_migration_binds_nothing_of_a_strangers(
    old_database: psycopg.Connection, module_archive: psycopg.Connection
) -> None:
    """Bodies, views, constraints, defaults and indexes mean what they mean elsewhere, though traps were there first."""
    set_traps(old_database, called_names(module_archive))
    old_database.execute(
        f"""
        do $$
        declare
            thing record;
        begin
            -- Those are refused: see the next test.
            for thing in
                select p.oid::regprocedure as name from pg_proc p
                where p.proowner = '{STRANGER}'::regrole
                  and exists (select from pg_proc o where o.proname = p.proname and o.pronamespace = p.pronamespace
                              and o.proowner <> p.proowner)
            loop
                execute format('drop function %s', thing.name);
            end loop;
        end
        $$
        """.encode()
    )
    traps = old_database.execute("select count(*) from pg_proc where proowner = %s::regrole", (STRANGER,)).fetchone()
    assert traps is not None and traps[0] > 1000
    upgrade(url(old_database))
    bound = old_database.execute(
        """
        select pg_describe_object(d.classid, d.objid, d.objsubid), pg_describe_object(d.refclassid, d.refobjid, 0)
        from pg_depend d
        left join pg_proc p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
        left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
        where %(stranger)s::regrole in (p.proowner, o.oprowner)
          and not (d.classid = 'pg_operator'::regclass and d.deptype = 'n')
        """,
        {"stranger": STRANGER},
    ).fetchall()
    assert bound == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "create function public.st_ymax(public.geometry) returns float8 language sql return 1",
            "The function public.st_ymax\\(public.geometry\\) of the role pgearth_stranger bears a name of PostGIS's",
        ),
        (
            "create function public.avg(real[]) returns float8 language sql return 1",
            "The function public.avg\\(real\\[\\]\\) of the role pgearth_stranger",
        ),
        (
            "create table public.pgearth_version (version_num varchar(32))",
            "public.pgearth_version, which records the revision, belongs to the role pgearth_stranger",
        ),
    ],
)
def test_a_migration_refuses_what_would_run_as_the_administrator(
    old_database: psycopg.Connection, statement: str, expected: str
) -> None:
    old_database.execute(f"set role {STRANGER}; {statement}; reset role".encode())
    with pytest.raises(PgearthError, match=expected) as caught:
        upgrade(url(old_database))
    assert old_database.execute("select to_regnamespace('eo')").fetchone() == (None,)
    old_database.execute(caught.value.hint.rpartition(": ")[2].encode())
    upgrade(url(old_database))


def test_styles_are_not_stored_in_a_strangers_table(
    old_database: psycopg.Connection, run_pgearth: Callable[..., Result]
) -> None:
    """Made before the archive, as QGIS does, with a trigger."""
    old_database.execute(
        f"""
        set role {STRANGER};
        create table public.layer_styles (
            id serial primary key, f_table_catalog varchar, f_table_schema varchar, f_table_name varchar,
            f_geometry_column varchar, stylename text, styleqml xml, stylesld xml, useasdefault boolean, description text,
            owner varchar(63) default current_user, ui xml, update_time timestamp default current_timestamp);
        {TRAP.format(name="styled", arguments="", returns="trigger").replace("%%", "%")};
        create trigger trap before insert or update or delete on public.layer_styles
            for each statement execute function public.styled();
        reset role
        """.encode()
    )
    result = run_pgearth(old_database, "migrate")
    assert result.exit_code == 0, result.output
    assert (
        "styles of map layers were not stored: public.layer_styles belongs to the role pgearth_stranger"
        in result.output
    )
    assert old_database.execute("select count(*) from public.layer_styles").fetchone() == (0,)
    old_database.execute("drop trigger trap on public.layer_styles; alter table public.layer_styles owner to eo_owner")
    result = run_pgearth(old_database, "migrate")
    assert "layer_styles" not in result.output
    assert old_database.execute("select count(*) > 5 from public.layer_styles").fetchone() == (True,)


def test_migrate_warns_where_others_may_create(
    old_database: psycopg.Connection, run_pgearth: Callable[..., Result]
) -> None:
    old_database.execute(f"grant create on schema public to {STRANGER}")
    result = run_pgearth(old_database, "migrate")
    assert result.exit_code == 0, result.output
    warning, hint = [line for line in result.output.splitlines() if line.startswith(("Warning", "Hint"))]
    assert warning.startswith("Warning: PUBLIC, pgearth_stranger may create in the schema public")
    assert hint.startswith("Hint: revoke create on schema public from PUBLIC;")
    old_database.execute(hint.removeprefix("Hint: ").encode())
    assert "Warning" not in run_pgearth(old_database, "migrate").output
