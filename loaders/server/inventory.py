"""What a database holds, anybody's, and what of it a downgrade takes along."""

from __future__ import annotations

import sqlalchemy
from psycopg import sql

# What of anybody's a downgrade may take along; functions of pgearth are left out, as they come with a checkout.
INVENTORY = """
select kind, schema || '.' || name
from (
    select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table'
                          else 'table' end as kind,
           c.relnamespace as namespace, c.relname::text as name, 'pg_class'::regclass as class, c.oid as oid
    from pg_class c
    where c.relkind in ('r', 'p', 'f', 'v', 'm') and not c.relispartition
    union all
    select 'column', c.relnamespace, c.relname || '.' || a.attname, 'pg_class'::regclass, c.oid
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    where c.relkind in ('r', 'p', 'f') and not c.relispartition and a.attnum > 0 and not a.attisdropped
    union all
    select 'function', p.pronamespace, concat(p.proname, '(', pg_get_function_identity_arguments(p.oid), ')'),
           'pg_proc'::regclass, p.oid
    from pg_proc p
    union all
    select 'constraint', c.relnamespace, c.relname || '.' || k.conname, 'pg_class'::regclass, c.oid
    from pg_constraint k
    join pg_class c on c.oid = k.conrelid
    union all
    select 'trigger', c.relnamespace, c.relname || '.' || t.tgname, 'pg_class'::regclass, c.oid
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    where not t.tgisinternal
    union all
    select 'policy', c.relnamespace, c.relname || '.' || p.polname, 'pg_class'::regclass, c.oid
    from pg_policy p
    join pg_class c on c.oid = p.polrelid
) thing
cross join lateral (select n.nspname::text as schema from pg_namespace n where n.oid = thing.namespace) n
where schema !~ '^pg_|^information_schema$'
  and not exists (select from pg_depend d where d.classid = thing.class and d.objid = thing.oid and d.deptype = 'e')
  and (schema <> 'eo' or kind in ('table', 'column')) and schema <> 'eo_internal'
"""

Thing = tuple[str, str]


def inventory(connection: sqlalchemy.Connection) -> list[Thing]:
    """Kind and name of what a downgrade may delete, anybody's."""
    return sorted(tuple(row) for row in connection.exec_driver_sql(INVENTORY))


def row_counts(connection: sqlalchemy.Connection) -> dict[str, int]:
    """Number of rows by table of the archive, where there are any."""
    tables = (name for kind, name in inventory(connection) if kind == "table" and name.startswith("eo"))
    counts = {name: count(connection, name) for name in tables}
    return {name: rows for name, rows in counts.items() if rows}


def count(connection: sqlalchemy.Connection, table: str, column: str | None = None) -> int:
    """Number of rows of a table, or of those where a column is not null."""
    schema, _, name = table.partition(".")
    counted = sql.SQL("*") if column is None else sql.Identifier(column)
    query = sql.SQL("select count({}) from {}").format(counted, sql.Identifier(schema, name)).as_string()
    return int(connection.exec_driver_sql(query).scalar_one())


def say(connection: sqlalchemy.Connection, lost: list[Thing], rows: dict[str, tuple[int, int]]) -> list[str]:
    """Lines about the things that are `lost`, and about tables of `rows` before and after."""
    tables = {name for kind, name in lost if kind == "table"}
    found, empty = [], 0
    for kind, name in lost:
        table, _, column = name.rpartition(".")
        if kind == "table" or (kind == "column" and table not in tables):
            number = count(connection, name) if kind == "table" else count(connection, table, column)
            empty += not number
            if number:
                found.append(f"{kind} {name}: {number} rows")
        elif table not in tables:
            found.append(f"{kind} {name}")
    found += [
        f"{before - after} of the {before} rows of {name}"
        for name, (before, after) in rows.items()
        if after < before and name not in tables
    ]
    return [*found, f"empty tables and columns: {empty}"] if empty else found
