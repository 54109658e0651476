"""CORINE Land Cover polygons, from any vector file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg import Connection

from pgearth.loaders.reference.editions import make_room, require_year, the_year
from pgearth.loaders.reference.polygons import Attribute, Polygon, PolygonLayer, find_polygon_layer
from pgearth.loaders.server.connection import planner
from pgearth.loaders.work.ledger import load_item
from pgearth.pyfuncs.errors import PgearthError

CLASS_CODE = Attribute("CORINE class code", r"(clc|(clc_?)?code)_?(\d\d|\d{4})|(clc_?)?code", "Code_18")

# Codes of the official legend, and of BigEarthNet's, that stand for no class.
UNLABELLED = {"990", "995", "999"}


def load_corine(
    connection: Connection,
    path: Path,
    layer: str | None = None,
    code_field: str | None = None,
    edition: str | None = None,
    replace: bool = False,
) -> Counter[str]:
    """Load the polygons of one layer into eo.corine and derive their pieces for the patches in the archive.

    `edition` is the year of the land cover; by default the one in the name of the field with the class code, of the
    file or of the layer. With `replace`, the polygons take the place of all that were loaded. Where files of an edition
    overlap, what one covers is left out of those loaded later.

    Returns counts: polygons loaded, repaired, dropped (null or empty), unlabelled (skipped), overlapping (covered by
    another file's in whole or in part), layers skipped because they were loaded before, pieces derived. Raises
    PgearthError for a file that is not what it should be, or of another edition than the archive's; then nothing of it
    is loaded, and nothing removed.
    """
    class_code = CLASS_CODE if code_field is None else Attribute("CORINE class code", re.escape(code_field), code_field)
    polygon_layer = find_polygon_layer(path, [class_code], layer)
    edition = require_year(edition or own_edition(polygon_layer))
    label_ids = class_label_ids(connection)
    counts: Counter[str] = Counter()
    with load_item(connection, "corine", polygon_layer.source, polygon_layer.checksum(), anew=replace) as item:
        if item is None:
            counts["skipped"] += 1
        else:
            make_room(connection, "corine", edition, polygon_layer.source, replace)
            # Where the ledger does not tell of an earlier load, its polygons are not stored twice.
            connection.execute("delete from eo.corine where source = %s", (polygon_layer.source,))
            stored, item.details = store_layer(connection, polygon_layer, label_ids)
            removed, overlapping = leave_out_what_is_covered(connection, polygon_layer.source)
            item.rows = stored - removed
            if overlapping:
                item.details["overlapping"] = overlapping
            counts["polygons"] = item.rows
            counts += item.details
    (counts["pieces"],) = connection.execute("select eo.derive_corine_parts()").fetchone() or (0,)
    return counts


def own_edition(layer: PolygonLayer) -> str:
    """The year of the land cover that a layer tells of itself. Raises PgearthError where it tells none, or several."""
    (field,) = layer.fields
    years = set(re.findall(r"(?:clc|corine)5?[_-]?(\d{4}|\d\d)(?!\d)", layer.source, re.IGNORECASE))
    years.update(re.findall(r"(\d{4}|\d\d)$", field))
    return the_year(
        layer.source, {year if len(year) == 4 else f"{'19' if year >= '85' else '20'}{year}" for year in years}
    )


def leave_out_what_is_covered(connection: Connection, source: str) -> tuple[int, int]:
    """Cut from the polygons of a source what those of others cover: files of one edition may overlap, its classes not.

    Returns how many are gone, and how many were covered in whole or in part. Raises PgearthError where the others are
    the synthetic archive's.
    """
    with planner(connection, enable_seqscan="off"):
        # The polygons around each, by index.
        covered = connection.execute(
            """
            with near as materialized (
                select own.corine_id, own.geom, other.source, other.geom as other
                from eo.corine own
                cross join lateral (
                    select o.source, o.geom
                    from eo.corine o
                    where o.geom && own.geom and o.source <> own.source and ST_Relate(o.geom, own.geom, '2********')
                    offset 0
                ) other
                where own.source = %(source)s
            ),
            rest as (
                select corine_id, min(source) filter (where starts_with(source, 'synthetic, seed ')) as synthetic,
                       ST_CollectionExtract(ST_Difference(geom, ST_Union(other)), 3) as geom
                from near
                group by corine_id, geom
            ),
            -- Edges of one line differ by what reprojecting rounds; what is less than a metre wide is no land.
            land as (
                select r.corine_id, (
                    select ST_Multi(ST_Collect(part.geom))
                    from ST_Dump(r.geom) part
                    where 2 * ST_Area(part.geom) > ST_Perimeter(part.geom)
                ) as geom
                from rest r
            ),
            cut as (
                update eo.corine c set geom = l.geom from land l where c.corine_id = l.corine_id and l.geom is not null
            ),
            removed as (
                delete from eo.corine c using land l where c.corine_id = l.corine_id and l.geom is null
                returning c.corine_id
            )
            select count(*), (select count(*) from removed), min(synthetic) from rest
            """,
            {"source": source},
        ).fetchone()
    assert covered is not None
    overlapping, removed, synthetic = covered
    if synthetic is not None:
        raise PgearthError(
            f"{source}: the archive has land cover of {synthetic} in the same place",
            "Load it into a database of its own: PGEARTH_DSN names it.",
        )
    return removed, overlapping


def class_label_ids(connection: Connection) -> dict[str, int]:
    """Label ids of the level-3 classes by code. Raises PgearthError if the nomenclature is not in the archive."""
    label_ids: dict[str, int] = dict(
        connection.execute("select code, label_id from eo.label where scheme = 'clc' and level = 3").fetchall()
    )
    if not label_ids:
        raise PgearthError("The nomenclature clc is not in the archive", "Run `pgearth load nomenclature`.")
    return label_ids


def store_layer(connection: Connection, layer: PolygonLayer, label_ids: dict[str, int]) -> tuple[int, Counter[str]]:
    """Store the layer's polygons in eo.corine; return how many, and counts of those repaired, dropped and unlabelled.

    Raises PgearthError for a code that is no class.
    """
    stored = 0
    counts: Counter[str] = Counter(repaired=0, dropped=0)
    with storing(connection, layer.source) as store:
        for polygon in layer.polygons(3035):
            (code,) = polygon.attributes
            counts["repaired"] += polygon.repaired
            if polygon.ewkb is None:
                counts["dropped"] += 1
            elif code in UNLABELLED:
                counts["unlabelled"] += 1
            else:
                store(label_id_of(layer, polygon, label_ids), polygon.ewkb)
                stored += 1
    return stored, counts


def label_id_of(layer: PolygonLayer, polygon: Polygon, label_ids: dict[str, int]) -> int:
    """Label id of a polygon's class. Raises PgearthError for a code that is no class."""
    (code,) = polygon.attributes
    if code not in label_ids:
        raise PgearthError(
            f"{layer.path}: layer {layer.name}, feature {polygon.feature_id}: {code or 'null'} in"
            f" field {layer.fields[0]} is no class of CORINE Land Cover",
            "The codes of level 3 are expected, 111 to 523; --code-field names another field.",
        )
    return label_ids[code]


def store_polygons(connection: Connection, source: str, polygons: Iterable[tuple[int, bytes]]) -> int:
    """Store label ids and geometries (EWKB of MultiPolygons in EPSG:3035) in eo.corine; return how many.

    Runs inside the caller's transaction; pieces for the patches are derived by eo.derive_corine_parts.
    """
    stored = 0
    with storing(connection, source) as store:
        for label_id, ewkb in polygons:
            store(label_id, ewkb)
            stored += 1
    return stored


@contextmanager
def storing(connection: Connection, source: str) -> Iterator[Callable[[int, bytes], None]]:
    """Give a function that stores a label id and a geometry (EWKB of a MultiPolygon in EPSG:3035) in eo.corine."""
    with connection.cursor().copy("copy eo.corine (source, label_id, geom) from stdin (format binary)") as copy:
        copy.set_types(["text", "int2", "bytea"])
        yield lambda label_id, ewkb: copy.write_row((source, label_id, ewkb))
