"""Training an encoder by the command: on held-out patches, through kills, to the same vectors in SQL as in Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import torch
from click.testing import Result
from psycopg.rows import dict_row

from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.loaders.models.train_encoder import band_statistics
from pgearth.loaders.models.training_folder import PLAN, STATE
from pgearth.loaders.models.training_patches import choose_patches, require_writer
from pgearth.loaders.models.versions import find
from pgearth.loaders.work.locks import lock
from pgearth.pyfuncs.errors import BusyError, PgearthError
from pgearth.pyfuncs.models.encoder import encode
from pgearth.pyfuncs.pixels.rasters import bands_from_wkb
from pgearth.pyfuncs.training import classifier as training
from tests.waiting import wait_for

PATCHES = 52
BANDS = ("B04", "B8A", "B01")
OPTIONS = (
    *("--bands", ",".join(BANDS), "--width", 4, "--epochs", 2, "--batch-size", 16, "--workers", 0),
    *("--source", "synthetic"),
)
VALIDATION = "patch_id % 4 = 1"
TEST = "patch_id % 4 = 2"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection) -> psycopg.Connection:
    """Synthetic patches, annotated: half of them to train on, a quarter each to validate and test on."""
    load_synthetic(module_archive, PATCHES)
    module_archive.execute("call eo.annotate()")
    module_archive.execute(
        f"update eo.patch set split = case when {VALIDATION} then 'validation' when {TEST} then 'test' else 'train' end"
    )
    return module_archive


@pytest.fixture
def archive(filled: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Override of the shared fixture: the archive without encoders, each time."""
    yield filled
    filled.execute("delete from eo.encoder")
    for (name,) in filled.execute(
        "select relname from pg_class where relname like 'embedding\\_\\_%' and relkind = 'r'"
    ):
        filled.execute(psycopg.sql.SQL("drop table eo_internal.{}").format(psycopg.sql.Identifier(name)))


Train = Callable[..., Result]


@pytest.fixture
def train(archive: psycopg.Connection, run_pgearth: Callable[..., Result]) -> Train:
    """Call `train(*options)` trains the encoder `cnn` by the command, with OPTIONS before these."""
    return lambda *options: run_pgearth(archive, "train", "encoder", "cnn", *map(str, (*OPTIONS, *options)))


def stored(archive: psycopg.Connection) -> list[dict[str, Any]]:
    with archive.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("select * from eo.encoder order by encoder_id").fetchall()


def ids(archive: psycopg.Connection, condition: str) -> list[int]:
    return [
        number for (number,) in archive.execute(f"select patch_id from eo.patch where {condition} order by 1".encode())
    ]


def patches(archive: psycopg.Connection, patch_ids: list[int]) -> list[dict[str, np.ndarray]]:
    found: dict[int, dict[str, np.ndarray]] = {patch_id: {} for patch_id in patch_ids}
    for patch_id, bands, wkb in archive.execute(
        "select patch_id, bands, ST_AsWKB(rast) from eo.patch_raster where patch_id = any (%s)", (patch_ids,)
    ):
        found[patch_id] |= bands_from_wkb(wkb, bands)
    return list(found.values())


