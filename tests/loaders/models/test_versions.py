"""Versions side by side, from registering over encoding to retiring; models of one's own, searched as any other."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
import rasterio
import torch
from click.testing import Result
from psycopg import errors
from rasterio.io import MemoryFile
from torch import Tensor, nn

import pgearth.loaders.models.encode
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive, is_packed
from pgearth.loaders.models.versions import find, newest_version, register, version_name
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models.weights import dump
from tests.stand_ins import NO_WEIGHTS, lsh_weights
from tests.waiting import wait_for

BANDS = ("B02", "B04", "B11")
MEAN = (400.0, 600.0, 1500.0)
STD = (300.0, 500.0, 900.0)
DIMENSION = 8
PATCHES = 11
"""Of the sample's 20 patches those of Sentinel-2."""
OPTIONS = ("--bands", "B02,B04,B11", "--mean", "400,600,1500", "--std", "300,500,900", "--size", "60")

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches (11 of Sentinel-2, 9 of Sentinel-1), not encoded."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    return module_archive


@pytest.fixture
def archive(filled: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Override of the shared fixture: without any encoder, each time."""
    yield filled
    filled.execute("reset role")
    filled.execute("select pg_advisory_unlock_all()")
    while row := filled.execute(
        "select name || ':' || version from eo.encoder where retired_at is null order by encoder_id desc limit 1"
    ).fetchone():
        filled.execute("select eo.retire_encoder(%s)", row)
    filled.execute("delete from eo.encoder where bits is not null")
    filled.execute("delete from eo.encoder")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, DIMENSION)
    ).eval()


@pytest.fixture
def own_model(tmp_path: Path) -> Callable[[int], Path]:
    """Call `own_model(seed)` writes a network of that seed as an ONNX model."""

    def write(seed: int) -> Path:
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter is the old one, which needs no further package
            torch.onnx.export(
                network(seed), (torch.zeros(2, 3, 60, 60),), content,
                input_names=["images"], dynamic_axes={"images": {0: "number"}}, dynamo=False,
            )  # fmt: skip
        file = tmp_path / f"{seed}.onnx"
        file.write_bytes(content.getvalue())
        return file

    return write


def encode(connection: psycopg.Connection, *encoders: str) -> pgearth.loaders.models.encode.Encoded:
    with psycopg.connect(connection.info.dsn, autocommit=True) as reading:
        return encode_archive(connection, reading, encoders)


def vectors(connection: psycopg.Connection, encoder: str) -> dict[str, np.ndarray]:
    """Stored vectors by name of the patch."""
    rows = connection.execute(
        "select p.name, v.embedding::real[] from eo.embedding v join eo.patch p using (patch_id)"
        " join eo.encoder e using (encoder_id) where e.name || ':' || e.version = %s",
        (encoder,),
    ).fetchall()
    return {name: np.array(vector, np.float32) for name, vector in rows}


def by_torch(model: nn.Module, folder: Path) -> np.ndarray:
    """The vector of a patch on disk, its bands resampled to 60 x 60 by means, and nothing but torch."""
    channels: list[Tensor] = []
    for band, mean, std in zip(BANDS, MEAN, STD, strict=True):
        pixels = torch.from_numpy(rasterio.open(folder / f"{folder.name}_{band}.tif").read(1).astype(np.float64))
        values = (pixels - mean) / std
        channels.append(values if len(values) == 60 else nn.functional.avg_pool2d(values[None], 2)[0])
    with torch.inference_mode():
        vector: np.ndarray = model(torch.stack(channels)[None].float())[0].numpy()
    return vector


def state(connection: psycopg.Connection, run_pgearth: Run) -> list[list[str]]:
    """The rows of `pgearth encoder list`, without the header."""
    result = run_pgearth(connection, "encoder", "list")
    assert result.exit_code == 0, result.output
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in result.output.splitlines()[1:]]


def test_a_model_of_ones_own_from_file_to_search(
    archive: psycopg.Connection, sample: Path, own_model: Callable[[int], Path], run_pgearth: Run
) -> None:
    file = own_model(1)
    result = run_pgearth(archive, "encoder", "add", "own", "--onnx", file, *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "own:1 makes vectors of 8 numbers from 3 bands" in result.output
    assert state(archive, run_pgearth) == [["own:1", "encoder", "onnx", "8 dimensions", "0", "not yet encoded"]]
    result = run_pgearth(archive, "encode", "--encoder", "own")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "11 patches encoded, 0 hashed.",
        "9 patches were left out, whose pixels lack some bands of own:1.",
        "Searches use own:1 from now on.",
    ]
    assert state(archive, run_pgearth) == [["own:1", "encoder", "onnx", "8 dimensions", "11", "default"]]
    stored = vectors(archive, "own:1")
    folders = {path.name: path for path in (sample / "bigearthnet-v1" / "S2").iterdir() if path.is_dir()}
    assert set(stored) == set(folders)
    for name, folder in folders.items():
        np.testing.assert_allclose(stored[name], by_torch(network(1), folder), rtol=1e-4, atol=1e-4)
    for name, vector in archive.execute(
        "select p.name, v.embedding::real[] from eo.patch p, eo.encode(array[p.patch_id], 'own') v"
        " where p.name like 'S2%' limit 3"
    ):
        np.testing.assert_allclose(vector, stored[name], rtol=1e-5, atol=1e-5)
    nearest = archive.execute(
        "select name from eo.similar_to_vector(eo.example_vector(array[%s]), max_results => 3)", (min(folders),)
    ).fetchall()
    distances = {name: np.linalg.norm(stored[name] - stored[min(folders)]) for name in folders}
    assert [name for (name,) in nearest] == sorted(folders, key=lambda name: distances[name])[:3]
    record = archive.execute("select training, normalisation, bands from eo.encoder").fetchone()
    assert record is not None
    assert record[0]["parameters"] == {"file": "1.onnx", "size": 60, "scale": 1.0, "output": None}
    assert record[1] == {"mean": list(MEAN), "std": list(STD)}
    assert tuple(record[2]) == BANDS


def test_an_uploaded_image_by_a_hash_of_ones_own_model(
    archive: psycopg.Connection, sample: Path, own_model: Callable[[int], Path], run_pgearth: Run
) -> None:
    assert run_pgearth(archive, "encoder", "add", "own", "--onnx", own_model(2), *OPTIONS).exit_code == 0
    encode(archive, "own")
    own = find(archive, None, False)
    weights = dump(lsh.fit(np.stack([*vectors(archive, "own:1").values()]), bits=64))
    hashing = register(archive, "codes", "lsh", weights, bits=64, parent_id=own.encoder_id)
    assert encode(archive, "codes") == pgearth.loaders.models.encode.Encoded(0, PATCHES, 0, {"own:1": 9}, ["codes:1"])
    assert version_name(find(archive, None, True)) == version_name(hashing)
    folder = min(path for path in (sample / "bigearthnet-v1" / "S2").iterdir() if path.is_dir())
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=120, height=120, count=3, dtype="uint16", crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_300_000),
        ) as dataset:  # fmt: skip
            for number, band in enumerate(BANDS, 1):
                pixels = rasterio.open(folder / f"{folder.name}_{band}.tif").read(1)
                dataset.write(np.kron(pixels, np.ones((120 // len(pixels),) * 2, np.uint16)), number)
                dataset.set_band_description(number, band)
        image = bytes(memory.read())
    archive.execute("set role eo_reader")
    row = archive.execute("select eo.encode_image(%s, 'own:1')::real[]", (image,)).fetchone()
    assert row is not None
    np.testing.assert_allclose(row[0], by_torch(network(2), folder), rtol=1e-4, atol=1e-4)
    assert archive.execute(
        "select name, distance from eo.similar_to_image(%s, max_results => 1)", (image,)
    ).fetchall() == [(folder.name, 0)]


def test_scale_of_mean_and_deviation(
    archive: psycopg.Connection, own_model: Callable[[int], Path], run_pgearth: Run
) -> None:
    scaled = ("--mean", "0.04,0.06,0.15", "--std", "0.03,0.05,0.09", "--scale", "0.0001")
    result = run_pgearth(archive, "encoder", "add", "own", "--onnx", own_model(1), *OPTIONS, *scaled)
    assert result.exit_code == 0, result.output
    normalisation = newest_version(archive, "own").normalisation
    assert normalisation is not None
    np.testing.assert_allclose(normalisation["mean"], MEAN)
    np.testing.assert_allclose(normalisation["std"], STD)


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("own", ("--bands", "B02,B04,VH9"), "No patch has a band VH9.", "B01, B02"),
        ("own", ("--bands", "B02,B04"), "--mean has 3 numbers, --bands 2 names", "each band"),
        ("own", ("--std", "1,2"), "--std has 2 numbers", "each band"),
        ("own", ("--std", "1,0,2"), "not above 0", "Check"),
        ("own", ("--size", "64"), "not images of 64 x 64", "--size 60"),
        ("own:2", (), '"own:2" is no name', "colons"),
        ("", (), '"" is no name', "colons"),
    ],
)
def test_what_does_not_fit_is_not_added(
    archive: psycopg.Connection,
    own_model: Callable[[int], Path],
    run_pgearth: Run,
    name: str,
    options: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    result = run_pgearth(archive, "encoder", "add", name, "--onnx", own_model(1), *OPTIONS, *options)
    assert isinstance(result.exception, PgearthError), result.output
    assert message in str(result.exception)
    assert hint in result.exception.hint
    assert archive.execute("select count(*) from eo.encoder").fetchone() == (0,)


def test_versions_live_side_by_side(
    archive: psycopg.Connection, own_model: Callable[[int], Path], run_pgearth: Run
) -> None:
    for seed, version in ((1, "own:1"), (2, "own:2"), (1, "own:1"), (2, "own:2")):
        result = run_pgearth(archive, "encoder", "add", "own", "--onnx", own_model(seed), *OPTIONS)
        assert f"{version} makes" in result.output, "the same is the version that it was"
    assert encode(archive, "own:1").made_current == ["own:1"]
    assert version_name(find(archive, "own", False)) == "own:1", "what is not encoded yet is not current"
    assert version_name(newest_version(archive, "own")) == "own:2"
    assert encode(archive, "own").made_current == ["own:2"]
    assert version_name(find(archive, "own", False)) == version_name(find(archive, None, False)) == "own:2"
    assert encode(archive, "own:1").made_current == [], "what was current before does not become it by itself"
    assert [row[-1] for row in state(archive, run_pgearth)] == ["older", "default"]
    stored = {version: vectors(archive, version) for version in ("own:1", "own:2")}
    [(name,)] = archive.execute("select min(name) from eo.patch where name like 'S2%'").fetchall()
    for named, version in (("own:1", "own:1"), ("own:2", "own:2"), ("own", "own:2"), (None, "own:2")):
        row = archive.execute("select eo.example_vector(array[%s], encoder => %s)::real[]", (name, named)).fetchone()
        assert row is not None
        np.testing.assert_array_equal(np.array(row[0], np.float32), stored[version][name])
    archive.execute("select eo.make_current('own:1')")
    assert version_name(find(archive, "own", False)) == version_name(find(archive, None, False)) == "own:1"
    assert [row[-1] for row in state(archive, run_pgearth)] == ["default", "older"]


def test_another_definition_is_another_version(archive: psycopg.Connection) -> None:
    definition = {"bands": ["B02"], "dimension": 4, "normalisation": {"mean": [1.0], "std": [2.0]}}
    record = {"method": "x", "seed": 3, "metrics": {"map": 0.5}}
    first = register(archive, "x", "spectral", NO_WEIGHTS, training=record, **definition)  # type: ignore[arg-type]
    assert version_name(first) == "x:1"
    assert first.normalisation == definition["normalisation"]
    for number, change in enumerate(
        ({"bands": ["B03"]}, {"dimension": 5}, {"normalisation": {"mean": [1.0], "std": [3.0]}}, {"input_size": 7}), 2
    ):
        other = register(archive, "x", "spectral", NO_WEIGHTS, **{**definition, **change})  # type: ignore[arg-type]
        assert version_name(other) == f"x:{number}"
    others = len(b"{}").to_bytes(8, "little") + b"{}"  # without the blanks that the library writes
    assert version_name(register(archive, "x", "spectral", others, **definition)) == "x:6"  # type: ignore[arg-type]
    again = register(archive, "x", "spectral", NO_WEIGHTS, training={"seed": 7}, **definition)  # type: ignore[arg-type]
    assert version_name(again) == "x:1", "how it was trained does not make it another one"
    assert archive.execute("select training from eo.encoder where version = 1").fetchone() == (record,)
    weights = lsh_weights(8, 4)
    hashing = register(archive, "h", "lsh", weights, bits=8, parent_id=first.encoder_id)
    assert version_name(register(archive, "h", "lsh", weights, bits=8, parent_id=other.encoder_id)) == "h:2"
    with pytest.raises(PgearthError, match="x is the name of an encoder"):
        register(archive, "x", "lsh", weights, bits=8, parent_id=first.encoder_id)
    with pytest.raises(PgearthError, match="h is the name of a hash"):
        register(archive, "h", "spectral", NO_WEIGHTS, bands=["B02"], dimension=3)
    with pytest.raises(PgearthError, match="make codes of 8 bits instead of 9"):
        register(archive, "g", "lsh", weights, bits=9, parent_id=first.encoder_id)
    for parent_id in (hashing.encoder_id, 9999):
        with pytest.raises(PgearthError, match=f"encoder_id {parent_id} is not an encoder in use"):
            register(archive, "g", "lsh", weights, bits=8, parent_id=parent_id)


def test_a_killed_run_is_taken_up_and_nothing_is_current_before_the_end(
    archive: psycopg.Connection, own_model: Callable[[int], Path], run_pgearth: Run
) -> None:
    """Killed by SIGKILL in the third of four transactions."""
    for seed in (1, 2):
        assert run_pgearth(archive, "encoder", "add", "own", "--onnx", own_model(seed), *OPTIONS).exit_code == 0
    encode(archive, "own:1")
    script = f"""
import os, signal, psycopg, pgearth.loaders.models.encode as encode
from pgearth.loaders.models import pending
pending.PATCHES_PER_TRANSACTION = 3
calls, encode_patches = [], encode.encode_patches
def killed_at_the_third(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_patches(*arguments, **options)
encode.encode_patches = killed_at_the_third
with psycopg.connect({archive.info.dsn!r}, autocommit=True) as one, psycopg.connect({archive.info.dsn!r}, autocommit=True) as two:
    encode.encode_archive(one, two, ["own"])
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(vectors(archive, "own:2")) == 6
    assert version_name(find(archive, "own", False)) == "own:1"
    # The server needs a moment to see that the process is gone.
    locks = (
        "select from pg_locks l join pg_database d on d.oid = l.database where locktype = 'advisory' and datname = %s"
    )
    wait_for(lambda: not archive.execute(locks, (archive.info.dbname,)).fetchall())
    result = encode(archive, "own")
    assert (result.embeddings, result.made_current) == (PATCHES - 6, ["own:2"])
    stored = vectors(archive, "own:2")
    archive.execute("delete from eo.embedding")
    encode(archive, "own:2")
    for name, vector in vectors(archive, "own:2").items():
        np.testing.assert_allclose(stored[name], vector, rtol=1e-5, atol=1e-5)


def test_one_run_at_a_time(archive: psycopg.Connection) -> None:
    with (
        psycopg.connect(archive.info.dsn, autocommit=True) as other,
        pgearth.loaders.models.encode.encoding_alone(other),
        pytest.raises(PgearthError, match="Another session is encoding"),
    ):
        encode(archive)
    assert encode(archive).codes == PATCHES


def test_several_at_once(archive: psycopg.Connection, own_model: Callable[[int], Path], run_pgearth: Run) -> None:
    """Vectors of an encoder are made once, whatever needs them."""
    assert run_pgearth(archive, "encoder", "add", "own", "--onnx", own_model(1), *OPTIONS).exit_code == 0
    assert encode(archive).made_current == ["spectral:1", "lsh:1"]
    own = newest_version(archive, "own")
    weights = dump(lsh.fit(np.random.default_rng(0).standard_normal((50, DIMENSION)).astype(np.float32), bits=16))
    for name in ("first", "second"):
        register(archive, name, "lsh", weights, bits=16, parent_id=own.encoder_id)
    result = encode(archive, "first", "second", "own", "lsh")
    assert (result.embeddings, result.codes) == (PATCHES, 2 * PATCHES)
    assert result.left_out == {"own:1": 9, "spectral:1": 9}
    assert result.made_current == ["own:1", "first:1", "second:1"]
    hash_functions = [find(archive, name, True) for name in ("first", "second", "lsh")]
    assert all(is_packed(archive, hashing) for hashing in hash_functions)
    archive.execute("delete from eo.code_index")
    assert encode(archive, "first").codes == 0
    assert [is_packed(archive, hashing) for hashing in hash_functions] == [True, False, False]
    with pytest.raises(PgearthError, match='there is no version "third"'):
        encode(archive, "lsh", "third")
    result = run_pgearth(archive, "encode", "--encoder", "own", "--segments", "grid:2")
    assert "Only a hash function" in str(result.exception)
    result = run_pgearth(archive, "encode", "--encoder", "lsh", "--segments", "grid:2")
    assert f"0 patches encoded, 0 hashed, {PATCHES * 4} segments hashed." in result.output


def test_indexes_of_nothing(archive: psycopg.Connection, run_pgearth: Run) -> None:
    """A new archive, or one restored without its codes: said, and no error to a script that indexes after a restore."""
    result = run_pgearth(archive, "index", "codes")
    assert result.exit_code == 0
    assert result.output == "The archive has no hash function, and so no codes to index: pgearth encode\n"
    encode(archive)
    assert "distinct codes packed." in run_pgearth(archive, "index", "codes").output
    assert "stands." in run_pgearth(archive, "index", "vectors").output
    # As after a restore that left them out: nothing else empties buckets.
    archive.execute("alter table eo.bucket disable trigger user")
    archive.execute("truncate eo.bucket, eo.patch_bucket, eo.embedding")
    for options in ([], ["--encoder", "lsh"], ["--encoder", "lsh:1"]):
        result = run_pgearth(archive, "index", "codes", *options)
        assert result.exit_code == 0
        assert result.output == "The archive has no codes of lsh:1 to index: pgearth encode --encoder lsh:1\n"
    result = run_pgearth(archive, "index", "vectors")
    assert result.output == "The archive has no vectors of spectral:1 to index: pgearth encode --encoder spectral:1\n"
    assert 'there is no hash function "none"' in str(
        run_pgearth(archive, "index", "codes", "--encoder", "none").exception
    )
    encode(archive)
    assert "distinct codes packed." in run_pgearth(archive, "index", "codes").output
    for version in ("lsh:1", "spectral:1"):
        assert run_pgearth(archive, "encoder", "retire", version).exit_code == 0
    assert "no hash function" in run_pgearth(archive, "index", "codes").output


def test_what_is_retired_is_gone(archive: psycopg.Connection, run_pgearth: Run) -> None:
    encode(archive)
    [(encoder_id,)] = archive.execute("select encoder_id from eo.encoder where name = 'lsh'").fetchall()
    [(folder,)] = archive.execute(
        "select 'pgearth/' || oid from pg_database where datname = current_database()"
    ).fetchall()

    def packed() -> list[str]:
        rows = archive.execute("select pg_ls_dir(%s)", (folder,)).fetchall()
        return [name for (name,) in rows if name.startswith(f"{encoder_id}-")]

    assert len(packed()) == 2
    archive.execute("select eo.build_plain_code_index('lsh')")
    result = run_pgearth(archive, "encoder", "retire", "spectral:1")
    assert "spectral:1 is in use by lsh:1" in str(result.exception)
    assert "lsh" in str(result.exception)
    for version in ("lsh", "lsh:2"):
        assert f'there is no version "{version}"' in str(run_pgearth(archive, "encoder", "retire", version).exception)
    for version in ("lsh:1", "spectral:1"):
        result = run_pgearth(archive, "encoder", "retire", version)
        assert result.output == f"{version} is retired; 11 vectors or codes were removed.\n"
        again = run_pgearth(archive, "encoder", "retire", version)
        assert f"{version} was retired on " in str(again.exception)
    assert packed() == []
    for table in ("embedding", "patch_bucket", "bucket", "code_index"):
        assert archive.execute(f"select count(*) from eo.{table}".encode()).fetchone() == (0,), table
    for leftover in ("bucket__%", "embedding\\_\\_%"):
        assert (
            archive.execute(
                "select relname from pg_class where relname like %s", (leftover.replace("bucket__", "bucket\\_\\_"),)
            ).fetchall()
            == []
        )
    assert [row[-1][:8] for row in state(archive, run_pgearth)] == ["retired "] * 2
    [(name,)] = archive.execute("select min(name) from eo.patch where name like 'S2%'").fetchall()
    for query, message in (
        ("select * from eo.similar(%s)", "there is no hash function"),
        ("select * from eo.similar(%s, encoder => 'lsh')", 'there is no hash function "lsh"'),
        ("select * from eo.similar(%s, encoder => 'lsh:1')", "lsh:1 was retired on "),
    ):
        with pytest.raises(errors.UndefinedObject, match=message):
            archive.execute(query.encode(), (name,))
    with pytest.raises(PgearthError, match="was retired"):
        encode(archive, "lsh:1")
    with pytest.raises(errors.InvalidParameterValue, match="not a hash function in use"):
        archive.execute("select eo.store_codes(%s::smallint, '{}', '{}', '{}')", (encoder_id,))
    assert encode(archive).made_current == ["spectral:2", "lsh:2"]
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="append-only"):
        archive.execute("delete from eo.bucket")


def test_only_what_is_encoded_becomes_current(archive: psycopg.Connection) -> None:
    """Not by hand either; and an encoder whose bands no patch has encodes nothing."""
    register(archive, "x", "spectral", NO_WEIGHTS, bands=["B77"], dimension=3)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="nothing is encoded with x:1 yet") as caught:
        archive.execute("select eo.make_current('x:1')")
    assert caught.value.diag.message_hint == "Run: pgearth encode --encoder x:1"
    assert encode(archive, "x") == pgearth.loaders.models.encode.Encoded(0, 0, 0, {"x:1": 20}, [])
    for version in ("x", "x:2"):
        with pytest.raises(errors.UndefinedObject, match=f'there is no version "{version}"'):
            archive.execute("select eo.make_current(%s)", (version,))


