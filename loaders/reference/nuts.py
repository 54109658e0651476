"""NUTS units (Eurostat's statistical places, level 0: countries), from any vector file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Set
from pathlib import Path

from psycopg import Connection

from pgearth.loaders.reference.editions import make_room, require_year, the_year
from pgearth.loaders.reference.polygons import Attribute, find_polygon_layer
from pgearth.loaders.work.ledger import load_item
from pgearth.pyfuncs.errors import PgearthError

ATTRIBUTES = [
    Attribute("place code", "NUTS_ID", "NUTS_ID"),
    Attribute("level", "LEVL_CODE", "LEVL_CODE"),
    Attribute("country code", "CNTR_CODE", "CNTR_CODE"),
    Attribute("name in Latin script", "NAME_LATN", "NAME_LATN"),
]
PATTERNS = ["[A-Z]{2}[A-Z0-9]{0,3}", "[0-3]", "[A-Z]{2}", r"[^\x00-\x1f\x7f-\x9f]+"]

# Eurostat's country codes that differ from ISO 3166-1.
ISO_COUNTRY_CODES = {"EL": "GR", "UK": "GB"}


def load_nuts(
    connection: Connection, path: Path, layer: str | None = None, edition: str | None = None, replace: bool = False
) -> Counter[str]:
    """Load the places of one layer into eo.nuts and derive their pieces for the patches in the archive.

    `edition` is its year; by default the one in the name of the file or layer. With `replace`, the places take the
    place of all that were loaded.

    Returns counts: places loaded, repaired, dropped (null or empty), layers skipped because they were loaded before,
    pieces derived. Raises PgearthError for a file that is not what it should be, of another edition than the archive's,
    or that holds a place that is in the archive already; then nothing of it is loaded, and nothing removed.
    """
    polygon_layer = find_polygon_layer(path, ATTRIBUTES, layer)
    if edition is None:
        years = set(re.findall(r"(?<!\d)20\d\d(?!\d)", polygon_layer.source))
        edition = the_year(polygon_layer.source, years)
    counts: Counter[str] = Counter()
    with load_item(connection, "nuts", polygon_layer.source, polygon_layer.checksum(), anew=replace) as item:
        if item is None:
            counts["skipped"] += 1
        else:
            make_room(connection, "nuts", require_year(edition), polygon_layer.source, replace)
            stored = {nuts_id for (nuts_id,) in connection.execute("select nuts_id from eo.nuts")}
            countries = {code for (code,) in connection.execute("select code from eo.country")}
            with connection.cursor().copy(
                "copy eo.nuts (nuts_id, level, country_code, name, geom) from stdin (format binary)"
            ) as copy:
                copy.set_types(["text", "int2", "text", "text", "bytea"])
                for polygon in polygon_layer.polygons(4326):
                    item.details["repaired"] += polygon.repaired
                    item.details["dropped"] += polygon.ewkb is None
                    if polygon.ewkb is None:
                        continue
                    feature = f"{path}: layer {polygon_layer.name}, feature {polygon.feature_id}"
                    place = checked(polygon.attributes, countries, feature)
                    if place[0] in stored:
                        raise PgearthError(
                            f"{feature}: place {place[0]} is in the archive already, or twice in the file",
                            "To put this file in place of all places in the archive, add --replace.",
                        )
                    stored.add(place[0])
                    copy.write_row((*place, polygon.ewkb))
                    item.rows += 1
            counts["places"] = item.rows
            counts += item.details
    (counts["pieces"],) = connection.execute("select eo.derive_nuts_parts()").fetchone() or (0,)
    return counts


def checked(attributes: tuple[str | None, ...], countries: Set[str], feature: str) -> tuple[str, int, str, str]:
    """A place's id, level, country (ISO 3166-1) and name; `countries` are all that there are, `feature` is the row.

    Raises PgearthError unless they are of NUTS and fit together.
    """
    hint = "Load a file of the official geometries (GISCO), unchanged."
    values = []
    for value, pattern, attribute in zip(attributes, PATTERNS, ATTRIBUTES, strict=True):
        if value is None or not re.fullmatch(pattern, value):
            shown = "null" if value is None else value if value.isprintable() else ascii(value)
            raise PgearthError(f"{feature}: {shown} is no {attribute.meaning} of NUTS", hint)
        values.append(value)
    nuts_id, level, code, name = values
    if int(level) != len(nuts_id) - 2:
        raise PgearthError(f"{feature}: place {nuts_id} cannot be of level {level}", hint)
    if not nuts_id.startswith(code):
        raise PgearthError(f"{feature}: place {nuts_id} cannot be of country {code}", hint)
    if code in ISO_COUNTRY_CODES.values():
        own = next(own for own, iso in ISO_COUNTRY_CODES.items() if iso == code)
        raise PgearthError(
            f"{feature}: place {nuts_id}: {code} is no country code of NUTS, which has {own} for it", hint
        )
    country = ISO_COUNTRY_CODES.get(code, code)
    if country not in countries:
        raise PgearthError(f"{feature}: place {nuts_id}: {code} is no country's code", hint)
    return nuts_id, int(level), country, name