def test_trained_registered_and_the_same_in_sql_as_in_python(archive: psycopg.Connection, train: Train) -> None:
    result = train()
    assert result.exit_code == 0, result.output
    assert "epoch 2 of 2: loss 0." in result.output
    assert "Encoder cnn:1: resnet18, 3 bands, 32 dimensions." in result.output
    (row,) = stored(archive)
    assert (row["architecture"], row["bands"], row["dimension"]) == ("resnet18", list(BANDS), 32)
    record = row["training"]
    assert record["data"]["filters"] == {"sources": ["synthetic"]}
    assert record["data"]["patches"] == {
        "training": 26, "validation": 13, "without bands": 0, "without labels": 0,
    }  # fmt: skip
    assert len(record["data"]["classes"]) == 19
    assert record["seed"] == 0
    assert record["parameters"]["size"] == 120
    assert record["parameters"]["batch_size"] == 16
    metrics = record["metrics"]
    assert len(metrics["epochs"]) == 2
    assert metrics["map_micro"] == max(epoch["map_micro"] for epoch in metrics["epochs"])
    assert record["software"]["torch"] == torch.__version__
    chosen = ids(archive, "true")[:40:9]
    in_sql = archive.execute(
        "select embedding::real[] from eo.encode(%s, 'cnn') with ordinality as e (patch_id, embedding, number) order by number",
        (chosen,),
    ).fetchall()
    used = find(archive, "cnn:1", hashing=False)
    in_python = encode(used, patches(archive, chosen))
    np.testing.assert_allclose(np.array([vector for (vector,) in in_sql]), in_python, rtol=1e-5, atol=1e-6)
    assert len(np.unique(in_python, axis=0)) == len(chosen)


def test_the_same_training_is_the_same_version(archive: psycopg.Connection, train: Train) -> None:
    """And so is one with its patches read by another process."""
    assert "Encoder cnn:1:" in train("--epochs", 1).output
    assert "Encoder cnn:1:" in train("--epochs", 1, "--workers", 1).output
    assert "Encoder cnn:2:" in train("--epochs", 1, "--seed", 1).output
    one, other = stored(archive)
    assert one["weights"] != other["weights"]
    assert one["normalisation"] == other["normalisation"]


# Restarting


def test_killed_and_run_again_it_ends_as_if_it_had_not_been(
    archive: psycopg.Connection, train: Train, tmp_path: Path
) -> None:
    """Killed by SIGKILL after its first epoch, in the midst of the second."""
    options = [str(option) for option in (*OPTIONS, "--learning-rate", 0.003, "--checkpoint", tmp_path)]
    assert train("--learning-rate", 0.003).exit_code == 0
    (unbroken,) = stored(archive)
    archive.execute("delete from eo.encoder")
    stuck = (
        "import time; from pathlib import Path; from pgearth.cli import main; from pgearth.pyfuncs.training import classifier\n"
        "turned = classifier.turned\n"
        f"classifier.turned = lambda *images: Path({str(tmp_path / STATE)!r}).exists() and time.sleep(999) or turned(*images)\n"
        "main()"
    )
    environment = {**os.environ, "PGEARTH_DSN": archive.info.dsn, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", stuck, "train", "encoder", "cnn", *options], env=environment
    ) as process:
        wait_for(lambda: process.poll() is not None or (tmp_path / STATE).exists())
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert stored(archive) == []
    result = train("--learning-rate", 0.003, "--checkpoint", tmp_path)
    assert result.exit_code == 0, result.output
    assert "epoch 1 of 2" not in result.output
    (row,) = stored(archive)
    assert row["weights"] == unbroken["weights"]
    assert row["training"] == unbroken["training"]
    assert list(tmp_path.iterdir()) == [], "what was kept to go on is gone"


