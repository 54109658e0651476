"""Exports: the real samples out and in again by every format and pack, killed and cut-off runs, damage and bad input."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import zstandard
from click.testing import Result
from pytest_postgresql.janitor import DatabaseJanitor

from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.export import manifest as export_manifest
from pgearth.loaders.export.export import PARTS, export_patches
from pgearth.loaders.export.load import load_exported
from pgearth.loaders.export.manifest import Order
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import Raster
from tests.conftest import CHECKOUT

Run = Callable[..., Result]
LOCAL = Engine()
SENTINEL_1 = {"sources": ["bigearthnet-v1"], "platforms": ["sentinel-1a"]}
SHARDS = {"shard_size": 350_000}

# What a load leaves behind, without keys.
CONTENTS = (
    """
    select to_jsonb(p) - array['patch_id', 'product_id', 'pair_id'], product.name, pair.name
    from eo.patch p
    join eo.product using (product_id)
    left join eo.patch pair on pair.patch_id = p.pair_id
    order by product.name, p.source, p.name
    """,
    """
    select product.name, p.source, p.name, r.resolution, r.cell, r.bands, ST_AsBinary(r.rast), r.band_min, r.band_max,
           r.band_mean, r.band_std, r.valid_fraction
    from eo.patch_raster r
    join eo.patch p using (patch_id, cell)
    join eo.product using (product_id)
    order by 1, 2, 3, 4
    """,
    """
    select to_jsonb(p) - array['product_id', 'derived_from'], parent.name
    from eo.product p
    left join eo.product parent on parent.product_id = p.derived_from
    order by p.name
    """,
)


def contents(connection: psycopg.Connection) -> list[list[tuple[Any, ...]]]:
    return [connection.execute(query).fetchall() for query in CONTENTS]


@pytest.fixture(scope="module")
def stored(module_archive: psycopg.Connection, sample: Path, run_pgearth: Run) -> psycopg.Connection:
    """An archive with BigEarthNet v1 and v2, a Sentinel-2 product cut into patches, and patches of all odd kinds."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1", lists=sample / "bigearthnet-v1" / "lists")
    catalogue = sorted((sample / "bigearthnet-v2").glob("metadata*.parquet"))
    load_bigearthnet(module_archive, sample / "bigearthnet-v2", metadata=catalogue)
    result = run_pgearth(
        module_archive,
        "load",
        "product",
        sample / "sentinel2-cog" / "S2A_29RKH_20200219_0_L2A",
        "--grid",
        "fixed:360",
        "--bands",
        "B01,B02,B05,SCL",
    )
    assert result.exit_code == 0, result.output
    write_odd_patches(module_archive)
    # As eo.annotate leaves them, in more than one scheme.
    module_archive.execute(
        """
        update eo.patch
        set label_ids = '{211, 231, 312}', label_fraction = '{0.1, 0.33333334, 1e-7}', country_codes = '{IE,GB}',
            nuts_ids = '{IE061,UKN0G}', scene_class_ids = array(
                select label_id from eo.label where scheme = 'scl' order by label_id limit 2),
            scene_class_fraction = '{0.9, 0.1}'
        where name in (select name from eo.patch where source = 'bigearthnet-v2' order by name limit 1)
           or patch_id = (select max(patch_id) from eo.patch where source = 'product')
        """
    )
    return module_archive


def write_odd_patches(connection: psycopg.Connection) -> None:
    """Patches that differ in all that an export must keep: reference system, pixel types, nodata, names."""
    random = np.random.default_rng(7)
    time = datetime(2021, 12, 31, 23, 59, 59, 123457, tzinfo=UTC)
    footprint = shapely.to_wkb(shapely.MultiPolygon([shapely.Polygon([(0.1, 1 / 3), (2, 1), (1, 2.7)])]))
    with connection.transaction():
        write_products(
            connection,
            [
                Product("raw", "landsat-8", "L1TP", time),
                Product(
                    *("Produkt, gemessen", "landsat-8", "L2SP", time, "33UUP", 12.34, footprint, "/a/ü"),
                    metadata={"a": [1, 2.5, None, "ß"], "b": {}},
                    derived_from="raw",
                    end_time=time,
                    processed_at=time,
                    processing_baseline="02",
                    relative_orbit=190,
                    scales={"B1": 2.75e-05},
                    offsets={"B1": -0.2},
                    bytes=2**40,
                ),
            ],
        )

        def patch(name: str, srid: int, box: tuple[float, ...], rasters: list[Any], **columns: Any) -> Patch:
            return Patch(name, "Produkt, gemessen", "landsat-8", time, srid, *box, rasters=rasters, **columns)

        def pixels(dtype: str, shape: tuple[int, int]) -> np.ndarray:
            return np.frombuffer(random.bytes(shape[0] * shape[1] * np.dtype(dtype).itemsize), dtype).reshape(shape)

        def raster(srid: int, transform: tuple[float, ...], *bands: np.ndarray, nodata: list[float | None]) -> Raster:
            return Raster(bands, transform, srid, tuple(nodata))  # type: ignore[arg-type]

        degrees = (10.1, 50 / 3, 10.1 + 1 / 7, 50 / 3 + 1 / 11)
        cell = (1 / 7 / 30, -1 / 11 / 20, 10.1, 50 / 3 + 1 / 11, 0.0, 0.0)
        floats = np.array([[np.nan, -0.0, np.inf], [1e-40, -9999, 3.4e38]], "f4")
        metres = (30.0, -30.0, 500_000.0, 10_000.0, 0.0, 0.0)
        box = (500_000.0, 9_040.0, 500_960.0, 10_000.0)
        mixed = [pixels("u2", (32, 32)), pixels("u1", (32, 32)), pixels("u2", (32, 32)), pixels("u2", (32, 32))]
        modis = (-1_111_950.5, 4_447_802.1, -1_111_950.5 + 463.3127 * 4, 4_447_802.1 + 463.3127 * 4)
        patches = [
            patch("cell", 4326, degrees, [patch_raster(30, ["B1"], raster(4326, cell, pixels("i2", (20, 30)), nodata=[-32768]))]),
            patch("floats", 32633, box, [
                patch_raster(30, ["a", "b"], raster(32633, metres, floats, -floats, nodata=[np.nan, -9999.0])),
                patch_raster(60, ["a"], raster(32633, (60.0, *metres[1:]), floats.astype("f8"), nodata=[None])),
            ]),
            patch("mixed", 32633, box, [
                patch_raster(30, ["B1", "SCL", "B2", "B3"], raster(32633, metres, *mixed, nodata=[0, 0, None, 0]))
            ]),
            patch("modis", 906974, modis, [
                patch_raster(463, ["NDVI"], raster(
                    906974, (463.3127, -463.3127, modis[0], modis[3], 0.5, -0.25), pixels("i1", (4, 4)), nodata=[-3]))
            ]),
            patch("large", 32633, box, [patch_raster(1, ["x"], raster(32633, metres, pixels("u1", (600, 530)), nodata=[None]))]),
            patch("without pixels", 32633, box, [], label_ids=[], metadata={"v1_name": None}),
        ]  # fmt: skip
        assert write_patches(connection, "odd", patches) == 6


