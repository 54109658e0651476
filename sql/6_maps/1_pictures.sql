-- Pictures of patches.

create or replace function eo.rgb(patch text)
returns bytea
language plpgsql
stable parallel unsafe strict
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    drawn record;
    input record;
begin
    perform eo_internal.require_python();
    select p.patch_id, p.cell into drawn
    from eo.patch p
    where p.name = rgb.patch and exists (select from eo.patch_raster o where o.patch_id = p.patch_id and o.cell = p.cell)
    order by p.patch_id
    limit 1;
    if not found then
        raise exception 'there is no patch "%" with pixels', patch
            using errcode = 'no_data_found', hint = 'Patches with pixels have rows in eo.patch_raster.';
    end if;
    perform eo_internal.check_image_pixels(max(public.ST_Width(r.rast))::bigint * max(public.ST_Height(r.rast)) * sum(public.ST_NumBands(r.rast)), 'the patch')
    from eo.patch_raster r
    where r.patch_id = drawn.patch_id and r.cell = drawn.cell;
    select array_agg(array_to_string(r.bands, ',') order by r.resolution) as bands,
           array_agg(public.ST_AsWKB(r.rast, false) order by r.resolution) as rasters into input
    from eo.patch_raster r
    where r.patch_id = drawn.patch_id and r.cell = drawn.cell;
    return (eo_internal.rgb_png(input.bands, input.rasters)).png;
end
$$;
comment on function eo.rgb(text) is
'PNG of a patch: B04, B03, B02 for Sentinel-2 and VV, VH, VV - VH for Sentinel-1, each stretched from its 2nd to its 98th percentile. Raises no_data_found for a patch without pixels.';

create or replace function eo.contact_sheet(
    patch_ids bigint[],
    distances double precision[] default null,
    columns integer default 5
)
returns bytea
language plpgsql
stable parallel unsafe
security definer
cost 1000000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    max_patches constant integer := 200;
    unknown_id bigint;
    captions text[];
    drawn record;
begin
    perform eo_internal.require_python();
    if coalesce(cardinality(patch_ids), 0) not between 1 and max_patches then
        raise exception 'a contact sheet shows 1 to % patches, not %', max_patches, coalesce(cardinality(patch_ids), 0)
            using errcode = 'program_limit_exceeded', hint = 'Pass ids from eo.search or eo.similar, with a smaller max_results.';
    end if;
    if cardinality(distances) <> cardinality(patch_ids) then
        raise exception '% distances for % patches', cardinality(distances), cardinality(patch_ids)
            using errcode = 'invalid_parameter_value', hint = 'Pass one distance for each patch, in the same order.';
    end if;
    if columns is null or columns not between 1 and max_patches then
        raise exception 'a contact sheet has 1 to % columns, not %', max_patches, columns
            using errcode = 'invalid_parameter_value', hint = 'Five is a good number.';
    end if;
    select wanted into unknown_id
    from unnest(eo_internal.given_list(patch_ids)) as wanted
    where not exists (select from eo.patch p where p.patch_id = wanted)
    limit 1;
    if found then
        raise exception 'there is no patch %', unknown_id
            using errcode = 'no_data_found', hint = 'Pass ids from eo.search or eo.similar.';
    end if;
    select array_agg(concat_ws(e'\n', concat_ws(', ', 'rank ' || s.number, 'distance ' || round(s.distance::numeric, 4)::double precision),
                               p.name, p.labels)
                     order by s.number)
    into captions
    from unnest(patch_ids, distances) with ordinality as s (patch_id, distance, number)
    join eo.map_patch p on p.patch_id = s.patch_id;
    perform eo_internal.check_image_pixels(sum(sized.pixels)::bigint, format('a contact sheet of %s patches', cardinality(patch_ids)))
    from (
        select max(public.ST_Width(r.rast))::bigint * max(public.ST_Height(r.rast)) * 3 as pixels
        from unnest(patch_ids) with ordinality as s (patch_id, number)
        join eo.patch p on p.patch_id = s.patch_id
        join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell
        group by s.number
    ) sized;
    select coalesce(array_agg(s.number::integer), '{}') as numbers,
           coalesce(array_agg(array_to_string(b.names, ',')), '{}') as bands,
           coalesce(array_agg(public.ST_AsWKB(public.ST_Band(r.rast, b.places), false)), '{}') as rasters
    into drawn
    from unnest(patch_ids) with ordinality as s (patch_id, number)
    join eo.patch p on p.patch_id = s.patch_id
    join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell
    cross join lateral (select array_agg(n.name) as names, array_agg(n.place::integer) as places
                        from unnest(r.bands) with ordinality as n (name, place)
                        where n.name in ('B04', 'B03', 'B02', 'VV', 'VH')) b
    where b.names is not null;
    return (eo_internal.contact_sheet(captions, drawn.numbers, drawn.bands, drawn.rasters, columns)).png;
end
$$;
comment on function eo.contact_sheet(bigint[], double precision[], integer) is
'PNG of up to 200 patches, drawn as by eo.rgb, in rows of so many columns, each with its rank, its distance where distances are given, its name and its labels; a patch without pixels is a grey tile. Raises no_data_found for an unknown patch, program_limit_exceeded for none or too many.';
