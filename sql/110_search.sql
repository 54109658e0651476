-- The one filter on patches, and what is built on it alone: search and label statistics.

create or replace function eo_internal.seasons(seasons text[])
returns eo.season[]
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return eo_internal.values_meant('season', seasons)::eo.season[];
end
$$;

-- ST_Intersects at its true cost: PostGIS gives 5,000 for polygons of any size, but footprints have five vertices, and the
-- planner would rather read every index of eo.patch than test a patch. And compared with <> it takes nearly all for met,
-- so that && alone tells how many there are.
create or replace function eo_internal.relation(footprint public.geometry, area public.geometry)
returns text
language plpgsql
immutable parallel safe strict
security invoker
cost 50
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return case when public.ST_Intersects(footprint, area) then 'meets' else 'disjoint' end;
end
$$;

-- Where an area is a rectangle, a footprint whose bounds lie in it meets it: @ tells that much faster. Bounds are kept
-- as rounded to 32 bits, hence the margin of two metres.
create or replace function eo_internal.inner_box(area public.geometry)
returns public.geometry
language sql
immutable parallel safe strict
security invoker
begin atomic
    select case
        when public.ST_Area(area) > 0.999999999 * public.ST_Area(public.ST_Envelope(area))
             and public.ST_XMax(area::public.box3d) - public.ST_XMin(area::public.box3d) > 1e-4 and public.ST_YMax(area::public.box3d) - public.ST_YMin(area::public.box3d) > 1e-4
            then public.ST_Expand(public.ST_Envelope(area), -2e-5::double precision)
    end;
end;

create or replace function eo.patches(
    area public.geometry default null,
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
    max_cloud real default null,
    scene_classes text[] default null,
    cells text[] default null,
    patch_ids bigint[] default null
)
returns setof eo.patch
language sql
stable parallel safe
security invoker
rows 1000
begin atomic
    select p.*
    from eo.patch p
    -- What the helpers make of constants the planner sees (100_labels.sql tells why), and conditions on null drop out.
    where (area is null
           or p.footprint operator(public.&&) eo_internal.search_area(area)
              and (p.footprint operator(public.@) eo_internal.inner_box(eo_internal.search_area(area))
                   or eo_internal.relation(p.footprint, eo_internal.search_area(area)) <> 'disjoint'))
      and (from_time is null or p.sensing_time >= from_time)
      and (to_time is null or p.sensing_time < to_time)
      and (platforms is null or p.platform = any (platforms))
      and (seasons is null or p.season = any (eo_internal.seasons(seasons)))
      and (labels is null or label_match <> 'some' or p.label_ids && eo_internal.label_ids(labels, null))
      -- One by one, because the planner can estimate and look up && only.
      and (labels is null or label_match = 'some'
           or p.label_ids && eo_internal.label_ids(labels[1:1], null)
              and (labels[2] is null or p.label_ids && eo_internal.label_ids(labels[2:2], null))
              and (labels[3] is null or p.label_ids && eo_internal.label_ids(labels[3:3], null))
              and (labels[4] is null
                   or not exists (select from unnest(eo_internal.label_groups(labels[4:])) g where not g.member_ids && p.label_ids))
              -- As an index condition it would be slow.
              and (label_match = 'at_least' or (p.label_ids <@ eo_internal.label_ids(labels, null)) is true))
      and (countries is null or p.country_codes && countries)
      and (splits is null or p.split = any (splits))
      and (sources is null or p.source = any (sources))
      and (patches.seasonal_snow is null or p.seasonal_snow = patches.seasonal_snow)
      and (patches.cloud_or_shadow is null or p.cloud_or_shadow = patches.cloud_or_shadow)
      and (max_cloud is null
           or exists (select from eo.product where product.product_id = p.product_id and product.cloud_cover <= max_cloud))
      and (scene_classes is null or p.scene_class_ids && eo_internal.label_ids(scene_classes, 'scl'))
      and (cells is null
           or p.cell operator(pg_catalog.^@) any (eo_internal.cell_prefixes(cells, 5))
              and (eo_internal.cell_prefixes(cells, 5) = eo_internal.cell_prefixes(cells, 12)
                   or public.ST_GeoHash(eo_internal.patch_centre(p.west, p.south, p.east, p.north, p.srid), 12)
                          operator(pg_catalog.^@) any (eo_internal.cell_prefixes(cells, 12))))
      and (patch_ids is null or p.patch_id = any (patch_ids));
