-- Search by content: by hash code (Hamming distance) and by vector (Euclidean distance). All exact.
--
-- Codes are stored once per bucket and joined to their patches, where filters and visibility apply, so a filter never
-- leaves fewer than max_results rows when more patches pass it. Equal distances are ordered by patch_id.

create or replace function eo_internal.check_code(code bit varying, encoder_id smallint)
returns void
language plpgsql
stable parallel safe
security invoker
set search_path = eo, public, pg_temp
as $$
declare
    wanted integer := (select e.bits from eo.encoder e where e.encoder_id = check_code.encoder_id);
begin
    if length(code) is distinct from wanted then
        raise exception 'the code has % bits, but the hash function makes %', length(code), wanted
            using errcode = 'invalid_parameter_value', hint = 'Pass a code made by eo.hash with the same hash function.';
    end if;
end
$$;

create or replace function eo_internal.check_radius(radius integer)
returns void
language plpgsql
immutable parallel safe
security invoker
set search_path = eo, public, pg_temp
as $$
begin
    if radius is null or radius < 0 then
        raise exception 'radius must be 0 or more, not %', radius
            using errcode = 'invalid_parameter_value', hint = 'It is a number of differing bits.';
    end if;
end
$$;

create or replace function eo.similar_to_code(
    code bit varying,
    max_results integer default 10,
    encoder text default null,
    area geometry default null,
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default 'some',
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 10000
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
begin
    perform eo_internal.check_code(code, used_encoder);
    return query
        select row_number() over (order by found.distance, found.patch_id), found.*
        from (
            select p.patch_id, p.cell, p.name, (b.code <~> similar_to_code.code)::integer as distance
            from eo.bucket b
            join eo.patch_bucket pb on pb.encoder_id = b.encoder_id and pb.bucket_no = b.bucket_no and pb.segment = 0
            join eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            similar_to_code.seasonal_snow, similar_to_code.cloud_or_shadow, max_cloud) p
                on p.patch_id = pb.patch_id and p.cell = pb.cell
            where b.encoder_id = used_encoder
            order by 4, p.patch_id
            limit max_results
        ) found
        order by 1;
