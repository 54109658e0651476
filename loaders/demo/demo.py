"""`pgearth demo`: the main job from end to end, on real data: load, annotate, encode, search, look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from psycopg import Connection

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.catalogue import load_bigearthnet_metadata
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.demo import pictures as demo_pictures
from pgearth.loaders.demo.queries import AT_LEAST, STATISTICS, Query, sample_queries, synthetic_queries
from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.loaders.models import train_encoder, train_hash
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.models.vector_index import build_vector_index
from pgearth.loaders.products.load import Options, load_product
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.ledger import load_item
from pgearth.pyfuncs.models import spectral

SYNTHETIC_PATCHES = 676  # one square of 15.6 km in four seasons
NETWORK_WIDTH = 8
NETWORK_EPOCHS = 6
HASH_STEPS = 1000
VALIDATION_FRACTION = 0.2
CURRENT = ("spectral:1", "lsh:1")
"""What searches use that name no encoder: the trained ones have seen one made-up landscape only."""
SYNTHETIC = {"sources": ["synthetic"]}
HASH_FUNCTIONS = {"spectral + LSH": "lsh", "small CNN + MiLaN": "milan"}
GRID_SIDE = 1200
GRID_SOURCE = "corine-grid"


@click.command()
@click.option(
    "--sample",
    envvar="PGEARTH_SAMPLE",
    type=click.Path(path_type=Path),
    help="Folder of sample data; without it, or where it does not exist, a small synthetic archive is made.",
)
@click.option("--output", default="build/demo", type=click.Path(path_type=Path), help="Folder for the pictures.")
def demo(sample: Path | None, output: Path) -> None:
    """Build an archive from the sample data, query it, and draw the results. Running it again loads nothing twice."""
    started = time.monotonic()
    with connect(autocommit=True) as connection, connect(autocommit=True) as reading:
        step("nomenclature", lambda: {"labels": load_nomenclature(connection)})
        if sample is not None and (sample / "bigearthnet-v2").is_dir():
            image = load_sample(connection, sample)
        else:
            click.echo(f"There is no sample data in {sample or 'any folder'}: the archive will be a synthetic one.")
            image = None
        step("synthetic", lambda: load_synthetic(connection, SYNTHETIC_PATCHES))
        step("annotate", lambda: annotate(connection))
        step("encode", lambda: encode(connection, reading, segments="grid:2"))
        step("train a network", lambda: train_network(connection))
        step("encode by it", lambda: encode(connection, reading, ["cnn"]))
        step("train MiLaN over it", lambda: train_milan(connection))
        step("hash by MiLaN", lambda: encode(connection, reading, ["milan"]))
        for version in CURRENT:
            connection.execute("select eo.make_current(%s)", (version,))
        step("vector index", lambda: build_vector_index(connection))
        connection.execute("analyze")
        queries = sample_queries(image) if image else synthetic_queries(connection)
        results = {query.sql: show(connection, query) for query in queries}
        output.mkdir(parents=True, exist_ok=True)
        example = queries[0].parameters["patch"]
        label_search = next(query for query in queries if query.sql == AT_LEAST)
        pictures = [
            demo_pictures.query_by_example(connection, example, HASH_FUNCTIONS, output / "query_by_example.png"),
            demo_pictures.label_chart(results[STATISTICS], output / "label_chart.png"),
            demo_pictures.result_map(connection, label_search.parameters, output / "result_map.png"),
        ]
        report(connection)
    for picture in pictures:
        click.echo(f"Picture: {picture}")
    click.echo(f"The demo took {time.monotonic() - started:.0f} s. To go on: make psql")


def step(name: str, work: Callable[[], object]) -> None:
    """Do one step and print what it did and how long it took."""
    started = time.monotonic()
    result = work()
    counts = ", ".join(f"{number} {what}" for what, number in result.items()) if isinstance(result, dict) else result
    click.echo(f"{name}: {'done' if counts is None else counts} ({time.monotonic() - started:.1f} s)")


def encode(connection: Connection, reading: Connection, encoders: Sequence[str] = (), **options: Any) -> dict[str, int]:
    """Do as `pgearth encode`; return how much was stored."""
    result = encode_archive(connection, reading, encoders, **options)
    return {"vectors": result.embeddings, "codes": result.codes, "codes of segments": result.segment_codes}


def train_network(connection: Connection) -> str | None:
    """Train a small network on the synthetic patches, unless it is there."""
    from pgearth.pyfuncs.training.classifier import Settings

    if stored(connection, "cnn"):
        return "trained before"
    order = train_encoder.Order(
        Settings("resnet18", NETWORK_WIDTH, NETWORK_EPOCHS, batch_size=32, learning_rate=1e-3, patience=5, seed=0),
        spectral.BANDS,
        scheme="ben19",
        level=None,
        filters=SYNTHETIC,
        validation_fraction=VALIDATION_FRACTION,
    )
    train_encoder.train_encoder("cnn", order)
    return None


def train_milan(connection: Connection) -> str | None:
    """Train a small MiLaN over the network's vectors of the synthetic patches, unless it is there."""
    if stored(connection, "milan"):
        return "trained before"
    order = train_hash.Order(
        "milan", "cnn", filters=SYNTHETIC, validation_fraction=VALIDATION_FRACTION, milan={"steps": HASH_STEPS}
    )
    train_hash.train_hash("milan", order)
    return None


