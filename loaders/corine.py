"""CORINE Land Cover polygons, from any vector file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from psycopg import Connection

from loaders.database import connect
from loaders.errors import InputError
from loaders.ledger import load_item
from loaders.vectors import Attribute, PolygonLayer, find_polygon_layer

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
    label_ids = class_label_ids(connection)
    counts: Counter[str] = Counter()
    with load_item(connection, "corine", polygon_layer.source, polygon_layer.checksum()) as item:
        if item is None:
            counts["skipped"] += 1
        else:
            polygons = labelled_polygons(polygon_layer, label_ids, item.details)
            item.rows = store_polygons(connection, polygon_layer.source, polygons)
            counts["polygons"] = item.rows
            counts += item.details
    (counts["pieces"],) = connection.execute("select eo.derive_corine_parts()").fetchone() or (0,)
    return counts


def class_label_ids(connection: Connection) -> dict[str, int]:
    """Label ids of the level-3 classes by code. Raises InputError if the nomenclature is not in the archive."""
    label_ids: dict[str, int] = dict(
        connection.execute("select code, label_id from eo.label where scheme = 'clc' and level = 3").fetchall()
    )
    if not label_ids:
        raise InputError("The nomenclature clc is not in the archive", "Run `pgearth load nomenclature`.")
    return label_ids


def labelled_polygons(
    layer: PolygonLayer, label_ids: dict[str, int], counts: Counter[str]
) -> Iterator[tuple[int, bytes]]:
    """Label id and geometry (EWKB, EPSG:3035) of the layer's polygons; unlabelled ones are left out and counted.

    Raises InputError for a code that is no class.
    """
    for polygon in layer.polygons(3035, counts):
        (code,) = polygon.attributes
        if code in UNLABELLED:
            counts["unlabelled"] += 1
        elif code in label_ids:
            yield label_ids[code], polygon.ewkb
        else:
            raise InputError(
                f"{layer.path}: layer {layer.name}, feature {polygon.feature_id}: {code or 'null'} in"
                f" field {layer.fields[0]} is no class of CORINE Land Cover",
                "The codes of level 3 are expected, 111 to 523; --code-field names another field.",
            )


def store_polygons(connection: Connection, source: str, polygons: Iterable[tuple[int, bytes]]) -> int:
    """Store label ids and geometries (EWKB of MultiPolygons in EPSG:3035) in eo.corine; return how many.

    Runs inside the caller's transaction; pieces for the patches are derived by eo.derive_corine_parts.
    """
    stored = 0
    with connection.cursor().copy("copy eo.corine (source, label_id, geom) from stdin (format binary)") as copy:
        copy.set_types(["text", "int2", "bytea"])
        for label_id, ewkb in polygons:
            copy.write_row((source, label_id, ewkb))
            stored += 1
    return stored


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
