"""Everything that the catalogue says of an archive, as comparable lines."""

from __future__ import annotations

import sqlalchemy

CATALOGUE = """
with ours as (select oid, nspname from pg_namespace where nspname in ('eo', 'eo_internal', 'eo_layers')),
relation as (
    select c.* from pg_class c
    where c.relnamespace in (select oid from ours) or c.oid = to_regclass('public.layer_styles')
)
select 'schema', nspname, concat_ws(' ', pg_get_userbyid(nspowner), nspacl, obj_description(oid, 'pg_namespace'))
from pg_namespace where oid in (select oid from ours)
union all
select 'relation', oid::regclass::text,
       concat_ws(' ', relkind::text, relpersistence::text, pg_get_userbyid(relowner), relacl, reloptions, relrowsecurity, relforcerowsecurity,
                 relreplident::text, relispartition, pg_get_expr(relpartbound, oid), pg_get_partkeydef(oid), obj_description(oid, 'pg_class'))
from relation where relkind <> 'S' or relname !~ '^layer_styles'
union all
select 'column', c.oid::regclass || '.' || a.attname,
       concat_ws(' ', row_number() over (partition by c.oid order by a.attnum), format_type(a.atttypid, a.atttypmod),
                 a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity, a.attstorage, a.attcompression,
                 a.attcollation::regcollation, a.attstattarget, a.attacl, col_description(c.oid, a.attnum))
from relation c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relkind in ('r', 'p', 'v', 'm', 'c')
union all
select 'constraint', conrelid::regclass || ' ' || conname, concat_ws(' ', pg_get_constraintdef(oid), convalidated, conislocal)
from pg_constraint where conrelid in (select oid from relation)
union all
select 'index', indexrelid::regclass::text, concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid, indisclustered)
from pg_index where indrelid in (select oid from relation)
union all
select 'trigger', tgrelid::regclass || ' ' || tgname, concat_ws(' ', pg_get_triggerdef(oid), tgenabled::text)
from pg_trigger where tgrelid in (select oid from relation) and not tgisinternal
union all
select 'policy', polrelid::regclass || ' ' || polname,
       concat_ws(' ', polpermissive, polroles, polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
from pg_policy where polrelid in (select oid from relation)
union all
select 'rule', ev_class::regclass || ' ' || rulename, pg_get_ruledef(oid) from pg_rewrite where ev_class in (select oid from relation)
union all
select 'function', oid::regprocedure::text,
       concat_ws(' ', pg_get_functiondef(oid), pg_get_userbyid(proowner), proacl, obj_description(oid, 'pg_proc'))
from pg_proc where pronamespace in (select oid from ours)
union all
select 'sequence', seqrelid::regclass::text, concat_ws(' ', seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle)
from pg_sequence where seqrelid in (select oid from relation)
union all
select 'type', t.oid::regtype::text,
       concat_ws(' ', t.typtype::text, pg_get_userbyid(t.typowner), t.typacl, obj_description(t.oid, 'pg_type'),
                 (select array_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid))
from pg_type t where t.typnamespace in (select oid from ours)
union all
select 'statistics', oid::regclass::text, pg_get_statisticsobjdef(oid) from pg_statistic_ext where stxnamespace in (select oid from ours)
union all
select 'default privileges', defaclrole::regrole || ' ' || defaclobjtype::text, concat_ws(' ', defaclnamespace, defaclacl) from pg_default_acl
union all
select 'membership', member::regrole::text, roleid::regrole::text
from pg_auth_members where starts_with(member::regrole::text, 'eo_')
union all
select 'file', name, sha256 from eo_internal.sql_file
union all
select 'version', version, null from eo_internal.schema_version
union all
select 'revision', version_num, null from public.pgearth_version
union all
select 'reference system', srid::text, proj4text from spatial_ref_sys where srid > 900000
"""


def catalogue(connection: sqlalchemy.Connection) -> set[tuple[str, str, str]]:
    """Kind, name and definition of everything of ours in the database."""
    return {tuple(row) for row in connection.exec_driver_sql(CATALOGUE)}
