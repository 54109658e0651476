"""BigEarthNet archives with pixels: the real samples, bad input made from copies of them, and killed loads."""

from __future__ import annotations

import bz2
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
import rasterio
from click.testing import Result

from loaders.bigearthnet import load_bigearthnet
from loaders.bigearthnet_metadata import load_bigearthnet_metadata
from loaders.errors import InputError
from pyfuncs.rasters import from_wkb

CHECKOUT = Path(__file__).parent.parent.parent
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
    unlinked = "select count(*) from eo.patch where source = 'bigearthnet-v1' and pair_name is not null and pair_id is null"
    assert archive.execute(unlinked).fetchone() == (3,)
    naming_another = """
        select count(*) from eo.patch one join eo.patch other on other.patch_id = one.pair_id
        where one.pair_name <> other.name
    """
    assert archive.execute(naming_another).fetchone() == (0,)


def test_splits_and_flags_from_the_lists(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded

    def names(stem: str) -> set[str]:
        return set(bz2.decompress((sample / "bigearthnet-v1" / "lists" / f"{stem}.csv.bz2").read_bytes()).decode().split())

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
        assert split == ("train" if name in train else "validation" if name in validation else "test" if name in test else None)
        assert (seasonal_snow, cloud_or_shadow) == (name in snow, name in cloud)
    assert {split for _, split, *_ in rows} == {"train", "validation", "test", None}
    assert any(seasonal_snow for _, _, seasonal_snow, _ in rows)


def test_v2_rows_equal_the_catalogue(loaded: tuple[psycopg.Connection, Counter[str]], sample: Path) -> None:
    archive, _ = loaded
    names = dict(archive.execute("select label_id, name from eo.label where scheme = 'ben19'").fetchall())
    table = [row for path in catalogue_files(sample) for row in pq.read_table(path).to_pylist()]
    for folder in patch_folders(sample / "bigearthnet-v2"):
        sentinel_1 = folder.name.startswith("S1")
        (official,) = [row for row in table if row["s1_name" if sentinel_1 else "patch_id"] == folder.name]
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


def test_pixels_join_catalogue_rows_that_are_stored(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    """Rows of bigearthnet-metadata stay as they are, get pixels, and are linked to the Sentinel-1 patches that come."""
    names = {folder.name for folder in patch_folders(sample / "bigearthnet-v2")}
    table = pq.read_table(sample / "bigearthnet-v2" / "metadata.parquet")
    chosen = [patch in names or pair in names for patch, pair in zip(*table.select(["patch_id", "s1_name"]).columns, strict=True)] if False else None
