-- What the database runs on, and whether its parts fit together.

-- Whether PL/Python is there and finds the package.
create or replace function eo_internal.has_python()
returns boolean
language plpgsql
stable parallel safe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    -- Any of the wrappers: where the language came later, they come with the next pgearth migrate.
    if to_regprocedure('eo_internal.finds_package()') is null then
        return false;
    end if;
    return eo_internal.finds_package();
end
$$;

create or replace function eo_internal.require_python()
returns void
language plpgsql
stable parallel safe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if to_regprocedure('eo_internal.finds_package()') is null then
        raise exception 'this function needs PL/Python, which this database does not have'
            using errcode = 'feature_not_supported',
                  hint = 'Where the server has no plpython3u, encode and hash with: pgearth encode; searches by stored patches, codes and vectors work without. Where it has, run: pgearth migrate';
    elsif not eo_internal.finds_package() then
        raise exception 'the server''s Python does not find the package pgearth'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Install it in the environment whose bin folder comes first in the server''s PATH, and restart the server; searches by stored patches, codes and vectors work without.';
    end if;
end
$$;

create or replace function eo.runtime()
returns table (component text, version text, note text)
language plpgsql
stable parallel unsafe
security definer
rows 16 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    python jsonb;
    process jsonb;
    schema_version text := (select s.version from eo_internal.schema_version s);
    vector_version text := (select extversion from pg_extension where extname = 'vector');
begin
    if eo_internal.has_python() then
        python := (eo_internal.python_runtime()).runtime;
        process := python -> 'encoder_process';
    end if;
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
        select 'PL/Python', null,
               case when to_regprocedure('eo_internal.finds_package()') is null then 'absent' else 'does not find the package pgearth' end
               || ': functions that encode, hash or draw are not to be had here; searches run in plain SQL'
        where python is null
        union all
        select part.component, part.version, part.note
        from (values ('Python', python ->> 'python', python ->> 'prefix'),
                     ('numpy', python ->> 'numpy', null),
                     ('torch', python ->> 'torch', null),
                     ('pgearth package', python ->> 'package', null),
                     ('device', coalesce(process ->> 'device', 'cpu'), case when process ? 'device' then 'of the encoder process' end),
                     ('encoder process',
                      case when process ? 'pid' then 'running' when process ? 'error' then 'failing' else 'stopped' end,
                      case
                          when process ? 'pid' then format('pid %s since %s, %s', process ->> 'pid', process ->> 'started',
                                                           pg_size_pretty((process ->> 'memory')::bigint))
                          else coalesce(process ->> 'error', 'networks compute in each session, on the CPU; to start it: pgearth encoder start')
                      end)) part (component, version, note)
        where python is not null
        union all
        select part.component, part.version, part.note
        from (values ('encoders loaded', format('%s of %s', pg_size_pretty((process ->> 'loaded_bytes')::bigint),
                                                pg_size_pretty((process ->> 'memory_limit')::bigint)),
                      (select string_agg(encoder, ', ') from jsonb_array_elements_text(process -> 'loaded') as encoder)),
                     ('encoding queue', format('%s requests, %s patches', process -> 'queue' ->> 'requests', process -> 'queue' ->> 'patches'),
                      null),
                     ('encoding so far', format('%s requests, %s patches in %s batches', process -> 'counts' ->> 'requests',
                                                process -> 'counts' ->> 'patches', process -> 'counts' ->> 'batches'),
                      (select string_agg(c.value || ' ' || c.key, ', ' order by c.key collate "C")
                       from jsonb_each_text(process -> 'counts' || jsonb_build_object('evicted', process -> 'evicted')) c
                       where c.key not in ('requests', 'patches', 'batches') and c.value <> '0'))) part (component, version, note)
        where process ? 'pid'
        union all
        select 'pgearth schema', schema_version,
               case when schema_version = python ->> 'package' then 'matches the package'
                    when python is not null then 'does not match the package: run pgearth migrate, then open a new session' end
        union all
        select 'packed codes of ' || e.name || ':' || e.version, i.buckets || ' codes, ' || i.patches || ' patches',
               case
                   when python is null then 'searches run in plain SQL'
                   when python -> 'packed' ? i.version::text
                       then (python -> 'packed' ->> i.version::text) || ', so searches are slower: run pgearth index codes'
                   else coalesce(eo_internal.unproved_codes(i) || ', so searches are slower: run pgearth index codes',
                                 eo_internal.unproved_patches(i) || ', so filtered searches are slower: run pgearth index codes')
               end
        from eo.code_index i
        join eo.encoder e on e.encoder_id = i.encoder_id;
end
$$;
comment on function eo.runtime() is
'Versions of the server, its extensions, Python and its libraries, and whether they fit together; the device and the encoder process (see pgearth encoder); which hash functions'' codes are packed, or why not. Warns about pgvector older than 0.8.3.';
