"""A server without plpython3u: the schema applies, every search answers as it does with PL/Python, the rest says why not.

The tests' server has plpython3u, so its absence is simulated at one place: `plpython_is_available`, by which the migration
asks the server for it, is replaced. The rest is real: a database in which the language and its functions were never made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy
from click.testing import Result
from psycopg import errors
from pytest_postgresql.janitor import DatabaseJanitor

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.server.migrate import upgrade
from pgearth.migrations import sqlfiles

PATCH = "S2A_MSIL2A_20170617T113321_4_55"
CODE = f"(select b.code from eo.patch p join eo.patch_bucket pb using (patch_id) join eo.bucket b using (encoder_id, bucket_no) where p.name = '{PATCH}' and segment = 0)"
VECTOR = f"(select e.embedding from eo.patch p join eo.embedding e using (patch_id) where p.name = '{PATCH}')"
SEGMENT_CODES = f"(select array_agg(b.code order by segment) from eo.patch p join eo.patch_bucket pb using (patch_id) join eo.bucket b using (encoder_id, bucket_no) where p.name = '{PATCH}' and segment > 0)"
SEARCHES = {
    "similar": [
        f"'{PATCH}'",
        f"'{PATCH}', eo.filter(area => st_makeenvelope(-12, 50, 0, 56, 4326)), 5",
        f"'{PATCH}', eo.filter(seasons => '{{summer}}'), 5",
    ],
    "similar_to_code": [
        CODE,
        f"~{CODE}, max_results => 4",
        f"{CODE}, max_results => null",
        f"{CODE}, eo.filter(labels => '{{clc:2}}'), 3",
    ],
    "within_distance": [f"{CODE}, 0", f"{CODE}, 50", f"{CODE}, 128, eo.filter(platforms => '{{sentinel-2a}}')"],
    "similar_to_examples": [
        f"array['{PATCH}']",
        f"array(select name from eo.patch where patch_id in (select patch_id from eo.patch_bucket) and name < '{PATCH}' limit 2), array['{PATCH}'], max_results => 20",
    ],
    "similar_to_vector": [VECTOR, f"{VECTOR}, eo.filter(seasons => '{{summer}}'), 3"],
    "similar_to_segments": [SEGMENT_CODES, f"{SEGMENT_CODES}, eo.filter(platforms => '{{sentinel-2a}}'), 3"],
    "similar_segments": [f"'{PATCH}'"],
    "buckets_within": [f"{CODE}, 0", f"{CODE}, 60"],
    "bucket_members": [CODE],
    "search": [
        "",
        "eo.filter(area => st_makeenvelope(-12, 50, 0, 56, 4326))",
        "eo.filter(labels => '{clc:2}', label_match => 'at_least'), order_by => 'newest'",
    ],
    "label_statistics": ["", "eo.filter(platforms => '{sentinel-2a}')"],
    "patch_statistics": ["'season'"],
    "select_products": [
        "",
        "eo.product_filter(platforms => '{sentinel-2a}'), per_season => 2",
        "per_season => null, each_year => true",
    ],
    "product_statistics": ["", "eo.product_filter(platforms => '{sentinel-2a}')"],
}
"""Arguments of calls that answer the same with PL/Python and without."""

NEED_PYTHON = {
    "eo.encode": "select * from eo.encode(array[1])",
    "eo.encode ": "select eo.encode(array[st_makeemptyraster(1, 1, 0, 0, 1)])",
    "eo.encode_image": "select eo.encode_image('x')",
    "eo.hash": f"select eo.hash({VECTOR})",
    "eo.similar_to_image": "select * from eo.similar_to_image('x')",
    "eo.segment_codes": "select eo.segment_codes('x')",
    "eo.rgb": f"select eo.rgb('{PATCH}')",
    "eo.contact_sheet": "select eo.contact_sheet(array[1])",
    "eo.build_code_index": "select eo.build_code_index()",
    "eo.evaluate": "select * from eo.evaluate('lsh')",
    "eo.code_statistics": "select * from eo.code_statistics()",
}


def url(settings: SimpleNamespace, name: str) -> str:
    return f"postgresql+psycopg://{settings.user}@/{name}?host={settings.host}&port={settings.port}"


@contextmanager
def empty_database(settings: SimpleNamespace, name: str) -> Iterator[psycopg.Connection]:
    janitor = DatabaseJanitor(user=settings.user, host=settings.host, port=settings.port, dbname=name)
    janitor.drop()
    with (
        janitor,
        psycopg.connect(
            host=settings.host, port=settings.port, user=settings.user, dbname=name, autocommit=True
        ) as connection,
    ):
        yield connection


def upgrade_without_python(settings: SimpleNamespace, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlfiles, "plpython_is_available", lambda _: False)
        upgrade(url(settings, name))


def fill(connection: psycopg.Connection, sample: Path) -> None:
    load_bigearthnet(connection, sample / "bigearthnet-v1")
    with psycopg.connect(connection.info.dsn, autocommit=True) as reading:
        encode_archive(connection, reading, segments="grid:2")


@pytest.fixture(scope="module")
def with_python(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches, encoded, with packed codes: searches run in PL/Python."""
    fill(module_archive, sample)
    module_archive.execute("select eo.build_code_index()")
    return module_archive


