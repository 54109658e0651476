"""What a role needs to migrate a database."""

from __future__ import annotations

import sqlalchemy

from pgearth.loaders.server.revisions import BASE
from pgearth.pyfuncs.errors import PgearthError

# What a user who is no superuser lacks, and the statement by which a superuser gives it.
MISSING_RIGHTS = """
with me as (
    select r.rolname, r.rolcreaterole, has_database_privilege(current_database(), 'create') as may_create
    from pg_roles r
    where r.rolname = current_user and not r.rolsuper
)
select format('the extension %%s is missing', name), format('create extension %%I schema public', name)
from me, unnest('{postgis,postgis_raster,vector}'::text[]) as name
where not exists (select from pg_extension e where e.extname = name)
  and not (me.may_create and exists (select from pg_available_extension_versions v where v.name = name and v.trusted))
union all
select format('the role %%s is missing', name), format('create role %%I nologin', name)
from me, unnest('{eo_owner,eo_writer,eo_reader}'::text[]) as name
where to_regrole(name) is null and not me.rolcreaterole
union all
select format('%%s is no member of %%s', pair.member, pair.role), format('grant %%I to %%I', pair.role, pair.member)
from me, lateral (values ('eo_reader', 'eo_writer', 'member'), ('eo_writer', 'eo_owner', 'member'),
                         ('eo_owner', me.rolname::text, 'usage')) pair (role, member, how)
where not case when to_regrole(pair.role) is null or to_regrole(pair.member) is null then me.rolcreaterole
               else pg_has_role(pair.member, pair.role, pair.how)
                    or pg_has_role(pair.role, 'member with admin option')
                    or me.rolcreaterole and current_setting('server_version_num')::integer < 160000 end
union all
select 'schemas are to be made', format('grant create on database %%I to %%I', current_database(), me.rolname)
from me
where (to_regnamespace('eo') is null or to_regnamespace('eo_layers') is null) and not me.may_create
union all
select 'tables are to be made in the schema public', format('grant create on schema public to %%I', me.rolname)
from me
where (to_regclass('public.pgearth_version') is null or to_regclass('public.layer_styles') is null)
  and not has_schema_privilege('public', 'create')
union all
select 'MODIS''s reference system is to be stored', format('grant insert on public.spatial_ref_sys to %%I', me.rolname)
from me
where %s < '0010' and to_regclass('public.spatial_ref_sys') is not null
  and not has_table_privilege('public.spatial_ref_sys', 'insert')
"""
FOREIGN_OWNERS = """
select string_agg(distinct pg_get_userbyid(owner), ', ')
from (select relnamespace as namespace, relowner as owner from pg_class
      union all select pronamespace, proowner from pg_proc
      union all select oid, nspowner from pg_namespace) thing
where namespace in (to_regnamespace('eo'), to_regnamespace('eo_internal'), to_regnamespace('eo_layers'))
  and not pg_has_role(owner, 'usage')
"""


def require_rights(connection: sqlalchemy.Connection, current: str) -> None:
    """Raise PgearthError unless the user may do what an upgrade of a database at `current` does."""
    user, database = connection.exec_driver_sql("select current_user, current_database()").one()
    missing = connection.exec_driver_sql(MISSING_RIGHTS, ("" if current == BASE else current,)).all()
    if missing:
        raise PgearthError(
            f"The role {user} may not migrate the database {database}: {'; '.join(reason for reason, _ in missing)}.",
            f"Have a superuser run there: {'; '.join(statement for _, statement in missing)};",
        )
    if owners := connection.exec_driver_sql(FOREIGN_OWNERS).scalar():
        raise PgearthError(
            f"Parts of the archive belong to {owners}, of which {user} is no member.",
            f"Run pgearth migrate as {owners} or as a superuser: it gives them to eo_owner.",
        )
