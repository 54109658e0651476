-- Search by segments (multi-code hashing): patches whose segments, numbers 1 and above, are like given ones.

-- Many patches at once are ids without their cells here: joined by both, which the planner takes to be independent, few are
-- expected, and the plans take up to half as long again.

create or replace function eo_internal.near_segments(encoder_id smallint, codes bit varying[], wanted integer, radius integer, patch_ids bigint[])
returns bigint[]
language plpgsql
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    near integer[] := (
        select array_agg(distinct bucket_no)
        from unnest(codes) as code,
             eo_internal.nearest_codes(near_segments.encoder_id, array[code], '{}', wanted, radius) as n,
             unnest(n.bucket_nos) as bucket_no
    );
begin
    return array(
        select distinct pb.patch_id
        from unnest(near) as bucket (bucket_no)
        join eo.patch_bucket pb on pb.encoder_id = near_segments.encoder_id and pb.bucket_no = bucket.bucket_no and pb.segment > 0
        where near_segments.patch_ids is null or pb.patch_id = any (near_segments.patch_ids)
    );
end
$$;

create or replace function eo_internal.multicode_distances(encoder_id smallint, codes bit varying[], patch_ids bigint[])
returns table (patch_id bigint, cell text, distance integer)
language plpgsql
stable parallel safe
security invoker
rows 1000 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return query execute format(
        'select pb.patch_id, min(pb.cell), (%s)::integer
         from unnest($3) as wanted (patch_id)
         join eo.patch_bucket pb on pb.patch_id = wanted.patch_id and pb.encoder_id = $1 and pb.segment > 0
         join eo.bucket b on b.encoder_id = pb.encoder_id and b.bucket_no = pb.bucket_no
         group by pb.patch_id',
        (select string_agg(format('min(b.code::pg_catalog.bit operator(public.<~>) $2[%s]::pg_catalog.bit)', number), ' + ') from generate_subscripts(codes, 1) as number))
        using encoder_id, codes, patch_ids;
end
$$;

create or replace function eo.similar_to_segments(
    codes bit varying[],
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
set plan_cache_mode = force_custom_plan
as $$
declare
    few constant integer := 1000;
    used_encoder smallint := eo_internal.hash_function_of(eo_internal.given_list(codes), encoder);
    near bigint[];
    candidates bigint[];
    bound integer;
begin
    perform eo_internal.check_max_results(max_results);
    if coalesce(cardinality(codes), 0) = 0 then
        raise exception 'no code of a segment was given'
            using errcode = 'invalid_parameter_value', hint = 'Pass the hash codes of one or more segments.';
    end if;
    candidates := array(
        select p.patch_id
        from eo.patches(filter) p
        limit few
    );
    if cardinality(candidates) = few then
        near := filter.patch_ids;
        if max_results <= few then
            -- Of n least distances that sum to s, one is at most s / n. So the sums of any max_results patches bound how near
            -- to one of the codes a better patch must have a segment; patches with segments near to the codes bound it closely.
            near := eo_internal.near_segments(used_encoder, codes, 10 * max_results, null, filter.patch_ids);
            candidates := array(
                select p.patch_id
                from eo.patches(eo_internal.among(filter, near)) p
            );
            bound := (
                select max(nearest.distance)
                from (select d.distance from eo_internal.multicode_distances(used_encoder, codes, candidates) d
                      order by d.distance limit max_results) nearest
                having count(*) = max_results
            );
            near := case when bound is null then filter.patch_ids
                         else eo_internal.near_segments(used_encoder, codes, null, bound / cardinality(codes), filter.patch_ids) end;
        end if;
        candidates := array(
            select p.patch_id
            from eo.patches(eo_internal.among(filter, near)) p
        );
    end if;
    return query
        select row_number() over (order by d.distance, d.patch_id), p.patch_id, p.cell, p.name, d.distance
        from (
            select *
            from eo_internal.multicode_distances(used_encoder, codes, candidates) found
            order by found.distance, found.patch_id
            limit max_results
        ) d
        join eo.patch p on p.patch_id = d.patch_id and p.cell = d.cell
        order by 1;
end
$$;
comment on function eo.similar_to_segments(bit varying[], eo.filter, integer, text) is
'Multi-code search: the max_results patches (null: all) with the least sum, over the given hash codes of segments, of the Hamming distance to the nearest of the patch''s segments, among those that the filter lets pass. encoder: hash function, a name or name:version; null: the current one. Exact.';

create or replace function eo.similar_segments(
    patch text,
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
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    example bigint;
    codes bit varying[];
begin
    perform eo_internal.check_max_results(max_results);
    select p.patch_id, array_agg(b.code order by pb.segment) into example, codes
    from eo.patch p
    join eo.patch_bucket pb on pb.patch_id = p.patch_id and pb.cell = p.cell and pb.encoder_id = used_encoder and pb.segment > 0
    join eo.bucket b on b.encoder_id = pb.encoder_id and b.bucket_no = pb.bucket_no
    where p.name = patch
    group by p.patch_id
    order by p.patch_id
    limit 1;
    if not found then
        perform eo_internal.check_patches(array[patch]);
        raise exception 'the segments of patch "%" have no hash codes', patch
            using errcode = 'no_data_found', hint = 'If it has pixels, run: pgearth encode --segments grid:2 (or slic:9)';
    end if;
    return query
        select row_number() over (order by s.rank), s.patch_id, s.cell, s.name, s.distance
        from eo.similar_to_segments(codes, filter, least(max_results, 2147483646) + 1, encoder) s
        where s.patch_id <> example
        order by 1
        limit max_results;
end
$$;
comment on function eo.similar_segments(text, eo.filter, integer, text) is
'Multi-code query by example: the max_results patches whose segments are most similar to those of a stored patch, itself left out, among those that the filter lets pass. See eo.similar_to_segments.';

create or replace function eo.segment_codes(image bytea, encoder text default null, bands text[] default null)
returns bit varying[]
language plpgsql
stable parallel unsafe
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    parent smallint;
    segmentation jsonb;
begin
    perform eo_internal.require_python();
    perform eo_internal.check_image(image, bands);
    select e.parent_id, e.segmentation into parent, segmentation from eo.encoder e where e.encoder_id = used_encoder;
    if segmentation is null then
        raise exception 'no segments have codes of this hash function, so it is not known how to cut them'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run: pgearth encode --segments grid:2 (or slic:9)';
    end if;
    return (
        select array_agg(h.code order by h.number)
        from eo_internal.hash_segments(used_encoder, parent, image, bands, segmentation)
            with ordinality as h (code, embedding, failure, number)
    );
end
$$;
comment on function eo.segment_codes(bytea, text, text[]) is
'Hash codes of the segments of an uploaded GeoTIFF, cut as those of the stored patches were, in their order: the query for eo.similar_to_segments; bands: see eo.encode_image. Raises object_not_in_prerequisite_state before pgearth encode --segments, invalid_parameter_value where the pixels of a band do not fit the cuts.';

create or replace function eo.drop_segment_codes(encoder text default null)
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    dropped bigint;
begin
    delete from eo.patch_bucket pb where pb.encoder_id = used_encoder and pb.segment > 0;
    get diagnostics dropped = row_count;
    update eo.encoder e set segmentation = null where e.encoder_id = used_encoder;
    return dropped;
end
$$;
comment on function eo.drop_segment_codes(text) is
'Removes the hash codes of segments (numbers 1 and above) of a hash function, so that they can be cut in another way, and returns how many there were. encoder: a name or name:version; null: the current one. (writer)';
