"""Nomenclatures: CORINE Land Cover, BigEarthNet-43 and -19, Sentinel-2 scene classes and NLCD, shipped as data files.

Label ids can be read: a clc label's id is its code; ben19, ben43, scl and nlcd labels add 1000, 1100, 2000 and 3000 to
their code, NLCD's groups 3100. Colours are the official ones where there are any (for scl: Sentinel Hub's). The upper
levels of clc and the groups of nlcd have none and bear the mean colour of their classes; a BigEarthNet class bears the
colour of the (first) CORINE class it covers. NLCD's groups are the leading digits of its class codes; its class 0,
background, is in no group.
"""

from __future__ import annotations

import csv
from difflib import get_close_matches
from importlib.resources import files

from psycopg import Connection

from pgearth.pyfuncs.errors import PgearthError


def load_nomenclature(connection: Connection) -> int:
    """Store (or bring up to date) all labels, their spellings, synonyms and closure; return the number of labels."""
    labels = data_file("labels.csv")
    for label in labels:
        label["clc_codes"] = label["clc_codes"] or None
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(STORE_LABEL, labels)
        cursor.execute("delete from eo.label_spelling")
        cursor.execute(STORE_NAMES)
        cursor.executemany(STORE_SPELLING, data_file("label_spellings.csv"))
        cursor.execute("delete from eo.label_synonym")
        cursor.executemany(STORE_SYNONYM, data_file("label_synonyms.csv"))
        cursor.execute("delete from eo.label_closure")
        cursor.execute(STORE_CLOSURE)
        cursor.execute("select eo.store_map_styles()")
    return len(labels)


def data_file(name: str) -> list[dict[str, str | None]]:
    """Rows of a CSV file of the package."""
    with files("pgearth.loaders.reference").joinpath("data", name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


STORE_LABEL = """
insert into eo.label (label_id, scheme, code, level, name, color, clc_codes)
values (%(label_id)s, %(scheme)s, %(code)s, %(level)s, %(name)s, %(color)s, string_to_array(%(clc_codes)s, ' '))
on conflict (label_id) do update
    set scheme = excluded.scheme, code = excluded.code, level = excluded.level, name = excluded.name,
        color = excluded.color, clc_codes = excluded.clc_codes
"""

# Where two levels share a name (Pastures, Water bodies), data mean the more special class.
STORE_NAMES = """
insert into eo.label_spelling (scheme, spelling, label_id)
select distinct on (scheme, name) scheme, name, label_id
from eo.label
order by scheme, name, level desc
on conflict do nothing
"""

STORE_SPELLING = """
insert into eo.label_spelling (scheme, spelling, label_id)
select scheme, %(spelling)s, label_id from eo.label where scheme = %(scheme)s and code = %(code)s
on conflict do nothing
"""

# What people type, not what data sets call their classes. Of BigEarthNet's classes those are given that lie in none of
# the CORINE classes beside them.
STORE_SYNONYM = """
insert into eo.label_synonym (scheme, synonym, label_id)
select scheme, %(synonym)s, label_id from eo.label where scheme || ':' || code = any (string_to_array(%(labels)s, ' '))
"""

STORE_CLOSURE = """
insert into eo.label_closure (ancestor_id, descendant_id)
select ancestor.label_id, descendant.label_id
from eo.label ancestor
join eo.label descendant
  on descendant.label_id = ancestor.label_id
  or descendant.clc_codes <@ ancestor.clc_codes
  or ancestor.scheme = 'nlcd' and descendant.scheme = 'nlcd'
     and ancestor.level = 1 and descendant.level = 2 and left(descendant.code, 1) = ancestor.code
on conflict do nothing
"""


class LabelIds(dict[str, int]):
    """Label ids by name; asking for a name that is not there is a PgearthError that suggests the nearest ones."""

    def __init__(self, scheme: str, ids: dict[str, int]) -> None:
        super().__init__(ids)
        self.scheme = scheme

    def __missing__(self, name: str) -> int:
        near = get_close_matches(name, self, n=3)
        raise PgearthError(
            f"{name!r} is no label of the nomenclature {self.scheme}",
            f"Is one of these meant? {'; '.join(near)}" if near else "See: select scheme, name from eo.label",
        )


def label_ids_by_name(connection: Connection, scheme: str) -> LabelIds:
    """Label ids of one nomenclature by name, in every spelling known. Raises PgearthError if it is not loaded."""
    rows = connection.execute(
        "select spelling, label_id from eo.label_spelling where scheme = %s", (scheme,)
    ).fetchall()
    if not rows:
        raise PgearthError(f"The nomenclature {scheme} is not in the archive", "Run `pgearth load nomenclature`.")
    return LabelIds(scheme, dict(rows))