def test_a_model_that_fails_on_the_archive(archive: psycopg.Connection) -> None:
    """As an older version of pgearth may have stored it."""
    archive.execute(
        "insert into eo.encoder (name, version, architecture, bands, dimension, weights, weights_sha256, normalisation) values"
        """ ('x', 1, 'onnx', '{B02}', 3, 'no model', encode(sha256('no model'), 'hex'), '{"mean": [0], "std": [1]}')"""
    )
    with pytest.raises(PgearthError, match=r"Patches \d+ to \d+: onnxruntime .* cannot load the model"):
        encode(archive, "x")
    with pytest.raises(errors.InvalidBinaryRepresentation, match="cannot load the model"):
        archive.execute("select eo.encode(array(select patch_id from eo.patch where name like 'S2%'), 'x')")
    assert archive.execute("select count(*) from eo.embedding").fetchone() == (0,)


def test_a_vector_that_is_not_finite_is_not_stored(
    archive: psycopg.Connection, own_model: Callable[[int], Path], run_pgearth: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_pgearth(archive, "encoder", "add", "own", "--onnx", own_model(1), *OPTIONS).exit_code == 0

    def encode_patches(_encoder: object, patches: list[object], batch_size: int) -> np.ndarray:
        found = np.zeros((len(patches), DIMENSION), np.float32)
        found[4, 2] = np.inf
        return found

    monkeypatch.setattr(pgearth.loaders.models.encode, "encode_patches", encode_patches)
    with pytest.raises(PgearthError, match=r"Patch \d+: own:1 gives a vector that is not finite"):
        encode(archive, "own")
    assert vectors(archive, "own:1") == {}