def stored(connection: Connection, name: str) -> bool:
    """Whether there is an encoder or hash function of this name."""
    return connection.execute("select from eo.encoder where name = %s", (name,)).fetchone() is not None


def load_sample(connection: Connection, sample: Path) -> bytes:
    """Load everything of the sample that this version reads; return an image that is not in the archive."""
    v1, v2 = sample / "bigearthnet-v1", sample / "bigearthnet-v2"
    catalogue = [v2 / "metadata.parquet", v2 / "metadata_for_patches_with_snow_cloud_or_shadow.parquet"]
    step("bigearthnet-metadata", lambda: load_bigearthnet_metadata(connection, catalogue))
    step("bigearthnet v1", lambda: load_bigearthnet(connection, v1, lists=v1 / "lists"))
    step("bigearthnet v2", lambda: load_bigearthnet(connection, v2, metadata=catalogue))
    for path in products(sample):
        # The sample's 19UDP scene classes carry a wrong reference system, so that product goes without them.
        bands = tuple(spectral.BANDS) if path.name.startswith("L2A_19UDP") else None
        # Windows of 120 pixels: these are downsampled tiles, and cutouts that do not lie on the grid of their tile.
        options = Options(grid="fixed:120", bands=bands)
        step(f"product {path.name}", lambda path=path, options=options: load_product(connection, path, options))  # type: ignore[misc]
    corine = sample / "corine"
    step("corine Lanjaron", lambda: load_corine(connection, corine / "clc2018_lanjaron_es.gpkg", "clc"))
    step("corine Muenster", lambda: load_corine(connection, corine / "clc5_2018_muenster_de.gpkg"))
    step("grid over CORINE", lambda: load_corine_grid(connection))
    step("nuts", lambda: load_nuts(connection, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson"))
    return (sample / "eurosat" / "MS" / "AnnualCrop" / "AnnualCrop_1.tif").read_bytes()


def annotate(connection: Connection) -> dict[str, int]:
    """Annotate what is not yet: with it, the catalogue's own countries give way to those of NUTS."""
    row = connection.execute("call eo.annotate()").fetchone()
    assert row is not None
    return {"patches": row[0]}


def products(sample: Path) -> Iterator[Path]:
    """Folders of the sample's Sentinel-2 products."""
    for pattern in ("sentinel2-cog/*", "majortom/*/*", "ssl4eo/s2[ac]/*/*", "sentinel2-jp2/*"):
        yield from sorted(path for path in sample.glob(pattern) if path.is_dir())


def load_corine_grid(connection: Connection) -> dict[str, int]:
    """Store a grid of patch footprints, without pixels, over the two CORINE samples: something to annotate."""
    counts = {"patches": 0}
    for place, srid, west, south, columns, rows in (
        ("Lanjaron", 32630, 453_240, 4_081_020, 9, 15),
        ("Muenster", 32632, 395_100, 5_744_160, 17, 20),
    ):
        with load_item(connection, "demo", f"grid over {place}", "1") as item:
            if item is None:
                continue
            time_of_corine = datetime(2018, 7, 1, tzinfo=UTC)
            write_products(connection, [Product(f"grid over {place}", "none", "grid", time_of_corine)])
            patches = [
                Patch(
                    name=f"{place}_{column}_{row}",
                    product=f"grid over {place}",
                    platform="none",
                    sensing_time=time_of_corine,
                    srid=srid,
                    west=west + GRID_SIDE * column,
                    south=south + GRID_SIDE * row,
                    east=west + GRID_SIDE * (column + 1),
                    north=south + GRID_SIDE * (row + 1),
                    tile_column=column,
                    tile_row=rows - 1 - row,
                )
                for row in range(rows)
                for column in range(columns)
            ]
            item.rows = write_patches(connection, GRID_SOURCE, patches)
            counts["patches"] += item.rows
    return counts


def show(connection: Connection, query: Query) -> list[tuple[Any, ...]]:
    """Run a query, print it and its result as psql would, and return the rows."""
    click.echo(f"\n-- {query.title}")
    for name, value in query.parameters.items():
        shown = "`base64 -w0 AnnualCrop_1.tif`" if name == "image" else psql_value(value)
        click.echo(f"\\set {name} {shown}")
    if query.note:
        click.echo(f"-- {query.note}")
    click.echo(query.sql)
    statement = query.sql.replace("%", "%%")
    for name in query.parameters:
        statement = statement.replace(f":'{name}'", f"%({name})s")
    cursor = connection.execute(statement.encode(), query.parameters)
    rows = cursor.fetchall()
    print_table([column.name for column in cursor.description or []], rows)
    return rows


def psql_value(value: object) -> str:
    """Write a value as psql's \\set takes it; lists become array literals."""
    if isinstance(value, list):
        value = "{" + ",".join(f'"{item}"' for item in value) + "}"
    return f"'{value}'"


def print_table(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Print rows in psql's aligned format."""
    cells = [["" if value is None else display(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    click.echo(" " + " | ".join(name.center(width) for name, width in zip(names, widths, strict=True)))
    click.echo("-" + "-+-".join("-" * width for width in widths) + "-")
    for row in cells:
        click.echo(" " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)))
    click.echo(f"({len(rows)} row{'' if len(rows) == 1 else 's'})")


def display(value: object) -> str:
    """Write a value as psql does."""
    return "{" + ",".join(map(str, value)) + "}" if isinstance(value, list) else str(value)


def report(connection: Connection) -> None:
    """Print what the archive holds."""
    click.echo("\n-- The archive")
    cursor = connection.execute(
        """
        select p.source, count(*) as patches,
               count(*) filter (where r.patch_id is not null) as "with pixels", count(p.label_ids) as labelled,
               count(p.country_codes) as "with country", count(e.patch_id) as encoded
        from eo.patch p
        left join (select distinct patch_id from eo.patch_raster) r using (patch_id)
        left join (select distinct patch_id from eo.patch_bucket) e using (patch_id)
        group by p.source
        union all
        select 'CORINE polygons', count(*), null, null, null, null from eo.corine
        union all
        select 'NUTS units', count(*), null, null, null, null from eo.nuts
        """
    )
    print_table([column.name for column in cursor.description or []], cursor.fetchall())
