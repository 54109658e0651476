"""Work on a Spark cluster: several worker processes of this machine, each with an executor (a JVM) and its Python.

`make test-spark` installs Java and PySpark and runs these; plain `make test` leaves them out (pyproject.toml,
norecursedirs). Starting a cluster takes seconds, so that each test asks several questions of one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.loaders.work.run import run_tasks
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import BusyError, PgearthError

HERE = Path(__file__).parent
PGEARTH = Path(sys.executable).with_name("pgearth")
TWO_WORKERS = Engine("spark", jobs=2)
L1C = "sentinel2-jp2/L1C_19UDP_20170729"
L2A = "sentinel2-jp2/L2A_19UDP_20170729"
COG = "sentinel2-cog/S2A_29RKH_20200219_0_L2A"
# Whole patches of the samples, which are ten times smaller than the products are.
LOAD = ("load", "product", "--grid", "fixed:120", "--bands", "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12")
PASSWORD = "kept-to-itself"


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch):
    """The function spark_work.behave, which Spark's processes can import."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PGEARTH_DSN", "host=/nowhere password=secret options='-c work_mem=1MB'")
    import spark_work

    return spark_work.behave


def calls(folder: Path, name: str) -> int:
    return len((folder / name).read_text().split())


def test_the_contract_of_run_tasks(behave, tmp_path: Path) -> None:
    names = ["dies", "waits", "bad", "busy", *(f"good{number}" for number in range(8))]
    tasks = [(name, tmp_path) for name in names]
    results = {}
    for task, result in run_tasks(behave, tasks, TWO_WORKERS):
        (tmp_path / "first_result").touch()
        results[task[0]] = result
    assert set(results) == set(names)
    for name in ("waits", *names[4:]):
        assert results[name][:2] == (name, 1)
    assert len({results[name][2] for name in names[4:]}) == 2, "both executors had their share"
    # Bad input comes back as it was raised, and is not tried again.
    assert type(results["bad"]) is PgearthError
    assert str(results["bad"]) == "bad: no such product\nHint: Take a good one."
    assert type(results["busy"]) is BusyError
    assert calls(tmp_path, "bad") == calls(tmp_path, "busy") == 1
    # The first call was killed; the second and third met the lock of the first's session.
    assert results["dies"][:2] == ("dies", 4)
    connection = conninfo_to_dict(results["dies"][3])
    assert (connection["host"], connection["password"]) == ("/nowhere", "secret")
    assert "client_connection_check_interval" in connection["options"]
    assert "work_mem=1MB" in connection["options"]
    assert results["dies"][4] == "1"


def test_an_error_in_the_code_ends_the_run(behave, tmp_path: Path) -> None:
    with pytest.raises(PgearthError, match=r"(?s)Spark gave up.*ValueError: an error in the code") as caught:
        list(run_tasks(behave, [("wrong", tmp_path), ("good", tmp_path)], TWO_WORKERS))
    assert "\tat org.apache" not in str(caught.value)
    assert calls(tmp_path, "wrong") == 4


