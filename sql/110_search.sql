-- The one filter on patches, and what is built on it alone: search and label statistics.

create or replace function eo.patches(
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
returns setof eo.patch
language sql
stable parallel safe
security invoker
rows 1000
begin atomic
    select p.*
    from eo.patch p
    where (area is null or ST_Intersects(p.footprint, ST_Transform(area, 4326)))
      and (from_time is null or p.sensing_time >= from_time)
      and (to_time is null or p.sensing_time < to_time)
      and (platforms is null or p.platform = any (platforms))
      and (seasons is null or p.season = any (seasons::eo.season[]))
      -- Subqueries, so that labels are looked up once and not for every patch.
      and (labels is null
           or p.label_ids && (select eo.label_members(labels))
              and (label_match = 'some'
                   or eo_internal.all_labels_match(p.label_ids, (select eo_internal.label_groups(labels)),
                                                   label_match = 'exactly')))
      and (countries is null or p.country_codes && countries)
      and (splits is null or p.split = any (splits))
      and (sources is null or p.source = any (sources))
      and (patches.seasonal_snow is null or p.seasonal_snow = patches.seasonal_snow)
      and (patches.cloud_or_shadow is null or p.cloud_or_shadow = patches.cloud_or_shadow)
      and (max_cloud is null
           or exists (select from eo.product where product.product_id = p.product_id and product.cloud_cover <= max_cloud));
end;
comment on function eo.patches(geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'Patches that pass every given filter; a filter left null lets all pass. area: any SRID, footprints that intersect it. from_time (inclusive) to to_time (exclusive): sensing time. platforms: such as sentinel-2a. seasons: winter, spring, summer, autumn. labels: names, codes or scheme:code of eo.label; a class of an upper level means any of its descendants. label_match: some (at least one of them), at_least (all of them, others allowed), exactly (all of them and no others). countries: ISO 3166-1 alpha-2. splits, sources: as in eo.patch. seasonal_snow, cloud_or_shadow: the flag''s value. max_cloud: per cent, of the product.';

create or replace function eo.search(
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
    max_cloud real default null,
    max_results integer default 50,
    after_patch_id bigint default null
)
returns setof eo.patch
language plpgsql
stable parallel safe
security invoker
rows 50
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    return query
        select p.*
        from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                        search.seasonal_snow, search.cloud_or_shadow, max_cloud) p
        where after_patch_id is null or p.patch_id > after_patch_id
        order by p.patch_id
        limit max_results;
end
$$;
comment on function eo.search(geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, integer, bigint) is
'Patches that pass the filters of eo.patches, by patch_id. For the next page, pass the last patch_id as after_patch_id. max_results null: all.';

create or replace function eo.label_statistics(
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
returns table (label_id smallint, scheme text, code text, name text, color text, patches bigint, fraction double precision)
language plpgsql
stable parallel safe
security invoker
rows 40
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    return query
        with selected as materialized (
            select p.label_ids
            from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            label_statistics.seasonal_snow, label_statistics.cloud_or_shadow, max_cloud) p
        ),
        occurrence as (
            select l.label_id, count(*) as patches
            from selected, unnest(selected.label_ids) as l (label_id)
            group by l.label_id
        )
        select l.label_id, l.scheme, l.code, l.name, l.color, o.patches,
               o.patches::double precision / (select count(*) from selected)
        from occurrence o
        join eo.label l on l.label_id = o.label_id
        order by o.patches desc, l.label_id;
end
$$;
comment on function eo.label_statistics(geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'How many of the patches that pass the filters of eo.patches bear each label, and which fraction of them that is (0 to 1), most frequent first, with the label''s official colour.';

create or replace function eo.count_patches(
    exact boolean default true,
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
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    counted bigint;
    plan json;
begin
    if exact then
        select count(*) into counted
        from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                        count_patches.seasonal_snow, count_patches.cloud_or_shadow, max_cloud);
    else
        -- PostgreSQL allows EXPLAIN in volatile functions only.
        execute 'explain (format json)
                 select from eo.patches($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)'
            into plan
            using area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                  count_patches.seasonal_snow, count_patches.cloud_or_shadow, max_cloud;
        counted := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
    end if;
    return counted;
end
$$;
comment on function eo.count_patches(boolean, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'How many patches pass the filters of eo.patches: counted, or, where exact is false, estimated by the planner from the statistics of the last ANALYZE, in constant time.';

create or replace function eo.patch_statistics(
    by text,
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
returns table (value text, patches bigint, fraction double precision)
language plpgsql
stable parallel safe
security invoker
rows 12
set search_path = eo, public, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    if by is null or by not in ('country', 'season', 'platform', 'split', 'source') then
        raise exception 'patches are not counted by "%"', by
            using errcode = 'invalid_parameter_value', hint = 'Pass country, season, platform, split or source.';
    end if;
    return query
        with selected as materialized (
            select p.country_codes, p.season, p.platform, p.split, p.source
            from eo.patches(area, from_time, to_time, platforms, seasons, labels, label_match, countries, splits, sources,
                            patch_statistics.seasonal_snow, patch_statistics.cloud_or_shadow, max_cloud) p
        )
        select v.value, count(*), count(*)::double precision / (select count(*) from selected)
        from selected s,
             unnest(case by
                 when 'country' then coalesce(nullif(s.country_codes, '{}'), '{null}')
                 when 'season' then array[s.season::text]
                 when 'platform' then array[s.platform]
                 when 'split' then array[s.split]
                 else array[s.source]
             end) as v (value)
        group by v.value
        order by 2 desc, 1;
end
$$;
comment on function eo.patch_statistics(text, geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real) is
'How many of the patches that pass the filters of eo.patches are of each country, season, platform, split or source (by), and which fraction of them that is (0 to 1), most frequent first; null where it is not known. A patch in two countries counts for both.';
