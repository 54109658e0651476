"""The complete official v2 catalogue, loaded once, every row against the official files."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from click.testing import Result

import pgearth.loaders.datasets.bigearthnet.catalogue
from pgearth.loaders.datasets.bigearthnet.catalogue import COUNTRY_CODES, load_bigearthnet_metadata
from pgearth.pyfuncs.errors import PgearthError


@dataclass
class Catalogue:
    """The archive, how it was filled, and the official rows sorted by name."""

    archive: psycopg.Connection
    paths: list[Path]
    counts: dict[str, int]
    official: pa.Table

    def column(self, expression: str) -> list[Any]:
        """Values of one SQL expression over all patches, sorted by name."""
        rows = self.archive.execute(f'select {expression} from eo.patch order by name collate "C"')
        return [value for (value,) in rows]


@pytest.fixture(scope="module")
def catalogue(sample: Path, module_archive: psycopg.Connection) -> Catalogue:
    paths = [
        sample / "bigearthnet-v2" / "metadata.parquet",
        sample / "bigearthnet-v2" / "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
    ]
    counts = load_bigearthnet_metadata(module_archive, paths)
    module_archive.execute("analyze eo.patch")
    official = pa.concat_tables([pq.read_table(path) for path in paths]).sort_by("patch_id")
    return Catalogue(module_archive, paths, counts, official)


def test_all_rows(catalogue: Catalogue) -> None:
    assert catalogue.counts == {"files": 2, "files skipped": 0, "patches": 549_488, "patches skipped": 0}
    ledger = catalogue.archive.execute("select source, state, rows from eo.load order by load_id").fetchall()
    assert ledger == [(str(catalogue.paths[0]), "done", 480_038), (str(catalogue.paths[1]), "done", 69_450)]
    assert catalogue.archive.execute("select distinct source from eo.patch").fetchall() == [("bigearthnet-v2",)]


def test_a_second_load_is_skipped(
    catalogue: Catalogue, run_pgearth: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgearth.loaders.datasets.bigearthnet.catalogue, "write_patches", None)
    result = run_pgearth(catalogue.archive, "load", "bigearthnet-metadata", *catalogue.paths)
    assert result.exit_code == 0, result.output
    assert "0 patches, 549488 patches skipped" in result.output


@pytest.mark.parametrize(
    ("expression", "column"),
    [
        ("name", "patch_id"),
        ("split", "split"),
        ("pair_name", "s1_name"),
        ("metadata->>'v1_name'", "s2v1_name"),
        ("seasonal_snow", "contains_seasonal_snow"),
        ("cloud_or_shadow", "contains_cloud_or_shadow"),
    ],
)
def test_columns(catalogue: Catalogue, expression: str, column: str) -> None:
    assert catalogue.column(expression) == catalogue.official[column].to_pylist()


def test_countries(catalogue: Catalogue) -> None:
    names = {code: name for name, code in COUNTRY_CODES.items()}
    assert [names[code] for code in catalogue.column("source_country")] == catalogue.official["country"].to_pylist()
    differing = "select count(*) from eo.patch where country_codes is distinct from array[source_country]"
    assert catalogue.archive.execute(differing).fetchone() == (0,)


def test_labels(catalogue: Catalogue) -> None:
    names = dict(catalogue.archive.execute("select label_id, name from eo.label where scheme = 'ben19'").fetchall())
    stored = [[names[label_id] for label_id in label_ids] for label_ids in catalogue.column("label_ids")]
    official = catalogue.official["labels"].to_pylist()
    assert all(len(set(labels)) == len(labels) for labels in official)
    assert [sorted(labels) for labels in stored] == [sorted(labels) for labels in official]
    unsorted = "select count(*) from eo.patch where label_ids <> array(select unnest(label_ids) order by 1)::smallint[]"
    assert catalogue.archive.execute(unsorted).fetchone() == (0,)


def test_bounds_are_those_of_the_official_v1_footprints(catalogue: Catalogue, sample: Path) -> None:
    bounds = dict(
        zip(
            catalogue.column("metadata->>'v1_name'"),
            catalogue.column("array[srid, west, south, east, north]"),
            strict=True,
        )
    )
    checked = 0
    for path in sorted((sample / "bigearthnet-v1" / "footprints").glob("*.parquet")):
        srid = int(path.stem.rpartition("_")[2])
        table = pq.read_table(path)
        table = table.filter([name in bounds for name in table["patch_name"].to_pylist()])
        official = shapely.bounds(shapely.from_wkb(table["geom"].to_numpy()))
        stored = np.array([bounds[name] for name in table["patch_name"].to_pylist()])
        assert set(stored[:, 0]) == {srid}
        np.testing.assert_array_equal(stored[:, 1:], official)
        checked += table.num_rows
    assert checked == 66_976  # the other 1,086 patches of v1 are not in v2


def test_footprints_are_the_bounds_in_degrees(catalogue: Catalogue) -> None:
    footprints = shapely.from_wkb(catalogue.column("ST_AsBinary(footprint)"))
    corners = shapely.get_coordinates(footprints).reshape(549_488, 5, 2)[:, :4]
    srid = np.array(catalogue.column("srid"))
    west, south, east, north = np.array(catalogue.column("array[west, south, east, north]")).T
    x, y = np.stack([west, west, east, east], 1), np.stack([south, north, north, south], 1)
    for zone in np.unique(srid):
        here = srid == zone
        transformer = pyproj.Transformer.from_crs(int(zone), 4326, always_xy=True)
        expected = np.stack(transformer.transform(x[here], y[here]), -1)
        np.testing.assert_allclose(corners[here], expected, rtol=0, atol=1e-9)


def test_cells_hold_the_centres(catalogue: Catalogue) -> None:
    outside = catalogue.archive.execute(
        """
        select count(*)
        from eo.patch
        where not ST_Intersects(
            ST_SetSRID(ST_GeomFromGeoHash(cell), 4326),
            ST_Transform(ST_Point((west + east) / 2, (south + north) / 2, srid), 4326)
        )
        """
    )
    assert outside.fetchone() == (0,)


def test_products(catalogue: Catalogue, sample: Path) -> None:
    with (sample / "bigearthnet-v2" / "ben_v2_tiles.csv").open() as file:
        official = {row["tile"]: int(row["n_patches"]) for row in csv.DictReader(file)}
    stored = catalogue.archive.execute(
        """
        select p.name, count(*), p.platform, p.level, p.mgrs_tile,
               to_char(p.sensing_time at time zone 'UTC', 'YYYYMMDD"T"HH24MISS')
        from eo.product p
        join eo.patch using (product_id)
        where eo.patch.name like p.name || '%' and eo.patch.sensing_time = p.sensing_time
        group by p.product_id
        """
    ).fetchall()
    assert {name: number for name, number, *_ in stored} == official
    for name, _, platform, level, tile, time in stored:
        satellite, _, name_time, _, _, name_tile = name.split("_")
        assert (platform, level) == (f"sentinel-{satellite[1:].lower()}", "L2A")
        assert (f"T{tile}", time) == (name_tile, name_time)


# Bad input

GOOD_ROW = {
    "patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57",
    "labels": ["Arable land", "Pastures"],
    "split": "test",
    "country": "Austria",
    "s1_name": "S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57",
    "s2v1_name": "S2A_MSIL2A_20170613T101031_26_57",
    "contains_seasonal_snow": False,
    "contains_cloud_or_shadow": False,
}


def write_rows(path: Path, changes: dict[str, Any], row: int = 25) -> Path:
    """A catalogue of 30 patches whose row `row` (from 1) is changed."""
    rows = [{**GOOD_ROW, "patch_id": f"{GOOD_ROW['patch_id'][:-5]}26_{number:02}"} for number in range(30)]
    rows[row - 1].update(changes)
    pq.write_table(pa.Table.from_pylist(rows, schema=pgearth.loaders.datasets.bigearthnet.catalogue.SCHEMA), path)
    return path


def is_empty(archive: psycopg.Connection) -> bool:
    return archive.execute("select exists (table eo.patch), exists (table eo.product)").fetchone() == (False, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_id": "S2A_MSIL2A_20170613T101031_26_57"}, "is the name of a patch of BigEarthNet v1"),
        ({"patch_id": GOOD_ROW["s1_name"]}, "is not the name of a Sentinel-2 patch"),
        ({"patch_id": "S2A_26_57"}, "'S2A_26_57' is not the name of a BigEarthNet patch"),
        ({"patch_id": GOOD_ROW["patch_id"].replace("T33UUP", "T33UAP")}, "'33UAP' is not a tile of the MGRS grid"),
        ({"patch_id": GOOD_ROW["patch_id"].replace("_57", "_99")}, "columns and rows of a tile run from 0 to 90"),
        ({"labels": ["Arable land", "Arabel land"]}, "'Arabel land' is no label"),
        ({"labels": []}, "no labels"),
        ({"country": "Atlantis"}, "unknown country 'Atlantis'"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"country": None}, "country is empty"),
    ],
)
def test_a_bad_row_stores_nothing(
    archive: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(pgearth.loaders.datasets.bigearthnet.catalogue, "ROWS_PER_BATCH", 10)
    path = write_rows(tmp_path / "metadata.parquet", changes)
    with pytest.raises(PgearthError) as error:
        load_bigearthnet_metadata(archive, [path])
    assert str(error.value).startswith(f"{path}, row 25: ")
    assert message in str(error.value)
    assert is_empty(archive)
    assert archive.execute("select state, rows from eo.load").fetchall() == [("failed", 0)]
    # Put right under the same name, it loads.
    write_rows(path, {})
    assert load_bigearthnet_metadata(archive, [path])["patches"] == 30


@pytest.mark.parametrize("column", sorted(GOOD_ROW))
def test_missing_columns(archive: psycopg.Connection, tmp_path: Path, column: str) -> None:
    path = write_rows(tmp_path / "metadata.parquet", {})
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    with pytest.raises(PgearthError, match=f"metadata.parquet: no column {column}; it has"):
        load_bigearthnet_metadata(archive, [path])
    assert is_empty(archive)


def test_files_that_are_no_catalogue(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    whole = (sample / "bigearthnet-v2" / "metadata.parquet").read_bytes()
    damaged = bytearray(whole)
    damaged[1000:3000] = bytes(2000)
    contents = {
        "text.parquet": b"patch_id,labels\n",
        "empty.parquet": b"",
        "truncated.parquet": whole[: len(whole) // 2],
        "damaged.parquet": bytes(damaged),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PgearthError, match=f"{name}: (not a readable parquet file|it cannot be read)"):
            load_bigearthnet_metadata(archive, [tmp_path / name])
    wrong_type = tmp_path / "type.parquet"
    pq.write_table(pa.Table.from_pylist([{**GOOD_ROW, "labels": "Pastures"}]), wrong_type)
    with pytest.raises(PgearthError, match=r"type\.parquet: it cannot be read"):
        load_bigearthnet_metadata(archive, [wrong_type])
    assert is_empty(archive)


def test_patches_in_two_files_are_counted_once(archive: psycopg.Connection, tmp_path: Path) -> None:
    first = write_rows(tmp_path / "first.parquet", {})
    second = write_rows(tmp_path / "second.parquet", {"patch_id": GOOD_ROW["patch_id"]})
    counts = load_bigearthnet_metadata(archive, [first, second, first])
    assert counts == {"files": 2, "files skipped": 1, "patches": 31, "patches skipped": 29 + 30}
    assert archive.execute("select count(*) from eo.patch").fetchone() == (31,)


def test_a_file_with_other_contents_under_a_loaded_name(archive: psycopg.Connection, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "metadata.parquet", {})
    load_bigearthnet_metadata(archive, [path])
    write_rows(path, {"country": "Finland"})
    with pytest.raises(PgearthError, match="loaded before, with other contents"):
        load_bigearthnet_metadata(archive, [path])
