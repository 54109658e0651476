"""Selection and statistics of products, against brute force in Python on made-up ones and the sample's real metadata."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import shapely
from psycopg import errors
from psycopg.rows import dict_row
from pyproj import Geod

from pgearth.loaders.archive.write import Product, write_products
from pgearth.loaders.products.files import Given
from pgearth.loaders.products.formats.known import open_product

TILES = {
    "01KAB": (179.5, -20.0),
    "32UMC": (7.5, 51.5),
    "33UUP": (12.0, 48.0),
    "60WWT": (179.6, 67.0),
    None: (8.0, 52.0),
}
PLATFORMS = ("sentinel-2a", "sentinel-2b", "landsat-8")
BASELINES = (None, "02.04", "02.12", "04.00", "05.00", "99.99")
SEASONS = ("winter", "spring", "summer", "autumn")
TYPES = {
    "area": "geometry", "from_time": "timestamptz", "to_time": "timestamptz", "platforms": "text[]", "levels": "text[]",
    "tiles": "text[]", "seasons": "text[]", "max_cloud": "real", "product_ids": "bigint[]",
}  # fmt: skip
NOTHING = dict.fromkeys(TYPES)


def outline(generator: random.Random, x: float, y: float) -> shapely.MultiPolygon:
    """A square about a point; what reaches beyond the antimeridian is moved to the other side."""
    side = generator.choice([0.5, 1.0])
    square = shapely.box(x - side, y - side, x + side, y + side)
    parts = [
        shapely.affinity.translate(square.intersection(shapely.box(west, -90, west + 360, 90)), -180 - west)
        for west in (-180, 180)
    ]
    return shapely.MultiPolygon([part for part in parts if part.area > 0])


def product_filter(filters: dict[str, Any]) -> str:
    """The call of eo.product_filter with the filters that are given, which are the query's parameters."""
    given = (f"{name} => %({name})s::{TYPES[name]}" for name, value in filters.items() if value is not None)
    return f"eo.product_filter({', '.join(given)})"


def made_up() -> list[Product]:
    """Acquisitions, a third of them processed two or three times; times, clouds and sizes that are often equal."""
    generator = random.Random(7)
    products: list[Product] = []
    for n in range(180):
        tile = generator.choice(list(TILES))
        product = Product(
            name=f"product {n}",
            platform=generator.choice(PLATFORMS),
            level=generator.choice(["L1C", "L2A"]),
            sensing_time=datetime(2017, 11, 20, 23, tzinfo=UTC)
            + timedelta(
                days=generator.randrange(750), hours=generator.randrange(3), milliseconds=generator.choice([21, 24])
            ),
            mgrs_tile=tile,
            cloud_cover=generator.choice([None, 0.0, 0.0, 1.5, 1.5, 20.0, 99.0]),
            footprint=generator.choice([None, *[shapely.to_wkb(outline(generator, *TILES[tile]))] * 9]),
            processing_baseline=generator.choice(BASELINES),
            processed_at=generator.choice([None, datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)]),
            bytes=generator.choice([None, 10**9, 7 * 10**8]),
        )
        products.append(product)
        for again in range(generator.choice([0, 0, 0, 0, 1, 2])):
            time = product.sensing_time.replace(microsecond=generator.choice([21000, 24000]))
            products.append(
                replace(
                    product,
                    name=f"product {n} again {again}",
                    sensing_time=time,
                    cloud_cover=generator.choice([None, 0.0, 1.5, 50.0]),
                    processing_baseline=generator.choice(BASELINES),
                )
            )
    return products


@pytest.fixture(scope="module")
def stored(module_archive: psycopg.Connection) -> list[dict[str, Any]]:
    products = made_up()
    assert len(products) > 230
    with module_archive.transaction():
        write_products(module_archive, products)
    ids = dict(module_archive.execute("select name, product_id from eo.product").fetchall())
    return [{**vars(product), "product_id": ids[product.name]} for product in products]