@pytest.fixture
def two(stored: psycopg.Connection, archive_template: Any) -> Iterator[psycopg.Connection]:
    """A second archive, with nomenclatures, else empty."""
    template = archive_template
    name = f"{template.dbname}_two"
    janitor = DatabaseJanitor(
        user=template.user,
        host=template.host,
        port=template.port,
        dbname=name,
        template_dbname=template.template_dbname,
    )
    janitor.drop()
    with (
        janitor,
        psycopg.connect(
            host=template.host, port=template.port, user=template.user, dbname=name, autocommit=True
        ) as connection,
    ):
        yield connection


@pytest.fixture
def dsn(stored: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point connect() at the archive `stored`."""
    monkeypatch.setenv("PGEARTH_DSN", stored.info.dsn)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def check_sums(folder: Path) -> None:
    """Every file but the notes of parts is in SHA256SUMS, and sha256sum finds it right."""
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {name for name in tree(folder) if not name.startswith(PARTS)} - {"SHA256SUMS"}


# Out and in again


@pytest.mark.parametrize(
    ("file_format", "pack"),
    [("bigearthnet", "folder"), ("bigearthnet", "tar.zst"), ("cog", "zip")],
)
def test_round_trip(
    stored: psycopg.Connection, two: psycopg.Connection, tmp_path: Path, dsn: None, file_format: str, pack: str
) -> None:
    counts = export_patches(tmp_path, Order({}, format=file_format, pack=pack, shard_size=2_500_000), LOCAL)
    (patches,) = stored.execute("select count(*) from eo.patch").fetchone() or ()
    assert (counts["patches"], counts["patches without pixels"]) == (patches, 1)
    check_sums(tmp_path)
    loaded = load_exported(two, tmp_path)
    assert loaded["patches"] == patches
    for ours, theirs in zip(contents(two), contents(stored), strict=True):
        assert len(ours) == len(theirs)
        for mine, original in zip(ours, theirs, strict=True):
            assert mine == original
    again = load_exported(two, tmp_path)
    assert again == {"parts skipped": loaded["parts"]}
    shards = [path for path in tmp_path.iterdir() if path.name.startswith("shard-")]
    assert len(shards) == (0 if pack == "folder" else counts["parts"])
    if shards:
        assert len(shards) > 2
        assert max(path.stat().st_size for path in shards) <= 2_500_000
    if file_format == "cog":
        for shard in shards:
            shutil.unpack_archive(shard, tmp_path / "unpacked")
        check_cogs(tmp_path / "unpacked")


def check_cogs(folder: Path) -> None:
    """All GeoTIFFs are COGs by GDAL's own word, with named bands, and overviews where they are larger than a tile."""
    files = list(folder.rglob("*.tif"))
    for path in files:
        with rasterio.open(path) as dataset:
            assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert all(dataset.descriptions)
            assert bool(dataset.overviews(1)) == (max(dataset.shape) > 512)
    names = {path.name for path in files}
    assert {"large_1m.tif", "mixed_30m.tif", "mixed_30m_2.tif", "mixed_30m_3.tif"} <= names


@pytest.fixture(scope="module")
def bigearthnet(stored: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patches of BigEarthNet, exported."""
    folder = tmp_path_factory.mktemp("bigearthnet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGEARTH_DSN", stored.info.dsn)
        export_patches(folder, Order({"sources": ["bigearthnet-v1", "bigearthnet-v2"]}), LOCAL)
    return folder


def test_the_files_of_bigearthnet(bigearthnet: Path, sample: Path) -> None:
    compared = 0
    for original in [*(sample / "bigearthnet-v1").rglob("*.tif"), *(sample / "bigearthnet-v2").rglob("S?[AB]*.tif")]:
        if "Reference_Maps" in original.parts:
            continue
        written = list(bigearthnet.rglob(original.name))
        source = "bigearthnet-v1" if "bigearthnet-v1" in original.parts else "bigearthnet-v2"
        documents = [json.loads(next(path.parent.glob("*.json")).read_bytes()) for path in written]
        (path,) = [p for p, document in zip(written, documents, strict=True) if document["source"] == source]
        with rasterio.open(original) as theirs, rasterio.open(path) as ours:
            np.testing.assert_array_equal(ours.read(), theirs.read())
            assert (ours.crs.to_epsg(), ours.transform, ours.dtypes) == (
                theirs.crs.to_epsg(),
                theirs.transform,
                theirs.dtypes,
            )
            assert ours.nodata == (0 if original.name.startswith("S2") else None)
            assert ours.compression.name == "deflate"
        compared += 1
    assert compared == 12 * 12 + 2 * 10
    for original in (sample / "bigearthnet-v1").rglob("*_labels_metadata.json"):
        theirs, (path,) = json.loads(original.read_bytes()), list(bigearthnet.rglob(original.name))[:1]
        ours = json.loads(path.read_bytes())
        assert path.parent.name == original.parent.name
        for key in theirs.keys() - {"coordinates", "projection"}:
            assert ours[key] == theirs[key], key
        assert ours["coordinates"] == {"lry" if k == "lly" else k: v for k, v in theirs["coordinates"].items()}
        assert rasterio.crs.CRS.from_wkt(ours["projection"]) == rasterio.crs.CRS.from_wkt(theirs["projection"])


def test_an_export_is_a_bigearthnet_archive(
    stored: psycopg.Connection, two: psycopg.Connection, bigearthnet: Path, sample: Path
) -> None:
    catalogue = sorted((sample / "bigearthnet-v2").glob("metadata*.parquet"))
    counts = load_bigearthnet(two, bigearthnet, metadata=catalogue)
    assert counts["patches"] == 22
    query = """
        select p.source, p.name, r.resolution, r.bands, ST_AsBinary(r.rast), product.name, pair.name
        from eo.patch_raster r join eo.patch p using (patch_id, cell) join eo.product using (product_id)
        left join eo.patch pair on pair.patch_id = p.pair_id
        where p.source like 'bigearthnet%' order by 1, 2, 3
    """
    assert two.execute(query).fetchall() == stored.execute(query).fetchall()
    labels = "select name, label_ids from eo.patch where source = 'bigearthnet-v1' order by 1"
    assert two.execute(labels).fetchall() == stored.execute(labels).fetchall()


def test_the_table_of_patches(stored: psycopg.Connection, tmp_path: Path, dsn: None) -> None:
    counts = export_patches(tmp_path, Order({}, format="geoparquet"), LOCAL)
    assert sorted(tree(tmp_path)) == ["SHA256SUMS", "metadata.parquet"]
    check_sums(tmp_path)
    frame = geopandas.read_parquet(tmp_path / "metadata.parquet")
    assert frame.crs == "OGC:CRS84"
    assert len(frame) == counts["patches"]
    # The spatial filter goes by the covering, so this reads the column bbox.
    inside = geopandas.read_parquet(tmp_path / "metadata.parquet", bbox=(10, 16, 11, 17))
    assert list(inside["name"]) == ["cell"]
    rows = stored.execute(
        """
        select p.patch_id, p.name, ST_AsBinary(p.footprint), p.season::text, p.label_ids, p.label_fraction,
               (select array_agg(l.name order by i) from unnest(p.label_ids) with ordinality u (id, i)
                join eo.label l on l.label_id = id),
               p.sensing_time, p.metadata::text, p.country_codes, p.pair_id, p.split
        from eo.patch p order by p.patch_id
        """
    ).fetchall()
    table = pq.read_table(tmp_path / "metadata.parquet").sort_by("patch_id").to_pylist()
    for row, found in zip(rows, table, strict=True):
        fraction = None if found["label_fraction"] is None else np.float32(found["label_fraction"]).tolist()
        assert row == (
            *(found["patch_id"], found["name"], found["geometry"], found["season"], found["label_ids"]),
            None if fraction is None else [float(str(np.float32(value))) for value in fraction],
            *(found["labels"] or None, found["sensing_time"], found["metadata"], found["country_codes"]),
            *(found["pair_id"], found["split"]),
        )
        assert tuple(found["bbox"].values()) == shapely.from_wkb(found["geometry"]).bounds
    geo = json.loads(pq.read_metadata(tmp_path / "metadata.parquet").metadata[b"geo"])
    assert geo["columns"]["geometry"]["bbox"] == list(frame.total_bounds)
    assert (geo["version"], geo["columns"]["geometry"]["geometry_types"]) == ("1.1.0", ["MultiPolygon"])


# What is exported


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--label", "Pastures", "--label", "Mixed forest"], "eo.filter(labels => '{Pastures, Mixed forest}'), null"),
        (
            ["--label", "clc:2", "--label", "clc:3", "--label-match", "at_least"],
            "eo.filter(labels => '{clc:2, clc:3}', label_match => 'at_least'), null",
        ),
        (["--season", "autumn", "--platform", "sentinel-2b"], "eo.filter(seasons => '{autumn}', platforms => '{sentinel-2b}'), null"),
        (["--from", "2017-06-13", "--to", "2017-06-17T11:33:21Z"], "eo.filter(from_time => '2017-06-13Z', to_time => '2017-06-17T11:33:21Z'), null"),
        (["--country", "GB"], "eo.filter(countries => '{GB}'), null"),
        (["--source", "bigearthnet-v2", "--source", "odd"], "eo.filter(sources => '{bigearthnet-v2, odd}'), null"),
        (["--split", "train", "--no-seasonal-snow"], "eo.filter(splits => '{train}', seasonal_snow => false), null"),
        (["--max-cloud", "10"], "eo.filter(max_cloud => 10), null"),
        (["--scene-class", "scl:0"], "eo.filter(scene_classes => '{scl:0}'), null"),
        (["--cell", "u2"], "eo.filter(cells => '{u2}'), null"),
        (["--area", "12,47,14,49"], "eo.filter(area => eo.rectangle(12, 47, 14, 49)), null"),
        (["--area", "170,-80,-170,80"], "eo.filter(area => eo.rectangle(170, -80, -170, 80)), null"),
        (["--area", "POINT(13.7209 48.2223)"], "eo.filter(area => ST_Point(13.7209, 48.2223, 4326)), null"),
        (
            ["--area", "SRID=32633;POLYGON((404000 5341000,406000 5341000,406000 5343000,404000 5341000))"],
            "eo.filter(area => 'SRID=32633;POLYGON((404000 5341000,406000 5341000,406000 5343000,404000 5341000))'::geometry), null",
        ),
        (["--area", "{geojson}"], "eo.filter(area => eo.rectangle(12, 47, 14, 49)), null"),
        (["--max-results", "3", "--after-patch-id", "4"], "max_results => 3, after_patch_id => 4"),
        (["--patch-id", "3", "--patch-id", "5"], "eo.filter(patch_ids => '{3, 5}'), null"),
        (["--patch-name", "S2A_MSIL2A_20170617T113321_4_55", "--patch-name", "no such patch"],
         "eo.filter(names => '{S2A_MSIL2A_20170617T113321_4_55, no such patch}'), null"),
    ],
)  # fmt: skip
def test_filters_mean_what_they_mean_in_sql(
    stored: psycopg.Connection, run_pgearth: Run, tmp_path: Path, options: list[str], arguments: str
) -> None:
    geojson = tmp_path / "area.geojson"
    collection = {"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.box(12, 47, 13, 49))},
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.box(13, 47, 14, 49))},
    ]}  # fmt: skip
    geojson.write_text(json.dumps(collection))
    wanted = {row[0] for row in stored.execute(f"select patch_id from eo.search({arguments})")}
    options = [option.replace("{geojson}", str(geojson)) for option in options]
    result = run_pgearth(stored, "export", tmp_path / "out", "--format", "geoparquet", *options)
    if not wanted:
        assert arguments == "eo.filter(area => eo.rectangle(170, -80, -170, 80)), null"
        assert "No patch passes the filters" in str(result.exception)
        assert list((tmp_path / "out").iterdir()) == []
        return
    assert result.exit_code == 0, result.output
    found = pq.read_table(tmp_path / "out" / "metadata.parquet")["patch_id"].to_pylist()
    assert sorted(found) == sorted(wanted)


def test_a_reader_exports_their_own_collection(stored: psycopg.Connection, run_pgearth: Run, tmp_path: Path) -> None:
    with psycopg.connect(stored.info.dsn, autocommit=True) as reader:
        reader.execute("set role eo_reader")
        reader.execute("select eo.create_collection('mine')")
        reader.execute("select eo.add_to_collection('mine', '{2, 3, 5}')")
    role = psycopg.conninfo.make_conninfo(stored.info.dsn, options="-c role=eo_reader")

    class AsReader:
        class info:  # noqa: N801
            dsn = role

    result = run_pgearth(
        AsReader, "export", tmp_path / "out", "--collection", "mine", "--patch-id", "3", "--patch-id", "4"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert pq.read_table(tmp_path / "out" / "metadata.parquet")["patch_id"].to_pylist() == [3]
    assert result.output.startswith("1 patches, 1 parts, ")
    result = run_pgearth(stored, "export", tmp_path / "other", "--collection", "mine")
    assert 'you have no collection "mine"' in str(result.exception)
    stored.execute("delete from eo.collection")


# Interrupted runs


# Forks a process for each export, from one that has imported all and used nothing: Arrow's threads would not survive
# a fork of the tests' own process. Reads orders (JSON), writes how each process ended and the PgearthError it had.
FORKER = """
import json, os, resource, signal, sys
from pathlib import Path
from pgearth.loaders.export import export
from pgearth.loaders.export import manifest as export_manifest
from pgearth.loaders.export import packs
from pgearth.loaders.work.task import Engine
from pgearth.pyfuncs.errors import PgearthError

def run(task, pipe):
    synced = 0
    original = packs.sync
    def sync(path):
        nonlocal synced
        synced += 1
        if synced == task["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path)
    packs.sync = export.sync = sync
    export_manifest.FOLDER_PART_BYTES = task["part"]
    os.environ["PGEARTH_DSN"] = task["dsn"]
    if task["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], resource.RLIM_INFINITY))
    try:
        export.export_patches(Path(task["out"]), export.Order(**task["order"]), Engine())
    except PgearthError as error:
        os.write(pipe, str(error).encode())
    else:
        os.write(pipe, str(synced).encode())

for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run(json.loads(line), write)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        message = pipe.read().decode()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), message]), flush=True)
"""
PART_BYTES = 350_000
Forked = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def forked(stored: psycopg.Connection) -> Iterator[Forked]:
    """Call forked(folder, order, kill=step, limit=bytes): run an export in a process of its own.

    It is killed before the file or folder number `kill` is synchronised, and no file may be larger than `limit`. Returns
    how it ended, and its PgearthError or how many files and folders it synchronised.
    """
    command = [sys.executable, "-c", FORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as forker:
        assert forker.stdin and forker.stdout

        def run(out: Path, order: Order, kill: int = 0, limit: int = 0) -> tuple[int, str]:
            assert forker.stdin and forker.stdout
            task = {"out": str(out), "order": vars(order), "kill": kill, "limit": limit}
            forker.stdin.write(json.dumps({**task, "dsn": stored.info.dsn, "part": PART_BYTES}) + "\n")
            forker.stdin.flush()
            code, message = json.loads(forker.stdout.readline())
            return code, message

        yield run
        forker.stdin.close()


@pytest.mark.parametrize("pack", ["folder", "tar.zst"])
def test_killed_runs_end_in_the_same_bytes(forked: Forked, tmp_path: Path, pack: str) -> None:
    order = Order(SENTINEL_1, pack=pack, **SHARDS)
    clean, out = tmp_path / "clean", tmp_path / "out"
    code, synced = forked(clean, order)
    assert code == 0
    expected = tree(clean)
    assert len([name for name in expected if name.startswith(PARTS)]) > 2
    # In the manifest, at the first file and then ever later; each run starts from where those before it were killed.
    for step in (1, 3, int(synced) // 2):
        assert forked(out, order, kill=step) == (-signal.SIGKILL, "")
        final = {name: content for name, content in tree(out).items() if ".partial" not in name}
        assert not (out / "SHA256SUMS").exists()
        assert [name for name in differences(final, expected) if name in final] == []
    code, rest = forked(out, order)
    assert int(rest) < int(synced)
    assert differences(tree(out), expected) == []
    # What is missing, and no more, is done again; a file cut short counts as missing.
    gone = next(out.rglob("*VV.tif"), out / f"shard-00001.{pack}")
    for spoil in (gone.unlink, lambda: gone.write_bytes(b"short")):
        spoil()
        code, rest = forked(out, order)
        assert code == 0
        assert 0 < int(rest) < int(synced) * 0.7
        assert differences(tree(out), expected) == []


@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_a_full_disk(forked: Forked, tmp_path: Path, pack: str) -> None:
    """Simulated by a limit on the size of files: the error comes in the middle of a file, as on a full disk."""
    order = Order(SENTINEL_1, pack=pack, **SHARDS)
    # The manifest does not fit; then the manifest does, but nothing with pixels.
    for limit, expected in ((4_000, []), (24_000, ["metadata.parquet"])):
        code, message = forked(tmp_path, order, limit=limit)
        assert code == 0
        assert "it cannot be written: " in message
        assert "File too large" in message
        assert "Make room" in message
        assert not [name for name in tree(tmp_path) if ".partial" in name]
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == expected
        assert not list(tmp_path.rglob("*.tif"))
    assert forked(tmp_path, order)[0] == 0
    check_sums(tmp_path)


def test_several_processes_write_the_same_bytes(
    stored: psycopg.Connection, run_pgearth: Run, tmp_path: Path, dsn: None
) -> None:
    order = Order(SENTINEL_1, format="cog", pack="zip", **SHARDS)
    export_patches(tmp_path / "one", order, LOCAL)
    options = ["--source", "bigearthnet-v1", "--platform", "sentinel-1a"]
    options += ["--format", "cog", "--pack", "zip", "--shard-size", "350kB", "--jobs", "2"]
    result = run_pgearth(stored, "export", tmp_path / "two", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    assert differences(tree(tmp_path / "one"), tree(tmp_path / "two")) == []


def test_only_one_run_at_a_time(stored: psycopg.Connection, tmp_path: Path, dsn: None) -> None:
    from pgearth.loaders.work.locks import lock

    order = Order({"patch_ids": [1]})
    with lock(tmp_path, "busy"), pytest.raises(PgearthError, match="another export is writing into this folder"):
        export_patches(tmp_path, order, LOCAL)
    export_patches(tmp_path, order, LOCAL)
    with (
        lock(tmp_path / PARTS, "busy", shared=True),
        pytest.raises(PgearthError, match="processes of an interrupted export still write"),
    ):
        export_patches(tmp_path, order, LOCAL)


# Bad input of the export


def test_folders_that_hold_something_else(stored: psycopg.Connection, tmp_path: Path, dsn: None) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(PgearthError, match="is not empty, and holds no export"):
        export_patches(tmp_path, Order({}), LOCAL)
    out = tmp_path / "out"
    export_patches(out, Order({"patch_ids": [1]}), LOCAL)
    before = tree(out)
    for other, message in (
        (Order({"patch_ids": [2]}), r'another export, of filters {"patch_ids": \[1\]}, not {"patch_ids": \[2\]}'),
        (Order({"patch_ids": [1]}, pack="zip"), 'another export, of pack "folder", not "zip"'),
        (Order({"patch_ids": [1]}, format="cog"), 'another export, of format "bigearthnet", not "cog"'),
        (Order({"patch_ids": [1]}, collections=["a"]), r'another export, of collections null, not \["a"\]'),
    ):
        with pytest.raises(PgearthError, match=message):
            export_patches(out, other, LOCAL)
    assert tree(out) == before
    (out / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(PgearthError, match=r"metadata.parquet: no manifest of an export"):
        export_patches(out, Order({"patch_ids": [1]}), LOCAL)


def test_a_patch_larger_than_a_shard(stored: psycopg.Connection, tmp_path: Path, dsn: None) -> None:
    with pytest.raises(PgearthError, match=r"Patch large may take .* bytes, more than a shard"):
        export_patches(tmp_path, Order({"sources": ["odd"]}, pack="zip", shard_size=300_000), LOCAL)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_names_of_files(
    archive: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEARTH_DSN", archive.info.dsn)
    time = datetime(2020, 1, 1, tzinfo=UTC)
    with archive.transaction():
        write_products(archive, [Product("p", "x", "L1", time), Product("q", "x", "L1", time)])
        bad = ["../up", "back\\slash", "line\nbreak", ".hidden", "x" * 250, "dot.", "space ", "NUL", "com1.a"]
        for source, count in {"a": len(bad) + 1, "b": 1}.items():
            names = ["one", *(f"bad-{number}" for number in range(count - 1))]
            write_patches(archive, source, [Patch(name, "p", "x", time, 32633, 5e5, 0, 5e5 + 10, 10) for name in names])
        write_patches(archive, "c", [Patch("one", "q", "x", time, 32633, 5e5, 0, 5e5 + 10, 10)])
        # The loaders refuse such names; who writes SQL may store them.
        archive.execute("update eo.product set name = '../q' where name = 'q'")
        for number, name in enumerate(bad):
            archive.execute("update eo.patch set name = %s where name = %s", (name, f"bad-{number}"))
    names = dict(archive.execute("select patch_id, name from eo.patch where source = 'a'").fetchall())
    for patch_id, name in names.items():
        if name == "one":
            export_patches(tmp_path / "one", Order({"patch_ids": [patch_id]}), LOCAL)
            continue
        with pytest.raises(PgearthError, match="is no name for a file"):
            export_patches(tmp_path / "out", Order({"patch_ids": [patch_id]}), LOCAL)
    with pytest.raises(PgearthError, match="is no name for a file"):
        export_patches(tmp_path / "out", Order({"sources": ["c"]}), LOCAL)
    ones = [row[0] for row in archive.execute("select patch_id from eo.patch where name = 'one' and source <> 'c'")]
    with pytest.raises(PgearthError, match="Two patches of product p are named one"):
        export_patches(tmp_path / "out", Order({"patch_ids": ones}), LOCAL)


def test_names_that_differ_in_case_only(
    archive: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEARTH_DSN", archive.info.dsn)
    time = datetime(2020, 1, 1, tzinfo=UTC)
    with archive.transaction():
        write_products(archive, [Product(name, "x", "L1", time) for name in ("p", "P", "o")])
        for product, names in {"o": ["one", "ONE"], "p": ["a"], "P": ["b"]}.items():
            write_patches(
                archive, product, [Patch(name, product, "x", time, 32633, 5e5, 0, 5e5 + 10, 10) for name in names]
            )
    with pytest.raises(PgearthError, match="Two patches of product o are named"):
        export_patches(tmp_path / "o", Order({"sources": ["o"]}), LOCAL)
    with pytest.raises(PgearthError, match="Two products are named"):
        export_patches(tmp_path / "p", Order({"sources": ["p", "P"]}), LOCAL)
    export_patches(tmp_path / "one", Order({"sources": ["p"]}), LOCAL)


NO_NAMES = [
    "my/scene",
    "a\\b",
    "..",
    ".",
    "",
    "a\nb",
    "a\x7f",
    "dot.",
    "space ",
    "é" * 100,
    "NUL",
    "aux.tif",
    "Com1",
    "lpt³",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_no_file_has_are_not_stored(archive: psycopg.Connection, name: str) -> None:
    time = datetime(2020, 1, 1, tzinfo=UTC)
    patch = Patch("one", "p", "x", time, 32633, 5e5, 0, 5e5 + 10, 10)
    raster = Raster((np.ones((1, 1), np.uint16),), (10, -10, 5e5, 10, 0, 0), 32633, (0,))
    with archive.transaction():
        write_products(archive, [Product("p", "x", "L1", time)])
        for store in (
            lambda: write_products(archive, [Product("q", "x", "L1", time), Product(name, "x", "L1", time)]),
            lambda: write_patches(archive, "a", [patch, replace(patch, name=name)]),
            lambda: write_patches(archive, "a", [replace(patch, rasters=[patch_raster(10, [name], raster)])]),
        ):
            with pytest.raises(PgearthError, match="no name for a file") as refused, archive.transaction():
                store()
            assert "bytes" in refused.value.hint
    assert archive.execute("select count(*) from eo.product").fetchone() == (1,)
    assert archive.execute("select count(*) from eo.patch").fetchone() == (0,)


@pytest.mark.parametrize("pack", ["folder", "zip", "tar.zst"])
def test_the_longest_and_oddest_names_go_out_and_in(
    archive: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    monkeypatch.setenv("PGEARTH_DSN", archive.info.dsn)
    time = datetime(2020, 1, 1, tzinfo=UTC)
    product, name, band = "é" * 75, "名" * 60, "b" * 24
    raster = Raster((np.ones((1, 1), np.uint16),), (10, -10, 5e5, 10, 0, 0), 32633, (0,))
    patches = [
        Patch(text, product, "x", time, 32633, 5e5, 0, 5e5 + 10, 10, rasters=[patch_raster(10, [band], raster)])
        for text in (name, "a b:c*?", "null", "console")
    ]
    with archive.transaction():
        write_products(archive, [Product(product, "x", "L1", time)])
        write_patches(archive, "a", patches)
    export_patches(tmp_path / "out", Order({}, pack=pack), LOCAL)
    before = archive.execute("select name, product_id from eo.patch order by 1").fetchall()
    archive.execute("delete from eo.patch")
    load_exported(archive, tmp_path / "out")
    assert archive.execute("select name, product_id from eo.patch order by 1").fetchall() == before


def test_patches_that_change_before_their_pixels_are_read(
    archive: psycopg.Connection, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEARTH_DSN", archive.info.dsn)
    root = tmp_path / "ben"
    shutil.copytree(
        sample / "bigearthnet-v1" / "S2" / "S2A_MSIL2A_20170617T113321_4_55", root / "S2A_MSIL2A_20170617T113321_4_55"
    )
    load_bigearthnet(archive, root)
    order = Order({})
    export_manifest.write_manifest(tmp_path / "out", order)
    archive.execute("delete from eo.patch_raster where resolution = 60")
    with pytest.raises(PgearthError, match="S2A_MSIL2A_20170617T113321_4_55 is gone or has other bands"):
        export_patches(tmp_path / "out", order, LOCAL)
    archive.execute("delete from eo.patch")
    with pytest.raises(PgearthError, match="S2A_MSIL2A_20170617T113321_4_55 is gone or has other bands"):
        export_patches(tmp_path / "out", order, LOCAL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--area", "POLYGON((1 2"], "is no area"),
        (["--area", "missing.geojson"], "is no area"),
        (["--area", "1,2,3,x"], "is no area"),
        (["--from", "yesterday"], "is no time"),
        (["--pack", "zip", "--shard-size", "much"], "is no size"),
        (["--shard-size", "1GB"], "--shard-size is of --pack zip"),
        (["--format", "geoparquet", "--pack", "zip"], "geoparquet is one file"),
        (["--label", "Pasture land"], "there is no label"),
    ],
)
def test_bad_options(
    stored: psycopg.Connection, run_pgearth: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    result = run_pgearth(stored, "export", tmp_path / "out", *options)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert not (tmp_path / "out" / "metadata.parquet").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("64MiB", 2**26), ("1.5 kB", 1500), ("700KB", 700_000), ("12B", 12)]
)
def test_sizes(text: str, size: int) -> None:
    from pgearth.loaders.export.commands import parse_size

    assert parse_size(text) == size


# Bad input of the load


@pytest.fixture(scope="module")
def exported(stored: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small exports by pack, to copy and damage."""
    folders = {pack: tmp_path_factory.mktemp("exported") for pack in ("folder", "zip", "tar.zst")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGEARTH_DSN", stored.info.dsn)
        for pack, folder in folders.items():
            order = Order(SENTINEL_1, pack=pack, shard_size=10**6)
            export_patches(folder, order, LOCAL)
    return folders


PRODUCT = "S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_017018_01C579_7EEC"
PATCH = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39"


def nothing_loaded(connection: psycopg.Connection) -> bool:
    counts = connection.execute("select (select count(*) from eo.patch), (select count(*) from eo.product)").fetchone()
    return counts == (0, 0)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damaged_and_missing_files_are_named(
    two: psycopg.Connection, exported: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(exported["folder"], folder)
    tif = folder / PRODUCT / PATCH / f"{PATCH}_VH.tif"
    flip(tif, 900)
    with pytest.raises(PgearthError, match=f"{PATCH}_VH.tif: it has another checksum than listed"):
        load_exported(two, folder)
    assert nothing_loaded(two)
    tif.unlink()
    with pytest.raises(PgearthError, match=f"{PATCH}_VH.tif: it is listed with its checksum, but cannot be read"):
        load_exported(two, folder)
    shutil.copy(exported["folder"] / tif.relative_to(folder), tif)
    flip(folder / "metadata.parquet", 400)
    with pytest.raises(PgearthError, match=r"metadata.parquet: it has another checksum"):
        load_exported(two, folder)
    shutil.copy(exported["folder"] / "metadata.parquet", folder)
    assert load_exported(two, folder)["patches"] == 9
    assert two.execute("select distinct state from eo.load").fetchall() == [("done",)]
    for pack in ("zip", "tar.zst"):
        out = tmp_path / pack
        shutil.copytree(exported[pack], out)
        shard = out / f"shard-00000.{pack}"
        flip(shard, 5_000)
        for path in (out, shard):
            with pytest.raises(PgearthError, match=f"shard-00000.{pack}: it has another checksum than listed"):
                load_exported(two, path)
        shard.unlink()
        with pytest.raises(PgearthError, match=f"shard-00000.{pack}: it is listed with its checksum, but missing"):
            load_exported(two, out)


@pytest.mark.parametrize("pack", ["zip", "tar.zst"])
def test_a_shard_alone(two: psycopg.Connection, exported: dict[str, Path], tmp_path: Path, pack: str) -> None:
    """Without SHA256SUMS beside it: damage anywhere in it is found by the list that it ends in."""
    original = (exported[pack] / f"shard-00000.{pack}").read_bytes()
    shard = tmp_path / f"shard-00000.{pack}"
    for at in range(1_000, len(original), len(original) // 5):
        shard.write_bytes(original)
        flip(shard, at)
        with pytest.raises(PgearthError, match=f"shard-00000.{pack}: "):
            load_exported(two, shard)
    shard.write_bytes(original[: len(original) // 2])
    with pytest.raises(PgearthError, match=f"shard-00000.{pack}: it "):
        load_exported(two, shard)
    assert nothing_loaded(two)
    shard.write_bytes(original)
    patches = load_exported(two, shard)["patches"]
    assert 0 < patches <= 9
    assert two.execute("select count(*) from eo.patch").fetchone() == (patches,)


def write_members(path: Path, members: list[tuple[str, bytes]]) -> None:
    """An archive of any members, with a right list of checksums at its end."""
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in members)
    members = [*members, ("shard-00000.sha256", lines.encode())]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.compress(buffer.getvalue()))


@pytest.mark.parametrize("pack", ["zip", "tar.zst"])
def test_names_that_leave_the_folder(two: psycopg.Connection, tmp_path: Path, pack: str) -> None:
    shard, listed = tmp_path / f"shard-00000.{pack}", tmp_path / "folder" / "SHA256SUMS"
    listed.parent.mkdir()
    for name in ("../evil", "/etc/evil", "a/../../evil", "a/b/c/d", "a//b", "a\\..\\b", "./a/b", ".parts/0", "a/b\n"):
        write_members(shard, [(name, b"{}")])
        with pytest.raises(PgearthError, match="is not the path of a file in an export"):
            load_exported(two, shard)
        listed.write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(PgearthError, match=r"is not the path of a file in an export|not a line of sha256sum"):
            load_exported(two, listed.parent)


def test_links(two: psycopg.Connection, exported: dict[str, Path], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("product/product_metadata.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    path = tmp_path / "shard-00000.tar.zst"
    path.write_bytes(zstandard.compress(buffer.getvalue()))
    with pytest.raises(PgearthError, match=r"no plain file: product/product_metadata\.json"):
        load_exported(two, path)
    folder = tmp_path / "folder"
    shutil.copytree(exported["folder"], folder)
    document = folder / PRODUCT / f"{PRODUCT}_metadata.json"
    document.rename(tmp_path / "outside.json")
    document.symlink_to(tmp_path / "outside.json")
    with pytest.raises(PgearthError, match="it is a link that leaves the folder"):
        load_exported(two, folder)


def test_documents_that_are_none(two: psycopg.Connection, exported: dict[str, Path], tmp_path: Path) -> None:
    files = tree(exported["folder"])
    product = f"{PRODUCT}/{PRODUCT}_metadata.json"
    document = f"{PRODUCT}/{PATCH}/{PATCH}_labels_metadata.json"
    bands = [f"{PRODUCT}/{PATCH}/{PATCH}_{band}.tif" for band in ("VV", "VH")]
    good = [(name, files[name]) for name in (product, document, *bands)]
    path = tmp_path / "shard-00000.zip"

    def edited(**changes: Any) -> bytes:
        return json.dumps({**json.loads(files[document]), **changes}).encode()

    def edited_product(**changes: Any) -> bytes:
        return json.dumps({**json.loads(files[product]), **changes}).encode()

    for bad, message in [
        (
            {product: b"[]"},
            f"{PRODUCT}_metadata.json: it is no document of an export: a value in it is of another kind",
        ),
        ({product: None}, f"document of product {PRODUCT} is missing before its patches"),
        ({document: None}, f"{PATCH}_labels_metadata.json: this file is missing"),
        ({document: b"{}"}, f"{PATCH}_labels_metadata.json: it is no document of an export: it lacks 'source'"),
        ({document: b"{"}, f"{PATCH}_labels_metadata.json: it is no document of an export: Expecting"),
        ({document: edited(label_codes=["ben43:99"])}, "the archive has no label 'ben43:99'"),
        ({document: edited(bounds=[1, 2])}, "it is no document of an export: not enough values"),
        ({document: edited(bounds=[True, 0, 1, 1])}, f"{PATCH}_labels_metadata.json: its west cannot be 'True'"),
        ({document: edited(tile_row=True)}, "its tile_row cannot be 'True'"),
        ({document: edited(name=17)}, "its name cannot be '17'"),
        ({document: edited(source=None)}, "its source cannot be 'None'"),
        ({document: edited(split={})}, "its split cannot be '{}'"),
        ({document: edited(seasonal_snow="no")}, "its seasonal_snow cannot be 'no'"),
        ({document: edited(country_codes=[None])}, "its country_codes cannot be '[None]'"),
        ({document: edited(label_fraction=0.5)}, "its label_fraction cannot be '0.5'"),
        ({document: edited(metadata=[1])}, "its metadata cannot be '[1]'"),
        ({product: edited_product(level=2)}, f"{PRODUCT}_metadata.json: its level cannot be '2'"),
        ({product: edited_product(scales={"VV": "1"})}, "its scales cannot be"),
        ({product: edited_product(relative_orbit=1.5)}, "its relative_orbit cannot be '1.5'"),
        ({bands[1]: None}, f"the file {PATCH}_VH.tif is missing"),
        ({bands[1]: b"II*\0"}, f"{PATCH}_VH.tif: it cannot be read"),
    ]:
        contents_now = {**dict(good), **bad}
        write_members(path, [(name, content) for name, content in contents_now.items() if content is not None])
        with pytest.raises(PgearthError) as caught:
            load_exported(two, path)
        assert message in str(caught.value)
        assert nothing_loaded(two)
    write_members(path, good)
    assert load_exported(two, path)["patches"] == 1


def test_what_is_no_export(stored: psycopg.Connection, two: psycopg.Connection, tmp_path: Path, dsn: None) -> None:
    with pytest.raises(PgearthError, match="it has no SHA256SUMS"):
        load_exported(two, tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(PgearthError, match="it is no shard of an export"):
        load_exported(two, tmp_path / "a.txt")
    export_patches(tmp_path / "table", Order({}, format="geoparquet"), LOCAL)
    with pytest.raises(PgearthError, match="it holds a table of patches only"):
        load_exported(two, tmp_path / "table")


def test_unpacked_shards(
    stored: psycopg.Connection, two: psycopg.Connection, exported: dict[str, Path], tmp_path: Path, run_pgearth: Run
) -> None:
    for shard in exported["tar.zst"].glob("*.tar.zst"):
        subprocess.run(["tar", "--zstd", "-xf", shard, "-C", tmp_path], check=True)
    result = run_pgearth(two, "load", "export", tmp_path)
    assert result.exit_code == 0, result.exception
    assert result.output.startswith("9 patches, ")
    rows = "select name, label_ids from eo.patch where name like 'S1%%' and source = %s order by name"
    source = ("bigearthnet-v1",)
    assert two.execute(rows, source).fetchall() == stored.execute(rows, source).fetchall()