def test_no_tasks_need_no_spark(behave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert list(run_tasks(behave, [], TWO_WORKERS)) == []


def test_no_java(behave, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PgearthError, match=r"(?s)needs Java.*docker/install-optional.sh spark"):
        list(run_tasks(behave, [("good", tmp_path)], TWO_WORKERS))
    monkeypatch.undo()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(PgearthError, match=f"no Java in JAVA_HOME: {tmp_path}"):
        list(run_tasks(behave, [("good", tmp_path)], TWO_WORKERS))


def test_no_pyspark(behave, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "pgearth.loaders.work.spark", raising=False)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(PgearthError, match=r"(?s)pyspark.*pip install 'pgearth\[spark\]'"):
        list(run_tasks(behave, [("good", tmp_path)], TWO_WORKERS))


# Commands, each in a process of its own, as a user runs them.


@pytest.fixture(scope="module")
def products(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three real products, and between them one by another name, whose band B04 is cut off."""
    folder = tmp_path_factory.mktemp("products") / "cut"
    shutil.copytree(sample / L2A, folder)
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    metadata = folder / "tileInfo.json"
    metadata.write_text(metadata.read_text().replace("20200401T051009", "20200401T051010"))
    band = folder / "R10m" / "B04.jp2"
    band.write_bytes(band.read_bytes()[:5_000])
    return [sample / L1C, folder, sample / L2A, sample / COG]


@pytest.fixture(scope="module")
def expected(module_archive: psycopg.Connection, products: list[Path]) -> dict[str, list]:
    """What is in the archive when one process has loaded the products, without Spark."""
    ended = pgearth(module_archive, *LOAD, *products)
    assert ended.returncode == 1
    assert "B04.jp2" in ended.stderr
    return contents(module_archive)


def contents(archive: psycopg.Connection) -> dict[str, list]:
    """All that loading writes, but for numbers that are given out and times."""
    queries = {
        "products": "select to_jsonb(p) - array['product_id', 'derived_from'] from eo.product p order by name",
        "patches": "select to_jsonb(p) - array['patch_id', 'product_id'], r.name from eo.patch p"
        " join eo.product r using (product_id) order by p.name",
        "pixels": "select name, to_jsonb(r) - array['patch_id', 'rast'], md5(ST_AsBinary(r.rast)) from eo.patch_raster r"
        " join eo.patch p using (patch_id, cell) order by name, resolution",
        "ledger": "select loader, source, checksum, state, rows, details, error from eo.load"
        " where loader = 'product' order by source",
    }
    return {name: archive.execute(query).fetchall() for name, query in queries.items()}


def environment(archive: psycopg.Connection, **variables: str) -> dict[str, str]:
    return {**os.environ, "PGEARTH_DSN": make_conninfo(archive.info.dsn, password=PASSWORD), **variables}


def pgearth(archive: psycopg.Connection, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PGEARTH, *arguments], env=environment(archive, **variables), capture_output=True, text=True, timeout=150
    )


def test_products_are_loaded_as_without_spark(
    archive: psycopg.Connection, products: list[Path], expected: dict[str, list], tmp_path: Path
) -> None:
    (tmp_path / "spark-defaults.conf").write_text(
        f"spark.eventLog.enabled true\nspark.eventLog.compress false\nspark.eventLog.dir {tmp_path.as_uri()}\n"
    )
    ended = pgearth(archive, *LOAD, *products, "--engine", "spark", "--jobs", "2", SPARK_CONF_DIR=str(tmp_path))
    assert contents(archive) == expected
    # The bad product is reported as without Spark, and does not keep the others from being loaded.
    assert ended.returncode == 1
    assert "B04.jp2" in ended.stderr
    assert "Traceback" not in ended.stderr
    # What Spark records of the run tells no password.
    events = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "SparkListenerApplicationEnd" in events
    assert "SparkListenerEnvironmentUpdate" in events
    assert PASSWORD not in events + ended.stderr + ended.stdout


@pytest.mark.parametrize("victim", ["pyspark.daemon", "CoarseGrainedExecutorBackend"])
def test_a_killed_worker_is_made_up_for(
    archive: psycopg.Connection, products: list[Path], expected: dict[str, list], victim: str
) -> None:
    command = [PGEARTH, *LOAD, *products, "--engine", "spark", "--jobs", "2"]
    with psycopg.connect(archive.info.dsn) as other, other.cursor() as cursor:
        # Holds the workers up in the middle of their transactions.
        cursor.execute("lock table eo.patch_raster in share mode")
        with subprocess.Popen(command, env=environment(archive), stderr=subprocess.PIPE, text=True) as run:
            try:
                wait_until(lambda: len(waiting(archive)) == 2)
                lost = waiting(archive)
                processes = command_lines(run.pid)
                assert not any(PASSWORD in command for command in processes.values())
                # The youngest: a daemon of each executor forks the Python processes that work.
                max((p for p, line in processes.items() if victim in line), key=psutil.Process.create_time).kill()
                # The task runs again while the killed process's session still has its lock.
                wait_until(lambda: not lost <= waiting(archive))
                other.rollback()
                _, errors = run.communicate(timeout=120)
            finally:
                run.kill()
    assert contents(archive) == expected
    assert run.returncode == 1
    assert "Lost task" in errors
    assert "another session" not in errors


def command_lines(driver: int) -> dict[psutil.Process, str]:
    """The processes that a run of Spark consists of, with their command lines."""
    processes = psutil.Process(driver).children(recursive=True)
    return {p: " ".join(p.cmdline()) for p in processes if p.status() != psutil.STATUS_ZOMBIE}


def waiting(archive: psycopg.Connection) -> set[int]:
    """Sessions of pgearth that wait for a lock."""
    rows = archive.execute(
        "select pid from pg_stat_activity"
        " where datname = current_database() and application_name = 'pgearth' and wait_event_type = 'Lock'"
    )
    return {pid for (pid,) in rows}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_annotated_and_exported_as_without_spark(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    load_bigearthnet(archive, sample / "bigearthnet-v1")
    load_nuts(archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    countries = "select name, country_codes, nuts_ids from eo.patch order by name"
    annotated, exported = [], []
    for engine in (["--engine", "local"], ["--engine", "spark", "--jobs", "2"]):
        archive.execute("update eo.patch set country_codes = null, nuts_ids = null")
        ended = pgearth(archive, "annotate", "--country", "--replace", *engine)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == "20 patches visited, 20 changed.\n"
        annotated.append(archive.execute(countries).fetchall())
        folder = tmp_path / engine[1]
        ended = pgearth(archive, "export", folder, "--pack", "zip", "--shard-size", "1MB", *engine)
        assert ended.returncode == 0, ended.stderr
        exported.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert annotated[0] == annotated[1]
    assert all(codes for _, codes, _ in annotated[1])
    assert sum(name.endswith(".zip") for name in exported[1]) >= 3
    assert exported[0] == exported[1]