end;
comment on function eo.patches(public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[]) is
'Patches that pass every given filter; a filter left null lets all pass, an empty list none. area: a valid geometry of any SRID but 0, such as eo.rectangle(...) or eo.circle(...): patches whose footprints meet it, at their edges too. Its edges are straight in its own reference system (of EPSG:4326 in longitude and latitude); across the antimeridian a part on either side, or longitudes that go on from 180 or -180; an edge of more than 180 degrees of longitude is an error. Footprints are cut there likewise, and about a pole they reach up to latitude 90. from_time (inclusive) to to_time (exclusive): sensing time. platforms: such as sentinel-2a. seasons: winter, spring, summer, autumn. labels: names, codes or scheme:code of eo.label; a class of an upper level means any of its descendants. label_match: some (the patch has at least one of them), at_least (it has all of them, others allowed), exactly (it has all of them and no others: each given label is there itself or by a descendant, and each label of the patch is one of the given ones or a descendant of one). countries: ISO 3166-1 alpha-2. splits, sources: as in eo.patch. seasonal_snow, cloud_or_shadow: the flag''s value. max_cloud: per cent, of the product. scene_classes: names or codes of scheme scl, patches in which any of them is present. cells: geohashes of 1 to 12 characters, patches whose centre lies in one of them. patch_ids: only these patches. Raises invalid_parameter_value for an unknown label, class or season, for what is no geohash and for an area that is not valid or is ambiguous. It is inlined, so that joins, order and limit are planned with it and with every index; a subquery as an argument would prevent that and raises feature_not_supported: eo.search takes those.';

-- cpu_index_tuple_cost is four times the default, since what PostgreSQL counts per entry of a GIN index is far too little
-- for frequent labels.
create or replace function eo.search(
    area public.geometry default null,
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
    max_cloud real default null,
    scene_classes text[] default null,
    cells text[] default null,
    patch_ids bigint[] default null,
    max_results integer default 50,
    after_patch_id bigint default null
)
returns setof eo.patch
language plpgsql
stable parallel safe
security invoker
rows 50
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0
set cpu_index_tuple_cost = 0.02
as $$
declare
    found bigint := 0;
begin
    -- The planner would walk along the key until the page is full, and if it errs about the filter, to the archive's
    -- end. So it may walk over the next ids only: enough for a page if the filter lets one patch in 200 pass.
    if max_results is not null then
        after_patch_id := coalesce(after_patch_id, (select min(p.patch_id) - 1 from eo.patch p));
        return query
            select p.*
            from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            search.seasonal_snow, search.cloud_or_shadow, max_cloud, scene_classes, cells, patch_ids) p
            where p.patch_id > after_patch_id and p.patch_id <= after_patch_id + 200::bigint * max_results
            order by p.patch_id
            limit max_results;
        get diagnostics found = row_count;
        if found >= max_results then
            return;
        end if;
        after_patch_id := after_patch_id + 200::bigint * max_results;
    end if;
    -- Few pass: found by the other indexes and sorted. With "+ 0" the key gives no order to walk along.
    return query
        select p.*
        from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                        search.seasonal_snow, search.cloud_or_shadow, max_cloud, scene_classes, cells, patch_ids) p
        where after_patch_id is null or p.patch_id > after_patch_id
        order by p.patch_id + 0
        limit max_results - found;
