-- Search by vector (Euclidean distance): exact, or approximate by name; query vectors made from several examples; the
-- HNSW index of the approximate search.

create or replace function eo_internal.vector_index_name(encoder_id smallint)
returns text
language sql
immutable parallel safe strict
security invoker
begin atomic
    select 'embedding__' || encoder_id || '__hnsw';
end;

-- Nearest patches at half precision: candidates, to be ranked by their true distances. There are fewer than
-- max_candidates when no more pass, or when the scan of the index ended early.
create or replace function eo_internal.hnsw_candidates(
    vec public.vector,
    encoder_id smallint,
    max_candidates bigint,
    left_out bigint[],
    filter eo.filter,
    out patch_ids bigint[],
    out cells text[]
)
language plpgsql
stable parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    dimension integer := public.vector_dims(vec);
    breadth text := current_setting('hnsw.ef_search');
    iteration text := current_setting('hnsw.iterative_scan');
    longest_scan text := current_setting('hnsw.max_scan_tuples');
begin
    -- Set here and put back below: in the function's header, a role that is not a superuser could not create or restore it,
    -- because a session does not know pgvector's settings before it has used a vector.
    perform set_config('hnsw.ef_search', least(greatest(10 * max_candidates, 400), 1000)::text, true),
            set_config('hnsw.iterative_scan', 'relaxed_order', true),
            set_config('hnsw.max_scan_tuples', '50000', true);
    -- Dynamic, because the index is on a cast whose length must be a literal to match it; and with the partition named,
    -- because the planner then knows by its foreign key that each vector has one patch, and so can tell by the filters'
    -- selectivity whether to walk the index or to rank just the patches that pass.
    execute format(
        'select array_agg(nearest.patch_id), array_agg(nearest.cell)
         from (
             select e.patch_id, e.cell
             from eo_internal.%I e
             join eo.patches($4) p
                 on p.patch_id = e.patch_id and p.cell = e.cell
             where $3 is null or e.patch_id <> all ($3)
             order by e.embedding::public.halfvec(%s) operator(public.<->) $1::public.halfvec
             limit $2
         ) nearest', 'embedding__' || encoder_id, dimension)
        into patch_ids, cells
        using vec, max_candidates, left_out, filter;
    perform set_config('hnsw.ef_search', breadth, true),
            set_config('hnsw.iterative_scan', iteration, true),
            set_config('hnsw.max_scan_tuples', longest_scan, true);
end
$$;

create or replace function eo.similar_to_vector(
    vec public.vector,
    filter eo.filter default null,
    max_results integer default 10,
    encoder text default null,
    approximate boolean default false,
    exclude text[] default null,
    exclude_same_place boolean default false
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance double precision)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 10000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    wanted integer := (select e.dimension from eo.encoder e where e.encoder_id = used_encoder);
    left_out bigint[] := eo_internal.left_out(exclude, exclude_same_place);
    filtered boolean := not (filter is null);
    vector_index regclass := to_regclass(format('eo_internal.%I', eo_internal.vector_index_name(used_encoder)));
    max_candidates bigint := 4 * max_results::bigint;
    few bigint;
    candidates record;
begin
    if public.vector_dims(vec) is distinct from wanted then
        raise exception 'the vector has % dimensions, but the encoder makes %', public.vector_dims(vec), wanted
            using errcode = 'invalid_parameter_value', hint = 'Pass a vector made by eo.encode with the same encoder.';
    elsif not public.vector_norm(vec) < 1e18 then
        -- Squares of distances are sums in 32 bits, which end at 3e38.
        raise exception 'the vector has the length %', public.vector_norm(vec)
            using errcode = 'numeric_value_out_of_range', hint = 'Distances are told apart up to 1e18. Pass a vector made by eo.encode with the same encoder.';
    end if;
    perform eo_internal.check_max_results(max_results);
    approximate := approximate and max_results is not null;
    if approximate and vector_index is null then
        raise exception 'the vectors of % have no index', (select e.name || ':' || e.version from eo.encoder e where e.encoder_id = used_encoder)
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Build it by eo.build_vector_index or pgearth index vectors, or leave approximate false.';
    end if;
    if approximate and exists (select from unnest(vec::real[]) as number where abs(number) > 65504) then
        raise exception 'the vector has a number beyond 65504'
            using errcode = 'numeric_value_out_of_range', hint = 'The index has half precision, which holds none larger. Leave approximate false.';
    end if;
    if approximate and filtered then
        -- Of n vectors, m of which pass, the index is walked past c * n / m for c candidates, each three to four times as dear
        -- as to rank one of the m; so ranking those that pass is faster up to m = 2 * sqrt(c * n).
        few := 2 * sqrt(max_candidates * (select greatest(c.reltuples, 0) from pg_class c where c.oid = vector_index));
        approximate := (select count(*) = few
                        from (select
                              from eo.patches(filter)
                              limit few) passing);
    end if;
    if approximate then
        candidates := eo_internal.hnsw_candidates(
            vec, used_encoder, max_candidates, left_out, filter);
        approximate := coalesce(cardinality(candidates.patch_ids), 0) >= max_results;
    end if;
    if approximate then
        return query
            select row_number() over (order by nearest.distance, nearest.patch_id), nearest.patch_id, p.cell, p.name, nearest.distance
            from (
                select e.patch_id, e.cell, e.embedding operator(public.<->) vec as distance
                from unnest(candidates.patch_ids, candidates.cells) as candidate (patch_id, cell)
                join eo.embedding e on e.patch_id = candidate.patch_id and e.cell = candidate.cell
                where e.encoder_id = used_encoder
                order by 3, 1
                limit max_results
            ) nearest
            join eo.patch p on p.patch_id = nearest.patch_id and p.cell = nearest.cell
            order by 1;
    elsif not filtered then
        -- Nothing is left to filter: vectors are ranked without looking at their patches.
        return query
            select row_number() over (order by nearest.distance, nearest.patch_id), nearest.patch_id, p.cell, p.name, nearest.distance
            from (
                select e.patch_id, e.cell, e.embedding operator(public.<->) vec as distance
                from eo.embedding e
                where e.encoder_id = used_encoder
                  and (left_out is null or e.patch_id <> all (left_out))
                order by 3, 1
                limit max_results
            ) nearest
            join eo.patch p on p.patch_id = nearest.patch_id and p.cell = nearest.cell
            order by 1;
    else
        return query
            select row_number() over (order by nearest.distance, nearest.patch_id), nearest.*
            from (
                select p.patch_id, p.cell, p.name, e.embedding operator(public.<->) vec as distance
                from eo.embedding e
                join eo.patches(filter) p
                    on p.patch_id = e.patch_id and p.cell = e.cell
                where e.encoder_id = used_encoder
                  and (left_out is null or e.patch_id <> all (left_out))
                order by 4, 1
                limit max_results
            ) nearest
            order by 1;
    end if;
end
$$;
comment on function eo.similar_to_vector(public.vector, eo.filter, integer, text, boolean, text[], boolean) is
'The max_results patches (null: all) whose embeddings are nearest to a vector (Euclidean distance), among those that the filter lets pass. Exact unless approximate (docs/search.md); exclude: names of patches to leave out, exclude_same_place: and all that overlap them. Raises invalid_parameter_value for a vector of another length, object_not_in_prerequisite_state where approximate finds no index.';

create or replace function eo_internal.example_embedding(patch text, encoder_id smallint)
returns public.vector
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    example public.vector;
begin
    select e.embedding into example
    from eo.patch p
    join eo.embedding e on e.patch_id = p.patch_id and e.cell = p.cell and e.encoder_id = example_embedding.encoder_id
    where p.name = patch
    order by p.patch_id
    limit 1;
    if not found then
        perform eo_internal.check_patches(array[patch]);
        raise exception 'patch "%" has no vector', patch
            using errcode = 'no_data_found', hint = 'If it has pixels, run: pgearth encode';
    end if;
    return example;
end
$$;

create or replace function eo.example_vector(positives text[], negatives text[] default '{}', encoder text default null)
returns public.vector
language plpgsql
stable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    wanted public.vector;
    unwanted public.vector;
begin
    wanted := (select public.avg(eo_internal.example_embedding(name, used_encoder)) from unnest(eo_internal.given_positives(positives)) as name);
    unwanted := (select public.avg(eo_internal.example_embedding(name, used_encoder)) from unnest(eo_internal.given_list(negatives)) as name);
    -- A quarter: the weights then stand as Rocchio's customary 0.75 to 0.15, and add up to 1.
    return coalesce(wanted operator(public.+) ((wanted operator(public.-) unwanted)
                                               operator(public.*) array_fill(0.25::real, array[public.vector_dims(wanted)])::public.vector),
                    wanted);
end
$$;
comment on function eo.example_vector(text[], text[], text) is
'Query vector for eo.similar_to_vector from examples, names of stored patches: 1.25 mean(positives) - 0.25 mean(negatives), as by Rocchio''s relevance feedback. An example named twice counts twice. Raises invalid_parameter_value without positives, no_data_found for a patch that is unknown or has no vector.';

create or replace function eo.build_vector_index(encoder text default null, m integer default 16, ef_construction integer default 128)
returns text
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    dimension integer := (select e.dimension from eo.encoder e where e.encoder_id = used_encoder);
    index_name text := eo_internal.vector_index_name(used_encoder);
    parameters text[] := array['m=' || m, 'ef_construction=' || ef_construction];
    parallel_workers text := current_setting('max_parallel_maintenance_workers');
    former regclass;
begin
    if dimension > 4000 then
        raise exception 'vectors of % dimensions cannot be indexed', dimension
            using errcode = 'program_limit_exceeded', hint = 'pgvector indexes half-precision vectors of at most 4,000 dimensions; the exact search works for any.';
    end if;
    if m is null or ef_construction is null then
        raise exception 'm is %, ef_construction is %', coalesce(m::text, 'null'), coalesce(ef_construction::text, 'null')
            using errcode = 'null_value_not_allowed', hint = 'Leave an argument out for its default.';
    elsif m not between 2 and 100 or ef_construction not between greatest(4, 2 * m) and 1000 then
        raise exception 'm is %, ef_construction is %', m, ef_construction
            using errcode = 'invalid_parameter_value', hint = 'pgvector takes an m of 2 to 100, and an ef_construction of at least 2 * m and 4, at most 1000.';
    end if;
    -- One build at a time; readers go on, writers wait as they do for any index that is built.
    execute format('lock table eo_internal.%I in share row exclusive mode', 'embedding__' || used_encoder);
    former := to_regclass(format('eo_internal.%I', index_name));
    if (select c.reloptions @> parameters from pg_class c where c.oid = former) then
        return index_name;
    end if;
    if (select string_to_array(e.extversion, '.')::integer[] < array[0, 8, 3] from pg_extension e where e.extname = 'vector') then
        -- Parallel builds of older versions may overflow a buffer.
        perform set_config('max_parallel_maintenance_workers', '0', true);
    end if;
    begin
        execute format('create index %I on eo_internal.%I using hnsw ((embedding::public.halfvec(%s)) public.halfvec_l2_ops) with (m = %s, ef_construction = %s)',
                       index_name || '__new', 'embedding__' || used_encoder, dimension, m, ef_construction);
    exception
        when numeric_value_out_of_range then
            raise exception 'the vectors cannot be indexed: %', sqlerrm
                using errcode = 'numeric_value_out_of_range', hint = 'The index has half precision, which holds numbers up to 65,504; the exact search works for any.';
    end;
    -- Only now, because readers wait from here on.
    if former is not null then
        execute format('drop index %s', former);
    end if;
    execute format('alter index eo_internal.%I rename to %I', index_name || '__new', index_name);
    perform set_config('max_parallel_maintenance_workers', parallel_workers, true);
    return index_name;
end
$$;
comment on function eo.build_vector_index(text, integer, integer) is
'Builds the HNSW index (half precision) for eo.similar_to_vector(approximate => true), and returns its name; anew for another m (links per vector, 2 to 100) or ef_construction (breadth of the search for them, 2 m to 1,000). Raises program_limit_exceeded for more than 4,000 dimensions, numeric_value_out_of_range for numbers beyond 65,504. (writer)';
