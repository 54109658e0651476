-- Search by example: by stored patches and by an uploaded image.

create or replace function eo_internal.check_patches(names text[])
returns void
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    unknown text;
begin
    select given.name into unknown
    from unnest(names) as given (name)
    where not exists (select from eo.patch p where p.name = given.name)
    limit 1;
    if found then
        raise exception 'there is no patch "%"', unknown
            using errcode = 'no_data_found', hint = 'Names are in eo.patch; eo.search finds them by place, time and label.';
    end if;
end
$$;

create or replace function eo_internal.same_place(footprint public.geometry, places public.geometry)
returns boolean
language sql
immutable parallel safe
security invoker
cost 1000
begin atomic
    -- More than a thousandth of the smaller area: the edge of a patch is straight in its own reference system and not in
    -- EPSG:4326, so neighbours of grids that are offset to each other overlap by slivers of a few centimetres.
    select public.ST_Intersects(footprint, places)
           and public.ST_Area(public.ST_Intersection(footprint, places, -1::double precision)) > 0.001 * least(public.ST_Area(footprint), public.ST_Area(places));
end;

create or replace function eo_internal.left_out(exclude text[], exclude_same_place boolean)
returns bigint[]
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if exclude_same_place and coalesce(cardinality(exclude), 0) = 0 then
        raise exception 'exclude_same_place was asked for, but exclude names no patch'
            using errcode = 'invalid_parameter_value', hint = 'Pass in exclude the names of the patches whose places are to be left out.';
    end if;
    perform eo_internal.check_patches(eo_internal.given_list(exclude));
    if exclude_same_place then
        return (select array_agg(distinct p.patch_id)
                from eo.patch excluded
                join eo.patch p on eo_internal.same_place(p.footprint, excluded.footprint)
                where excluded.name = any (exclude));
    end if;
    return (select array_agg(p.patch_id) from eo.patch p where p.name = any (exclude));
end
$$;

create or replace function eo_internal.given_positives(positives text[])
returns text[]
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if coalesce(cardinality(positives), 0) = 0 then
        raise exception 'no positive example was given'
            using errcode = 'invalid_parameter_value', hint = 'Pass the names of one or more patches to be found alike.';
    end if;
    return eo_internal.given_list(positives);
end
$$;

create or replace function eo_internal.example_code(patch text, encoder_id smallint)
returns eo_internal.example
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
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
        perform eo_internal.check_patches(array[patch]);
        raise exception 'patch "%" has no hash code', patch
            using errcode = 'no_data_found', hint = 'If it has pixels, run: pgearth encode';
    end if;
    return example;
end
$$;

create or replace function eo.similar(
    patch text,
    filter eo.filter default null,
    max_results integer default 10,
    encoder text default null,
    exclude_same_place boolean default false
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    example eo_internal.example;
    left_out bigint[];
begin
    example := eo_internal.example_code(patch, used_encoder);
    left_out := example.patch_id || case when exclude_same_place then eo_internal.left_out(array[patch], true) else '{}' end;
    return query
        select *
        from eo_internal.nearest_patches(
            used_encoder, array[example.code], '{}', max_results, null, left_out, filter);
end
$$;
comment on function eo.similar(text, eo.filter, integer, text, boolean) is
'Query by example: the max_results patches most similar to a stored patch, itself left out, among those that the filter lets pass. exclude_same_place: leave out also all patches that overlap it, such as its other dates. See eo.similar_to_code.';

-- The code of an uploaded image: what a reader may ask of eo_internal.hash_image.
create or replace function eo_internal.image_code(image bytea, encoder_id smallint, bands text[])
returns bit varying
language plpgsql
stable parallel unsafe
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    perform eo_internal.require_python();
    perform eo_internal.check_image(image, bands);
    return (
        select (eo_internal.hash_image(e.encoder_id, e.parent_id, image, image_code.bands)).code
        from eo.encoder e
        where e.encoder_id = image_code.encoder_id
    );
end
$$;

create or replace function eo.similar_to_image(
    image bytea,
    filter eo.filter default null,
    max_results integer default 10,
    encoder text default null,
    bands text[] default null
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
begin
    return query
        select *
        from eo_internal.nearest_patches(
            used_encoder, array[eo_internal.image_code(image, used_encoder, bands)], '{}', max_results, null, '{}', filter);
end
$$;
comment on function eo.similar_to_image(bytea, eo.filter, integer, text, text[]) is
'Query by an uploaded GeoTIFF: the max_results patches most similar to it, among those that the filter lets pass; bands: see eo.encode_image. In psql: \set image `base64 -w0 FILE`, then decode(:''image'', ''base64'').';

create or replace function eo.similar_to_examples(
    positives text[],
    negatives text[] default '{}',
    filter eo.filter default null,
    max_results integer default 10,
    encoder text default null,
    exclude_same_place boolean default false
)
returns table (rank bigint, patch_id bigint, cell text, name text, distance integer)
language plpgsql
stable parallel unsafe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    examples bigint[];
    wanted bit varying[];
    unwanted bit varying[];
begin
    select array_agg(e.patch_id), array_agg(e.code) filter (where positive), coalesce(array_agg(e.code) filter (where not positive), '{}')
    into examples, wanted, unwanted
    from (select unnest(eo_internal.given_positives(positives)) as name, true as positive union all select unnest(eo_internal.given_list(negatives)), false) given,
         eo_internal.example_code(given.name, used_encoder) as e;
    if exclude_same_place then
        examples := examples || eo_internal.left_out(positives || negatives, true);
    end if;
    return query
        select *
        from eo_internal.nearest_patches(
            used_encoder, wanted, unwanted, max_results, null, examples, filter);
end
$$;
comment on function eo.similar_to_examples(text[], text[], eo.filter, integer, text, boolean) is
'Query by several examples, names of stored patches: the max_results others with the least sum of Hamming distances to the positive ones less that to the negative ones, among those that the filter lets pass. exclude_same_place: leave out also all patches that overlap an example. Exact.';
