-- Search by hash code (Hamming distance), exact.
--
-- Codes are stored once per bucket and joined to their patches, where filters and visibility apply, so a filter never
-- leaves fewer than max_results rows when more patches pass it. Equal distances are ordered by patch_id.

-- The id of the hash function (encoder: see encoder_id) that such codes are of.
create or replace function eo_internal.hash_function_of(codes bit varying[], encoder text)
returns smallint
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    wanted integer := (select e.bits from eo.encoder e where e.encoder_id = used_encoder);
    wrong integer;
begin
    select length(code) into wrong from unnest(codes) as code where length(code) is distinct from wanted limit 1;
    if found then
        raise exception 'the code has % bits, but the hash function makes %', wrong, wanted
            using errcode = 'invalid_parameter_value', hint = 'Pass a code made by eo.hash with the same hash function.';
    end if;
    return used_encoder;
end
$$;

create or replace function eo_internal.check_radius(radius integer)
returns void
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if radius is null or radius < 0 then
        raise exception 'radius must be 0 or more, not %', radius
            using errcode = 'invalid_parameter_value', hint = 'It is a number of differing bits.';
    end if;
end
$$;

create or replace function eo_internal.code_score(code bit varying, positives bit varying[], negatives bit varying[])
returns integer
language sql
immutable parallel safe
security invoker
begin atomic
    -- One query code is the common case; with the arrays known to the planner, the case is decided once.
    select case
        when cardinality(positives) = 1 and cardinality(negatives) = 0 then public.hamming_distance(code::pg_catalog.bit, positives[1]::pg_catalog.bit)
        else (select sum(public.hamming_distance(code::pg_catalog.bit, example::pg_catalog.bit)) from unnest(positives) as example)
             - coalesce((select sum(public.hamming_distance(code::pg_catalog.bit, example::pg_catalog.bit)) from unnest(negatives) as example), 0)
    end::integer;
end;

-- What of a filter the packed patches know to test (pgearth.pyfuncs.search.patch_file): no patch that passes the filter fails it.
create or replace function eo_internal.packed_conditions(filter eo.filter)
returns jsonb
language sql
stable parallel safe
security invoker
begin atomic
    select jsonb_strip_nulls(jsonb_build_object(
        'boxes', case
            when (filter).area is not null then (
                select coalesce(jsonb_agg(jsonb_build_array(public.ST_XMin(part.geom::public.box3d), public.ST_YMin(part.geom::public.box3d), public.ST_XMax(part.geom::public.box3d), public.ST_YMax(part.geom::public.box3d))), '[]')
                from public.ST_Dump(case when public.ST_NumGeometries((filter).area) > 20 then public.ST_Envelope((filter).area) else (filter).area end) as part
            )
            when (filter).cells is not null then (
                select coalesce(jsonb_agg(jsonb_build_array(public.ST_XMin(box::public.box3d), public.ST_YMin(box::public.box3d), public.ST_XMax(box::public.box3d), public.ST_YMax(box::public.box3d))), '[]')
                from unnest(eo_internal.cell_prefixes((filter).cells, 12)) as cell, eo.cell_box(cell) as box
            )
        end,
        'from_time', case when isfinite((filter).from_time) then (extract(epoch from (filter).from_time - '2000-01-01 00:00+00') * 1000000)::bigint end,
        'to_time', case when isfinite((filter).to_time) then (extract(epoch from (filter).to_time - '2000-01-01 00:00+00') * 1000000)::bigint end,
        'platforms', to_jsonb((filter).platforms),
        'seasons', to_jsonb((filter).seasons),
        'splits', to_jsonb((filter).splits),
        'sources', to_jsonb((filter).sources),
        'countries', to_jsonb((filter).countries),
        'seasonal_snow', to_jsonb((filter).seasonal_snow),
        'cloud_or_shadow', to_jsonb((filter).cloud_or_shadow),
        'label_groups', (select jsonb_agg(to_jsonb(g.member_ids)) from unnest((filter).labels) as g),
        'label_match', coalesce((filter).label_match, 'some'),
        'patch_ids', case
            when (filter).names is not null then to_jsonb(array(select p.patch_id from eo.patch p where p.name = any ((filter).names)))
            else to_jsonb(array_remove((filter).patch_ids, null))
        end
    ));
end;

-- Four ways to the nearest patches, in the order of distance and patch_id; eo_internal.nearest_patches chooses. left_out:
-- ids of patches not to be found.

