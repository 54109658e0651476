"""Evaluation in SQL against the literal definitions over what the tables hold; explanations; what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import errors
from psycopg.types.json import Jsonb

from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.pyfuncs.measures.retrieval import code_statistics
from pgearth.pyfuncs.pixels.rasters import Raster
from tests.retrieval_oracle import is_relevant, literal, mean, orders
from tests.stand_ins import NO_WEIGHTS, lsh_weights

START = datetime(2018, 1, 1, tzinfo=UTC)
PATCHES, DIMENSION, BITS = 60, 5, 12
LABELS = [111, 112, 211, 243, 311, 312, 313, 512]
AIRPORT = 124  # of CORINE, but of no class of BigEarthNet-19
UNKNOWN, UNENCODED, ONLY_AIRPORT = 57, 58, 59
"""A patch without known labels, one without vector and code, and one with labels outside of ben19."""
ALL: dict[str, Any] = {}


@dataclass(frozen=True)
class Archive:
    """An archive with an encoder "net" and a hash function "code", of which codes tie often."""

    connection: psycopg.Connection
    patch_ids: list[int]
    vectors: np.ndarray
    codes: np.ndarray
    classes: list[set[int]]


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection) -> Archive:
    generator = np.random.default_rng(12)
    register_vector(module_archive)
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", START)])
    labels: list[list[int] | None] = [
        sorted(int(label) for label in generator.choice(LABELS, generator.integers(1, 4), replace=False))
        for _ in range(PATCHES)
    ]
    labels[UNKNOWN], labels[ONLY_AIRPORT] = None, [AIRPORT]
    patches = []
    for number, ids in enumerate(labels):
        west = 500_000 + 1200.0 * number
        band = np.arange(16, dtype=np.uint16).reshape(4, 4) + 100 * (number + 1)
        if number == 1:
            band[0] = 0
        raster = Raster((band, band * 2), (300, -300, west, 5_001_200, 0, 0), 32633, (0, 0))
        patches.append(
            Patch(
                f"patch-{number:02}", "p", "sentinel-2a", START + timedelta(days=40 * number), 32633, west, 5_000_000,
                west + 1200, 5_001_200, label_ids=ids, label_fraction=[1 / len(ids)] * len(ids) if ids else None,
                split="train" if number % 3 else "test",
                rasters=[patch_raster(300, ("B02", "B8A"), raster)] if number < 3 else [],
            )
        )  # fmt: skip
    with module_archive.transaction():
        write_patches(module_archive, "test", patches)
    rows = module_archive.execute("select patch_id, cell from eo.patch order by name").fetchall()
    kinds = np.array([sum(ids or []) for ids in labels])
    centres = generator.standard_normal((kinds.max() + 1, DIMENSION))
    vectors = (centres[kinds] + generator.standard_normal((PATCHES, DIMENSION))).astype(np.float32)
    codes = np.concatenate([vectors > 0, vectors[:, ::-1] > 0.5, vectors[:, :2] > 1], axis=1)
    net = register(module_archive, "net", dimension=DIMENSION)
    code = register(module_archive, "code", bits=BITS, parent_id=net)
    encoded = [number for number in range(PATCHES) if number != UNENCODED]
    for number in encoded:
        module_archive.execute(
            "insert into eo.embedding (patch_id, cell, encoder_id, embedding) values (%s, %s, %s, %s)",
            (*rows[number], net, Vector(vectors[number])),
        )
    module_archive.execute(
        "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::varbit[])",
        (
            code,
            [rows[number][0] for number in encoded],
            [0] * len(encoded),
            ["".join("01"[int(bit)] for bit in codes[number]) for number in encoded],
        ),
    )
    module_archive.execute("analyze")
    ben19 = module_archive.execute(
        "select c.descendant_id, array_agg(c.ancestor_id) from eo.label_closure c"
        " join eo.label l on l.label_id = c.ancestor_id where l.scheme = 'ben19' group by 1"
    ).fetchall()
    class_of = dict(ben19)
    classes = [{number for label in ids or [] for number in class_of.get(label, [])} for ids in labels]
    return Archive(module_archive, [row[0] for row in rows], vectors.astype(float), codes, classes)


def register(connection: psycopg.Connection, name: str, **definition: int) -> int:
    bits = definition.get("bits")
    row = connection.execute(
        "select eo.register_encoder(%(name)s, 1, %(architecture)s, %(bands)s, %(weights)s, dimension => %(dimension)s, bits => %(bits)s,"
        " parent_id => %(parent_id)s::smallint)",
        {
            "name": name,
            "architecture": "spectral" if bits is None else "lsh",
            "bands": ["B02"] if bits is None else [],
            "weights": NO_WEIGHTS if bits is None else lsh_weights(bits, DIMENSION),
            "dimension": definition.get("dimension"),
            "bits": bits,
            "parent_id": definition.get("parent_id"),
        },
    ).fetchone()
    assert row is not None
    return int(row[0])


def evaluate(
    archive: Archive,
    encoder: str,
    queries: dict = ALL,
    patches: dict = ALL,
    function: str = "retrieval_metrics",
    **more: Any,
) -> dict[str, tuple[float, float | None]]:
    options = "".join(f", {name} => %({name})s" for name in more)
    rows = archive.connection.execute(
        f"select * from eo.{function}(%(encoder)s, eo.filter(%(queries)s::jsonb), eo.filter(%(patches)s::jsonb){options})".encode(),
        {"encoder": encoder, "queries": Jsonb(queries), "patches": Jsonb(patches), **more},
    ).fetchall()
    return {metric: (value, chance) for metric, value, chance in rows}


def expected(
    archive: Archive, distance: np.ndarray, queries: list[int], patches: list[int], k: int, relevance: str
) -> dict[str, float]:
    """Literal measures of the queries that bear a class and have a relevant patch; all orders of ties."""
    values = []
    for query in queries:
        others = np.array([patch for patch in patches if patch not in (query, UNKNOWN, UNENCODED)])
        classes = [archive.classes[patch] for patch in others]
        wanted = archive.classes[query]
        if query in (UNKNOWN, UNENCODED) or not wanted:
            continue
        if any(is_relevant(relevance)(wanted, patch) for patch in classes):
            values.append(
                mean([literal(order, wanted, classes, k, relevance) for order in orders(distance[query, others])])
            )
    return {**mean(values), "queries": len(values)}


@pytest.mark.parametrize("relevance", ["any", "jaccard:0.5", "same"])
@pytest.mark.parametrize("k", [3, 20, 100])
def test_an_encoder(archive: Archive, relevance: str, k: int) -> None:
    distance = np.sqrt(((archive.vectors[:, None] - archive.vectors) ** 2).sum(axis=2))
    tests = list(range(0, PATCHES, 3))
    trains = [number for number in range(PATCHES) if number % 3]
    for queries, patches, filters in (
        (tests, trains, ({"splits": ["test"]}, {"splits": ["train"]})),
        (list(range(PATCHES)), list(range(PATCHES)), (ALL, ALL)),
    ):
        found = evaluate(archive, "net", *filters, k=k, relevance=relevance)
        for name, value in expected(archive, distance, queries, patches, k, relevance).items():
            assert found[name][0] == pytest.approx(value, abs=1e-9), name


def test_a_hash_function(archive: Archive) -> None:
    """So few patches at a time that all orders of their ties can be written out."""
    distance = (archive.codes[:, None] != archive.codes).sum(axis=2)
    tied = 0
    for first in range(0, 42, 7):
        patches = list(range(first, first + 7))
        filters = {"patch_ids": [archive.patch_ids[number] for number in patches]}
        found = evaluate(archive, "code", ALL, filters, k=3)
        for name, value in expected(archive, distance, list(range(PATCHES)), patches, 3, "any").items():
            assert found[name][0] == pytest.approx(value, abs=1e-9), name
        tied += sum(len(set(distance[query, patches])) < 7 for query in range(PATCHES))
    assert tied > 100


def test_lookups_within_two_bits(archive: Archive) -> None:
    distance = (archive.codes[:, None] != archive.codes).sum(axis=2)
    found = evaluate(archive, "code")
    precisions = []
    for query in range(PATCHES):
        if query in (UNKNOWN, UNENCODED) or not archive.classes[query]:
            continue
        near = [n for n in range(PATCHES) if n not in (query, UNKNOWN, UNENCODED) and distance[query, n] <= 2]
        shared = [bool(archive.classes[query] & archive.classes[number]) for number in near]
        precisions.append(np.mean(shared) if near else None)
    assert found["radius_empty"] == (pytest.approx(precisions.count(None) / len(precisions)), None)
    assert found["radius_precision"][0] == pytest.approx(sum(p or 0 for p in precisions) / len(precisions))
    assert 0 < found["radius_empty"][0] < 1
    assert "radius_empty" not in evaluate(archive, "net")


def test_who_is_left_out_is_counted(archive: Archive) -> None:
    found = {name: value for name, (value, chance) in evaluate(archive, "net").items() if chance is None}
    assert found == {
        "queries": PATCHES - 3,
        "archive": PATCHES - 2,
        "queries_without_relevant": 0,
        "queries_not_encoded": 1,
        "queries_without_labels": 2,
        "archive_not_encoded": 1,
        "archive_without_labels": 1,
    }


def test_labels_of_another_scheme_and_level(archive: Archive) -> None:
    """At CORINE's uppermost level nearly all patches share a class, even the airport does; at the lowest it shares none."""
    found = {level: evaluate(archive, "net", scheme="clc", level=level) for level in (1, None, 3)}
    assert found[1]["map"][1] > found[3]["map"][1]
    assert found[None] == found[3]
    counts = [(found[level]["queries"][0], found[level]["queries_without_relevant"][0]) for level in (1, 3)]
    assert counts == [(PATCHES - 2, 0), (PATCHES - 3, 1)]