end
$$;
comment on function eo.search(public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[], integer, bigint) is
'Patches that pass the filters of eo.patches, by patch_id. For the next page, pass the last patch_id as after_patch_id: those before it are not read again. max_results null: all. How many there are altogether: eo.count_patches.';

create or replace function eo.label_statistics(
    area public.geometry default null,
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
    max_cloud real default null,
    scene_classes text[] default null,
    cells text[] default null,
    patch_ids bigint[] default null
)
returns table (label_id smallint, scheme text, code text, name text, color text, patches bigint, fraction double precision)
language plpgsql
stable parallel safe
security invoker
rows 40
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    return query
        -- There are far fewer sets of labels than patches.
        with label_set as materialized (
            select p.label_ids, count(*) as patches
            from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            label_statistics.seasonal_snow, label_statistics.cloud_or_shadow, max_cloud, scene_classes, cells, patch_ids) p
            group by p.label_ids
        )
        select l.label_id, l.scheme, l.code, l.name, l.color, sum(s.patches)::bigint,
               (sum(s.patches) / (select sum(every.patches) from label_set every))::double precision
        from label_set s
        join eo.label l on l.label_id = any (s.label_ids)
        group by l.label_id
        order by 6 desc, 1;
end
$$;
comment on function eo.label_statistics(public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[]) is
'How many of the patches that pass the filters of eo.patches bear each label, and which fraction of them that is (0 to 1), most frequent first, with the label''s official colour.';

create or replace function eo.count_patches(
    exact boolean default true,
    area public.geometry default null,
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
    max_cloud real default null,
    scene_classes text[] default null,
    cells text[] default null,
    patch_ids bigint[] default null
)
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    counted bigint;
    plan json;
begin
    if exact then
        select count(*) into counted
        from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                        count_patches.seasonal_snow, count_patches.cloud_or_shadow, max_cloud, scene_classes, cells, patch_ids);
    else
        -- PostgreSQL allows EXPLAIN in volatile functions only.
        execute 'explain (format json)
                 select from eo.patches($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)'
            into plan
            using area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                  count_patches.seasonal_snow, count_patches.cloud_or_shadow, max_cloud, scene_classes, cells, patch_ids;
        counted := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
    end if;
    return counted;
end
$$;
comment on function eo.count_patches(boolean, public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[]) is
'How many patches pass the filters of eo.patches: counted, or, where exact is false, estimated by the planner from the statistics of the last ANALYZE, in constant time.';

create or replace function eo.patch_statistics(
    by text,
    area public.geometry default null,
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
    max_cloud real default null,
    scene_classes text[] default null,
    cells text[] default null,
    patch_ids bigint[] default null
)
returns table (value text, patches bigint, fraction double precision)
language plpgsql
stable parallel safe
security invoker
rows 12
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    if by is null or by not in ('country', 'season', 'platform', 'split', 'source') then
        raise exception 'patches are not counted by "%"', by
            using errcode = 'invalid_parameter_value', hint = 'Pass country, season, platform, split or source.';
    end if;
    return query
        with value_set as materialized (
            select case by
                       when 'country' then coalesce(nullif(p.country_codes, '{}'), '{null}')
                       when 'season' then array[p.season::text]
                       when 'platform' then array[p.platform]
                       when 'split' then array[p.split]
                       else array[p.source]
                   end as elements,
                   count(*) as patches
            from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            patch_statistics.seasonal_snow, patch_statistics.cloud_or_shadow, max_cloud,
                            scene_classes, cells, patch_ids) p
            group by 1
        )
        select v.value, sum(s.patches)::bigint,
               (sum(s.patches) / (select sum(every.patches) from value_set every))::double precision
        from value_set s, unnest(s.elements) as v (value)
        group by v.value
        order by 2 desc, v.value collate "C";
end
$$;
comment on function eo.patch_statistics(text, public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[]) is
'How many of the patches that pass the filters of eo.patches are of each country, season, platform, split or source (by), and which fraction of them that is (0 to 1), most frequent first; null where it is not known. A patch in two countries counts for both.';