-- Without a filter: the members of the nearest buckets. The first step finds enough, unless patches were deleted or left out.
create or replace function eo_internal.unfiltered_nearest(
    encoder_id smallint, positives bit varying[], negatives bit varying[], max_results integer, radius integer, left_out bigint[]
)
returns table (patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    wanted integer := case when max_results < 2147483647 - cardinality(left_out) then max_results + cardinality(left_out) end;
    step record;
    reached integer := -2147483648;
    found_before bigint := 0;
    found_now bigint;
begin
    loop
        step := eo_internal.nearest_codes(encoder_id, positives, negatives, wanted, radius, by_patches => true);
        return query
            select found.patch_id, found.cell, p.name, found.distance
            from (
                select member.patch_id, member.cell, b.distance
                from unnest(step.bucket_nos, step.distances) as b (bucket_no, distance)
                -- A bucket may hold thousands of patches, in the order of the index.
                cross join lateral (
                    select pb.patch_id, pb.cell
                    from eo.patch_bucket pb
                    where pb.encoder_id = unfiltered_nearest.encoder_id and pb.bucket_no = b.bucket_no and pb.segment = 0
                      and pb.patch_id <> all (left_out)
                    order by pb.patch_id
                    limit max_results - found_before
                ) member
                where b.distance > reached
                order by b.distance, member.patch_id
                limit max_results - found_before
            ) found
            join eo.patch p on p.patch_id = found.patch_id and p.cell = found.cell
            order by found.distance, found.patch_id;
        get diagnostics found_now = row_count;
        found_before := found_before + found_now;
        exit when found_before >= max_results or step.complete;
        reached := step.distances[cardinality(step.distances)];
        wanted := least(8::bigint * wanted, 2147483647);
    end loop;
end
$$;

-- In-filtering: the packed patches propose, nearest first, patches that may pass; those that do are taken. patch_ids and
-- distances are the first proposals, twice max_results. The packed files have no cells.
create or replace function eo_internal.infiltered_nearest(
    encoder_id smallint, positives bit varying[], negatives bit varying[], max_results integer, radius integer, left_out bigint[],
    filter eo.filter, patch_ids bigint[], distances integer[]
)
returns table (patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    wanted bigint := 2::bigint * max_results;
    skipped bigint := 0;
    found_before bigint := 0;
    found_now bigint;
begin
    loop
        return query
            select p.patch_id, p.cell, p.name, near.distance
            from unnest(patch_ids, distances) as near (patch_id, distance)
            join eo.patches(filter) p
                on p.patch_id = near.patch_id
            join eo.patch_bucket pb
                on pb.patch_id = p.patch_id and pb.segment = 0 and pb.encoder_id = infiltered_nearest.encoder_id and pb.cell = p.cell
            where p.patch_id <> all (left_out)
            order by near.distance, p.patch_id
            limit max_results - found_before;
        get diagnostics found_now = row_count;
        found_before := found_before + found_now;
        exit when found_before >= max_results or wanted is null or cardinality(patch_ids) < wanted;
        skipped := skipped + wanted;
        wanted := 4 * wanted;
        select n.patch_ids, n.distances into patch_ids, distances
        from eo_internal.nearest_packed_patches(
            encoder_id, positives, negatives, wanted, skipped, radius, eo_internal.packed_conditions(filter)) n;
    end loop;
end
$$;

-- Pre-filtering: all patches that pass are ranked, of those farther than a distance.
create or replace function eo_internal.prefiltered_nearest(
    encoder_id smallint, positives bit varying[], negatives bit varying[], max_results integer, radius integer, left_out bigint[],
    filter eo.filter, farther_than integer
)
returns table (patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    return query
        select p.patch_id, p.cell, p.name, eo_internal.code_score(b.code, positives, negatives) as distance
        from eo.patches(filter) p
        join eo.patch_bucket pb
            on pb.patch_id = p.patch_id and pb.segment = 0 and pb.encoder_id = prefiltered_nearest.encoder_id and pb.cell = p.cell
        join eo.bucket b on b.encoder_id = pb.encoder_id and b.bucket_no = pb.bucket_no
        where eo_internal.code_score(b.code, positives, negatives) > farther_than
          and (radius is null or eo_internal.code_score(b.code, positives, negatives) <= radius)
          and p.patch_id <> all (left_out)
        order by 4, p.patch_id
        limit max_results;
end
$$;

-- Post-filtering: the buckets are walked outward, and of their members those are taken that pass. Where few do, so that to
-- rank them all costs no more than a walk past as many buckets, pre-filtering finds the rest.
create or replace function eo_internal.postfiltered_nearest(
    encoder_id smallint, positives bit varying[], negatives bit varying[], max_results integer, radius integer, left_out bigint[],
    filter eo.filter
)
returns table (patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    wanted bigint := 8::bigint * max_results;
    passing bigint;
    step record;
    reached integer := -2147483648;
    found_before bigint := 0;
    found_now bigint;
begin
    loop
        step := eo_internal.nearest_codes(encoder_id, positives, negatives, least(wanted, 2147483647)::integer, radius);
        return query
            select p.patch_id, p.cell, p.name, b.distance
            from unnest(step.bucket_nos, step.distances) as b (bucket_no, distance)
            join eo.patch_bucket pb
                on pb.encoder_id = postfiltered_nearest.encoder_id and pb.bucket_no = b.bucket_no and pb.segment = 0
            join eo.patches(filter) p
                on p.patch_id = pb.patch_id and p.cell = pb.cell
            where b.distance > reached and p.patch_id <> all (left_out)
            order by b.distance, p.patch_id
            limit max_results - found_before;
        get diagnostics found_now = row_count;
        found_before := found_before + found_now;
        if found_before >= max_results or step.complete then
            return;
        end if;
        reached := step.distances[cardinality(step.distances)];
        wanted := 8 * wanted;
        passing := coalesce(passing, eo.count_patches(filter, exact => false));
        exit when passing <= wanted;
    end loop;
    return query
        select *
        from eo_internal.prefiltered_nearest(
            encoder_id, positives, negatives, (max_results - found_before)::integer, radius, left_out, filter, reached);
end
$$;

-- What every search by code asks for: the nearest patches by the sum of distances to positives less that to negatives.
create or replace function eo_internal.nearest_patches(
    encoder_id smallint, positives bit varying[], negatives bit varying[], max_results integer, radius integer, left_out bigint[],
    filter eo.filter
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    proposed record;
begin
    perform eo_internal.check_max_results(max_results);
    if filter is null then
        return query
            select n.rank, n.patch_id, n.cell, n.name, n.distance
            from eo_internal.unfiltered_nearest(encoder_id, positives, negatives, max_results, radius, left_out)
                with ordinality as n (patch_id, cell, name, distance, rank);
        return;
    end if;
    proposed := eo_internal.nearest_packed_patches(
        encoder_id, positives, negatives, 2::bigint * max_results, 0, radius, eo_internal.packed_conditions(filter));
    if proposed.patch_ids is not null then
        return query
            select n.rank, n.patch_id, n.cell, n.name, n.distance
            from eo_internal.infiltered_nearest(
                encoder_id, positives, negatives, max_results, radius, left_out, filter, proposed.patch_ids, proposed.distances)
                with ordinality as n (patch_id, cell, name, distance, rank);
    else
        return query
            select n.rank, n.patch_id, n.cell, n.name, n.distance
            from eo_internal.postfiltered_nearest(encoder_id, positives, negatives, max_results, radius, left_out, filter)
                with ordinality as n (patch_id, cell, name, distance, rank);
    end if;
end
$$;

create or replace function eo.similar_to_code(
    code bit varying,
    filter eo.filter default null,
    max_results integer default 10,
    encoder text default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.hash_function_of(array[code], encoder);
begin
    return query
        select *
        from eo_internal.nearest_patches(
            used_encoder, array[code], '{}', max_results, null, '{}', filter);
end
$$;
comment on function eo.similar_to_code(bit varying, eo.filter, integer, text) is
'The max_results patches whose hash codes are nearest to a code (Hamming distance; null: all patches), among those that the filter lets pass. encoder: hash function, a name or name:version; null: the current one. Exact.';

create or replace function eo.within_distance(
    code bit varying,
    radius integer,
    filter eo.filter default null,
    encoder text default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.hash_function_of(array[code], encoder);
begin
    perform eo_internal.check_radius(radius);
    return query
        select *
        from eo_internal.nearest_patches(
            used_encoder, array[code], '{}', null, radius, '{}', filter);
end
$$;
comment on function eo.within_distance(bit varying, integer, eo.filter, text) is
'All patches whose hash codes differ from a code in at most radius bits and that the filter lets pass, nearest first. Exact.';
