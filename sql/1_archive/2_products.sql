-- Selection of products: the least clouded of each tile and season, and statistics of what a selection holds.

create or replace function eo_internal.products(filter eo.product_filter)
returns table (
    product_id bigint, name text, platform text, level text, sensing_time timestamptz, mgrs_tile text, cloud_cover real,
    footprint public.geometry, source_path text, processed_at timestamptz, processing_baseline text, bytes bigint,
    season eo.season
)
language sql
stable parallel safe
security invoker
rows 1000
begin atomic
    select p.product_id, p.name, p.platform, p.level, p.sensing_time, p.mgrs_tile, p.cloud_cover, p.footprint, p.source_path,
           p.processed_at, p.processing_baseline, p.bytes, p.season
    from eo.product p
    -- Footprints are cut at the antimeridian, as areas are.
    where ((filter).area is null
           or eo_internal.check_area((filter).area)
              and p.footprint operator(public.&&) (filter).area
              and eo_internal.relation(p.footprint, (filter).area) <> 'disjoint')
      and ((filter).from_time is null or p.sensing_time >= (filter).from_time)
      and ((filter).to_time is null or p.sensing_time < (filter).to_time)
      and ((filter).platforms is null or p.platform = any ((filter).platforms))
      and ((filter).levels is null or p.level = any ((filter).levels))
      and ((filter).tiles is null or p.mgrs_tile = any ((filter).tiles))
      and ((filter).seasons is null or p.season = any ((filter).seasons))
      and ((filter).max_cloud is null or p.cloud_cover <= (filter).max_cloud)
      and ((filter).product_ids is null or p.product_id = any ((filter).product_ids));
end;

create or replace function eo.select_products(
    filter eo.product_filter default null,
    per_season integer default 1,
    each_year boolean default false
)
returns table (
    mgrs_tile text, season eo.season, year integer, rank bigint, product_id bigint, name text, platform text, level text,
    sensing_time timestamptz, cloud_cover real, processing_baseline text, bytes bigint, source_path text,
    footprint public.geometry
)
language plpgsql
stable parallel safe
security invoker
rows 1000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    if per_season < 1 then
        raise exception 'per tile and season % products cannot be selected', per_season
            using errcode = 'invalid_parameter_value', hint = 'per_season is at least 1; null selects all.';
    end if;
    return query
        with found as (
            -- December belongs to the season of the next January, in either hemisphere.
            select p.*, extract(year from p.sensing_time at time zone 'UTC' + interval '1 month')::integer as year
            from eo_internal.products(filter) p
            -- Milliseconds of the start of sensing differ from one processing to the next. Baseline 99.99 is what those
            -- write who process for themselves.
            where p.mgrs_tile is not null
              and not exists (
                  select from eo.product newer
                  where newer.mgrs_tile = p.mgrs_tile and newer.platform = p.platform and newer.level = p.level
                    and newer.sensing_time >= date_trunc('second', p.sensing_time)
                    and newer.sensing_time < date_trunc('second', p.sensing_time) + interval '1 second'
                    and nullif(newer.processing_baseline, '99.99') collate "C"
                        > coalesce(nullif(p.processing_baseline, '99.99'), ''))
        ),
        ranked as (
            select f.*,
                   row_number() over (
                       partition by f.mgrs_tile, f.season, case when each_year then f.year end
                       order by f.cloud_cover nulls last, public.ST_Area(f.footprint::public.geography, true) desc nulls last,
                                f.processed_at desc nulls last, f.name collate "C"
                   ) as rank
            from found f
        )
        select r.mgrs_tile, r.season, r.year, r.rank, r.product_id, r.name, r.platform, r.level, r.sensing_time,
               r.cloud_cover, r.processing_baseline, r.bytes, r.source_path, r.footprint
        from ranked r
        where per_season is null or r.rank <= per_season
        order by r.mgrs_tile collate "C", case when each_year then r.year end, r.season, r.rank;
end
$$;
comment on function eo.select_products(eo.product_filter, integer, boolean) is
'The per_season products with the least cloud (null: all) of each MGRS tile and season, of the whole time or, with each_year, of each year''s season; of an acquisition with several processing baselines the newest. docs/search.md tells the order. Raises invalid_parameter_value for per_season below 1.';

create or replace function eo.product_statistics(
    filter eo.product_filter default null
)
returns table (
    platform text, level text, season eo.season, products bigint, tiles_covered bigint, total_bytes numeric,
    mean_bytes double precision, min_cloud real, mean_cloud double precision, max_cloud_cover real
)
language plpgsql
stable parallel safe
security invoker
rows 20
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    return query
        select p.platform, p.level, p.season, count(*), count(distinct p.mgrs_tile), sum(p.bytes), avg(p.bytes)::double precision,
               min(p.cloud_cover), avg(p.cloud_cover), max(p.cloud_cover)
        from eo_internal.products(filter) p
        group by grouping sets ((p.platform, p.level, p.season), (p.platform, p.level), (p.season), ())
        order by p.platform collate "C" nulls last, p.level collate "C" nulls last, p.season nulls last;
end
$$;
comment on function eo.product_statistics(eo.product_filter) is
'How many products a filter lets pass (of all baselines), of how many MGRS tiles, with their sizes in bytes and cloud cover in per cent: by platform, level and season, where null means all of them. Unknown sizes and cloud covers are left out.';