def season(product: dict[str, Any]) -> str:
    south = product["footprint"] is not None and shapely.from_wkb(product["footprint"]).bounds[3] < 0
    return SEASONS[(product["sensing_time"].month + (6 if south else 0)) % 12 // 3]


def passes(product: dict[str, Any], filters: dict[str, Any], area: shapely.Geometry | None) -> bool:
    time = product["sensing_time"]
    cloud = product["cloud_cover"]
    footprint = product["footprint"] and shapely.from_wkb(product["footprint"])
    return (
        (area is None or (footprint is not None and footprint.intersects(area)))
        and (filters["from_time"] is None or time >= filters["from_time"])
        and (filters["to_time"] is None or time < filters["to_time"])
        and (filters["platforms"] is None or product["platform"] in filters["platforms"])
        and (filters["levels"] is None or product["level"] in filters["levels"])
        and (filters["tiles"] is None or product["mgrs_tile"] in filters["tiles"])
        and (filters["seasons"] is None or season(product) in filters["seasons"])
        and (filters["max_cloud"] is None or (cloud is not None and cloud <= filters["max_cloud"]))
        and (filters["product_ids"] is None or product["product_id"] in filters["product_ids"])
    )


def baseline(product: dict[str, Any]) -> float:
    version = product["processing_baseline"]
    return 0.0 if version in (None, "99.99") else float(version)


def ground(product: dict[str, Any]) -> float:
    if product["footprint"] is None:
        return -1.0
    return round(abs(Geod(ellps="WGS84").geometry_area_perimeter(shapely.from_wkb(product["footprint"]))[0]), -4)


def expected_selection(
    stored: list[dict[str, Any]],
    filters: dict[str, Any],
    area: shapely.Geometry | None,
    per_season: int | None,
    each_year: bool,
) -> list[tuple[Any, ...]]:
    acquisitions = defaultdict(list)
    for product in stored:
        time = product["sensing_time"].replace(microsecond=0)
        acquisitions[product["mgrs_tile"], product["platform"], product["level"], time].append(product)
    newest = [
        product
        for versions in acquisitions.values()
        for product in versions
        if baseline(product) == max(baseline(each) for each in versions)
    ]
    groups = defaultdict(list)
    for product in newest:
        if product["mgrs_tile"] is not None and passes(product, filters, area):
            time = product["sensing_time"]
            product["year"] = time.year + (time.month == 12)
            groups[product["mgrs_tile"], product["year"] if each_year else 0, SEASONS.index(season(product))].append(
                product
            )
    result = []
    for (tile, _, number), members in sorted(groups.items()):
        members.sort(
            key=lambda each: (
                1000 if each["cloud_cover"] is None else each["cloud_cover"],
                -ground(each),
                -(each["processed_at"].timestamp() if each["processed_at"] else 0),
                each["name"],
            )
        )
        for rank, product in enumerate(members[:per_season], 1):
            result.append((tile, SEASONS[number], product["year"], rank, product["product_id"]))
    return result


def questions() -> list[tuple[dict[str, Any], str | None, shapely.Geometry | None, int | None, bool]]:
    generator = random.Random(9)
    areas = [
        (None, None),
        ("SRID=4326;POLYGON((179 -21, 181 -21, 181 -19, 179 -19, 179 -21))",
         shapely.union_all([shapely.box(179, -21, 180, -19), shapely.box(-180, -21, -179, -19)])),
        ("SRID=4326;POLYGON((-179.9 60, -179 60, -179 68, -179.9 68, -179.9 60))", shapely.box(-179.9, 60, -179, 68)),
        ("SRID=4326;POLYGON((8.2 51, 12 51, 12 52, 8.2 52, 8.2 51))", shapely.box(8.2, 51, 12, 52)),
    ]  # fmt: skip
    result = []
    for n in range(60):
        filters: dict[str, Any] = dict(NOTHING)
        ewkt, area = areas[n % 4] if n % 3 else areas[0]
        choices: dict[str, Any] = {
            "from_time": datetime(2018, 3, 1, tzinfo=UTC),
            "to_time": datetime(2019, 6, 1, tzinfo=UTC),
            "platforms": generator.sample(PLATFORMS, 2),
            "levels": ["L2A"],
            "tiles": generator.sample([tile for tile in TILES if tile], 3),
            "seasons": generator.sample(SEASONS, 2),
            "max_cloud": 1.5,
            "product_ids": generator.sample(range(1, 300), 150),
        }
        for name in generator.sample(list(choices), generator.randrange(4)):
            filters[name] = choices[name]
        result.append((filters, ewkt, area, generator.choice([1, 1, 2, None]), n % 2 == 1))
    return result


def test_selection_is_that_of_brute_force(module_archive: psycopg.Connection, stored: list[dict[str, Any]]) -> None:
    found = 0
    for filters, ewkt, area, per_season, each_year in questions():
        asked = {**filters, "area": ewkt}
        rows = module_archive.execute(
            f"select * from eo.select_products({product_filter(asked)}, %(per_season)s, %(each_year)s)".encode(),
            {**asked, "per_season": per_season, "each_year": each_year},
        ).fetchall()
        expected = expected_selection(stored, filters, area, per_season, each_year)
        assert [row[:5] for row in rows] == expected, (filters, ewkt, per_season, each_year)
        found += bool(rows)
    assert found > 40


def test_every_tie_is_decided(module_archive: psycopg.Connection, stored: list[dict[str, Any]]) -> None:
    """The oracle's order uses each of its criteria on these products."""
    rows = expected_selection(stored, NOTHING, None, None, False)
    products = {product["product_id"]: product for product in stored}
    deciding = set()
    for _, group in groupby(rows, key=lambda row: row[:2]):
        members = [products[row[4]] for row in group]
        for one, other in pairwise(members):
            keys = [(each["cloud_cover"], ground(each), each["processed_at"], each["name"]) for each in (one, other)]
            deciding.add(next(n for n in range(4) if keys[0][n] != keys[1][n]))
    assert deciding == {0, 1, 2, 3}


def test_columns_are_the_products_own(module_archive: psycopg.Connection, stored: list[dict[str, Any]]) -> None:
    with module_archive.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute("select *, ST_AsBinary(footprint) as outline from eo.select_products()").fetchall()
    products = {product["product_id"]: product for product in stored}
    assert rows
    for row in rows:
        product = products[row["product_id"]]
        for name in ("name", "platform", "level", "sensing_time", "cloud_cover", "processing_baseline", "bytes"):
            assert row[name] == product[name]
        assert row["outline"] == product["footprint"]


def test_statistics_are_those_of_brute_force(module_archive: psycopg.Connection, stored: list[dict[str, Any]]) -> None:
    for filters, ewkt, area, _, _ in questions():
        asked = {**filters, "area": ewkt}
        query = f"select * from eo.product_statistics({product_filter(asked)})"
        rows = module_archive.execute(query.encode(), asked).fetchall()
        members = [product for product in stored if passes(product, filters, area)]
        groups = defaultdict(list)
        for product in members:
            for key in {
                (product["platform"], product["level"], season(product)),
                (product["platform"], product["level"], None),
                (None, None, season(product)),
            }:
                groups[key].append(product)
        groups[None, None, None] = members
        assert {row[:3] for row in rows} == set(groups)
        assert rows[-1][:3] == (None, None, None)
        for *key, products, tiles, total, mean, least, mean_cloud, greatest in rows:
            group = groups[tuple(key)]
            sizes = [product["bytes"] for product in group if product["bytes"] is not None]
            clouds = [product["cloud_cover"] for product in group if product["cloud_cover"] is not None]
            assert products == len(group)
            assert tiles == len({product["mgrs_tile"] for product in group} - {None})
            assert (total, mean) == ((sum(sizes), pytest.approx(sum(sizes) / len(sizes))) if sizes else (None, None))
            assert (least, greatest) == ((min(clouds), max(clouds)) if clouds else (None, None))
            assert mean_cloud == (pytest.approx(sum(clouds) / len(clouds)) if clouds else None)


def test_statistics_of_a_selection(module_archive: psycopg.Connection, stored: list[dict[str, Any]]) -> None:
    selected = module_archive.execute("select count(*), sum(bytes) from eo.select_products(per_season => 2)").fetchone()
    total = module_archive.execute(
        "select products, total_bytes from eo.product_statistics(eo.product_filter("
        " product_ids => array(select product_id from eo.select_products(per_season => 2))))"
        " where coalesce(platform, season::text) is null"
    ).fetchone()
    assert total == selected
    assert total[0] > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("per_season => 0", "per tile and season 0 products"),
        ("eo.product_filter(seasons => '{monsoon}')", 'no season "monsoon"'),
        ("eo.product_filter(area => st_makeenvelope(0, 0, 1, 1))", "no SRID"),
    ],
)
def test_bad_arguments(module_archive: psycopg.Connection, arguments: str, message: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=message) as caught:
        module_archive.execute(f"select * from eo.select_products({arguments})".encode())
    assert caught.value.diag.message_hint


