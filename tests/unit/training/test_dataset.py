"""Training data against the same patches read one by one through SQL, over numbers of workers, ranks and epochs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import torch
import torch.multiprocessing
from psycopg import errors
from torch import distributed
from torch.utils.data import DataLoader

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.pyfuncs import queries
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.training.dataset import ArchiveDataset
from tests.waiting import wait_for

BANDS = ("B04", "B8A", "B02", "B01")
SOURCES = {"sources": ["synthetic"]}
PATCHES = 70
LABELS = """
with infrared as (
    select patch_id, (ST_SummaryStats(rast, array_position(bands, 'B8A'))).mean from eo.patch_raster where 'B8A' = any (bands)
)
update eo.patch p
set label_ids = array[case when i.mean < (select percentile_cont(0.4) within group (order by mean) from infrared) then 312 else 211 end,
                      (array[411, 412, 512])[1 + p.patch_id % 3]]
from infrared i
where i.patch_id = p.patch_id
"""
"""CORINE classes: the darkest patches are coniferous forest, the others arable land; and a water or a wetland."""


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """70 synthetic patches with labels and pixels, and the real ones of BigEarthNet v1 (11 of Sentinel-2, 9 of Sentinel-1)."""
    load_synthetic(module_archive, PATCHES)
    module_archive.execute(LABELS)
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    module_archive.execute("analyze")
    return module_archive


def store_tiny(archive: psycopg.Connection, first: int, last: int) -> None:
    """Patches of 4 x 4 pixels, all of which have the patch's number, in bands B01 and B02; without labels."""
    archive.execute(
        "insert into eo.product (product_id, name, platform, level, sensing_time)"
        " values (1, 'p', 'sentinel-2a', 'L2A', now()) on conflict do nothing"
    )
    archive.execute(
        """
        insert into eo.patch (patch_id, cell, name, source, product_id, platform, sensing_time, footprint, srid,
                              west, south, east, north)
        select n, 'u1j2k', n::text, 'tiny', 1, 'sentinel-2a', now(), ST_Multi(ST_MakeEnvelope(7, 51, 7.1, 51.1, 4326)), 32632,
               0, 0, 40, 40
        from generate_series(%(first)s::integer, %(last)s) n
        """,
        {"first": first, "last": last},
    )
    archive.execute(
        """
        insert into eo.patch_raster (patch_id, resolution, cell, bands, rast)
        select n, 10, 'u1j2k', '{B01,B02}', ST_AddBand(ST_MakeEmptyRaster(4, 4, 0, 40, 10, -10, 0, 0, 32632),
               array[row (null, '16BUI', n, null), row (null, '16BUI', n, null)]::addbandarg[])
        from generate_series(%(first)s::integer, %(last)s) n
        """,
        {"first": first, "last": last},
    )


@pytest.fixture
def dataset(filled: psycopg.Connection) -> Callable[..., ArchiveDataset]:
    """Call `dataset(...)`: of the synthetic patches unless it says otherwise."""

    def make(bands: tuple[str, ...] = BANDS, **arguments: Any) -> ArchiveDataset:
        return ArchiveDataset(filled.info.dsn, bands, **{**SOURCES, **arguments})

    return make


def ids_of(samples: Iterator[Any] | DataLoader | ArchiveDataset) -> list[int]:
    return [int(number) for sample in samples for number in np.atleast_1d(sample["patch_id"])]


def stored_ids(archive: psycopg.Connection, condition: str = "source = 'synthetic'") -> list[int]:
    return [
        number for (number,) in archive.execute(f"select patch_id from eo.patch where {condition} order by 1".encode())
    ]


def pixels_by_sql(archive: psycopg.Connection, patch_id: int, band: str) -> np.ndarray:
    """The band as PostGIS itself lists its values."""
    row = archive.execute(
        "select ST_DumpValues(rast, array_position(bands, %(band)s)) from eo.patch_raster"
        " where patch_id = %(patch_id)s and %(band)s = any (bands)",
        {"band": band, "patch_id": patch_id},
    ).fetchone()
    assert row is not None
    return np.array(row[0], np.float32)


def test_samples_are_what_sql_gives(filled: psycopg.Connection, dataset: Callable[..., ArchiveDataset]) -> None:
    data = dataset(scheme="ben19")
    samples = list(data)
    assert ids_of(samples) == stored_ids(filled)
    assert len(data) == PATCHES
    for sample in samples[::9]:
        assert sample["image"].dtype == torch.float32
        assert sample["image"].shape == (4, 120, 120)
        for band, image in zip(BANDS, sample["image"], strict=True):
            expected = pixels_by_sql(filled, int(sample["patch_id"]), band)
            factor = 120 // len(expected)
            assert (image.numpy() == np.kron(expected, np.ones((factor, factor)))).all()


