-- What the database runs on, and whether its parts fit together.

create or replace function eo_internal.python_runtime()
returns jsonb
language plpython3u
stable parallel restricted
security invoker
cost 100000
set search_path = eo, public, pg_temp
as $$
from pyfuncs import session

return session.runtime()
$$;

create or replace function eo.runtime()
returns table (component text, version text, note text)
language plpgsql
stable parallel restricted
security definer
rows 12 cost 100000
set search_path = eo, public, pg_temp
as $$
declare
    python jsonb := eo_internal.python_runtime();
    schema_version text := (select s.version from eo_internal.schema_version s);
    vector_version text := (select extversion from pg_extension where extname = 'vector');
begin
    if string_to_array(vector_version, '.')::integer[] < array[0, 8, 3] then
        raise warning 'pgvector % may corrupt HNSW indexes during vacuum and overflow in parallel index builds', vector_version
            using hint = 'Run docker/install-server.sh to get 0.8.3 or newer; until then indexes are built without parallel workers.';
    end if;
    return query
        select 'PostgreSQL', current_setting('server_version'), null::text
        union all
        select e.extname::text, e.extversion,
               case when e.extname = 'vector' and string_to_array(e.extversion, '.')::integer[] < array[0, 8, 3]
                    then 'older than 0.8.3: see the warning' end
        from pg_extension e
        where e.extname in ('postgis', 'postgis_raster', 'vector', 'plpython3u')
        union all
        select 'Python', python ->> 'python', python ->> 'prefix'
        union all
        select 'numpy', python ->> 'numpy', null
        union all
        select 'torch', python ->> 'torch', null
        union all
        select 'device', python ->> 'device', null
        union all
        select 'pgearth package', python ->> 'package', null
        union all
        select 'pgearth schema', schema_version,
               case when schema_version = python ->> 'package' then 'matches the package'
                    else 'does not match the package: run pgearth migrate, then open a new session' end;
end
$$;
comment on function eo.runtime() is
'Versions of the server, its extensions, Python and its libraries, the device that encoders run on, and whether the schema and the Python package are of the same version. Warns about pgvector older than 0.8.3.';