def test_the_real_products(archive: psycopg.Connection, sample: Path) -> None:
    """The sample's six, of which two lie at the antimeridian; one of them is given a reprocessing."""
    folders = sorted((sample / "safe-metadata").glob("*.SAFE"))
    products = [open_product(folder, Given()).product for folder in folders]
    again = replace(
        products[0],
        name=products[0].name.replace("N", "R", 1) + " again",
        processing_baseline="05.00",
        sensing_time=products[0].sensing_time.replace(microsecond=0),
    )
    write_products(archive, [*products, again])
    rows = archive.execute("select mgrs_tile, season, year, name from eo.select_products()").fetchall()
    assert rows == [
        (product.mgrs_tile, season(vars(product)), product.sensing_time.year, product.name)
        for product in sorted([again, *products[1:]], key=lambda each: str(each.mgrs_tile))
    ]
    pacific = archive.execute(
        "select mgrs_tile from eo.select_products(eo.product_filter(area => eo.rectangle(170, -30, -170, 0)), each_year => true)"
    ).fetchall()
    assert pacific == [("01KAB",), ("01LAC",)]
    statistics = archive.execute("select * from eo.product_statistics()").fetchall()
    assert statistics[-1][3:5] == (7, 6)
    assert statistics[-1][7] == min(product.cloud_cover for product in [*products, again])
    assert {row[:2] for row in statistics} == {(each.platform, each.level) for each in products} | {(None, None)}


def test_an_empty_archive(archive: psycopg.Connection) -> None:
    assert archive.execute("select * from eo.select_products()").fetchall() == []
    assert archive.execute("select products, tiles_covered from eo.product_statistics()").fetchall() == [(0, 0)]