@pytest.mark.parametrize(
    ("scheme", "level", "classes"), [("ben19", None, 19), ("clc", 1, 5), ("clc", None, 44), ("ben43", 1, 43)]
)
def test_labels_are_those_of_the_closure(
    filled: psycopg.Connection, dataset: Callable[..., ArchiveDataset], scheme: str, level: int | None, classes: int
) -> None:
    data = dataset(("B01",), size=20, scheme=scheme, level=level)
    assert len(set(data.classes)) == len(data.classes) == classes
    borne = 0
    for sample in data:
        names = filled.execute(
            "select distinct l.name from eo.patch p join eo.label_closure c on c.descendant_id = any (p.label_ids)"
            " join eo.label l on l.label_id = c.ancestor_id and l.scheme = %s and l.level = coalesce(%s, l.level)"
            " where p.patch_id = %s and (%s::text <> 'clc' or l.level = coalesce(%s, 3))",
            (scheme, level, int(sample["patch_id"]), scheme, level),
        ).fetchall()
        label = sample["label"]
        assert set(label.tolist()) <= {0, 1}
        assert {data.classes[n] for n in np.flatnonzero(label)} == {name for (name,) in names}
        borne += len(names)
    assert borne > PATCHES


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_workers_share_an_epoch_out(
    filled: psycopg.Connection, dataset: Callable[..., ArchiveDataset], workers: int
) -> None:
    """Whole batches come in the same order and with the same content whatever the number of workers."""
    data = dataset(("B01",), size=20, batch_size=16, shuffle=True, seed=3, scheme="clc", level=1)
    batches = list(DataLoader(data, batch_size=None, num_workers=workers))
    assert len(batches) == len(data) == 5
    assert sorted(ids_of(batches)) == stored_ids(filled)
    alone = list(data)
    for one, other in zip(batches, alone, strict=True):
        assert one.keys() == other.keys() == {"image", "label", "patch_id"}
        assert all(torch.equal(one[name], other[name]) for name in one)
    single = DataLoader(dataset(("B01",), size=20), batch_size=16, num_workers=workers)
    assert sorted(ids_of(single)) == stored_ids(filled)


def test_spawned_and_living_workers(filled: psycopg.Connection, dataset: Callable[..., ArchiveDataset]) -> None:
    """Workers that are spawned get a copy of the list; those that live on see the next epoch."""
    data = dataset(("B01",), size=20, batch_size=16, shuffle=True)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="spawn")
    orders = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        orders.append(ids_of(loader))
        assert orders[epoch] == ids_of(data)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == stored_ids(filled)


