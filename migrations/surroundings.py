"""What lies around the archive in its database, looked at before anything changes: extensions, and who may create."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

EXTENSIONS = ("postgis", "postgis_raster", "vector")
SCHEMA = "public"
"""Where the extensions are: bodies in sql/ name what is theirs by it."""

# Whoever may do anything with the database, the schema, or the archive need not create functions in it to harm it.
TRUSTED = """
    r.rolsuper or r.rolname in ('eo_owner', 'pg_database_owner', current_user) or r.oid = n.nspowner
    or coalesce(pg_catalog.pg_has_role(r.oid, pg_catalog.to_regrole('eo_owner'), 'member'), false)
    or r.oid = (select d.datdba from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
"""
ELSEWHERE = """
select e.extname::text, n.nspname::text
from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
where e.extname = any (%(extensions)s) and n.nspname <> %(schema)s
order by e.extname collate "C"
"""
# Functions of others by the name of an extension's: a call whose arguments they fit better means them.
OVERLOADS = f"""
select format('%%I.%%I(%%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)),
       r.rolname::text
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_roles r on r.oid = p.proowner
where n.nspname = %(schema)s and not ({TRUSTED})
  and exists (
      select from pg_catalog.pg_proc o
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = o.oid and d.deptype = 'e'
      join pg_catalog.pg_extension e on e.oid = d.refobjid
      where o.pronamespace = n.oid and o.proname = p.proname and e.extname = any (%(extensions)s))
order by 1
"""  # noqa: S608
# Whose triggers would run when something is written to the table.
OWNER = f"""
select r.rolname::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_roles r on r.oid = c.relowner
where n.nspname = %(schema)s and c.relname = %(table)s and not ({TRUSTED})
"""  # noqa: S608
CREATORS = f"""
select coalesce(r.rolname::text, 'PUBLIC')
from pg_catalog.pg_namespace n
cross join lateral pg_catalog.aclexplode(n.nspacl) a
left join pg_catalog.pg_roles r on r.oid = a.grantee
where n.nspname = %(schema)s and a.privilege_type = 'CREATE' and (r.oid is null or not ({TRUSTED}))
order by 1
"""  # noqa: S608


@dataclass(frozen=True)
class Fault:
    """What stands in the way, or may do harm, and what to do about it."""

    message: str
    hint: str


def obstacle(connection: Connection) -> Fault | None:
    """Why this database cannot be migrated, or None."""
    names = {"extensions": list(EXTENSIONS), "schema": SCHEMA}
    if not connection.exec_driver_sql("select to_regnamespace(%(schema)s) is not null", names).scalar():
        return Fault("The database has no schema public.", "Create it for the extensions: create schema public;")
    for extension, schema in connection.exec_driver_sql(ELSEWHERE, names):
        return Fault(
            f"The extension {extension} lies in the schema {schema}; it must be in public.",
            f"Run: alter extension {extension} set schema public;"
            if extension == "vector"
            else "PostGIS cannot be moved: keep the archive in a database of its own, or drop the extension and let"
            " pgearth migrate create it.",
        )
    for function, owner in connection.exec_driver_sql(OVERLOADS, names):
        return Fault(
            f"The function {function} of the role {owner} bears a name of PostGIS's or pgvector's in their schema: the"
            " archive's functions could call it in their stead.",
            f"Look at what it is for; then rename it, drop it, or give it to a superuser: drop function {function};",
        )
    for (owner,) in connection.exec_driver_sql(OWNER, {"schema": SCHEMA, "table": "pgearth_version"}):
        return Fault(
            f"The table public.pgearth_version, which records the revision, belongs to the role {owner}.",
            "Look at what it is; if it is not the archive's, drop it: drop table public.pgearth_version;",
        )
    return None


def warnings(connection: Connection) -> list[Fault]:
    """What an administrator should know of this database."""
    found = []
    if creators := [name for (name,) in connection.exec_driver_sql(CREATORS, {"schema": SCHEMA})]:
        found.append(
            Fault(
                f"{', '.join(creators)} may create in the schema public, where PostGIS and pgvector are:"
                " a function there can be called instead of theirs.",
                " ".join(f"revoke create on schema public from {name};" for name in map(quoted, creators)),
            )
        )
    for (owner,) in connection.exec_driver_sql(OWNER, {"schema": SCHEMA, "table": "layer_styles"}):
        found.append(
            Fault(
                f"The styles of map layers were not stored: public.layer_styles belongs to the role {owner}.",
                "Look at its triggers and defaults, then: alter table public.layer_styles owner to eo_owner;",
            )
        )
    return found


def quoted(name: str) -> str:
    """A role's name as it stands in a statement."""
    return name if name == "PUBLIC" else '"' + name.replace('"', '""') + '"'
