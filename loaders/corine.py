"""CORINE Land Cover polygons, from any vector file."""

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

CLASS_CODE = Attribute("CORINE class code", r"(clc|(clc_?)?code)_?(\d\d|\d{4})|(clc_?)?code", "Code_18")

# Codes of the official legend, and of BigEarthNet's, that stand for no class.
UNLABELLED = {"990", "995", "999"}


def load_corine(
    connection: Connection, path: Path, layer: str | None = None, code_field: str | None = None
) -> Counter[str]:
    """Load the polygons of one layer into eo.corine and derive their pieces for the patches in the archive.

    Returns counts: polygons loaded, repaired, dropped (null or empty), unlabelled (skipped), layers skipped because
    they were loaded before, pieces derived. Raises InputError for a file that is not what it should be; then nothing
    of it is loaded.
    """
    class_code = CLASS_CODE if code_field is None else Attribute("CORINE class code", re.escape(code_field), code_field)
    polygon_layer = find_polygon_layer(path, [class_code], layer)
    label_ids: dict[str, int] = dict(
        connection.execute("select code, label_id from eo.label where scheme = 'clc' and level = 3").fetchall()
    )
    if not label_ids:
        raise InputError("The nomenclature clc is not in the archive", "Run `pgearth load nomenclature`.")
    counts: Counter[str] = Counter()
    with load_item(connection, "corine", polygon_layer.source, polygon_layer.checksum()) as item:
        if item is None:
            counts["skipped"] += 1
        else:
            with connection.cursor().copy("copy eo.corine (source, label_id, geom) from stdin (format binary)") as copy:
                copy.set_types(["text", "int2", "bytea"])
                for polygon in polygon_layer.polygons(3035, item.details):
                    (code,) = polygon.attributes
                    if code in UNLABELLED:
                        item.details["unlabelled"] += 1
                    elif code in label_ids:
                        copy.write_row((polygon_layer.source, label_ids[code], polygon.ewkb))
                        item.rows += 1
                    else:
                        raise InputError(
                            f"{path}: layer {polygon_layer.name}, feature {polygon.feature_id}: {code or 'null'} in"
                            f" field {polygon_layer.fields[0]} is no class of CORINE Land Cover",
                            "The codes of level 3 are expected, 111 to 523; --code-field names another field.",
                        )
            counts["polygons"] = item.rows
            counts += item.details
    (counts["pieces"],) = connection.execute("select eo.derive_corine_parts()").fetchone() or (0,)
    return counts


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--layer", help="Layer to load, where several could be meant.")
@click.option("--code-field", help="Field with the class code, where it is not named as in the official packages.")
def corine(file: Path, layer: str | None, code_field: str | None) -> None:
    """Load CORINE Land Cover polygons from a vector FILE in any reference system."""
    with connect(autocommit=True) as connection:
        counts = load_corine(connection, file, layer, code_field)
    click.echo(
        f"{counts['polygons']} polygons loaded, {counts['repaired']} repaired, {counts['dropped']} without area and"
        f" {counts['unlabelled']} unlabelled skipped; {counts['skipped']} layers skipped as loaded before;"
        f" {counts['pieces']} pieces derived."
    )
