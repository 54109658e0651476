"""Names, tile origins, footprints and splits of BigEarthNet against official lists and files."""

from __future__ import annotations

import bz2
import csv
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

from pgearth.loaders.datasets.bigearthnet.names import (
    PatchName,
    parse_patch_name,
    patch_bounds,
    split_by_rule,
)
from pgearth.loaders.products.mgrs import square_origin, tile_origin
from pgearth.pyfuncs.errors import PgearthError


@pytest.fixture(scope="module")
def catalogue(sample: Path) -> pa.Table:
    """The official v2 catalogue: 549,488 rows."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((sample / "bigearthnet-v2").glob("*.parquet"))])


@pytest.fixture(scope="module")
def pairs(sample: Path) -> list[tuple[str, str]]:
    """Names of all Sentinel-1 patches of v1, each with that of its Sentinel-2 patch: 590,326."""
    with bz2.open(sample / "bigearthnet-v1" / "lists" / "s1_s2_name_country_season.csv.bz2", "rt") as file:
        return [(row["s1_name"], row["s2_name"]) for row in csv.DictReader(file)]


def test_every_tile_of_the_sentinel2_grid(sample: Path) -> None:
    _, grid = pyogrio.read_arrow(sample / "grid" / "sentinel2_tiling_grid.gpkg", read_geometry=False)
    assert grid.num_rows == 56_686
    columns = [grid[name].to_pylist() for name in ("tile_id", "epsg", "xmin", "ymin")]
    wrong = [tile for tile, *origin in zip(*columns, strict=True) if list(corner(tile)) != origin]
    assert wrong == []


def corner(tile: str) -> tuple[int, int, int]:
    srid, west, north = tile_origin(tile)
    return srid, west, north - 109_800


def test_official_tile_origins(sample: Path) -> None:
    with (sample / "bigearthnet-v2" / "ben_v2_tile_origins.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 54
    for row in rows:
        assert tile_origin(row["mgrs_tile"]) == (int(row["epsg"]), int(row["ulx"]), int(row["uly"])), row


def test_every_v2_name_and_split(catalogue: pa.Table) -> None:
    names, splits = catalogue["patch_id"].to_pylist(), catalogue["split"].to_pylist()
    assert len(names) == 549_488
    parsed = [parse_patch_name(name) for name in names]
    assert [rebuilt(parts) for parts in parsed] == names
    assert [split_by_rule(parts.column, parts.row) for parts in parsed] == splits


def rebuilt(parts: PatchName) -> str:
    time = parts.sensing_time.isoformat(timespec="seconds").translate({ord("-"): "", ord(":"): ""})[:15]
    assert parts.product.startswith(f"S{parts.platform[-2:].upper()}_MSIL2A_{time}_")
    assert parts.product.endswith(f"_T{parts.tile}")
    return f"{parts.product}_{parts.column:02}_{parts.row:02}"


def test_every_v1_name_and_its_pair(pairs: list[tuple[str, str]]) -> None:
    assert len(pairs) == 590_326
    faults = set()
    for sentinel_1_name, sentinel_2_name in pairs:
        sentinel_1, sentinel_2 = parse_patch_name(sentinel_1_name), parse_patch_name(sentinel_2_name)
        assert (sentinel_1.column, sentinel_1.row) == (sentinel_2.column, sentinel_2.row)
        assert sentinel_1.tile is not None
        assert sentinel_2.tile is None
        # Pairs were chosen to lie close in time.
        assert abs((sentinel_1.sensing_time - sentinel_2.sensing_time).days) < 10, (sentinel_1_name, sentinel_2_name)
        faults.add(sentinel_2.faults)
    assert faults == {
        (),
        ("hour without its leading zero",),
        ("hour without its leading zero", "seconds above 59"),
    }


def test_repaired_times_are_near_those_of_v2(catalogue: pa.Table) -> None:
    """v2 gives the datatake's start; v1 counted some seconds on from it."""
    for name, old_name in zip(catalogue["patch_id"].to_pylist(), catalogue["s2v1_name"].to_pylist(), strict=True):
        seconds = (parse_patch_name(old_name).sensing_time - parse_patch_name(name).sensing_time).total_seconds()
        assert -10 < seconds < 10, (name, old_name)


def test_every_official_v1_footprint(sample: Path, pairs: list[tuple[str, str]]) -> None:
    """v1 names hold no tile: the name of the Sentinel-1 patch at the same place does."""
    tiles = {sentinel_2_name: sentinel_1_name.split("_")[5] for sentinel_1_name, sentinel_2_name in pairs}
    checked = 0
    for path in sorted((sample / "bigearthnet-v1" / "footprints").glob("*.parquet")):
        srid = int(path.stem.rpartition("_")[2])
        table = pq.read_table(path)
        bounds = shapely.bounds(shapely.from_wkb(table["geom"].to_numpy()))
        names = table["patch_name"].to_pylist()
        parsed = [parse_patch_name(name) for name in names]
        assert {tile_origin(tiles[name])[0] for name in names} == {srid}
        ours = [patch_bounds(tiles[name], parts.column, parts.row) for name, parts in zip(names, parsed, strict=True)]
        np.testing.assert_array_equal(np.array(ours), bounds)
        assert [parts.sensing_time for parts in parsed] == table["sensing_time"].to_pylist()
        checked += len(names)
    assert checked == 68_062


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("S2B_MSIL2A_20170924T93020_69_24", datetime(2017, 9, 24, 9, 30, 20, tzinfo=UTC)),
        ("S2B_MSIL2A_20180204T94160_57_38", datetime(2018, 2, 4, 9, 42, 0, tzinfo=UTC)),
        ("S2B_MSIL2A_20180204T94161_57_38", datetime(2018, 2, 4, 9, 42, 1, tzinfo=UTC)),
        ("S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48", datetime(2017, 6, 13, 16, 50, 43, tzinfo=UTC)),
    ],
)
def test_times(name: str, time: datetime) -> None:
    assert parse_patch_name(name).sensing_time == time


@pytest.mark.parametrize(
    "name",
    [
        "",
        "S2A_MSIL2A_20170613T101031",
        "S2A_MSIL2A_20170613T101031_87_48_B02",
        "S2A_MSIL2A_20170613T101031_87_91",
        "S2A_MSIL2A_20171313T101031_87_48",
        "S2A_MSIL2A_20170613T251031_87_48",
        "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_6_57",
        "S2A_MSIL1C_20170613T101031_N9999_R022_T33UUP_26_57",
        "S1A_IW_GRDH_1SDV_20170613T165043_87_48",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(PgearthError, match=r"not the name|run from 0 to 90|not a time"):
        parse_patch_name(name)


@pytest.mark.parametrize("tile", ["", "33", "00UUP", "61UUP", "33IUP", "33UIP", "33UUW", "33UAP", "3UUP", "33uup"])
def test_squares_that_are_not_in_the_mgrs_grid(tile: str) -> None:
    with pytest.raises(PgearthError, match="not a tile"):
        square_origin(tile)
