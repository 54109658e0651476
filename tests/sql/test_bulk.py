"""Bulk work is linear, whatever the planner's statistics say: counted in rows that plans handle, not in seconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector
from psycopg import sql

import pgearth.loaders.models.encode
from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.models.encode import store_codes
from pgearth.loaders.models.pending import WITHOUT_EMBEDDING, WITHOUT_SEGMENT_CODES, pending_patches
from pgearth.loaders.models.versions import register
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.models.weights import dump
from tests.work import keep_statistics, rows_handled

TIME = datetime(2018, 1, 1, tzinfo=UTC)
SIZES = (250, 500, 1000, 2000)
VECTORS = np.random.default_rng(0).normal(size=(sum(SIZES), 4)).astype(np.float32)
STATISTICS = ["none", "of empty tables", "of other rows"]


def assert_linear(works: dict[int, int]) -> None:
    """Twice the rows, twice the work: what is done for one row does not grow."""
    each = {size: work / size for size, work in works.items()}
    assert max(list(each.values())[1:]) <= 1.3 * each[min(each)] + 1, each


def patches(first: int, count: int, product: Callable[[int], str] = lambda _: "p", paired: bool = False) -> list[Patch]:
    return [
        Patch(
            f"patch-{number:06}", product(number), "sentinel-2a", TIME, 32633,
            500_000 + 1200 * (number % 100), 5_000_000 + 1200 * (number // 100),
            501_200 + 1200 * (number % 100), 5_001_200 + 1200 * (number // 100),
            pair_name=f"patch-{number ^ 1:06}" if paired else None,
        )
        for number in range(first, first + count)
    ]  # fmt: skip


def write(connection: psycopg.Connection, some: list[Patch]) -> None:
    with connection.transaction():
        write_patches(connection, "test", some)


@pytest.fixture(params=STATISTICS)
def stale(request: pytest.FixtureRequest, archive: psycopg.Connection) -> psycopg.Connection:
    """An archive whose statistics stay as they are, before anything is stored or when a little was."""
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    if request.param == "of other rows":
        write(archive, patches(900_000, 200, paired=True))
    keep_statistics(archive, request.param != "none")
    return archive


@pytest.fixture
def encoded(stale: psycopg.Connection) -> tuple[psycopg.Connection, Encoder]:
    """Patches with vectors, and, where there are statistics, those are of another hash function's codes."""
    write(stale, patches(0, sum(SIZES)))
    register_vector(stale)
    encoder = register(stale, "vectors", "spectral", dump({}), bands=("B02",), dimension=4)
    stale.execute(
        "insert into eo.embedding select patch_id, %s, cell, array[patch_id::real, 1, 2, 3]::vector from eo.patch",
        (encoder.encoder_id,),
    )
    if stale.execute("select reltuples > 0 from pg_class where oid = 'eo.patch'::regclass").fetchone() == (True,):
        hashing = hash_function(stale, encoder, 0)
        assert store(stale, hashing, sum(SIZES)) > 3000
        keep_statistics(stale, True)
    return stale, encoder


def hash_function(connection: psycopg.Connection, encoder: Encoder, number: int) -> Encoder:
    weights = dump(lsh.fit(VECTORS, bits=64, seed=number))
    return register(connection, f"codes{number}", "lsh", weights, bits=64, parent_id=encoder.encoder_id)


def store(connection: psycopg.Connection, hashing: Encoder, count: int, first: int = 1) -> int:
    """Store as many codes, all different, of patches from the first one's id on."""
    generator = np.random.default_rng((hashing.encoder_id, first))
    codes = [bit_string(code) for code in generator.integers(0, 2, (count, 64)).astype(bool)]
    row = connection.execute(
        "select eo.store_codes(%s::smallint, %s, %s, %s::varbit[])",
        (hashing.encoder_id, list(range(first, first + count)), [0] * count, codes),
    ).fetchone()
    return row[0]


def test_store_codes(encoded: tuple[psycopg.Connection, Encoder]) -> None:
    """A new hash function each time, in a session of its own: no plan is kept from before."""
    archive, encoder = encoded
    works = {}
    for size in SIZES:
        hashing = hash_function(archive, encoder, size)
        with psycopg.connect(archive.info.dsn, autocommit=True) as session:
            works[size] = rows_handled(session, lambda hashing=hashing, size=size: store(session, hashing, size))
    assert_linear(works)


def test_store_codes_again_and_again(encoded: tuple[psycopg.Connection, Encoder]) -> None:
    """In one session, whose plans are made while there is little, and kept."""
    archive, encoder = encoded
    hashing = hash_function(archive, encoder, 1)
    works = [rows_handled(archive, lambda n=n: store(archive, hashing, 100, 100 * n + 1)) for n in range(20)]
    assert max(works[1:]) <= 1.3 * works[1]


