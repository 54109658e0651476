"""NUTS regions (Eurostat's statistical regions, level 0: countries), from any vector file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import click
from psycopg import Connection

from loaders.database import connect
from loaders.errors import InputError
from loaders.ledger import load_item
from loaders.vectors import Attribute, find_polygon_layer

ATTRIBUTES = [
    Attribute("region code", "NUTS_ID", "NUTS_ID"),
    Attribute("level", "LEVL_CODE", "LEVL_CODE"),
    Attribute("country code", "CNTR_CODE", "CNTR_CODE"),
    Attribute("name in Latin script", "NAME_LATN", "NAME_LATN"),
]

# Eurostat's country codes that differ from ISO 3166-1.
ISO_COUNTRY_CODES = {"EL": "GR", "UK": "GB"}


def load_nuts(connection: Connection, path: Path, layer: str | None = None) -> Counter[str]:
    """Load the regions of one layer into eo.nuts and derive their pieces for the patches in the archive.

    Returns counts: regions loaded, repaired, dropped (null or empty), layers skipped because they were loaded before,
    pieces derived. Raises InputError for a file that is not what it should be, or that holds a region that is in the
    archive already; then nothing of it is loaded.
    """
    polygon_layer = find_polygon_layer(path, ATTRIBUTES, layer)
    counts: Counter[str] = Counter()
    with load_item(connection, "nuts", polygon_layer.source, polygon_layer.checksum()) as item:
        if item is None:
            counts["skipped"] += 1
        else:
            stored = {nuts_id for (nuts_id,) in connection.execute("select nuts_id from eo.nuts")}
            with connection.cursor().copy(
                "copy eo.nuts (nuts_id, level, country_code, name, geom) from stdin (format binary)"
            ) as copy:
                copy.set_types(["text", "int2", "text", "text", "bytea"])
                for polygon in polygon_layer.polygons(4326, item.details):
                    nuts_id, level, country, name = polygon.attributes
                    feature = f"{path}: layer {polygon_layer.name}, feature {polygon.feature_id}"
                    if nuts_id in stored:
                        raise InputError(
                            f"{feature}: region {nuts_id} is in the archive already, or twice in the file",
                            "Only one edition of NUTS can be in the archive: to change it, delete the rows of eo.nuts"
                            " and those of eo.load where loader = 'nuts'.",
                        )
                    for value, pattern, attribute in zip(
                        polygon.attributes,
                        ("[A-Z]{2}[A-Z0-9]{0,3}", "[0-3]", "[A-Z]{2}", ".+"),
                        ATTRIBUTES,
                        strict=True,
                    ):
                        if value is None or not re.fullmatch(pattern, value):
                            raise InputError(
                                f"{feature}: {value or 'null'} is no {attribute.meaning} of NUTS",
                                "Load a file of the official geometries (GISCO), unchanged.",
                            )
                    assert nuts_id and level and country
                    stored.add(nuts_id)
                    copy.write_row((nuts_id, int(level), ISO_COUNTRY_CODES.get(country, country), name, polygon.ewkb))
                    item.rows += 1
            counts["regions"] = item.rows
            counts += item.details
    (counts["pieces"],) = connection.execute("select eo.derive_nuts_parts()").fetchone() or (0,)
    return counts


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--layer", help="Layer to load, where several could be meant.")
def nuts(file: Path, layer: str | None) -> None:
    """Load NUTS regions from a vector FILE in any reference system."""
    with connect(autocommit=True) as connection:
        counts = load_nuts(connection, file, layer)
    click.echo(
        f"{counts['regions']} regions loaded, {counts['repaired']} repaired, {counts['dropped']} without area skipped;"
        f" {counts['skipped']} layers skipped as loaded before; {counts['pieces']} pieces derived."
    )