@pytest.fixture
def begun(archive: psycopg.Connection, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a training that broke off in its second epoch."""

    with monkeypatch.context() as patched:
        turned, calls = training.turned, iter(range(99))

        def interrupted(*arguments: Any) -> Any:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return turned(*arguments)

        patched.setattr(training, "turned", interrupted)
        assert train("--checkpoint", tmp_path).exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {PLAN, STATE}
    yield tmp_path


def test_it_goes_on_with_the_patches_it_began_with(archive: psycopg.Connection, train: Train, begun: Path) -> None:
    other = Path(shutil.copytree(begun, begun / "copy"))
    archive.execute("update eo.patch set split = 'train' where split = 'test'")
    try:
        assert train("--checkpoint", begun).exit_code == 0
        # As after a kill between the registration and the end.
        assert "Encoder cnn:1:" in train("--checkpoint", other).output
    finally:
        archive.execute(f"update eo.patch set split = 'test' where {TEST}")
    (row,) = stored(archive)
    assert row["training"]["data"]["patches"]["training"] == 26


def test_it_does_not_go_on_with_another_order_or_without_its_patches(
    archive: psycopg.Connection, train: Train, begun: Path
) -> None:
    for options, message in (
        (("--width", 8), "begun with width 4, not 8"),
        (("--seed", 3), "begun with seed 0, not 3"),
        (("--bands", "B04,B8A"), r'begun with bands \["B04", "B8A", "B01"\], not \["B04", "B8A"\]'),
        (("--season", "winter"), r'begun with filters \{"sources": .*"seasons": \["winter"\]'),
    ):
        result = train("--checkpoint", begun, *options)
        assert isinstance(result.exception, PgearthError)
        with pytest.raises(PgearthError, match=message):
            raise result.exception
    (gone,) = ids(archive, "split = 'train'")[:1]
    change = "update eo.patch_raster set bands = array_replace(bands, %s, %s) where patch_id = %s"
    archive.execute(change, ("B01", "X", gone))
    try:
        assert "1 patches of this training are gone" in str(train("--checkpoint", begun).exception)
    finally:
        archive.execute(change, ("X", "B01", gone))
    assert stored(archive) == []


def test_one_training_per_folder(train: Train, tmp_path: Path) -> None:
    with lock(tmp_path, "in the test"):
        result = train("--checkpoint", tmp_path)
    assert isinstance(result.exception, BusyError)
    assert "another training keeps its state in this folder" in str(result.exception)


def test_nothing_is_registered_after_an_error(archive: psycopg.Connection, train: Train) -> None:
    result = train("--learning-rate", 1e30)
    assert isinstance(result.exception, PgearthError)
    assert "the training diverged" in str(result.exception)
    assert stored(archive) == []


# Data


def test_places_are_set_aside(archive: psycopg.Connection) -> None:
    cells = dict(archive.execute("select patch_id, cell from eo.patch").fetchall())
    chosen = choose_patches(archive, {}, 0.3, seed=4)
    aside = {cells[patch_id] for patch_id in chosen.validation}
    assert aside.isdisjoint(cells[patch_id] for patch_id in chosen.training)
    assert sorted(chosen.training + chosen.validation) == ids(archive, f"not {TEST}")
    assert 0 < len(aside) < len(set(cells.values())) / 2
    assert chosen == choose_patches(archive, {}, 0.3, seed=4)
    assert chosen != choose_patches(archive, {}, 0.3, seed=5)
    for fraction in (1e-9, 1 - 1e-9):
        extreme = choose_patches(archive, {}, fraction)
        assert extreme.training
        assert extreme.validation


def test_splits_are_respected(archive: psycopg.Connection) -> None:
    chosen = choose_patches(archive, {})
    assert sorted(chosen.training) == ids(archive, f"not {VALIDATION} and not {TEST}")
    assert sorted(chosen.validation) == ids(archive, VALIDATION)
    first = choose_patches(archive, {"max_results": 20, "after_patch_id": 3})
    assert sorted(first.training + first.validation) == [n for n in ids(archive, "true")[3:23] if n % 4 != 2]


def test_a_place_aside_trains_through_the_command(archive: psycopg.Connection, train: Train) -> None:
    assert train("--validation-fraction", 0.25, "--epochs", 1, "--max-results", 40).exit_code == 0
    record = stored(archive)[0]["training"]["data"]
    assert record["validation_fraction"] == 0.25
    assert record["filters"] == {"sources": ["synthetic"], "max_results": 40}
    assert record["patches"]["training"] + record["patches"]["validation"] == 30


def test_statistics_are_those_of_all_valid_pixels(archive: psycopg.Connection) -> None:
    """Also where patches have no data in parts, and where a band is there in two resolutions."""
    with archive.transaction(force_rollback=True):
        one, other, *_ = chosen = ids(archive, "split = 'train'")[:6]
        archive.execute(
            "update eo.patch_raster set rast = ST_SetValues(rast, 1, 1, 1, 90, 40, 0) where patch_id = %s and resolution = 10",
            (one,),
        )
        archive.execute(
            """
            update eo.patch_raster set (band_mean, band_std, valid_fraction) =
                (select array_agg(mean order by b), array_agg(stddev order by b),
                        array_agg(count / (ST_Width(rast) * ST_Height(rast))::real order by b)
                 from generate_series(1, ST_NumBands(rast)) b, ST_SummaryStats(rast, b))
            where patch_id = %s and resolution = 10
            """,
            (one,),
        )
        archive.execute(
            "insert into eo.patch_raster (patch_id, resolution, cell, bands, rast, band_mean, band_std, valid_fraction)"
            " select patch_id, 1000, cell, '{B04}', ST_Band(rast, 1), '{9e5}', '{7}', '{1}' from eo.patch_raster"
            " where patch_id = %s and resolution = 10",
            (other,),
        )
        bands = archive.execute("select bands from eo.patch_raster where resolution = 10 limit 1").fetchone()
        assert bands is not None
        wanted = [*bands[0], "B8A", "B01"]
        found = band_statistics(archive, wanted, chosen)
        archive.execute("delete from eo.patch_raster where resolution = 1000")
        pixels = patches(archive, chosen)
    for position, band in enumerate(wanted):
        values = np.concatenate([each[band].ravel() for each in pixels]).astype(np.float64)
        values = values[values > 0]
        assert found["mean"][position] == pytest.approx(values.mean(), rel=1e-6)
        assert found["std"][position] == pytest.approx(values.std(), rel=1e-5)
    assert sum((each[wanted[0]] == 0).sum() for each in pixels) == 3600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--platform", "landsat-8"), "No patch passes the filters"),
        (("--split", "train"), "26 are of the split train, 0 of the split validation: both are needed"),
        (("--split", "test", "--validation-fraction", 0.5), "in 0 cells .*: there are no places to set aside"),
        (("--bands", "B04,B99"), "none of the 26 patches found has all of the bands B04, B99"),
        (("--scheme", "ben20"), "no nomenclature ben20"),
        (("--scheme", "nlcd"), "bears a label of nlcd"),
        (("--level", 9), "no nomenclature ben19 of level 9"),
        (("--area", "Lanjaron"), "is no area"),
    ],
)
def test_clear_errors(archive: psycopg.Connection, train: Train, options: tuple[Any, ...], message: str) -> None:
    result = train(*options)
    assert isinstance(result.exception, PgearthError), result.output
    with pytest.raises(PgearthError, match=message):
        raise result.exception
    assert result.exception.hint
    assert stored(archive) == []


def test_a_name_that_cannot_be_stored_is_refused_before_anything_is_trained(
    archive: psycopg.Connection, run_pgearth: Callable[..., Result]
) -> None:
    result = run_pgearth(archive, "train", "encoder", "cnn:2", "--source", "nowhere")
    assert isinstance(result.exception, PgearthError)
    assert '"cnn:2" is no name' in str(result.exception)


def test_bands_without_statistics(archive: psycopg.Connection) -> None:
    with archive.transaction(force_rollback=True):
        archive.execute("update eo.patch_raster set band_mean = null where resolution = 20")
        with pytest.raises(PgearthError, match="Band B8A: no patch to train on has statistics"):
            band_statistics(archive, BANDS, ids(archive, "true"))


def test_a_reader_is_told_before_anything_is_trained(archive: psycopg.Connection) -> None:
    require_writer(archive)
    archive.execute("set role eo_writer")
    require_writer(archive)
    archive.execute("set role eo_reader")
    try:
        with pytest.raises(PgearthError, match="role eo_reader may not store") as caught:
            require_writer(archive)
        assert "eo_writer" in caught.value.hint
    finally:
        archive.execute("reset role")
