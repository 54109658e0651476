"""`pgearth train hash`, for every method, on vectors that tell the labels apart, against SQL and against the modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from click.testing import Result

from pgearth.loaders.models.train_hash import Order, measure, train_hash
from pgearth.loaders.models.versions import find, register
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import itq, kslsh, lsh, sign, trivial
from pgearth.pyfuncs.models.encoder import hash_codes
from pgearth.pyfuncs.models.weights import dump
from tests.stand_ins import NO_WEIGHTS

DIMENSION = 16
LABEL_IDS = (211, 312, 411, 512)  # CORINE classes, each of a class of its own in ben19
TRAINING, VALIDATION, TEST = range(120), range(120, 200), range(200, 210)
MILAN = ("--bits", "16", "--steps", "30", "--learning-rate", "0.001", "--patience", "9")

Run = Callable[..., Result]


def store_patches(archive: psycopg.Connection) -> tuple[np.ndarray, np.ndarray]:
    """210 patches of the splits train, validation and test, with vectors of the encoder `toy`; vectors and labels.

    The last three to train on have no vector, no labels, and labels of no class of ben19.
    """
    random = np.random.default_rng(2)
    count = len(TRAINING) + len(VALIDATION) + len(TEST)
    labels = (
        np.eye(4, dtype=bool)[random.integers(4, size=count)] | np.eye(4, dtype=bool)[random.integers(4, size=count)]
    )
    vectors = labels @ random.normal(size=(4, DIMENSION)) + 0.6 * random.normal(size=(count, DIMENSION)) + 3
    encoder = register(archive, "toy", "spectral", NO_WEIGHTS, bands=["B02"], dimension=DIMENSION)
    archive.execute(
        "insert into eo.product (product_id, name, platform, level, sensing_time) values (1, 'p', 'sentinel-2a', 'L2A', now())"
    )
    for number in range(count):
        label_ids: list[int] | None = [label for label, has in zip(LABEL_IDS, labels[number], strict=True) if has]
        label_ids = {118: None, 119: [132]}.get(number, label_ids)
        split = "train" if number in TRAINING else "validation" if number in VALIDATION else "test"
        archive.execute(
            """
            insert into eo.patch (patch_id, cell, name, source, product_id, platform, sensing_time, footprint, srid,
                                  west, south, east, north, split, label_ids)
            values (%(id)s, %(cell)s, %(id)s::text, 'tiny', 1, 'sentinel-2a', now(), ST_Multi(ST_MakeEnvelope(7, 51, 7.1, 51.1, 4326)),
                    32632, 0, 0, 40, 40, %(split)s, %(label_ids)s::smallint[])
            """,
            {"id": number, "cell": f"u1j2{number % 10}", "split": split, "label_ids": label_ids},
        )
        if number != 117:
            archive.execute(
                "insert into eo.embedding values (%s, %s, %s, %s::vector)",
                (number, encoder.encoder_id, f"u1j2{number % 10}", json.dumps(vectors[number].tolist())),
            )
    return vectors.astype(np.float32), labels


@pytest.fixture(scope="module")
def data(module_archive: psycopg.Connection) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and labels of the patches in the archive."""
    return store_patches(module_archive)


@pytest.fixture
def archive(
    module_archive: psycopg.Connection, data: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """Override of the shared fixture: the patches, without hash functions (but `kept`, which has buckets), each time."""
    del data
    monkeypatch.setenv("PGEARTH_DSN", module_archive.info.dsn)
    yield module_archive
    module_archive.execute("delete from eo.encoder where bits is not null and name <> 'kept'")


def test_metrics_by_the_book() -> None:
    """Codes with so many ones as a Golomb ruler has marks: no two distances are alike, so there are no ties."""
    marks = np.array([0, 1, 4, 9, 15, 22, 32, 34])
    codes = np.arange(34) < marks[:, None]
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 1], [1, 0], [0, 1], [1, 0]], bool)
    precisions = []
    for query in (0, 1, 2, 4, 5, 6, 7):  # to the one without labels nothing is relevant
        others = sorted(set(range(8)) - {query}, key=lambda other: abs(marks[other] - marks[query]))
        hits = [rank for rank, other in enumerate(others, 1) if (labels[query] & labels[other]).any()]
        precisions.append(np.mean([number / rank for number, rank in enumerate(hits, 1)]))
    metrics = measure(codes, labels)
    assert metrics["map"] == pytest.approx(np.mean(precisions))
    assert (metrics["patches"], metrics["distinct_codes"]) == (8, 8)
    assert metrics["bit_balance_mean"] == pytest.approx(
        np.minimum(codes.mean(axis=0), 1 - codes.mean(axis=0)).mean() * 2
    )
    assert "map" not in measure(codes, np.zeros((8, 2), bool))


