"""`pgearth demo`: the main job from end to end, on real data: load, annotate, encode, search, look."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from psycopg import Connection

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.datasets.bigearthnet.catalogue import load_bigearthnet_metadata
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.demo import pictures as demo_pictures
from pgearth.loaders.demo.synthetic import load_synthetic
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


@dataclass(frozen=True)
class Query:
    """A query of the demo: the SQL as one would type it in psql, with psql's variables as `parameters`."""

    title: str
    sql: str
    parameters: dict[str, Any] = field(default_factory=dict)
    note: str = ""


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


EUROSAT_BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"]


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


EXAMPLE = """select s.rank, s.name, s.distance, p.sensing_time::date as date
from eo.similar(:'patch', max_results => 6) s
join eo.patch p using (patch_id, cell)
order by s.rank;"""
LEARNED_EXAMPLE = """select rank, name, distance
from eo.similar(:'patch', max_results => 5, encoder => 'milan');"""
EXAMPLES = """select rank, name, round(distance::numeric, 3) as distance
from eo.similar_to_vector(eo.example_vector(:'positives', :'negatives'), max_results => 5, exclude => :'positives');"""
SEGMENTS = """select rank, name, distance
from eo.similar_segments(:'patch', max_results => 5)
order by rank;"""
CHANGE = """select rank, before_name, after_name, round(distance::numeric, 3) as distance
from eo.similar_change(:'before', :'after', max_results => 3)
order by rank;"""
RASTER_LAYER = """select 'eo_layers.' || eo.make_raster_layer(product.name) as raster_layer
from eo.product
join eo.patch p using (product_id)
where p.name = :'patch';"""
AT_LEAST = """select patch_id, name, sensing_time::date as date, countries, split
from eo.search(eo.filter(labels => :'labels', label_match => 'at_least', seasons => :'seasons'), max_results => 5);"""
STATISTICS = """select name, patches, round(100 * fraction::numeric, 1) as percent, color
from eo.label_statistics(eo.filter(labels => :'labels', label_match => 'at_least', seasons => :'seasons'))
limit 8;"""
ANNOTATION = """select p.name,
       string_agg(round(100 * f.fraction::numeric, 1) || ' % ' || l.name, ', ' order by f.fraction desc) as land_cover
from eo.patch p, unnest(p.label_ids, p.label_fraction) as f (label_id, fraction)
join eo.label l using (label_id)
where p.name in (:'first', :'second')
group by p.name;"""
AGREEMENT = """select source_country as catalogue, count(*) as patches,
       round(100.0 * avg((country_codes[1] = source_country)::integer), 2) as "same country, %",
       round(100.0 * avg((source_country = any (country_codes))::integer), 2) as "among countries, %"
from eo.patch
where source = 'bigearthnet-v2'
group by rollup (source_country)
order by 1;"""

LEARNED = "The same by a learned hash function: a small MiLaN, trained just now on the labels of a made-up landscape"


def sample_queries(image: bytes) -> list[Query]:
    """The demo's queries on the sample data."""
    labels = {"labels": ["Coniferous forest", "Inland waters"], "seasons": ["autumn"]}
    scene = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"
    return [
        Query(
            "Query by example: the patches most like a patch of a Sentinel-2 scene in Indochina",
            EXAMPLE,
            {"patch": f"{scene}_120px_3_4"},
        ),
        Query(LEARNED, LEARNED_EXAMPLE, {"patch": f"{scene}_120px_3_4"}),
        Query(
            "Query by an uploaded image: a EuroSAT GeoTIFF (annual crop) that is not in the archive",
            """select rank, name, distance
from eo.similar_to_image(decode(:'image', 'base64'), bands => :'bands', max_results => 5);""",
            {"image": base64.b64encode(image).decode(), "bands": EUROSAT_BANDS},
            "psql reads a file into a variable with: \\set image `base64 -w0 FILE`",
        ),
        Query(
            "Query by several examples: like two patches of that scene, unlike a third, by the distance of vectors",
            EXAMPLES,
            {"positives": [f"{scene}_120px_3_4", f"{scene}_120px_4_4"], "negatives": [f"{scene}_120px_2_2"]},
        ),
        Query(
            "Query by segments: patches whose quadrants are like those of that patch, wherever they lie",
            SEGMENTS,
            {"patch": f"{scene}_120px_3_4"},
        ),
        Query(
            "Query by change: which places changed most like this one, in Punjab from June to August?",
            CHANGE,
            {
                "before": "S2B_MSIL2A_20200604T054639_N0214_R048_T43RCP_20200604T094332_120px_0_0",
                "after": "S2B_MSIL2A_20200813T054639_N0214_R048_T43RCP_20200813T083230_120px_0_0",
            },
        ),
        Query(
            "A raster layer of the scene, which QGIS opens as one picture",
            RASTER_LAYER,
            {"patch": f"{scene}_120px_3_4"},
        ),
        Query("Label search: at least conifers and lakes, in autumn", AT_LEAST, labels),
        Query("Label statistics of all patches found so", STATISTICS, labels),
        Query(
            "Land cover from CORINE: shares of the area of two patch footprints",
            ANNOTATION,
            {"first": "Muenster_8_9", "second": "Lanjaron_4_7"},
        ),
        Query(
            "Country of each catalogue patch from NUTS 2021, against the catalogue's own",
            AGREEMENT,
            note="The catalogue took the nearest of ten country shapes, so it has no neighbours of these ten; "
            "NUTS 2021 has no Kosovo, whose patches (XK) keep the catalogue's code unless they reach into Serbia.",
        ),
    ]


def synthetic_queries(connection: Connection) -> list[Query]:
    """The demo's queries on a synthetic archive."""
    names = [
        name
        for (name,) in connection.execute(
            "select name from eo.patch where source = 'synthetic' and label_ids is not null order by patch_id limit 3"
        )
    ]
    pairs = connection.execute("select before_name, after_name from eo.change order by before_patch_id limit 1")
    labels = {"labels": ["clc:3"], "seasons": ["summer"]}
    return [
        Query("Query by example", EXAMPLE, {"patch": names[0]}),
        Query(LEARNED, LEARNED_EXAMPLE, {"patch": names[0]}),
        Query(
            "Query by vector: the same patch, by the distance of embeddings",
            """select rank, name, round(distance::numeric, 3) as distance
from eo.similar_to_vector(
    (select embedding from eo.encode(array(select patch_id from eo.patch where name = :'patch'))),
    max_results => 5);""",
            {"patch": names[0]},
        ),
        Query(
            "Query by several examples: like two patches, unlike a third",
            EXAMPLES,
            {"positives": names[:2], "negatives": names[2:]},
        ),
        Query("Query by segments: patches whose quadrants are like those of that patch", SEGMENTS, {"patch": names[0]}),
        *(
            Query("Query by change: places that changed most like this one", CHANGE, {"before": before, "after": after})
            for before, after in pairs
        ),
        Query("A raster layer of one season, which QGIS opens as one picture", RASTER_LAYER, {"patch": names[0]}),
        Query("Label search: at least forests or semi-natural areas, in summer", AT_LEAST, labels),
        Query("Label statistics of all patches found so", STATISTICS, labels),
        Query("Land cover: shares of the area of two patches", ANNOTATION, {"first": names[0], "second": names[1]}),
    ]


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
