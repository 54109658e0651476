"""Damaged copies of small real files: each load ends well, or in one clear error, and nothing is stored by halves.

PGEARTH_EXAMPLES=N tries N damages of each kind of file, other ones in every run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psycopg
import pyogrio
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from onnx import TensorProto, helper
from rasterio.windows import Window

from pgearth import cli
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from tests.conftest import EXAMPLES
from tests.errors_for_people import OF_PYTHON

Arguments = list[str | Path]
Damage = Callable[[Path], None]
TABLES = ("patch", "patch_raster", "product", "corine", "nuts", "encoder", "embedding", "label")
V1_PATCH = "S2A_MSIL2A_20170617T113321_4_55"
NAME = "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947"
BANDS = ("B02", "B03")


@pytest.fixture
def run(
    module_archive: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[[Arguments], tuple[object, str]]:
    """Call `run(arguments)` runs the command; it returns the exit status and what was said of errors."""
    monkeypatch.setenv("PGEARTH_DSN", module_archive.info.dsn)

    def call(arguments: Arguments) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["pgearth", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return call


def corine(sample: Path, folder: Path, suffix: str) -> Arguments:
    """The first of Lanjaron's polygons."""
    file = folder / f"clc.{suffix}"
    polygons = pyogrio.read_dataframe(sample / "corine" / "clc2018_lanjaron_es.gpkg", layer="clc", max_features=6)
    pyogrio.write_dataframe(polygons, file, layer="clc")
    return ["load", "corine", file]