end
$$;
comment on function eo.similar_to_code(bit varying, integer, text, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'The max_results patches whose hash codes are nearest to a code (Hamming distance; null: all patches), among those that pass the filters of eo.patches. encoder: hash function, a name or name:version; null: the newest. Exact.';

create or replace function eo.within_distance(
    code bit varying,
    radius integer,
    encoder text default null,
    area geometry default null,
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default 'some',
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 10000
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    perform eo_internal.check_radius(radius);
    return query
        select s.*
        from eo.similar_to_code(code, null, encoder, area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                                within_distance.seasonal_snow, within_distance.cloud_or_shadow, max_cloud) s
        where s.distance <= radius
        order by 1;
end
$$;
comment on function eo.within_distance(bit varying, integer, text, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'All patches whose hash codes differ from a code in at most radius bits and that pass the filters of eo.patches, nearest first. Exact.';

create or replace function eo_internal.example_code(patch text, encoder_id smallint)
returns eo_internal.example
language plpgsql
stable parallel safe
security invoker
set search_path = eo, public, pg_temp
as $$
declare
    example eo_internal.example;
begin
    select p.patch_id, b.code into example
    from eo.patch p
    join eo.patch_bucket pb on pb.patch_id = p.patch_id and pb.cell = p.cell and pb.encoder_id = example_code.encoder_id
        and pb.segment = 0
    join eo.bucket b on b.encoder_id = pb.encoder_id and b.bucket_no = pb.bucket_no
    where p.name = patch
    order by p.patch_id
    limit 1;
    if not found then
        if exists (select from eo.patch p where p.name = patch) then
            raise exception 'patch "%" has no hash code', patch
                using errcode = 'no_data_found', hint = 'If it has pixels, run: pgearth encode';
        end if;
        raise exception 'there is no patch "%"', patch
            using errcode = 'no_data_found', hint = 'Names are in eo.patch; eo.search finds them by place, time and label.';
    end if;
    return example;
end
$$;

create or replace function eo.similar(
    patch text,
    max_results integer default 10,
    encoder text default null,
    area geometry default null,
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default 'some',
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 10000
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    example eo_internal.example;
begin
    example := eo_internal.example_code(patch, used_encoder);
    return query
        select row_number() over (order by s.rank), s.patch_id, s.cell, s.name, s.distance
        from eo.similar_to_code(example.code, max_results + 1, encoder, area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                                "similar".seasonal_snow, "similar".cloud_or_shadow, max_cloud) s
        where s.patch_id <> example.patch_id
        order by 1
        limit max_results;
end
$$;
comment on function eo.similar(text, integer, text, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'Query by example: the max_results patches most similar to a stored patch, itself left out, among those that pass the filters of eo.patches. See eo.similar_to_code.';

create or replace function eo.similar_to_image(
    image bytea,
    max_results integer default 10,
    encoder text default null,
    bands text[] default null,
    area geometry default null,
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default 'some',
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel restricted
security invoker
rows 10 cost 100000
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    parent text := (select parent.name || ':' || parent.version from eo.encoder e
                    join eo.encoder parent on parent.encoder_id = e.parent_id where e.encoder_id = used_encoder);
begin
    return query
        select *
        from eo.similar_to_code(eo.hash(eo.encode_image(image, parent, bands), encoder), max_results, encoder,
                                area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                                similar_to_image.seasonal_snow, similar_to_image.cloud_or_shadow, max_cloud);
end
$$;
comment on function eo.similar_to_image(bytea, integer, text, text[], geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'Query by an uploaded image: encodes and hashes a GeoTIFF (see eo.encode_image for its bands) and returns the max_results patches most similar to it, among those that pass the filters of eo.patches. In psql: \set image `base64 -w0 FILE`, then decode(:''image'', ''base64'').';

create or replace function eo.similar_to_vector(
    vec vector,
    max_results integer default 10,
    encoder text default null,
    area geometry default null,
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default 'some',
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance double precision)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 10000
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    wanted integer := (select e.dimension from eo.encoder e where e.encoder_id = used_encoder);
begin
    if vector_dims(vec) is distinct from wanted then
        raise exception 'the vector has % dimensions, but the encoder makes %', vector_dims(vec), wanted
            using errcode = 'invalid_parameter_value', hint = 'Pass a vector made by eo.encode with the same encoder.';
    end if;
    return query
        select row_number() over (order by found.distance, found.patch_id), found.*
        from (
            select p.patch_id, p.cell, p.name, e.embedding <-> vec as distance
            from eo.embedding e
            join eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            similar_to_vector.seasonal_snow, similar_to_vector.cloud_or_shadow, max_cloud) p
                on p.patch_id = e.patch_id and p.cell = e.cell
            where e.encoder_id = used_encoder
            order by 4, p.patch_id
            limit max_results
        ) found
        order by 1;
end
$$;
comment on function eo.similar_to_vector(vector, integer, text, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'The max_results patches whose embeddings are nearest to a vector (Euclidean distance), among those that pass the filters of eo.patches. encoder: a name or name:version; null: the newest. Exact.';

create or replace function eo.similar_to_examples(
    positives text[],
    negatives text[] default '{}',
    max_results integer default 10,
    encoder text default null,
    area geometry default null,
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default 'some',
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 10000
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    examples bigint[];
    wanted bit varying[];
    unwanted bit varying[];
begin
    if coalesce(cardinality(positives), 0) = 0 then
        raise exception 'no positive example was given'
            using errcode = 'invalid_parameter_value', hint = 'Pass the names of one or more patches to be found alike.';
    end if;
    select array_agg(e.patch_id), array_agg(e.code) filter (where positive), array_agg(e.code) filter (where not positive)
    into examples, wanted, unwanted
    from (select unnest(positives) as name, true as positive union all select unnest(negatives), false) given,
         eo_internal.example_code(given.name, used_encoder) as e;
    return query
        select row_number() over (order by found.distance, found.patch_id), found.*
        from (
            select p.patch_id, p.cell, p.name, d.distance
            from (
                select b.bucket_no,
                       ((select sum(b.code <~> code) from unnest(wanted) as code)
                        - coalesce((select sum(b.code <~> code) from unnest(unwanted) as code), 0))::integer as distance
                from eo.bucket b
                where b.encoder_id = used_encoder
            ) d
            join eo.patch_bucket pb on pb.encoder_id = used_encoder and pb.bucket_no = d.bucket_no and pb.segment = 0
            join eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            similar_to_examples.seasonal_snow, similar_to_examples.cloud_or_shadow, max_cloud) p
                on p.patch_id = pb.patch_id and p.cell = pb.cell
            where p.patch_id <> all (examples)
            order by 4, p.patch_id
            limit max_results
        ) found
        order by 1;
end
$$;
comment on function eo.similar_to_examples(text[], text[], integer, text, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'Query by several examples, names of stored patches: the max_results patches with the least sum of Hamming distances to the positive ones less that to the negative ones, the examples themselves left out, among those that pass the filters of eo.patches. Exact.';
