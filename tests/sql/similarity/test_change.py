"""Pairs of consecutive acquisitions, and search by change on the real two-date and five-date samples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector
from psycopg import errors, sql

from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.products.load import Options, load_product
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.pixels.rasters import Raster

START = datetime(2018, 1, 1, tzinfo=UTC)


def patch_at(name: str, product: str, platform: str, time: datetime, place: int, side: int = 1200) -> Patch:
    """A patch on a grid of places in UTM zone 33, ten to a row."""
    west, south = 500_000 + side * (place % 10), 5_000_000 + side * (place // 10)
    return Patch(name, product, platform, time, 32633, west, south, west + side, south + side)


def pairs(connection: psycopg.Connection, condition: str = "true") -> set[tuple[str, str]]:
    rows = connection.execute(f"select before_name, after_name from eo.change where {condition}".encode()).fetchall()
    assert len(rows) == len(set(rows))
    return set(rows)


def test_pairs_are_consecutive_acquisitions_of_one_place(archive: psycopg.Connection) -> None:
    """Random acquisitions of several missions, levels, sources and dates, against the definition in plain Python."""
    generator = np.random.default_rng(2)
    kinds = list(itertools.product(["sentinel-2a", "sentinel-2b", "sentinel-1a"], ["L1C", "L2A"], range(12)))
    write_products(archive, [Product(f"{s}_{lv}_{d}", s, lv, START + timedelta(days=30 * d)) for s, lv, d in kinds])
    seen: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    patches: dict[str, list[Patch]] = {"one": [], "two": []}
    for number in range(600):
        satellite, level, date = kinds[generator.integers(0, len(kinds))]
        place, source = int(generator.integers(0, 20)), ("one", "two")[int(generator.random() < 0.3)]
        acquisitions = seen.setdefault((place, source, satellite[:10], level), [])
        if date in (other for other, _ in acquisitions):
            continue
        product = f"{satellite}_{level}_{date}"
        name = f"patch-{number}"
        acquisitions.append((date, name))
        patches[source].append(patch_at(name, product, satellite, START + timedelta(days=30 * date), place))
    # The same west and south edge, but another size: not the same place.
    patches["one"].append(
        patch_at("larger", "sentinel-2a_L2A_0", "sentinel-2a", START - timedelta(days=1), place=0, side=1201)
    )
    with archive.transaction():
        for source, own in patches.items():
            write_patches(archive, source, own)
    expected = {(before, after) for own in seen.values() for (_, before), (_, after) in itertools.pairwise(sorted(own))}
    assert len(expected) > 200
    assert pairs(archive) == expected
    wrong = archive.execute(
        """
        select c.* from eo.change c
        join eo.patch b on b.patch_id = c.before_patch_id join eo.patch a on a.patch_id = c.after_patch_id
        where (b.name, b.sensing_time, b.cell, a.name, a.sensing_time, a.cell, a.sensing_time - b.sensing_time)
            is distinct from (c.before_name, c.before_time, c.cell, c.after_name, c.after_time, c.cell, c.elapsed)
        """
    ).fetchall()
    assert wrong == []


def dated(connection: psycopg.Connection, times: dict[str, datetime], place: int = 3) -> None:
    """Store one patch of a place for each of these products, which have one level."""
    write_products(connection, [Product(name, "sentinel-2a", "L2A", time) for name, time in times.items()])
    with connection.transaction():
        write_patches(
            connection,
            "test",
            [patch_at(f"{name}-p", name, "sentinel-2a", time, place) for name, time in times.items()],
        )


def every(*dates: str) -> set[tuple[str, str]]:
    """Pairs of each patch of a date with each of the next, dates being given as letters."""
    return {
        (f"{one}-p", f"{other}-p") for before, after in itertools.pairwise(dates) for one in before for other in after
    }


@pytest.mark.parametrize("apart", [timedelta(0), timedelta(milliseconds=1), timedelta(minutes=25)])
def test_every_patch_of_a_date_is_paired_with_every_one_of_the_next(
    archive: psycopg.Connection, apart: timedelta
) -> None:
    """Two processings of one acquisition, or a product that tells the start of the pass and one the time at the place."""
    day = timedelta(days=10)
    times = {"a": START, "b": START + day, "c": START + day + apart, "d": START + 2 * day}
    dated(archive, times)
    assert pairs(archive) == every("a", "bc", "d")
    assert len(pairs(archive)) == 4


def test_dates_of_several_patches_and_over_midnight(archive: psycopg.Connection) -> None:
    midnight = datetime(2018, 1, 2, tzinfo=UTC)
    minute = timedelta(minutes=1)
    times = {
        # One pass, in UTC on two days; the chain is longer than half an hour.
        "a": midnight - 20 * minute,
        "b": midnight,
        "c": midnight + 20 * minute,
        # The next orbit, of the other satellite, and the same day's other pass.
        "d": midnight + 70 * minute,
        "e": midnight + 70 * minute,
        "f": midnight + 12 * 60 * minute,
    }
    dated(archive, times)
    assert pairs(archive) == every("abc", "de", "f")
    elapsed = archive.execute("select min(elapsed), max(elapsed) from eo.change where after_name = 'd-p'").fetchone()
    assert elapsed == (50 * minute, 90 * minute)


def test_one_date_is_no_change(archive: psycopg.Connection) -> None:
    dated(archive, {"a": START, "b": START})
    assert pairs(archive) == set()


def test_the_synthetic_archive_shows_every_place_in_four_seasons(archive: psycopg.Connection) -> None:
    load_synthetic(archive, 4 * 169, pixels=False)
    rows = archive.execute(
        "select b.season, a.season, count(*) from eo.change c join eo.patch b on b.patch_id = c.before_patch_id"
        " join eo.patch a on a.patch_id = c.after_patch_id group by 1, 2"
    ).fetchall()
    assert set(rows) == {("summer", "autumn", 169), ("autumn", "winter", 169), ("winter", "spring", 169)}


def test_a_condition_on_the_cell_reaches_the_index(archive: psycopg.Connection) -> None:
    load_synthetic(archive, 4 * 169, pixels=False)
    archive.execute("analyze eo.patch, eo.product")
    (cell,) = archive.execute("select min(cell) from eo.patch").fetchone()
    explained = archive.execute(sql.SQL("explain select * from eo.change where cell = {}").format(cell))
    plan = "\n".join(line for (line,) in explained)
    assert "Index Cond: (cell = " in plan
    assert "Seq Scan on patch" not in plan


# Real dates


@dataclass(frozen=True)
class Changes:
    """Real patches, encoded, with the pairs among them in numpy: names, ids of the later patches, differences."""

    connection: psycopg.Connection
    names: list[tuple[str, str]]
    after_ids: np.ndarray
    differences: np.ndarray

    def nearest(self, number: int, keep: np.ndarray, count: int | None) -> list[tuple[str, str]]:
        """Names of the pairs nearest to a pair, itself left out: brute force."""
        distance = np.linalg.norm(self.differences - self.differences[number], axis=1)
        order = np.lexsort((self.after_ids, distance))
        return [self.names[i] for i in order if keep[i] and i != number][:count]


SSL4EO = [
    "s2a/0000200/20200604T054639_20200604T054831_T43RCP",
    "s2a/0000200/20200813T054639_20200813T054952_T43RCP",
    "s2c/0000200/20200604T054639_20200604T054831_T43RCP",
    "s2c/0000200/20200823T054639_20200823T055618_T43RCP",
]
SLOVENIA_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
PLACES, SIDE = 25, 20


def slovenia(sample: Path) -> np.ndarray:
    """Digital numbers (dates, rows, columns, bands) of a square kilometre on five dates, of which only the order is known."""
    reflectance = np.load(sample / "timeseries" / "REFERENCE_SCENES.npy")
    return np.rint(reflectance[:, : 5 * SIDE, : 5 * SIDE] * spectral.REFLECTANCE_SCALE).astype(np.uint16)


def window(scenes: np.ndarray, date: int, place: int) -> np.ndarray:
    row, column = divmod(place, 5)
    return scenes[date, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


def slovenia_patch(scenes: np.ndarray, date: int, place: int) -> Patch:
    row, column = divmod(place, 5)
    west, north = 500_000 + 10 * SIDE * column, 5_100_000 - 10 * SIDE * row
    raster = Raster(
        tuple(np.moveaxis(window(scenes, date, place), -1, 0)), (10, -10, west, north, 0, 0), 32633, (0,) * 13
    )
    return Patch(
        f"slovenia-{date}-{place:02}", f"slovenia-{date}", "sentinel-2a", START + timedelta(days=40 * date), 32633,
        west, north - 10 * SIDE, west + 10 * SIDE, north,
        label_ids=[1000 + place % 5],
        rasters=[patch_raster(10, SLOVENIA_BANDS, raster)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def changes(module_archive: psycopg.Connection, sample: Path) -> Changes:
    """Both samples in one archive: 25 places on five dates, and a place (in four windows) on two dates per level."""
    register_vector(module_archive)
    for folder in SSL4EO:
        load_product(module_archive, sample / "ssl4eo" / folder, Options(grid="fixed:120"))
    scenes = slovenia(sample)
    write_products(
        module_archive,
        [Product(f"slovenia-{d}", "sentinel-2a", "L1C", START + timedelta(days=40 * d)) for d in range(5)],
    )
    with module_archive.transaction():
        write_patches(
            module_archive,
            "test",
            (slovenia_patch(scenes, date, place) for date in range(5) for place in range(PLACES)),
        )
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading)
    vectors = {
        name: (patch_id, vector.to_numpy().astype(np.float64))
        for patch_id, name, vector in module_archive.execute(
            "select patch_id, name, embedding from eo.patch join eo.embedding using (patch_id, cell)"
        )
    }
    assert len(vectors) == 5 * PLACES + 4 * 4
    names = sorted(pairs(module_archive))
    return Changes(
        module_archive,
        names,
        np.array([vectors[after][0] for _, after in names]),
        np.stack([vectors[after][1] - vectors[before][1] for before, after in names]),
    )


def test_pairs_of_the_real_samples(changes: Changes) -> None:
    ssl4eo = [pair for pair in changes.names if not pair[0].startswith("slovenia")]
    assert len(ssl4eo) == 8
    for before, after in ssl4eo:
        assert before[-4:] == after[-4:], "the same window"
        assert ("MSIL2A" in before, "20200604" in before) == ("MSIL2A" in after, True), "June first, one level"
        assert ("20200813" if "MSIL2A" in before else "20200823") in after
    assert set(changes.names) - set(ssl4eo) == {
        (f"slovenia-{date}-{place:02}", f"slovenia-{date + 1}-{place:02}") for date in range(4) for place in range(25)
    }


@pytest.mark.parametrize("count", [1, 10, 200, None])
def test_similar_change(changes: Changes, count: int | None) -> None:
    every = np.ones(len(changes.names), bool)
    for number in (0, 3, 7, 8, 30, 77, 107):
        before, after = changes.names[number]
        found = changes.connection.execute(
            "select rank, before_name, after_name, distance, before_patch_id, after_patch_id, cell"
            " from eo.similar_change(%s, %s, max_results => %s)",
            (before, after, count),
        ).fetchall()
        assert [row[1:3] for row in found] == changes.nearest(number, every, count)
        assert [row[0] for row in found] == list(range(1, len(found) + 1))
        for _, earlier, later, distance, before_id, after_id, cell in found[:20]:
            difference = changes.differences[changes.names.index((earlier, later))]
            assert distance == pytest.approx(np.linalg.norm(difference - changes.differences[number]), rel=1e-5)
            assert changes.connection.execute(
                "select array_agg(name order by sensing_time) from eo.patch where patch_id in (%s, %s) and cell = %s",
                (before_id, after_id, cell),
            ).fetchone() == ([earlier, later],)


def test_filters_apply_to_the_later_patch(changes: Changes) -> None:
    number = changes.names.index(("slovenia-1-07", "slovenia-2-07"))
    later = np.array([after for _, after in changes.names])
    slovenian = np.char.startswith(later, "slovenia")
    date = np.array([int(name[9]) if name.startswith("slovenia") else -1 for name in later])
    place = np.array([int(name[-2:]) if name.startswith("slovenia") else -1 for name in later])
    for arguments, keep in [
        (
            f"from_time => '{START + timedelta(days=80)}', to_time => '{START + timedelta(days=121)}'",
            (date == 2) | (date == 3),
        ),
        ("sources => '{product}'", ~slovenian),
        ("area => st_makeenvelope(500001, 5000000, 500199, 5200000, 32633)", slovenian & (place % 5 == 0)),
        ("labels => array['Pastures'], from_time => '2018-05-01Z'", slovenian & (place % 5 == 4) & (date >= 3)),
        ("countries => '{AQ}'", np.zeros(len(later), bool)),
    ]:
        found = changes.connection.execute(
            f"select before_name, after_name from eo.similar_change('slovenia-1-07', 'slovenia-2-07', eo.filter({arguments}), 12)".encode()
        ).fetchall()
        assert found == changes.nearest(number, keep, 12), arguments


def test_what_a_change_means(changes: Changes, sample: Path) -> None:
    """A place that turns green is like others that turn green, by the NDVI of their pixels; a steady one like steady ones."""
    scenes = slovenia(sample).astype(float)

    def greening(before: str, after: str) -> float:
        means = []
        for name in (before, after):
            pixels = window(scenes, int(name[9]), int(name[-2:]))
            red, infrared = pixels[..., 3], pixels[..., 7]
            means.append(((infrared - red) / (infrared + red)).mean())
        return means[1] - means[0]

    queries, results, same_dates = [], [], []
    for before, after in changes.names:
        if before.startswith("slovenia"):
            found = changes.connection.execute(
                "select before_name, after_name from eo.similar_change(%s, %s, eo.filter(sources => '{test}'), max_results => 5)",
                (before, after),
            ).fetchall()
            queries.append(greening(before, after))
            results.append(np.mean([greening(*pair) for pair in found]))
            same_dates.append(np.mean([pair[0][9] == before[9] for pair in found]))
    assert np.corrcoef(queries, results)[0, 1] > 0.8
    assert np.mean(same_dates) > 0.6, "four pairs of dates: a quarter by chance"


def test_a_filtered_search_uses_indexes(changes: Changes) -> None:
    """Only the places of patches that pass are looked at, and only their vectors; all of a small table would be read."""
    plans: list[str] = []
    with psycopg.connect(changes.connection.info.dsn, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        connection.execute("load 'auto_explain'")
        connection.execute("set auto_explain.log_min_duration = 0")
        connection.execute("set auto_explain.log_nested_statements = on")
        connection.execute("set client_min_messages = log")
        connection.execute("set enable_seqscan = off")
        connection.execute(
            "select * from eo.similar_change('slovenia-1-00', 'slovenia-2-00', eo.filter(labels => '{Pastures}'))"
        )
    (plan,) = (plan for plan in plans if "WindowAgg" in plan and "Query Text: with passing" in plan)
    assert "Index Cond: (cell = ANY" in plan
    assert plan.count("Index Cond: ((patch_id = ") == 2
    assert "Seq Scan" not in plan


def test_any_two_patches_may_be_compared(changes: Changes) -> None:
    """The first and the last date, which are no pair of consecutive ones; and nothing is left out then."""
    found = changes.connection.execute(
        "select count(*) from eo.similar_change('slovenia-0-07', 'slovenia-4-07', max_results => null)"
    ).fetchone()
    assert found == (len(changes.names),)


@pytest.mark.parametrize(
    ("query", "error", "message", "hint"),
    [
        ("'nowhere', 'slovenia-1-00'", errors.NoDataFound, 'no patch "nowhere"', "eo.search"),
        ("'slovenia-1-00', 'nowhere'", errors.NoDataFound, 'no patch "nowhere"', "eo.search"),
        ("'slovenia-1-00', 'slovenia-2-00', encoder => 'x'", errors.UndefinedObject, 'encoder "x"', "spectral:1"),
    ],
)
def test_bad_arguments(changes: Changes, query: str, error: type[Exception], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        changes.connection.execute(f"select * from eo.similar_change({query})".encode())
    assert hint in (caught.value.diag.message_hint or "")  # type: ignore[attr-defined]


def test_a_reader_may(changes: Changes) -> None:
    with changes.connection.transaction(force_rollback=True):
        changes.connection.execute("set local role eo_reader")
        assert len(pairs(changes.connection)) == len(changes.names)
        query = "select * from eo.similar_change('slovenia-1-00', 'slovenia-2-00')"
        assert len(changes.connection.execute(query.encode()).fetchall()) == 10