@pytest.fixture(scope="module")
def without_python(archive_template: SimpleNamespace, sample: Path) -> Iterator[psycopg.Connection]:
    """The same patches in a database that has no PL/Python."""
    name = f"{archive_template.dbname}_without_python"
    with empty_database(archive_template, name) as connection:
        upgrade_without_python(archive_template, name)
        load_nomenclature(connection)
        fill(connection, sample)
        yield connection


def languages(connection: psycopg.Connection) -> set[str]:
    return {name for (name,) in connection.execute("select lanname from pg_language")}


def test_nothing_of_python_is_there(without_python: psycopg.Connection) -> None:
    assert languages(without_python) == {"internal", "c", "sql", "plpgsql"}
    assert without_python.execute("select to_regproc('eo_internal.encode')").fetchone() == (None,)
    applied = {name for (name,) in without_python.execute("select name from eo_internal.sql_file")}
    assert applied == {file.name for file in sqlfiles.sql_files()} - {
        file.name for file in sqlfiles.sql_files() if file.name.startswith("0_python/")
    }


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_answers_the_same(
    with_python: psycopg.Connection, without_python: psycopg.Connection, name: str
) -> None:
    for arguments in SEARCHES[name]:
        query = f'select * from eo."{name}"({arguments})'
        expected = with_python.execute(query).fetchall()
        assert expected, query
        assert without_python.execute(query).fetchall() == expected, query


def test_no_search_is_left_out(without_python: psycopg.Connection) -> None:
    functions = {
        name
        for (name,) in without_python.execute(
            "select proname from pg_proc where pronamespace = 'eo'::regnamespace"
            " and proname ~ '^(similar|within|bucket|search|select_products|.*_statistics$)'"
        )
    }
    # The sample has no pairs of acquisitions, so that no change is found; it reads vectors only.
    without_python.execute("select * from eo.similar_change(%s, %s)", (PATCH, PATCH))
    assert functions - set(SEARCHES) == {"similar_to_image", "similar_change", "code_statistics"}


def test_packed_codes_were_compared_with_plain_sql(
    with_python: psycopg.Connection, without_python: psycopg.Connection
) -> None:
    """The other tests would compare the plain SQL with itself if the packed codes were not used."""
    query = f"select bucket_nos, distances, complete from eo_internal.packed_codes((select max(encoder_id) from eo.encoder)::smallint, array[{CODE}], '{{}}', 5, null, false)"
    packed = with_python.execute(query).fetchone()
    assert packed is not None and len(packed[0]) >= 5
    assert packed == without_python.execute(query.replace("packed_codes", "nearest_codes")).fetchone()


