"""Which edition of a reference, CORINE or NUTS, an archive holds: one at a time, by the year that names it."""

from __future__ import annotations

import re

from psycopg import Connection
from psycopg.sql import SQL, Identifier

from pgearth.pyfuncs.errors import PgearthError

NAMES = {"corine": "CORINE Land Cover", "nuts": "NUTS"}
# Polygons of pgearth.loaders.demo.synthetic are of no edition: they lie apart.
OWN_ROWS = {"corine": SQL("not starts_with(source, 'synthetic, seed ')"), "nuts": SQL("true")}
ANNOTATED = {"corine": ("label_edition", "land-cover"), "nuts": ("nuts_edition", "country")}


def require_year(edition: str) -> str:
    """The year that an option names. Raises PgearthError where it is none."""
    if not re.fullmatch(r"(19|20)\d\d", edition):
        raise PgearthError(f"{edition} is no edition", "Editions are named by their year, such as 2018.")
    return edition


def the_year(source: str, years: set[str]) -> str:
    """The one year of an edition that a file tells of itself. Raises PgearthError where it tells none, or several."""
    if len(years) != 1:
        found = f"could be that of {' or '.join(sorted(years))}" if years else "is not told by its names"
        raise PgearthError(f"{source}: its edition {found}", "Name it by its year: --edition 2018")
    return years.pop()


def make_room(connection: Connection, reference: str, edition: str, source: str, replace: bool) -> None:
    """Inside the transaction of a load: see to it that the archive holds polygons of this edition only.

    With `replace`, remove all that were loaded, with their pieces and their rows in the ledger but this load's own.
    Raises PgearthError where there are polygons of another edition, or of one that is not known.
    """
    table = Identifier("eo", reference)
    # Loads of one reference take turns: each must see what the other has stored.
    connection.execute("lock table eo.edition in share row exclusive mode")
    if replace:
        part, key = Identifier("eo_internal", f"{reference}_part"), Identifier(f"{reference}_id")
        own = SQL("select {} from {} where {}").format(key, table, OWN_ROWS[reference])
        connection.execute(SQL("delete from {} where {} in ({})").format(part, key, own))
        connection.execute(SQL("delete from {} where {}").format(table, OWN_ROWS[reference]))
        connection.execute("delete from eo.load where loader = %s and source <> %s", (reference, source))
    query = SQL("select (select edition from eo.edition where reference = %s) from {} where {} limit 1")
    row = connection.execute(query.format(table, OWN_ROWS[reference]), (reference,)).fetchone()
    if row is not None and row[0] != edition:
        raise PgearthError(
            f"{source}: it is of {NAMES[reference]} {edition}, but the archive holds {row[0] or 'an unknown edition'}",
            "Only one edition can be in the archive: to put this one in place of it, add --replace."
            + ("" if row[0] else f" Where that is {edition}, insert it into eo.edition."),
        )
    if row is None:
        connection.execute(
            "insert into eo.edition (reference, edition) values (%s, %s) on conflict (reference)"
            " do update set edition = excluded.edition, loaded_at = excluded.loaded_at",
            (reference, edition),
        )


def stale_annotation(connection: Connection, reference: str) -> str | None:
    """What to say after an edition was replaced: how many patches are annotated with another, and what to do."""
    column, option = ANNOTATED[reference]
    query = SQL(
        "select count(*) from eo.patch where {} <> (select edition from eo.edition where reference = %s)"
    ).format(Identifier(column))
    row = connection.execute(query, (reference,)).fetchone()
    if row is None or row[0] == 0:
        return None
    return (
        f"{row[0]:,} patches are annotated with another edition (eo.patch.{column}):"
        f" run pgearth annotate --{option} --replace."
    )
