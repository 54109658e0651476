"""BigEarthNet archives with pixels: the real samples, bad input made from copies of them, and killed loads."""

from __future__ import annotations

import bz2
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import rasterio
from click.testing import Result

from pgearth.loaders.datasets.bigearthnet.catalogue import load_bigearthnet_metadata
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import from_wkb
from tests.conftest import CHECKOUT
from tests.waiting import wait_for

RESOLUTIONS = {
    **dict.fromkeys(("B02", "B03", "B04", "B08", "VV", "VH"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09"), 60),
}


@pytest.fixture(scope="module")
def loaded(sample: Path, module_archive: psycopg.Connection) -> tuple[psycopg.Connection, Counter[str]]:
    """An archive with the v1 sample (all lists) and, from the catalogue files, the v2 sample; and the counts of v1."""
    counts = load_bigearthnet(module_archive, sample / "bigearthnet-v1", lists=sample / "bigearthnet-v1" / "lists")
    load_bigearthnet(module_archive, sample / "bigearthnet-v2", metadata=catalogue_files(sample))
    return module_archive, counts


def catalogue_files(sample: Path) -> list[Path]:
    return sorted((sample / "bigearthnet-v2").glob("metadata*.parquet"))


def patch_folders(root: Path) -> list[Path]:
    return sorted({path.parent for path in root.rglob("*.tif") if "Reference_Maps" not in path.parts})


def test_counts_and_reported_faults(loaded: tuple[psycopg.Connection, Counter[str]]) -> None:
    archive, counts = loaded
    assert counts == {
        "products": 15,
        "patches": 20,
        "lly for lry": 9,
        "acquisition_time for acquisition_date": 9,
        "hour without its leading zero": 4,
        "seconds above 59": 1,
    }
    stored = archive.execute("select source, left(name, 2), count(*) from eo.patch group by 1, 2 order by 1, 2")
    assert stored.fetchall() == [
        ("bigearthnet-v1", "S1", 9),
        ("bigearthnet-v1", "S2", 11),
        ("bigearthnet-v2", "S1", 1),
        ("bigearthnet-v2", "S2", 1),
    ]
    ledger = archive.execute("select state, count(*), sum(rows) from eo.load group by 1").fetchall()
    assert ledger == [("done", 17, 22)]


def test_pixels_equal_the_files(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded
    folders = patch_folders(sample / "bigearthnet-v1") + patch_folders(sample / "bigearthnet-v2")
    assert len(folders) == 22
    checked = 0
    for folder in folders:
        source = "bigearthnet-v1" if "bigearthnet-v1" in folder.parts else "bigearthnet-v2"
        stored = archive.execute(
            """
            select r.resolution, r.bands, r.rast, ST_AsWKB(r.rast), ST_SRID(r.rast),
                   array(select ST_DumpValues(r.rast, n, false) from generate_series(1, ST_NumBands(r.rast)) n),
                   array(select ST_BandNoDataValue(r.rast, n) from generate_series(1, ST_NumBands(r.rast)) n)
            from eo.patch p
            join eo.patch_raster r using (patch_id, cell)
            where p.name = %s and p.source = %s
            """,
            (folder.name, source),
        ).fetchall()
        sentinel_1 = folder.name.startswith("S1")
        assert sorted(row[0] for row in stored) == ([10] if sentinel_1 else [10, 20, 60])
        for resolution, bands, _, wkb, srid, values, nodata in stored:
            ours = from_wkb(wkb)
            for number, band in enumerate(bands):
                assert RESOLUTIONS[band] == resolution
                with rasterio.open(folder / f"{folder.name}_{band}.tif") as dataset:
                    pixels = dataset.read(1)
                    assert srid == dataset.crs.to_epsg()
                    transform = dataset.transform
                    assert ours.transform == (transform.a, transform.e, transform.c, transform.f, 0, 0)
                assert ours.bands[number].dtype == pixels.dtype
                np.testing.assert_array_equal(ours.bands[number], pixels)
                np.testing.assert_array_equal(np.array(values[number]).astype(pixels.dtype), pixels)
                assert nodata[number] == (None if sentinel_1 else 0)
                checked += 1
    assert checked == 12 * 12 + 10 * 2


def test_v1_rows_equal_the_json_files(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded
    spellings = dict(
        archive.execute("select spelling, label_id from eo.label_spelling where scheme = 'ben43'").fetchall()
    )
    for path in (sample / "bigearthnet-v1").rglob("*_labels_metadata.json"):
        record = json.loads(path.read_text())
        row = archive.execute(
            """
            select p.sensing_time, p.west, p.south, p.east, p.north, p.label_ids, p.platform, product.name,
                   product.level, product.mgrs_tile, parent.name, parent.level, p.tile_column, p.tile_row
            from eo.patch p
            join eo.product using (product_id)
            left join eo.product parent on parent.product_id = product.derived_from
            where p.name = %s and p.source = 'bigearthnet-v1'
            """,
            (path.parent.name,),
        ).fetchone()
        assert row is not None
        corners = record["coordinates"]
        said = record.get("acquisition_date") or record["acquisition_time"]
        assert row[0] == datetime.fromisoformat(said).replace(tzinfo=UTC)
        assert row[1:5] == (corners["ulx"], corners.get("lry") or corners["lly"], corners["lrx"], corners["uly"])
        assert row[5] == sorted(spellings[label] for label in record["labels"])
        satellite, *_, column, number = path.parent.name.split("_")
        assert row[6] == f"sentinel-{satellite[1:].lower()}"
        if satellite.startswith("S2"):
            level_1c = record["tile_source"].removesuffix(".SAFE")
            tile = level_1c.split("_T")[1][:5]
            assert row[7:12] == (level_1c.replace("MSIL1C", "MSIL2A"), "L2A", tile, level_1c, "L1C")
        else:
            assert row[7:12] == (record["scene_source"], "GRD", None, None, None)
        assert row[12:] == (int(column), int(number))


def test_the_json_is_the_truth_for_impossible_times(loaded: tuple[psycopg.Connection, Counter[str]]) -> None:
    archive, _ = loaded
    found = archive.execute("select sensing_time from eo.patch where name = 'S2B_MSIL2A_20180204T94161_57_38'")
    assert found.fetchone() == (datetime(2018, 2, 4, 9, 41, 56, tzinfo=UTC),)


def test_pairs(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded
    linked = archive.execute(
        """
        select one.name, other.name
        from eo.patch one
        join eo.patch other on other.patch_id = one.pair_id and other.cell = one.cell
        where one.source = 'bigearthnet-v1' and other.source = 'bigearthnet-v1'
        """
    ).fetchall()
    expected = set()
    present = {folder.name for folder in patch_folders(sample / "bigearthnet-v1" / "S2")}
    for path in (sample / "bigearthnet-v1" / "S1").rglob("*.json"):
        pair = json.loads(path.read_text())["corresponding_s2_patch"]
        if pair in present:
            expected |= {(path.parent.name, pair), (pair, path.parent.name)}
    assert len(expected) == 12
    assert set(linked) == expected
    unlinked = (
        "select count(*) from eo.patch where source = 'bigearthnet-v1' and pair_name is not null and pair_id is null"
    )
    assert archive.execute(unlinked).fetchone() == (3,)
    naming_another = """
        select count(*) from eo.patch one join eo.patch other on other.patch_id = one.pair_id
        where one.pair_name <> other.name
    """
    assert archive.execute(naming_another).fetchone() == (0,)


def test_splits_and_flags_from_the_lists(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded

    def names(stem: str) -> set[str]:
        return set(
            bz2.decompress((sample / "bigearthnet-v1" / "lists" / f"{stem}.csv.bz2").read_bytes()).decode().split()
        )

    train, validation, test = names("train"), names("val"), names("test")
    snow, cloud = names("patches_with_seasonal_snow"), names("patches_with_cloud_and_shadow")
    rows = archive.execute(
        """
        select case when platform like 'sentinel-2%' then name else pair_name end, split, seasonal_snow, cloud_or_shadow
        from eo.patch
        where source = 'bigearthnet-v1'
        """
    ).fetchall()
    assert len(rows) == 20
    for name, split, seasonal_snow, cloud_or_shadow in rows:
        assert split == (
            "train" if name in train else "validation" if name in validation else "test" if name in test else None
        )
        assert (seasonal_snow, cloud_or_shadow) == (name in snow, name in cloud)
    assert {split for _, split, *_ in rows} == {"train", "validation", "test", None}
    assert any(seasonal_snow for _, _, seasonal_snow, _ in rows)


def test_v2_rows_equal_the_catalogue(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded
    names = dict(archive.execute("select label_id, name from eo.label where scheme = 'ben19'").fetchall())
    table = pa.concat_tables([pq.read_table(path) for path in catalogue_files(sample)])
    for folder in patch_folders(sample / "bigearthnet-v2"):
        sentinel_1 = folder.name.startswith("S1")
        column = table["s1_name" if sentinel_1 else "patch_id"]
        (official,) = table.filter(pc.equal(column, folder.name)).to_pylist()
        row = archive.execute(
            """
            select label_ids, split, seasonal_snow, cloud_or_shadow, pair_name, product.name, product.level
            from eo.patch join eo.product using (product_id)
            where eo.patch.name = %s and source = 'bigearthnet-v2'
            """,
            (folder.name,),
        ).fetchone()
        assert row is not None
        assert sorted(names[label_id] for label_id in row[0]) == sorted(official["labels"])
        assert row[1:4] == (
            official["split"],
            official["contains_seasonal_snow"],
            official["contains_cloud_or_shadow"],
        )
        assert row[4] == official["patch_id" if sentinel_1 else "s1_name"]
        assert row[5:] == (folder.parent.name, "GRD" if sentinel_1 else "L2A")


def write_catalogue_of_the_sample(sample: Path, path: Path) -> Path:
    """The two rows of the official catalogue that describe the v2 sample, by their own or their pair's name."""
    names = [folder.name for folder in patch_folders(sample / "bigearthnet-v2")]
    table = pq.read_table(sample / "bigearthnet-v2" / "metadata.parquet")
    table = table.filter(
        pc.or_(pc.is_in(table["patch_id"], pa.array(names)), pc.is_in(table["s1_name"], pa.array(names)))
    )
    assert table.num_rows == 2
    pq.write_table(table, path)
    return path


def test_pixels_join_catalogue_rows_that_are_stored(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    load_bigearthnet_metadata(archive, [write_catalogue_of_the_sample(sample, tmp_path / "metadata.parquet")])
    before = archive.execute("select patch_id, name, label_ids, metadata from eo.patch order by 1").fetchall()
    counts = load_bigearthnet(archive, sample / "bigearthnet-v2")
    assert counts == {"products": 2, "patches": 2, "patches already stored": 1, "reference maps ignored": 1}
    after = archive.execute(
        "select patch_id, name, label_ids, metadata from eo.patch where platform like 'sentinel-2%' order by 1"
    ).fetchall()
    assert after == before
    linked = archive.execute(
        """
        select one.name, other.name, one.label_ids = other.label_ids and one.split = other.split
        from eo.patch one
        join eo.patch other on other.patch_id = one.pair_id
        order by 1
        """
    ).fetchall()
    sentinel_1 = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_70_48"
    sentinel_2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_70_48"
    assert linked == [(sentinel_1, sentinel_2, True), (sentinel_2, sentinel_1, True)]
    with_pixels = archive.execute(
        "select distinct name from eo.patch join eo.patch_raster using (patch_id, cell)"
    ).fetchall()
    assert {name for (name,) in with_pixels} == {folder.name for folder in patch_folders(sample / "bigearthnet-v2")}


def test_pixels_before_the_catalogue(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    """The other order, with the catalogue files given: the catalogue then links the pair that it brings."""
    path = write_catalogue_of_the_sample(sample, tmp_path / "metadata.parquet")
    assert load_bigearthnet(archive, sample / "bigearthnet-v2", metadata=[path])["patches"] == 2
    assert archive.execute("select count(pair_id) from eo.patch").fetchone() == (0,)
    load_bigearthnet_metadata(archive, [path])
    assert archive.execute("select count(*), count(pair_id) from eo.patch").fetchone() == (3, 2)


@pytest.mark.parametrize(("folder", "patches"), [("S1", 9), ("S2", 11)])
def test_the_folder_of_one_sensor(
    archive: psycopg.Connection, sample: Path, run_pgearth: Callable[..., Result], folder: str, patches: int
) -> None:
    result = run_pgearth(archive, "load", "bigearthnet", sample / "bigearthnet-v1" / folder)
    assert result.exit_code == 0, result.output
    assert f"{patches} patches" in result.output
    without_lists = "select distinct split, seasonal_snow, cloud_or_shadow from eo.patch"
    assert archive.execute(without_lists).fetchall() == [(None, None, None)]


def test_sensors_one_after_the_other_are_linked(archive: psycopg.Connection, sample: Path) -> None:
    for folder in ("S1", "S2"):
        load_bigearthnet(archive, sample / "bigearthnet-v1" / folder)
    assert archive.execute("select count(pair_id) from eo.patch").fetchone() == (12,)


def test_a_second_load_is_skipped(
    loaded: tuple[psycopg.Connection, Counter[str]], sample: Path, run_pgearth: Callable[..., Result]
) -> None:
    archive, _ = loaded
    before = contents(archive)
    result = run_pgearth(archive, "load", "bigearthnet", sample / "bigearthnet-v1")
    assert result.exit_code == 0, result.output
    assert "15 products skipped, 20 patches skipped" in result.output
    assert contents(archive) == before


# Bad input

SENTINEL_2 = "S2A_MSIL2A_20170617T113321_4_55"
SENTINEL_1 = "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55"
OTHER_PRODUCT = "S2A_MSIL2A_20170613T101031_87_48"
SAME_PRODUCT = "S2A_MSIL2A_20170617T113321_36_85"


def copy_patch(source: Path, target: Path) -> Path:
    """Copy a patch folder of the (read-only) sample into `target`."""
    folder = target / source.name
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def rewrite(path: Path, pixels: np.ndarray | None = None, **changes: Any) -> None:
    """Write a GeoTIFF again with other pixels or another profile."""
    with rasterio.open(path) as dataset:
        profile, old = dataset.profile, dataset.read(1)
    pixels = old if pixels is None else pixels
    height, width = pixels.shape
    path.unlink()
    profile |= {"height": height, "width": width, "dtype": pixels.dtype.name, **changes}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels, 1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shift(path: Path) -> None:
    with rasterio.open(path) as dataset:
        transform = dataset.transform @ rasterio.Affine.translation(1, 0)
    rewrite(path, transform=transform)


def edit_json(**changes: Any) -> Callable[[Path], None]:
    """Change the JSON file; None removes a field."""

    def edit(path: Path) -> None:
        record = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))

    return edit


def move_bounds(path: Path) -> None:
    record = json.loads(path.read_text())
    record["coordinates"]["ulx"] += 60
    record["coordinates"]["lrx"] += 60
    path.write_text(json.dumps(record))


JSON = "labels_metadata.json"
BAD_PATCHES = {
    "missing band": ("B05.tif", Path.unlink, "this band is missing"),
    "truncated": ("B02.tif", truncate, "it cannot be read"),
    "text": ("B8A.tif", lambda path: path.write_text("not an image"), "it cannot be read"),
    "empty": ("B09.tif", lambda path: path.write_bytes(b""), "it cannot be read"),
    "folder": ("B09.tif", lambda path: (path.unlink(), path.mkdir()), "this band is missing"),
    "wrong CRS": (
        "B03.tif",
        lambda path: rewrite(path, crs="EPSG:32630"),
        "it is in EPSG:32630, the patch in EPSG:32629",
    ),
    "no CRS": ("B04.tif", lambda path: rewrite(path, crs=None), "it has no coordinate reference system"),
    "odd CRS": (
        "B04.tif",
        lambda path: rewrite(path, crs="+proj=laea +lat_0=12 +lon_0=3"),
        "its coordinate reference system has no EPSG code",
    ),
    "another place": ("B11.tif", shift, "its bounds are"),
    "wrong size": ("B08.tif", lambda path: rewrite(path, np.ones((60, 60), "uint16")), "60 x 60 pixels"),
    "wrong type": ("B08.tif", lambda path: rewrite(path, np.ones((120, 120), "float32")), "float32"),
    "no JSON": (JSON, Path.unlink, "the labels of the patch are missing"),
    "broken JSON": (JSON, truncate, "it cannot be read"),
    "JSON list": (JSON, lambda path: path.write_text("[1]"), "it cannot be read"),
    "no labels": (JSON, edit_json(labels=None), "it has no 'labels'"),
    "unknown label": (JSON, edit_json(labels=["Pastures", "Pasturs"]), "'Pasturs' is no label"),
    "no time": (JSON, edit_json(acquisition_date=None), "it has no 'acquisition_time'"),
    "wrong time": (JSON, edit_json(acquisition_date="2017-06-31"), "it cannot be read"),
    "wrong product": (JSON, edit_json(tile_source="S2A"), "is not a product's name"),
    "wrong projection": (JSON, edit_json(projection="nowhere"), "it cannot be read"),
    "other bounds": (JSON, move_bounds, "its bounds are"),
}


@pytest.mark.parametrize("case", BAD_PATCHES)
def test_a_bad_patch_stores_nothing_of_its_product(
    archive: psycopg.Connection, sample: Path, tmp_path: Path, case: str
) -> None:
    file, spoil, message = BAD_PATCHES[case]
    for name in (OTHER_PRODUCT, SAME_PRODUCT, SENTINEL_2):
        copy_patch(sample / "bigearthnet-v1" / "S2" / name, tmp_path)
    path = tmp_path / SENTINEL_2 / f"{SENTINEL_2}_{file}"
    whole = path.read_bytes()
    spoil(path)
    with pytest.raises(PgearthError) as error:
        load_bigearthnet(archive, tmp_path)
    assert message in str(error.value)
    named = path if case not in ("other bounds", "unknown label") else path.parent
    assert str(named) in str(error.value)
    assert archive.execute("select name from eo.patch").fetchall() == [(OTHER_PRODUCT,)]
    assert archive.execute("select count(*) from eo.patch_raster").fetchone() == (3,)
    assert archive.execute("select count(*) from eo.product where mgrs_tile = '29UPU'").fetchone() == (0,)
    # Put right, the load goes on where it stopped.
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)
    counts = load_bigearthnet(archive, tmp_path)
    assert (counts["patches skipped"], counts["patches"]) == (1, 2)
    assert archive.execute("select count(*) from eo.patch_raster").fetchone() == (9,)


def test_a_bad_sentinel_1_patch(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    folder = copy_patch(sample / "bigearthnet-v1" / "S1" / SENTINEL_1, tmp_path)
    vh = folder / f"{SENTINEL_1}_VH.tif"
    vh.unlink()
    with pytest.raises(PgearthError, match=f"{SENTINEL_1}_VH.tif: this band is missing"):
        load_bigearthnet(archive, tmp_path)
    assert archive.execute("select exists (table eo.patch)").fetchone() == (False,)


def test_a_v2_patch_at_another_place(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    (source,) = [folder for folder in patch_folders(sample / "bigearthnet-v2") if folder.name.startswith("S2")]
    folder = copy_patch(source, tmp_path / source.parent.name)
    for path in folder.iterdir():
        shift(path)
    with pytest.raises(PgearthError, match="its bounds are"):
        load_bigearthnet(archive, tmp_path, metadata=[write_catalogue_of_the_sample(sample, tmp_path / "some.parquet")])
    assert archive.execute("select exists (table eo.patch)").fetchone() == (False,)


def test_v2_patches_that_the_catalogue_lacks(archive: psycopg.Connection, sample: Path) -> None:
    with pytest.raises(PgearthError, match="the catalogue has no such patch") as error:
        load_bigearthnet(archive, sample / "bigearthnet-v2")
    assert "bigearthnet-metadata" in error.value.hint
    assert archive.execute("select exists (table eo.patch), exists (table eo.product)").fetchone() == (False, False)


def test_a_v2_nodata_tag_is_kept(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    (source,) = [folder for folder in patch_folders(sample / "bigearthnet-v2") if folder.name.startswith("S2")]
    folder = copy_patch(source, tmp_path / source.parent.name)
    rewrite(folder / f"{folder.name}_B09.tif", nodata=65535)
    load_bigearthnet(archive, tmp_path, metadata=[write_catalogue_of_the_sample(sample, tmp_path / "some.parquet")])
    found = archive.execute(
        "select ST_BandNoDataValue(rast, 1), ST_BandNoDataValue(rast, 2) from eo.patch_raster where resolution = 60"
    )
    assert found.fetchone() == (0, 65535)


def test_folders_without_patches(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    with pytest.raises(PgearthError, match="no BigEarthNet patches found"):
        load_bigearthnet(archive, tmp_path)
    copy_patch(sample / "bigearthnet-v1" / "S2" / SENTINEL_2, tmp_path).rename(
        tmp_path / "S2A_MSIL2A_20170617T113321_4"
    )
    with pytest.raises(PgearthError, match="S2A_MSIL2A_20170617T113321_4: it holds bands, but its name"):
        load_bigearthnet(archive, tmp_path)


def test_bad_lists(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    root = copy_patch(sample / "bigearthnet-v1" / "S2" / OTHER_PRODUCT, tmp_path / "archive").parent
    lists = tmp_path / "lists"
    lists.mkdir()
    with pytest.raises(PgearthError, match=r"no train.csv.bz2 or train.csv"):
        load_bigearthnet(archive, root, lists=lists)
    for stem in ("train", "val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow"):
        (lists / f"{stem}.csv").write_text(f"{SENTINEL_2}\n")
    (lists / "val.csv").write_text(f"{OTHER_PRODUCT}\nname,split\n")
    with pytest.raises(PgearthError, match=r"val.csv, row 2: 'name,split' is not the name"):
        load_bigearthnet(archive, root, lists=lists)
    (lists / "val.csv").write_text(f"{OTHER_PRODUCT}\n")
    (lists / "test.csv.bz2").write_bytes(b"not compressed")
    with pytest.raises(PgearthError, match=r"test.csv.bz2: it cannot be read"):
        load_bigearthnet(archive, root, lists=lists)
    (lists / "test.csv.bz2").unlink()
    load_bigearthnet(archive, root, lists=lists)
    assert archive.execute("select split, seasonal_snow, cloud_or_shadow from eo.patch").fetchall() == [
        ("validation", False, False)
    ]


def test_the_same_patches_from_another_folder(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    folder = sample / "bigearthnet-v1" / "S2" / OTHER_PRODUCT
    for place in ("one", "two"):
        copy_patch(folder, tmp_path / place)
    load_bigearthnet(archive, tmp_path / "one")
    counts = load_bigearthnet(archive, tmp_path / "two")
    assert (counts["patches"], counts["patches already stored"]) == (1, 1)
    assert archive.execute("select count(*) from eo.patch").fetchone() == (1,)
    assert archive.execute("select count(*) from eo.patch_raster").fetchone() == (3,)


# Killed loads


def contents(archive: psycopg.Connection) -> list[list[tuple[Any, ...]]]:
    """What a load of v1 leaves behind, without keys, clock times and what the lists add."""
    queries = [
        """
        select to_jsonb(p) - array['patch_id', 'product_id', 'pair_id', 'split', 'seasonal_snow', 'cloud_or_shadow'],
               product.name, pair.name
        from eo.patch p
        join eo.product using (product_id)
        left join eo.patch pair on pair.patch_id = p.pair_id
        where p.source = 'bigearthnet-v1'
        order by p.name
        """,
        """
        select p.name, r.resolution, r.cell, r.bands, md5(ST_AsBinary(r.rast))
        from eo.patch_raster r
        join eo.patch p using (patch_id, cell)
        where p.source = 'bigearthnet-v1'
        order by 1, 2
        """,
        """
        select to_jsonb(p) - array['product_id', 'derived_from'], parent.name
        from eo.product p
        left join eo.product parent on parent.product_id = p.derived_from
        where p.level = 'L1C' or p.source_path like '%/bigearthnet-v1/%'
        order by p.name
        """,
        """
        select loader, source, checksum, state, rows, details, error
        from eo.load
        where source like '%/bigearthnet-v1/%'
        order by source
        """,
    ]
    return [archive.execute(query).fetchall() for query in queries]


def start_load(archive: psycopg.Connection, root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from pgearth.cli import main; main()", "load", "bigearthnet", root],
        env={**os.environ, "PGEARTH_DSN": archive.info.dsn},
        cwd=CHECKOUT,
        stderr=subprocess.DEVNULL,
    )


def wait_until(archive: psycopg.Connection, condition: str) -> None:
    """Wait until `condition` holds for some other client session of this database."""
    query = f"""
        select 1 from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and {condition}
    """
    wait_for(lambda: archive.execute(query).fetchone())


@contextmanager
def killed_load(archive: psycopg.Connection, root: Path, lock: str) -> Iterator[None]:
    """Start a load, kill it where it waits for what `lock` holds, look at the archive (the body), release the lock."""
    with psycopg.connect(archive.info.dsn) as blocker:
        blocker.execute(lock)
        load = start_load(archive, root)
        wait_until(archive, "wait_event_type = 'Lock'")
        load.send_signal(signal.SIGKILL)
        load.wait()
        yield
        blocker.rollback()
    sessions = "select count(*) from pg_stat_activity where datname = current_database()"
    wait_for(lambda: archive.execute(sessions).fetchone() == (1,))


INSIDE_A_TRANSACTION = "lock table eo.patch_raster in share mode"
BETWEEN_TRANSACTIONS = """
    insert into eo.load (loader, source, checksum, state)
    values ('bigearthnet', '{root}/S2/S2A_MSIL2A_20171221T112501_N0206_R037_T29SND_20171221T114356', '', 'running')
"""


def test_killed_loads_end_in_the_same_rows(
    archive: psycopg.Connection, loaded: tuple[psycopg.Connection, Counter[str]], sample: Path
) -> None:
    root = sample / "bigearthnet-v1"
    with killed_load(archive, root, INSIDE_A_TRANSACTION):
        assert archive.execute("select state from eo.load").fetchall() == [("running",)]
        assert archive.execute("select exists (select from eo.patch)").fetchone() == (False,)
    with killed_load(archive, root, BETWEEN_TRANSACTIONS.format(root=root)):
        done = "select count(*) from eo.load where state = 'done'"
        assert archive.execute(done).fetchone() == (7,)
        assert archive.execute("select count(*) from eo.patch").fetchone() == (12,)
    with killed_load(archive, root, INSIDE_A_TRANSACTION):
        assert archive.execute(done).fetchone() == (7,)
        assert archive.execute("select count(*) from eo.patch").fetchone() == (12,)
    load = start_load(archive, root)
    assert load.wait() == 0
    assert contents(archive) == contents(loaded[0])