@pytest.mark.parametrize("query", NEED_PYTHON.values(), ids=NEED_PYTHON)
def test_what_needs_python_says_so(without_python: psycopg.Connection, query: str) -> None:
    with pytest.raises(errors.FeatureNotSupported, match="needs PL/Python") as error:
        without_python.execute(query)
    assert "pgearth encode" in (error.value.diag.message_hint or "")


def test_every_call_of_python_is_guarded(with_python: psycopg.Connection) -> None:
    """No function of eo reaches a PL/Python one without having asked first whether it is there."""
    sources: dict[str, dict[str, str]] = {"eo": {}, "eo_internal": {}}
    needing: set[str] = set()
    for schema, name, language, source in with_python.execute(
        "select pronamespace::regnamespace::text, proname, lanname, coalesce(prosrc, '') || coalesce(pg_get_function_sqlbody(p.oid), '')"
        " from pg_proc p join pg_language l on l.oid = prolang where pronamespace::regnamespace::text in ('eo', 'eo_internal')"
    ):
        if language == "plpython3u":
            needing.add(name)
        else:
            sources[schema][name] = sources[schema].get(name, "") + source
    guards = re.compile(r"require_python\(\)|has_python\(\)|to_regprocedure\(")

    def unguarded(schema: str) -> set[str]:
        calls = re.compile(rf"eo_internal\.({'|'.join(needing)})\(")
        return {name for name, source in sources[schema].items() if calls.search(source) and not guards.search(source)}

    while more := unguarded("eo_internal") - needing:
        needing |= more
    assert needing >= {"encode", "hash", "rgb_png"}
    assert unguarded("eo") == set()


def test_runtime_says_that_python_is_absent(without_python: psycopg.Connection) -> None:
    rows = {name: (version, note) for name, version, note in without_python.execute("select * from eo.runtime()")}
    assert set(rows) == {"PostgreSQL", "postgis", "postgis_raster", "vector", "PL/Python", "pgearth schema"}
    assert rows["PL/Python"][0] is None
    assert "absent" in rows["PL/Python"][1]


def test_the_command_encodes(without_python: psycopg.Connection, run_pgearth: Callable[..., Result]) -> None:
    """The rest of its work is done in the fixture."""
    result = run_pgearth(without_python, "encode")
    assert result.exit_code == 0, result.output


def test_python_is_added_when_the_server_offers_it_and_goes_when_dropped(archive_template: SimpleNamespace) -> None:
    name = f"{archive_template.dbname}_python_later"
    functions = "select oid::regprocedure::text, md5(prosrc) from pg_proc where pronamespace::regnamespace::text in ('eo', 'eo_internal') order by 1"
    with empty_database(archive_template, name) as connection:
        upgrade_without_python(archive_template, name)
        without = connection.execute(functions).fetchall()
        upgrade(url(archive_template, name))
        assert "plpython3u" in languages(connection)
        assert connection.execute("select version from eo.runtime() where component = 'plpython3u'").fetchone()
        assert set(connection.execute(functions).fetchall()) > set(without)
        connection.execute("drop extension plpython3u cascade")
        upgrade_without_python(archive_template, name)
        assert connection.execute(functions).fetchall() == without
        assert connection.execute(
            "select count(*) from eo_internal.sql_file where starts_with(name, '0_python/')"
        ).fetchone() == (0,)


def test_a_refusal_of_the_extension_is_survived(archive_template: SimpleNamespace) -> None:
    """PostgreSQL itself refuses an untrusted language to any but a superuser."""
    name = f"{archive_template.dbname}_python_refused"
    with empty_database(archive_template, name) as connection:
        connection.execute("grant create on database " + name + " to eo_owner")
        with sqlalchemy.create_engine(url(archive_template, name)).begin() as session:
            session.exec_driver_sql("set local role eo_owner")
            assert not sqlfiles.has_plpython(session)
            assert session.exec_driver_sql("select current_user").scalar() == "eo_owner", "the transaction goes on"
            session.exec_driver_sql("reset role")
            assert sqlfiles.has_plpython(session)