def test_seed_and_epoch_decide_on_the_order(dataset: Callable[..., ArchiveDataset]) -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        data = dataset(("B01",), size=20, shuffle=True, seed=seed)
        data.set_epoch(epoch)
        return tuple(ids_of(data))

    assert order(1, 2) == order(1, 2)
    orders = {order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert len({tuple(sorted(each)) for each in orders}) == 1
    # Random, not in runs: neighbours in the list are hardly ever neighbours in the archive.
    assert sum(abs(one - other) == 1 for one, other in zip(order(1, 2), order(1, 2)[1:], strict=False)) < 10


@pytest.mark.parametrize(("drop_last", "counts"), [(False, [24, 23, 23]), (True, [20, 20, 20])])
def test_ranks_share_an_epoch_out(
    filled: psycopg.Connection, dataset: Callable[..., ArchiveDataset], drop_last: bool, counts: list[int]
) -> None:
    parts = []
    for rank in range(3):
        data = dataset(
            ("B01",), size=20, shuffle=True, batch_size=10, drop_last=drop_last, rank=rank, world_size=3
        )  # fmt: skip
        parts.append(ids_of(DataLoader(data, batch_size=None, num_workers=rank)))
        assert len(data) == -(-len(parts[-1]) // 10)
    assert [len(part) for part in parts] == counts
    every = [number for part in parts for number in part]
    assert len(set(every)) == len(every)
    assert set(every) <= set(stored_ids(filled))


def one_rank(rank: int, folder: str, dsn: str) -> None:
    """A process of a distributed run: what rank 1 would find by itself is empty."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for bands in (("B01",), ("B99",)):
        try:
            data = ArchiveDataset(dsn if rank == 0 else "host=/nowhere", bands, size=20, shuffle=True, **SOURCES)
            data._dsn = dsn
            result = " ".join(map(str, ids_of(data)))
        except PgearthError as error:
            result = error.message
        with Path(folder, str(rank)).open("a") as file:
            file.write(result + "\n")
    distributed.destroy_process_group()


def test_distributed_ranks_agree_on_the_list(filled: psycopg.Connection, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=one_rank, args=(rank, str(tmp_path), filled.info.dsn)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    (one, fault), (other, same) = ((tmp_path / str(rank)).read_text().splitlines() for rank in (0, 1))
    assert sorted(map(int, [*one.split(), *other.split()])) == stored_ids(filled)
    assert fault == same
    assert "B99" in fault


def test_filters_pass_through(filled: psycopg.Connection) -> None:
    data = ArchiveDataset(
        filled.info.dsn,
        ["B01"],
        size=20,
        scheme="clc",
        level=1,
        area="SRID=4326;POLYGON((-12 35, 20 35, 20 56, -12 56, -12 35))",
        platforms=["sentinel-2a"],
        labels=["clc:2", "clc:3"],
        label_match="at_least",
        sources=["bigearthnet-v1"],
    )
    expected = filled.execute(
        "select patch_id from eo.search(eo.filter(area => st_makeenvelope(-12, 35, 20, 56, 4326),"
        " platforms => '{sentinel-2a}', labels => '{clc:2,clc:3}', label_match => 'at_least', sources => '{bigearthnet-v1}'))"
    ).fetchall()
    assert 0 < len(expected) < 11
    assert ids_of(data) == [number for (number,) in expected]
    chosen = stored_ids(filled)[5:9]
    assert ids_of(ArchiveDataset(filled.info.dsn, ["B01"], size=20, patch_ids=chosen)) == chosen


def test_filters_are_those_of_eo_filter(filled: psycopg.Connection) -> None:
    row = filled.execute(
        "select proargnames[1:pronargs] from pg_proc where proname = 'filter' and pronamespace = 'eo'::regnamespace and pronargs > 1"
    ).fetchone()
    assert row == (list(queries.FILTERS),)


def test_what_is_left_out_is_counted(filled: psycopg.Connection, archive: psycopg.Connection) -> None:
    """Sentinel-1 patches have no B01, Sentinel-2 patches no VV."""
    everything = stored_ids(filled, "true")
    optical = ArchiveDataset(filled.info.dsn, ["B01"], size=20)
    radar = ArchiveDataset(filled.info.dsn, ["VV", "VH"])
    assert (optical.without_bands, len(optical)) == (9, PATCHES + 11)
    assert (radar.without_bands, len(radar)) == (PATCHES + 11, 9)
    assert sorted(ids_of(optical) + ids_of(radar)) == everything
    store_tiny(archive, 1, 3)
    with pytest.raises(PgearthError, match="none of the 3 patches found bears a label of ben19") as caught:
        ArchiveDataset(archive.info.dsn, ["B01"], scheme="ben19")
    assert "annotated" in (caught.value.hint or "")
    archive.execute(
        "update eo.patch set label_ids = array[1002]::smallint[] where patch_id = (select min(patch_id) from eo.patch)"
    )
    some = ArchiveDataset(archive.info.dsn, ["B01"], size=20, scheme="ben19")
    assert (some.without_labels, some.without_bands, len(some)) == (2, 0, 1)
    assert next(iter(some))["label"].tolist() == [float(n == 2) for n in range(19)]


def test_radar_keeps_its_values(filled: psycopg.Connection) -> None:
    for sample in ArchiveDataset(filled.info.dsn, ["VH", "VV"]):
        for channel, band in enumerate(("VH", "VV")):
            expected = pixels_by_sql(filled, int(sample["patch_id"]), band)
            assert np.array_equal(sample["image"][channel].numpy(), expected)


def test_pixels_without_data(archive: psycopg.Connection) -> None:
    """A block of 2 x 2 of which a pixel has no data has none when it is averaged; NaN tells it from a dark one."""
    store_tiny(archive, 5, 5)
    archive.execute("update eo.patch_raster set rast = ST_SetValue(ST_SetBandNoDataValue(rast, 2, 7), 2, 1, 2, 7)")
    truth = np.full((4, 4), 5.0)
    truth[1, 0] = np.nan
    for size, expected in ((4, truth), (2, [[np.nan, 5], [5, 5]]), (8, np.kron(truth, np.ones((2, 2))))):
        zero, marked = (
            next(iter(ArchiveDataset(archive.info.dsn, ["B02"], size=size, nodata=nodata)))["image"][0].numpy()
            for nodata in (0, float("nan"))
        )
        np.testing.assert_array_equal(marked, expected)
        np.testing.assert_array_equal(zero, np.nan_to_num(expected))


def test_transform(dataset: Callable[..., ArchiveDataset]) -> None:
    def bright(batch: dict[str, Any]) -> float:
        return float(batch["image"].max())

    plain = [bright(batch) for batch in dataset(("B01",), size=20, batch_size=30)]
    assert list(dataset(("B01",), size=20, batch_size=30, transform=bright)) == plain
    assert len(plain) == 3


def sessions(archive: psycopg.Connection) -> int:
    row = archive.execute(
        "select count(*) from pg_stat_activity where application_name = 'pgearth training' and datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_cancelled_iteration_leaves_no_query(
    filled: psycopg.Connection, dataset: Callable[..., ArchiveDataset]
) -> None:
    """Stopped in the midst of a COPY, in this process and in a worker; sessions end a moment later."""
    data = dataset(batch_size=4)
    iterator = iter(data)
    next(iterator)
    assert sessions(filled) == 1
    del iterator
    loader = iter(DataLoader(data, batch_size=None, num_workers=1))
    next(loader)
    del loader
    wait_for(lambda: not sessions(filled))


def test_the_list_stays_when_the_archive_changes(archive: psycopg.Connection) -> None:
    store_tiny(archive, 1, 6)
    data = ArchiveDataset(archive.info.dsn, ["B01"], size=20)
    expected = ids_of(data)
    store_tiny(archive, 7, 9)
    assert ids_of(data) == expected
    assert len(ArchiveDataset(archive.info.dsn, ["B01"], size=20)) == 9
    archive.execute("delete from eo.patch where patch_id = %s", (expected[3],))
    with pytest.raises(PgearthError, match=f"patch {expected[3]} no longer has .* B01") as caught:
        ids_of(data)
    assert "again" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seasons": ["winter"], "platforms": ["landsat-8"]}, "no patch passes the filters"),
        ({"bands": ["B02", "B99"]}, "none of the 70 patches found has all of the bands B02, B99"),
        ({"bands": []}, "no list of different bands"),
        ({"bands": "B02"}, "no list of different bands"),
        ({"bands": ["B02", "B02"]}, "no list of different bands"),
        ({"scheme": "ben20"}, "no nomenclature ben20"),
        ({"scheme": "clc", "level": 4}, "no nomenclature clc of level 4"),
        ({"scheme": "nlcd"}, "bears a label of nlcd"),
        ({"season": ["winter"]}, "no filter season"),
        ({"size": 0}, "size 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, "no rank 2 of 2"),
        ({"rank": 0}, "no rank 0 of None"),
    ],
)
def test_clear_errors(dataset: Callable[..., ArchiveDataset], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PgearthError, match=message):
        dataset(**arguments)


def test_hints_name_what_there_is(dataset: Callable[..., ArchiveDataset]) -> None:
    for arguments, hint in (
        ({"bands": ["B99"]}, "B01, B02, B03"),
        ({"scheme": "ben20"}, "ben19 1, ben43 1"),
        ({"season": ["winter"]}, "seasons"),
    ):
        with pytest.raises(PgearthError) as caught:
            dataset(**arguments)  # type: ignore[arg-type]
        assert hint in (caught.value.hint or "")


def test_what_the_search_refuses(dataset: Callable[..., ArchiveDataset]) -> None:
    with pytest.raises(errors.InvalidParameterValue, match='no season "monsoon"'):
        dataset(seasons=["monsoon"])


def test_a_model_learns(dataset: Callable[..., ArchiveDataset]) -> None:
    """Logistic regression on mean and standard deviation of the bands: forest or not."""
    torch.manual_seed(0)
    data = dataset(("B05", "B8A"), size=60, batch_size=35, shuffle=True, scheme="clc", level=2)
    forest = data.classes.index("Forests")
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.2)
    losses = []
    for epoch in range(10):
        data.set_epoch(epoch)
        total = 0.0
        for batch in data:
            pixels = batch["image"].flatten(2) / 1000
            features = torch.cat([pixels.mean(2), pixels.std(2)], 1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(features)[:, 0], batch["label"][:, forest]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.8 * losses[0]


def test_only_this_module_imports_torch() -> None:
    code = "import sys, pgearth.pyfuncs.queries, pgearth.pyfuncs.border.encoding, pgearth.pyfuncs.pixels.rasters; print('torch' in sys.modules, 'psycopg' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