def training_of(archive: psycopg.Connection, name: str) -> dict[str, Any]:
    row = archive.execute(
        "select training from eo.encoder where name = %s order by version desc limit 1", (name,)
    ).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    ("method", "options", "bits", "used"),
    [
        ("milan", MILAN, 16, 117),
        ("kslsh", ("--bits", "16"), 16, 117),
        ("itq", ("--bits", "8"), 8, 119),
        ("lsh", (), 128, 119),
        ("sign", (), DIMENSION, 119),
        ("trivial", ("--bits", "8"), 8, 119),
    ],
)
def test_every_method(
    archive: psycopg.Connection,
    data: tuple[np.ndarray, np.ndarray],
    run_pgearth: Run,
    method: str,
    options: tuple[str, ...],
    bits: int,
    used: int,
) -> None:
    vectors, labels = data
    arguments = ("train", "hash", "mine", "--method", method, "--encoder", "toy", "--seed", "3", *options)
    result = run_pgearth(archive, *arguments)
    assert result.exit_code == 0, result.output
    assert f"mine:1, {bits} bits of toy:1, was trained on {used} patches. On 80 others:" in result.output
    left_out = "1 without vectors" + (", 2 without labels" if used == 117 else "")
    assert f"Left out: {left_out}.\n" in result.output
    hashing = find(archive, "mine", hashing=True)
    assert (hashing.architecture, hashing.bits, hashing.dimension) == (method, bits, None)

    # fitted to the patches of the split train, and to no others
    rows = [number for number in TRAINING if number not in ({117, 118, 119} if used == 117 else {117})]
    fitted = {
        "kslsh": lambda: kslsh.fit(vectors[rows], labels[rows], 16, seed=3),
        "itq": lambda: itq.fit(vectors[rows], 8, seed=3),
        "lsh": lambda: lsh.fit(vectors[rows], 128, seed=3),
        "sign": lambda: sign.fit(vectors[rows]),
        "trivial": lambda: trivial.fit(vectors[rows], 8),
    }
    if method in fitted:
        assert dump(hashing.weights) == dump(fitted[method]())

    # codes in SQL are those in Python, and the record's metrics are theirs
    in_sql = archive.execute(
        "select eo.hash(embedding, 'mine')::text from eo.embedding where patch_id between 120 and 199 order by patch_id"
    ).fetchall()
    codes = hash_codes(hashing, vectors[VALIDATION])
    assert [code for (code,) in in_sql] == codes
    record = training_of(archive, "mine")
    table = np.array([[bit == "1" for bit in code] for code in codes])
    assert record["metrics"] == pytest.approx(measure(table, labels[VALIDATION]))
    if method in ("milan", "kslsh"):
        assert record["metrics"]["map"] > 0.9
    assert record["method"] == method
    assert record["encoder"] == "toy:1"
    assert record["seed"] == 3
    assert record["parameters"]["bits"] == bits
    assert record["data"] == {
        "filters": {},
        "validation_fraction": None,
        "scheme": "ben19",
        "level": None,
        "training": used,
        "validation": 80,
        "without_vectors": 1,
        "without_labels": 119 - used,
    }
    assert {"pgearth", "numpy", "torch"} < record["software"].keys() | {"faiss-cpu", "scipy"}

    # the same again is the same version, another seed is the next one (where there is chance)
    assert "mine:1" in run_pgearth(archive, *arguments).output
    again = run_pgearth(archive, *arguments, "--seed", "4")
    assert ("mine:1" if method in ("sign", "trivial") else "mine:2") in again.output