def test_some_queries_by_seed(archive: Archive) -> None:
    drawn = [evaluate(archive, "net", max_queries=10, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [metrics["queries"][0] for metrics in drawn] == [10, 10, 10]
    assert evaluate(archive, "net", max_queries=1000) == evaluate(archive, "net")


@pytest.mark.parametrize(
    ("filters", "condition"),
    [
        ({"from_time": "2018-06-01", "seasons": ["summer", "autumn"]}, "season in ('summer', 'autumn')"),
        (
            {"area": {"type": "Polygon", "coordinates": [[[15, 45], [15.2, 45], [15.2, 46], [15, 46], [15, 45]]]}},
            "ST_XMin(footprint) <= 15.2",
        ),
        ({"labels": ["Coniferous forest"], "label_match": "at_least"}, "312 = any (label_ids)"),
        ({"max_cloud": None, "platforms": ["sentinel-2b"]}, "false"),
    ],
)
def test_filters(archive: Archive, filters: dict, condition: str) -> None:
    found = archive.connection.execute(
        "select * from eo_internal.filtered_patches(eo.filter(%s::jsonb))", (Jsonb(filters),)
    ).fetchone()
    wanted = f"""
        select coalesce(array_agg(patch_id order by patch_id), '{{}}'), coalesce(array_agg(cell order by patch_id), '{{}}')
        from eo.patch where {condition} and sensing_time >= %s
        """
    since = filters.get("from_time", "2000-01-01")
    assert found == archive.connection.execute(wanted.encode(), (since,)).fetchone()


def test_evaluations_are_kept(archive: Archive) -> None:
    queries = {"splits": ["test"]}
    found = evaluate(archive, "code", queries, function="evaluate", k=5, relevance="same", max_queries=12, seed=3)
    assert found == evaluate(archive, "code", queries, k=5, relevance="same", max_queries=12, seed=3)
    row = archive.connection.execute(
        "select e.name, v.k, v.relevance, v.scheme, v.level, v.queries, v.archive, v.max_queries, v.seed, v.metrics"
        " from eo.evaluation v join eo.encoder e using (encoder_id) order by evaluation_id desc limit 1"
    ).fetchone()
    assert row is not None
    assert row[:-1] == ("code", 5, "same", "ben19", None, queries, {}, 12, 3)
    kept = {name: (metric["value"], metric.get("chance")) for name, metric in row[-1].items()}
    assert kept == {
        name: (pytest.approx(value), chance and pytest.approx(chance)) for name, (value, chance) in found.items()
    }


def test_code_statistics(archive: Archive) -> None:
    rows = archive.connection.execute("select * from eo.code_statistics('code:1')").fetchall()
    codes = np.delete(archive.codes, UNENCODED, axis=0)
    padded = np.zeros((len(codes), 64), bool)
    padded[:, :BITS] = codes
    words = np.packbits(padded, axis=1).view(np.uint64).T
    assert dict(rows) == {name: pytest.approx(value) for name, value in code_statistics(words, BITS).items()}
    assert dict(rows)["distinct_codes"] == len(np.unique(codes, axis=0)) < len(codes) == dict(rows)["patches"]
    some = archive.connection.execute(
        "select * from eo.code_statistics(null, eo.filter(splits => '{test}'))"
    ).fetchall()
    assert dict(some)["patches"] == PATCHES / 3


BAD: list[tuple[str, type[psycopg.Error], str]] = [
    ("'nowhere'", errors.UndefinedObject, 'no encoder "nowhere"'),
    ("'net', eo.filter(jsonb '{\"tiles\": []}')", errors.InvalidParameterValue, 'no filter "tiles"'),
    ("'net', null, eo.filter(jsonb '[]')", errors.InvalidParameterValue, "a JSON object, not \\[\\]"),
    (
        "'net', eo.filter(jsonb '{\"splits\": \"test\"}')",
        errors.InvalidParameterValue,
        'the filter\'s splits cannot be "test"',
    ),
    ("'net', eo.filter(names => '{x}')", errors.InvalidParameterValue, "no patch passes the filters of queries"),
    (
        "'net', archive => eo.filter(names => '{x}')",
        errors.InvalidParameterValue,
        "no patch passes the filters of archive",
    ),
    ("'net', eo.filter(area => null)", errors.NullValueNotAllowed, "the area is null"),
    ("'net', k => 0", errors.InvalidParameterValue, "k is 0"),
    ("'net', max_queries => 0", errors.InvalidParameterValue, "max_queries 0"),
    ("'net', seed => -1", errors.InvalidParameterValue, "seed -1"),
    ("'net', relevance => 'some'", errors.InvalidParameterValue, 'no relevance "some"'),
    ("'net', relevance => null", errors.InvalidParameterValue, 'no relevance ""'),
    ("'net', scheme => 'x'", errors.UndefinedObject, 'no nomenclature "x"'),
    ("'net', level => 7", errors.UndefinedObject, "of level 7"),
    ("'net', scheme => 'nlcd'", errors.InvalidParameterValue, "59 are encoded, of which none bears a label"),
    ("'net', scheme => 'scl'", errors.InvalidParameterValue, "59 are encoded, of which none bears a label"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input(archive: Archive, arguments: str, error: type[psycopg.Error], message: str) -> None:
    before = archive.connection.execute("select count(*) from eo.evaluation").fetchone()
    with pytest.raises(error, match=message) as caught:
        archive.connection.execute(f"select * from eo.evaluate({arguments})".encode())
    assert caught.value.diag.message_hint
    assert archive.connection.execute("select count(*) from eo.evaluation").fetchone() == before


def test_a_retired_encoder_is_not_evaluated(archive: Archive) -> None:
    with archive.connection.transaction(force_rollback=True):
        archive.connection.execute("update eo.encoder set retired_at = now() where name = 'code'")
        with pytest.raises(errors.UndefinedObject, match="code:1 was retired"):
            archive.connection.execute("select * from eo.evaluate('code:1')")


def explain(archive: Archive, *arguments: str) -> dict[tuple[str, str], tuple[str | None, str | None, float | None]]:
    rows = archive.connection.execute(
        f"select * from eo.explain_similarity({', '.join(['%s'] * len(arguments))})".encode(), arguments
    ).fetchall()
    assert len({row[:2] for row in rows}) == len(rows)
    return {row[:2]: row[2:] for row in rows}


def test_explain_distances(archive: Archive) -> None:
    found = explain(archive, "patch-00", "patch-05")
    distances = {item: row[2] for (topic, item), row in found.items() if topic == "distance"}
    vector = np.linalg.norm(archive.vectors[0] - archive.vectors[5])
    bits = (archive.codes[0] != archive.codes[5]).sum()
    assert distances == {"net:1": pytest.approx(vector, rel=1e-6), "code:1 (12 bits)": bits}
    assert explain(archive, "patch-00", "patch-05", "code") == found
    only = explain(archive, "patch-00", "patch-05", "net:1")
    assert [item for topic, item in only if topic == "distance"] == ["net:1"]


def test_explain_labels(archive: Archive) -> None:
    for number in range(1, 12):
        found = explain(archive, "patch-00", f"patch-{number:02}")
        rows = archive.connection.execute(
            "select name, label_ids from eo.patch where name in ('patch-00', %s) order by name", (f"patch-{number:02}",)
        ).fetchall()
        (_, first), (_, second) = rows
        shown = {item: row[:2] for (topic, item), row in found.items() if topic == "label" and "clc:" in item}
        assert len(shown) == len({*first, *second})
        for item, (of_a, of_b) in shown.items():
            label = int(item[item.index("clc:") + 4 : -1])
            assert of_a == (f"{100 / len(first):.1f} %" if label in first else None)
            assert of_b == (f"{100 / len(second):.1f} %" if label in second else None)
        shared = [of_a is not None and of_b is not None for of_a, of_b in shown.values()]
        assert shared == sorted(shared, reverse=True)
        classes = archive.classes[0], archive.classes[number]
        index = len(classes[0] & classes[1]) / len(classes[0] | classes[1])
        assert found["label", "shared of all classes of ben19"][2] == pytest.approx(index)


def test_explain_place_time_and_bands(archive: Archive) -> None:
    found = explain(archive, "patch-00", "patch-01")
    assert found["place", "km between centres"][2] == pytest.approx(1.2, rel=1e-3)
    assert found["place", "overlap, of the smaller footprint"][2] == pytest.approx(0, abs=1e-6)
    assert found["time", "sensing time, days between"][2] == 40
    assert found["time", "season"][:2] == ("winter", "winter")
    mean, std = np.mean(np.arange(16) + 100), np.std(np.arange(16))
    assert found["band", "B02"][0] == f"{mean:.1f} ± {std:.1f} (100 to 115)"
    assert (
        found["band", "B02"][1]
        == f"{np.mean(np.arange(4, 16) + 200):.1f} ± {np.std(np.arange(12)):.1f} (204 to 215), 75.0 % valid"
    )
    assert found["band", "B02"][2] == pytest.approx(np.mean(np.arange(4, 16) + 200) - mean)
    assert found["band", "B8A"][2] == pytest.approx(2 * (np.mean(np.arange(4, 16) + 200) - mean))
    assert (
        found["place", "cell"][0]
        == archive.connection.execute("select cell from eo.patch where name = 'patch-00'").fetchone()[0]
    )  # type: ignore[index]


def test_explain_what_is_not_known(archive: Archive) -> None:
    """No labels of one, no pixels of the other, no vectors of a third."""
    found = explain(archive, "patch-00", f"patch-{UNKNOWN}")
    assert {row[1] for (topic, item), row in found.items() if topic == "label"} == {None}
    assert found["band", "B02"][1:] == (None, None)
    found = explain(archive, "patch-00", f"patch-{UNENCODED}")
    assert "distance" not in {topic for topic, _ in found}
    with pytest.raises(errors.NoDataFound, match="not encoded by net"):
        explain(archive, "patch-00", f"patch-{UNENCODED}", "net")
    for names in (("nowhere", "patch-00"), ("patch-00", "nowhere")):
        with pytest.raises(errors.NoDataFound, match='no patch "nowhere"'):
            explain(archive, *names)
    with pytest.raises(errors.UndefinedObject, match='no encoder "nowhere"'):
        explain(archive, "patch-00", "patch-01", "nowhere")


def test_readers_measure_and_writers_keep(archive: Archive) -> None:
    with archive.connection.transaction(force_rollback=True):
        archive.connection.execute("set local role eo_reader")
        evaluate(archive, "code")
        explain(archive, "patch-00", "patch-01")
    with archive.connection.transaction(force_rollback=True):
        archive.connection.execute("set local role eo_writer")
        evaluate(archive, "code", function="evaluate")
