"""Functions, procedures and views that come from sql/: dropped before revisions run, for they come again at head.

A `begin atomic` body and a view depend on what they name, so that neither an older signature nor a column could go
while they stand. What a user's own objects need stays, and is replaced in its place; nothing of a user's is dropped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Literal

from sqlalchemy import Connection

CREATED = re.compile(r"^create or replace (?:function|procedure|view) (?:eo|eo_internal)\.(\w+)", re.M)
# Of each, sql/ makes one in EPSG:3857 as well: eo_internal.make_web_mercator_layers.
MAP_LAYER = re.compile(r"^create or replace view eo\.(map_\w+)(?<!_3857) with", re.M)

# Names that files of sql/ created once and create no more; those of today are read from the files.
RETIRED_NAMES = frozenset(
    {
        "all_labels_match",
        "annotate_country",
        "annotate_country_batch",
        "annotate_land_cover",
        "annotate_land_cover_batch",
        "check_code",
        "check_inlined",
        "drop_region_codes",
        "encode_regions",
        "encode_segments",
        "filtered_patch_ids",
        "image_bands",
        "labels_match",
        "near_regions",
        "nearest_patches_filtered",
        "platform_names",
        "region_codes",
        "region_distances",
        "segment_distances",
        "similar_regions",
        "similar_to_regions",
        "source_names",
        "split_names",
        "vector_candidates",
        "without_null",
    }
)

# Functions of triggers are made by revisions, as tables depend on them. `replaced`: by this transaction.
OBJECTS = """
select 'pg_proc'::regclass::oid, p.oid, 'routine', p.oid::regprocedure::text, p.proname::text,
       p.xmin = pg_current_xact_id()::xid as replaced
from pg_proc p
where p.pronamespace in (to_regnamespace('eo'), to_regnamespace('eo_internal')) and p.prorettype <> 'trigger'::regtype
union all
select 'pg_class'::regclass::oid, c.oid, 'view', c.oid::regclass::text, c.relname::text,
       r.xmin = pg_current_xact_id()::xid
from pg_class c
join pg_rewrite r on r.ev_class = c.oid and r.rulename = '_RETURN'
where c.relnamespace in (to_regnamespace('eo'), to_regnamespace('eo_internal')) and c.relkind = 'v'
"""

# pg_depend names a view by its rule or its row type; here it is the view.
DEPENDENCIES = """
with part (classid, objid, relation) as (
    select 'pg_rewrite'::regclass::oid, oid, ev_class from pg_rewrite
    union all
    select 'pg_type'::regclass::oid, t.oid, r.typrelid
    from pg_type t
    join pg_type r on r.typrelid <> 0 and (r.oid = t.oid or r.typarray = t.oid)
),
dependency as (
    select distinct case when dependent.relation is null then d.classid else 'pg_class'::regclass::oid end as classid,
           coalesce(dependent.relation, d.objid) as objid,
           case when needed.relation is null then d.refclassid else 'pg_class'::regclass::oid end as refclassid,
           coalesce(needed.relation, d.refobjid) as refobjid
    from pg_depend d
    left join part dependent on dependent.classid = d.classid and dependent.objid = d.objid
    left join part needed on needed.classid = d.refclassid and needed.objid = d.refobjid
    where d.deptype in ('n', 'a')
)
select classid, objid, refclassid, refobjid, pg_describe_object(classid, objid, 0)
from dependency
where refobjid = any (%s::oid[]) and (classid, objid) <> (refclassid, refobjid)
"""

Key = tuple[int, int]


@dataclass(frozen=True)
class Replaceable:
    """A function, procedure or view that a file of sql/ made."""

    class_id: int
    object_id: int
    kind: Literal["routine", "view"]
    identity: str
    name: str
    replaced: bool

    @property
    def key(self) -> Key:
        """What pg_depend calls it."""
        return self.class_id, self.object_id


def created_names(text: str) -> frozenset[str]:
    """Names of the functions, procedures and views that the text of a file of sql/ creates."""
    return frozenset(CREATED.findall(text)).union(f"{layer}_3857" for layer in MAP_LAYER.findall(text))


def replaceable(connection: Connection, names: frozenset[str]) -> list[Replaceable]:
    """What the database has of these names, in the schemas eo and eo_internal."""
    found = (Replaceable(*row) for row in connection.exec_driver_sql(OBJECTS))
    return [thing for thing in found if thing.name in names]


def drop_replaceable(connection: Connection, things: list[Replaceable]) -> list[str]:
    """Drop `things`, but what other objects need; say of each of those what it is and what it needs."""
    by_key = {thing.key: thing for thing in things}
    needs: dict[Key, set[Key]] = defaultdict(set)
    kept: set[Key] = set()
    uses: dict[str, list[str]] = defaultdict(list)
    ids = [thing.object_id for thing in things]
    for class_id, object_id, needed_class_id, needed_id, description in connection.exec_driver_sql(
        DEPENDENCIES, (ids,)
    ):
        dependent, needed = (class_id, object_id), (needed_class_id, needed_id)
        if needed not in by_key:
            continue
        if dependent in by_key:
            needs[dependent].add(needed)
        else:
            kept.add(needed)
            uses[description].append(by_key[needed].identity)
    waiting = list(kept)
    while waiting:
        more = needs[waiting.pop()] - kept
        kept |= more
        waiting += more
    order = TopologicalSorter({key: needs[key] for key in by_key}).static_order()
    for key in reversed(list(order)):
        if key not in kept:
            connection.exec_driver_sql(f"drop {by_key[key].kind} {by_key[key].identity}")
    return [f"{description} needs {', '.join(sorted(used))}" for description, used in sorted(uses.items())]
