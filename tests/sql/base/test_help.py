"""The help names every public function and view once, and its examples run from top to bottom as a newcomer runs them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from tests.sql.public_calls import fill, upload

PUBLIC = """
select case when count(*) over (partition by proname) = 1 then proname else proname || '(' || proargnames[1] || ')' end
from pg_proc where pronamespace = 'eo'::regnamespace
union all
select relname from pg_class where relnamespace = 'eo'::regnamespace and relkind = 'v'
"""
TOPICS = [
    "search", "areas", "labels", "products", "similar", "segments", "change", "hash codes", "encoders", "evaluation",
    "annotation", "pictures", "maps", "collections", "runtime",
]  # fmt: skip
EMPTY = {"map_collection", "map_collection_3857"}
"""Layers of what the reader collects, which is nothing yet."""
PAIRS = {"change", "similar_change"}
"""What needs two dates of one place."""


def run_examples(archive: psycopg.Connection, folder: Path, image: bytes) -> set[str]:
    """Run every example by psql in this folder, as the role that needs least; return what gave no rows."""
    (folder / "patch.tif").write_bytes(image)
    rows = archive.execute("select name, purpose like '%(writer)', example from eo.help()").fetchall()
    session = "".join(f"set role {'eo_writer' if writer else 'eo_reader'};\n{example}\n" for _, writer, example in rows)
    server = archive.info
    address = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user, "PGDATABASE": server.dbname}
    result = subprocess.run(
        ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1"],
        input=session,
        cwd=folder,
        env={**os.environ, **address, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    results = re.findall(r"^\((\d+) rows?\)$", result.stdout, re.M)
    return {name for (name, *_), found in zip(rows, results, strict=True) if found == "0"}


def test_every_public_function_and_view_has_one_topic(module_archive: psycopg.Connection) -> None:
    public = sorted(name for (name,) in module_archive.execute(PUBLIC))
    assert len(public) > 70
    assert sorted(name for (name,) in module_archive.execute("select name from eo_internal.examples()")) == public


def test_topics(module_archive: psycopg.Connection) -> None:
    rows = module_archive.execute("select topic, name, purpose, example from eo.help()").fetchall()
    assert list(dict.fromkeys(topic for topic, *_ in rows)) == TOPICS
    for topic in TOPICS:
        assert module_archive.execute("select * from eo.help(%s)", (topic,)).fetchall() == [
            row for row in rows if row[0] == topic
        ]
    for _, name, purpose, example in rows:
        assert re.fullmatch(r"[A-Z]\S* .*?[^ ](\.( \(writer\))?)?", purpose), purpose
        assert "\n" not in purpose and f"eo.{name}" in example
    by_name = {name: purpose for _, name, purpose, _ in rows}
    assert by_name["cell_of"].startswith("Geohash of the centre of a geometry") and by_name["cell_of"].endswith("km.")
    assert by_name["register_encoder"].endswith("returns the same. (writer)")


def test_an_unknown_topic_is_an_error_that_names_the_topics(module_archive: psycopg.Connection) -> None:
    with pytest.raises(errors.InvalidParameterValue, match='there is no topic "pixels"') as caught:
        module_archive.execute("select * from eo.help('pixels')")
    assert caught.value.diag.message_hint == f"There are: {', '.join(TOPICS)}."


def test_every_example_runs_and_finds_something(
    module_archive: psycopg.Connection, sample: Path, tmp_path: Path
) -> None:
    fill(module_archive, sample)
    image = upload(sample, "S2A_MSIL2A_20170613T101031_87_48")
    assert run_examples(module_archive, tmp_path, image) == EMPTY | PAIRS