def test_the_splits_and_the_filters_decide(archive: psycopg.Connection, data: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, _ = data
    _, record = train_hash("filtered", Order("sign", "toy", filters={"cells": ["u1j21", "u1j22"]}))
    rows = [number for number in TRAINING if number % 10 in (1, 2)]
    np.testing.assert_array_equal(
        find(archive, "filtered", hashing=True).weights["median"], np.median(vectors[rows].astype(float), axis=0)
    )
    assert (record["data"]["training"], record["data"]["validation"]) == (24, 16)
    assert record["data"]["filters"] == {"cells": ["u1j21", "u1j22"]}
    # by place, whatever the splits: two of the ten cells, and no patch of the split test
    _, by_place = train_hash("placed", Order("sign", "toy", validation_fraction=0.2))
    assert (by_place["data"]["training"], by_place["data"]["validation"]) == (159, 40)
    assert by_place["data"]["without_vectors"] == 1


def test_a_training_that_was_killed_goes_on(
    archive: psycopg.Connection, run_pgearth: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgearth.pyfuncs.training import loop

    settings = {"steps": 30, "learning_rate": 0.001, "steps_per_evaluation": 10}
    order = Order("milan", "toy", bits=16, seed=5, milan=settings)
    unbroken, _ = train_hash("unbroken", order)
    whole = loop.save_state

    def killed(*arguments: Any) -> None:
        whole(*arguments)
        if arguments[2].epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train_hash("broken", order, tmp_path / "state")
    assert archive.execute("select count(*) from eo.encoder where name = 'broken'").fetchone() == (0,)
    with pytest.raises(PgearthError, match="other settings or other data"):
        train_hash("broken", Order("milan", "toy", bits=32, seed=5, milan=settings), tmp_path / "state")
    resumed, _ = train_hash("broken", order, tmp_path / "state")
    assert dump(resumed.weights) == dump(unbroken.weights)
    assert not (tmp_path / "state" / "state.safetensors").exists()
    assert training_of(archive, "broken")["history"] == training_of(archive, "unbroken")["history"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--encoder", "unknown"), 'there is no encoder "unknown"'),
        (("--encoder", "toy", "--scheme", "none"), "there is no nomenclature none"),
        (
            ("--encoder", "toy", "--scheme", "nlcd"),
            "None of the 119 patches bears a label of nlcd, which milan learns from",
        ),
        (("--encoder", "toy", "--country", "FI"), "No patch passes the filters"),
        (("--encoder", "toy", "--split", "train"), "120 are of the split train, 0 of the split validation"),
        (("--encoder", "toy", "--label", "clc:312", "--label-match", "exactly"), "none|all"),
        (("--encoder", "toy", "--method", "sign", "--bits", "32"), "of toy's vectors 16, not 32"),
        (("--encoder", "toy", "--method", "trivial", "--bits", "9"), "cannot average 16 features in 9 groups"),
        (("--encoder", "toy", "--method", "itq"), "cannot make 128 bits of 119 vectors of 16 features"),
        (("--encoder", "toy", "--method", "lsh", "--steps", "5"), "are of --method milan"),
        (("--encoder", "toy", "--bits", "7"), "7 is not in the range 8<=x<=512"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    archive: psycopg.Connection, run_pgearth: Run, options: tuple[str, ...], message: str
) -> None:
    result = run_pgearth(archive, "train", "hash", "mine", *options)
    assert result.exit_code != 0
    text = result.output + str(result.exception)
    assert any(part in text for part in message.split("|")), text
    assert archive.execute("select count(*) from eo.encoder where name = 'mine'").fetchone() == (0,)


def test_what_would_not_be_stored_is_not_trained(archive: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgearth.loaders.models.train_hash.fit", lambda *_arguments: pytest.fail("it was trained"))
    with pytest.raises(PgearthError, match="toy is the name of an encoder"):
        train_hash("toy", Order("lsh", "toy"))
    with pytest.raises(PgearthError, match='"a:1" is no name'):
        train_hash("a:1", Order("lsh", "toy"))
    empty = register(archive, "empty", "spectral", NO_WEIGHTS, bands=["B02"], dimension=3)
    with pytest.raises(PgearthError, match="None of the 120 patches has a vector of empty:1") as error:
        train_hash("mine", Order("lsh", "empty"))
    assert "pgearth encode --encoder empty:1" in error.value.hint
    archive.execute("delete from eo.encoder where encoder_id = %s", (empty.encoder_id,))
    monkeypatch.setenv("PGEARTH_DSN", psycopg.conninfo.make_conninfo(archive.info.dsn, options="-c role=eo_reader"))
    with pytest.raises(PgearthError, match="eo_reader may not store what it trains"):
        train_hash("mine", Order("lsh", "toy"))


def test_the_archive_is_encoded_with_it(
    archive: psycopg.Connection, data: tuple[np.ndarray, np.ndarray], run_pgearth: Run
) -> None:
    options = ("--encoder", "toy", "--method", "kslsh", "--bits", "16")
    assert run_pgearth(archive, "train", "hash", "kept", *options).exit_code == 0
    result = run_pgearth(archive, "encode", "--encoder", "kept")
    assert result.exit_code == 0, result.output
    found = archive.execute("select name, distance from eo.similar('120', max_results => 5)").fetchall()
    codes = hash_codes(find(archive, "kept", hashing=True), np.delete(data[0], 117, axis=0))
    distances = [sum(one != other for one, other in zip(codes[119], code, strict=True)) for code in codes]
    assert [distance for _, distance in found] == sorted(distances)[1:6]