def nuts(sample: Path, folder: Path) -> Arguments:
    """Three units of NUTS."""
    document = json.loads((sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson").read_bytes())
    places = [feature for feature in document["features"] if feature["properties"]["NUTS_ID"] in ("LI", "LI0", "LI000")]
    assert len(places) == 3
    file = folder / "nuts.geojson"
    file.write_text(json.dumps({**document, "features": places}))
    return ["load", "nuts", file, "--edition", "2021"]


def bigearthnet(sample: Path, folder: Path) -> Arguments:
    """One patch of v1."""
    shutil.copytree(sample / "bigearthnet-v1" / "S2" / V1_PATCH, folder / V1_PATCH, copy_function=shutil.copyfile)
    return ["load", "bigearthnet", folder]


def lists(sample: Path, folder: Path) -> Arguments:
    """The same, with the lists of v1, cut short."""
    for name in ("train", "val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow"):
        (folder / "lists").mkdir(exist_ok=True)
        (folder / "lists" / f"{name}.csv").write_text(f"{V1_PATCH}\n" if name == "train" else "")
    return [*bigearthnet(sample, folder / "root"), "--lists", folder / "lists"]


def product(sample: Path, folder: Path) -> Arguments:
    """Two bands of a scene, a part of each, with the scene's STAC item."""
    scene = next((sample / "sentinel2-cog").iterdir())
    shutil.copyfile(scene / f"{scene.name}.json", folder / f"{scene.name}.json")
    for band in BANDS:
        with rasterio.open(scene / f"{band}.tif") as source:
            window = Window(500, 500, 240, 120)
            profile = {"driver": "GTiff", "dtype": source.dtypes[0], "count": 1, "width": 240, "height": 120}
            transform = source.window_transform(window)
            with rasterio.open(folder / f"{band}.tif", "w", **profile, crs=source.crs, transform=transform) as target:
                target.write(source.read(1, window=window), 1)
    return ["load", "product", folder, "--grid", "fixed:120", "--bands", ",".join(BANDS)]


def exported(run: Callable[[Arguments], tuple[object, str]], folder: Path, *options: str) -> Arguments:
    """An export of one patch."""
    assert run(["export", folder, "--max-results", "1", *options])[0] in (0, None)
    shutil.rmtree(folder / ".parts", ignore_errors=True)
    return ["load", "export", folder]


def model(folder: Path) -> Arguments:
    """A network of one convolution."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, (3, 2, 4, 4), np.linspace(-1, 1, 96))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["c"], strides=[4, 4]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["vectors"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 2, 8, 8])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    file = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return [
        "encoder",
        "add",
        "tiny",
        "--onnx",
        file,
        "--bands",
        "B02,B03",
        "--mean",
        "1,1",
        "--std",
        "2,2",
        "--size",
        "8",
    ]


def catalogue(sample: Path, folder: Path) -> Arguments:
    """Some rows of the catalogue of v2."""
    import pyarrow.parquet as parquet

    file = folder / "metadata.parquet"
    rows = parquet.ParquetFile(sample / "bigearthnet-v2" / "metadata.parquet").iter_batches(batch_size=20)
    with parquet.ParquetWriter(file, (first := next(rows)).schema) as writer:
        writer.write_batch(first)
    return ["load", "bigearthnet-metadata", file]


SETS: dict[str, Callable[[Path, Path, Callable[[Arguments], tuple[object, str]]], Arguments]] = {
    "CORINE, GeoPackage": lambda sample, folder, _: corine(sample, folder, "gpkg"),
    "CORINE, GeoJSON": lambda sample, folder, _: corine(sample, folder, "geojson"),
    "CORINE, shapefile": lambda sample, folder, _: corine(sample, folder, "shp"),
    "NUTS": lambda sample, folder, _: nuts(sample, folder),
    "BigEarthNet": lambda sample, folder, _: bigearthnet(sample, folder),
    "BigEarthNet, lists": lambda sample, folder, _: lists(sample, folder),
    "BigEarthNet, catalogue": lambda sample, folder, _: catalogue(sample, folder),
    "product": lambda sample, folder, _: product(sample, folder),
    "export, folder": lambda _, folder, run: exported(run, folder),
    "export, zip": lambda _, folder, run: exported(run, folder, "--pack", "zip"),
    "export, tar.zst": lambda _, folder, run: exported(run, folder, "--pack", "tar.zst", "--format", "cog"),
    "ONNX model": lambda _, folder, __: model(folder),
}


# Damages


def cut(share: float) -> Damage:
    return lambda file: file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)]) and None


def flip(places: list[float], values: list[int]) -> Damage:
    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        for place, value in zip(places, values, strict=True):
            if content:
                # The square: more of them at the beginning, where headers are.
                content[int(place**2 * len(content))] ^= value
        file.write_bytes(content)

    return change


def replace(content: bytes) -> Damage:
    return lambda file: file.write_bytes(content) and None


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def change_value(number: int, value: Any) -> Damage:
    """Put another value in the place of one of those of a JSON document; a file that is none loses its end."""

    def change(file: Path) -> None:
        try:
            document = json.loads(file.read_bytes())
        except ValueError:
            cut(0.9)(file)
            return
        places = list(places_of(document))
        if places:
            holder, key = places[number % len(places)]
            holder[key] = value
            file.write_text(json.dumps(document))

    return change


def places_of(document: Any) -> Iterator[tuple[Any, Any]]:
    """Each place of a value in a JSON document, as what holds it and its key there."""
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in entries:
        yield document, key
        yield from places_of(value)


CONTENTS = [b"", b"\0" * 100, b"text\n", b"{}", b"[]", b"null", b"[null]", '{"type": "FeatureCollection"}'.encode("utf-16"),
            b"\xff\xfe\xfd", b"PK\x03\x04", b"II*\0\x08\0\0\0", b"a;b;c\n1;2\n", b"<xml/>", b"SQLite format 3\0"]  # fmt: skip
VALUES = [
    None,
    True,
    -1,
    1e300,
    "",
    "x",
    "POINT(1 1)",
    [],
    [None],
    [[]],
    {},
    {"type": "Polygon", "coordinates": []},
    "\0",
    "ä" * 300,
]
damages: SearchStrategy[Damage] = st.one_of(
    st.builds(cut, st.floats(0, 1)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4).map(
        lambda changes: flip([place for place, _ in changes], [value for _, value in changes])
    ),
    st.builds(replace, st.sampled_from(CONTENTS)),
    st.sampled_from([Path.unlink, folder_instead]),
    st.builds(change_value, st.integers(0, 10_000), st.sampled_from(VALUES)),
    st.builds(change_value, st.integers(0, 10_000), st.sampled_from(VALUES)),
)


def renew_checksums(folder: Path) -> None:
    """Let the lists of checksums tell of a damaged export what it is, so that the damage itself is met."""
    listed = folder / "SHA256SUMS"
    if listed.is_file():
        lines = []
        for line in listed.read_text(errors="replace").splitlines():
            file = folder / line.partition("  ")[2]
            is_there = "\0" not in str(file) and file.is_file()
            lines.append(
                f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}" if is_there else line
            )
        listed.write_text("".join(f"{line}\n" for line in lines))


def counts(connection: psycopg.Connection) -> list[int]:
    query = "select " + ", ".join(f"(select count(*) from eo.{table})" for table in TABLES)
    [row] = connection.execute(query.encode()).fetchall()
    return list(row)


def forget(connection: psycopg.Connection) -> None:
    """Make the archive as it was before a load."""
    for table in ("patch", "product", "corine", "nuts", "load", "encoder"):
        connection.execute(f"delete from eo.{table}".encode())


@pytest.mark.parametrize("kind", SETS)
def test_damaged_files(
    module_archive: psycopg.Connection,
    sample: Path,
    tmp_path: Path,
    run: Callable[[Arguments], tuple[object, str]],
    kind: str,
) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    whole.mkdir()
    forget(module_archive)
    if kind.startswith("export") or kind == "ONNX model":
        load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    arguments = SETS[kind](sample, whole, run)
    if kind != "ONNX model":
        forget(module_archive)
    before = counts(module_archive)
    status, said = run(arguments)
    assert status in (0, None), said
    after = counts(module_archive)
    assert after != before
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    here = [damaged / argument.relative_to(whole) if isinstance(argument, Path) else argument for argument in arguments]

    @settings(max_examples=EXAMPLES or 25)
    @given(st.lists(st.tuples(st.sampled_from(files), damages), min_size=1, max_size=2), st.booleans())
    def load(damage: list[tuple[Path, Damage]], told: bool) -> None:
        if kind == "ONNX model":
            module_archive.execute("delete from eo.encoder")
        else:
            forget(module_archive)
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        for file, change in damage:
            if (damaged / file).is_file():
                change(damaged / file)
        if told:
            renew_checksums(damaged)
        status, said = run(here)
        assert "Traceback" not in said and "did not expect" not in said, said
        if status in (0, None):
            return
        lines = [line for line in said.splitlines() if "%|" not in line]
        errors = [line for line in lines if line.startswith(("Error: ", "Hint: "))]
        assert status in (1, 2) and errors, said
        assert not (found := OF_PYTHON.search("\n".join(errors))), f"{found}: {said}"
        assert counts(module_archive) == before, f"half of it is stored: {said}"

    load()