def test_encoding_in_bulk(encoded: tuple[psycopg.Connection, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """What pgearth encode asks for, and stores in transactions, of which there are more with more patches."""
    archive, encoder = encoded
    monkeypatch.setattr(pgearth.loaders.models.encode, "CODES_PER_TRANSACTION", 50)
    archive.execute(
        "insert into eo.patch_raster (patch_id, resolution, cell, bands, rast) select patch_id, 60, cell, '{B02}',"
        " st_addband(st_makeemptyraster(1, 1, west, north, 1200, -1200, 0, 0, srid), '16BUI'::text, 7) from eo.patch"
    )
    archive.execute("delete from eo.embedding")
    hashed: dict[int, int] = {}
    total = 0
    for number, size in enumerate(SIZES):
        archive.execute(
            "insert into eo.embedding select patch_id, %s, cell, array[patch_id::real, 1, 2, 3]::vector from eo.patch"
            " order by patch_id offset %s limit %s",
            (encoder.encoder_id, total, size),
        )
        total += size
        hashing = hash_function(archive, encoder, 10 + number)
        hashed[total] = rows_handled(archive, lambda hashing=hashing: store_codes(archive, encoder, hashing))
        for pending, version in ((WITHOUT_EMBEDDING, encoder), (WITHOUT_SEGMENT_CODES, hashing)):
            read = rows_handled(archive, lambda p=pending, v=version: pending_patches(archive, p, encoder, v))
            assert read < 20 * sum(SIZES) + 10_000
    assert_linear(hashed)


def test_packing(encoded: tuple[psycopg.Connection, Encoder]) -> None:
    archive, encoder = encoded
    archive.execute(
        "do language plpython3u $$ from pgearth.pyfuncs.search import build, code_cache; build.PATCHES_AT_ONCE = code_cache.READ_AT_ONCE = 50 $$"
    )
    works = {}
    for size in SIZES:
        store(archive, hash_function(archive, encoder, size), size)
        build = sql.SQL("select eo.build_code_index({})").format(f"codes{size}")
        works[size] = rows_handled(archive, lambda build=build: archive.execute(build))
    assert_linear(works)


@pytest.mark.parametrize("paired", [False, True])
def test_loading_patches(stale: psycopg.Connection, paired: bool) -> None:
    works, first = {}, 0
    for size in SIZES:
        some = patches(first, size, paired=paired)
        works[size] = rows_handled(stale, lambda some=some: write(stale, some))
        first += size
    assert_linear(works)


def test_loading_products_and_their_patches(stale: psycopg.Connection) -> None:
    """Each patch of a product of its own: what a product is derived from, and foreign keys, are looked up."""
    products, stored, first = {}, {}, 0
    for size in SIZES:
        some = [
            Product(f"p{number}", "sentinel-2a", "L2A", TIME, derived_from=f"p{number - 1}")
            for number in range(first, first + size)
        ]
        products[size] = rows_handled(stale, lambda some=some: write_products(stale, some))
        own = patches(first, size, lambda number: f"p{number}")
        stored[size] = rows_handled(stale, lambda own=own: write(stale, own))
        first += size
    assert_linear(products)
    assert_linear(stored)


def test_collections(stale: psycopg.Connection) -> None:
    write(stale, patches(0, sum(SIZES)))
    stale.execute("select eo.create_collection('c')")
    for size in SIZES:
        ids = list(range(1, size + 1))
        for change in ("add_to_collection", "remove_from_collection", "add_to_collection"):
            call = sql.SQL("select {}('c', {})").format(sql.Identifier("eo", change), sql.Literal(ids))
            # To look through the archive once is no more than to read it.
            assert rows_handled(stale, lambda call=call: stale.execute(call)) < 4 * sum(SIZES) + 12 * size


def test_annotating(stale: psycopg.Connection, sample: Path) -> None:
    """One, two and four patches of every place."""
    stale.execute("delete from eo.patch")
    places = [(394_500 + 1200 * x, 5_743_600 + 1200 * y) for x in range(10) for y in range(10)]
    load_corine(stale, sample / "corine" / "clc5_2018_muenster_de.gpkg")
    load_nuts(stale, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    works = {}
    for size in (1, 2, 4, 8):
        write(
            stale,
            [
                Patch(f"{size}-{n}-{x}-{y}", "p", "sentinel-2a", TIME, 32632, x, y, x + 1200, y + 1200)
                for x, y in places
                for n in range(size)
            ],
        )
        works[size * len(places)] = rows_handled(
            stale, lambda: stale.execute("call eo.annotate('{land_cover,country}')")
        )
    assert_linear(works)
