-- The patches that a filter lets pass, and what is built on them alone: search, counts and statistics.

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

-- Columns are named, so that one of a user's own in eo.patch breaks nothing.
create or replace function eo.patches(filter eo.filter default null)
returns table (
    patch_id bigint, cell text, name text, source text, product_id bigint, platform text, sensing_time timestamptz,
    footprint public.geometry, srid integer, west double precision, south double precision, east double precision,
    north double precision, tile_column smallint, tile_row smallint, label_ids smallint[], label_fraction real[],
    scene_class_ids smallint[], source_country text, country_codes text[], split text, seasonal_snow boolean,
    cloud_or_shadow boolean, pair_name text, pair_id bigint, metadata jsonb, scene_class_fraction real[],
    nuts_ids text[], label_edition text, nuts_edition text, season eo.season
)
language sql
stable parallel safe
security invoker
rows 1000
begin atomic
    select p.patch_id, p.cell, p.name, p.source, p.product_id, p.platform, p.sensing_time, p.footprint, p.srid,
           p.west, p.south, p.east, p.north, p.tile_column, p.tile_row, p.label_ids, p.label_fraction,
           p.scene_class_ids, p.source_country, p.country_codes, p.split, p.seasonal_snow, p.cloud_or_shadow,
           p.pair_name, p.pair_id, p.metadata, p.scene_class_fraction, p.nuts_ids, p.label_edition, p.nuts_edition,
           p.season
    from eo.patch p
    -- The planner sees the filter's values (0_base/4_labels.sql tells why), and conditions on null drop out.
    where eo_internal.inlined((filter).label_match)
      and ((filter).area is null
           or eo_internal.check_area((filter).area)
              and p.footprint operator(public.&&) (filter).area
              and (p.footprint operator(public.@) eo_internal.inner_box((filter).area)
                   or eo_internal.relation(p.footprint, (filter).area) <> 'disjoint'))
      and ((filter).from_time is null or p.sensing_time >= (filter).from_time)
      and ((filter).to_time is null or p.sensing_time < (filter).to_time)
      and ((filter).platforms is null or p.platform = any ((filter).platforms))
      and ((filter).seasons is null or p.season = any ((filter).seasons))
      and ((filter).labels is null or coalesce((filter).label_match, 'some') <> 'some' or p.label_ids && eo_internal.label_ids((filter).labels))
      -- One by one, because the planner can estimate and look up && only.
      and ((filter).labels is null or coalesce((filter).label_match, 'some') = 'some'
           or p.label_ids && (filter).labels[1].member_ids
              and (cardinality((filter).labels) < 2 or p.label_ids && (filter).labels[2].member_ids)
              and (cardinality((filter).labels) < 3 or p.label_ids && (filter).labels[3].member_ids)
              and (cardinality((filter).labels) < 4
                   or not exists (select from unnest((filter).labels[4:]) g where not g.member_ids && p.label_ids))
              -- As an index condition it would be slow.
              and ((filter).label_match = 'at_least' or (p.label_ids <@ eo_internal.label_ids((filter).labels)) is true))
      and ((filter).countries is null or p.country_codes && (filter).countries)
      and ((filter).splits is null or p.split = any ((filter).splits))
      and ((filter).sources is null or p.source = any ((filter).sources))
      and ((filter).seasonal_snow is null or p.seasonal_snow = (filter).seasonal_snow)
      and ((filter).cloud_or_shadow is null or p.cloud_or_shadow = (filter).cloud_or_shadow)
      and ((filter).max_cloud is null
           or exists (select from eo.product where product.product_id = p.product_id and product.cloud_cover <= (filter).max_cloud))
      and ((filter).scene_classes is null or p.scene_class_ids && (filter).scene_classes)
      and ((filter).cells is null
           or p.cell operator(pg_catalog.^@) any (eo_internal.cell_prefixes((filter).cells, 5))
              and (eo_internal.cell_prefixes((filter).cells, 5) = eo_internal.cell_prefixes((filter).cells, 12)
                   or public.ST_GeoHash(eo_internal.patch_centre(p.west, p.south, p.east, p.north, p.srid), 12)
                          operator(pg_catalog.^@) any (eo_internal.cell_prefixes((filter).cells, 12))))
      and ((filter).patch_ids is null or p.patch_id = any ((filter).patch_ids))
      and ((filter).names is null or p.name = any ((filter).names));
end;
comment on function eo.patches(eo.filter) is
'The patches that a filter lets pass, with all columns of eo.patch. It is inlined: joins, order and limit are planned with it and with every index. A subquery within the filter would prevent that and raises feature_not_supported: eo.search takes those.';

-- Patches that are given by id are looked up once, here: ids then travel with their cells. In the order of the ids, null for
-- what is none.
create or replace function eo_internal.cells_of(patch_ids bigint[])
returns text[]
language sql
stable parallel safe
security invoker
begin atomic
    select array_agg(p.cell order by given.number)
    from unnest(patch_ids) with ordinality as given (patch_id, number)
    left join eo.patch p on p.patch_id = given.patch_id;
end;

-- cpu_index_tuple_cost is four times the default, since what PostgreSQL counts per entry of a GIN index is far too little
-- for frequent labels.
create or replace function eo_internal.check_max_results(max_results integer)
returns void
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if max_results < 0 then
        raise exception '% results were asked for', max_results
            using errcode = 'invalid_parameter_value', hint = 'Ask for 0 or more; null: all.';
    end if;
end
$$;

create or replace function eo.search(
    filter eo.filter default null,
    max_results integer default 50,
    after_patch_id bigint default null,
    order_by text default 'patch_id'
)
returns table (
    patch_id bigint, name text, sensing_time timestamptz, season eo.season, platform text, labels text[], countries text[],
    cell text, source text, split text, seasonal_snow boolean, cloud_or_shadow boolean, product_id bigint,
    label_ids smallint[], footprint public.geometry
)
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
    -- Names by id, as text: to look one up so is faster than a join for each patch, and jsonb_object than jsonb_object_agg.
    label_names jsonb := (select jsonb_object(array_agg(l.label_id::text), array_agg(l.name)) from eo.label l);
    page constant text := 'select p.patch_id, p.name, p.sensing_time, p.season, p.platform,
               array(select $3 ->> label_id::text from unnest(p.label_ids) with ordinality as l (label_id, number) order by number),
               p.country_codes, p.cell, p.source, p.split, p.seasonal_snow, p.cloud_or_shadow, p.product_id, p.label_ids, p.footprint
        from eo.patches($1) p
        where (%s) and (%s)
        order by %s
        limit $2';
    by_time constant boolean := order_by <> 'patch_id';
    direction constant text := case order_by when 'newest' then 'desc' else 'asc' end;
    past constant text := case order_by when 'patch_id' then 'p.patch_id > $4'
                                        when 'oldest' then '(p.sensing_time, p.patch_id) > ($5, $4)'
                                        else '(p.sensing_time, p.patch_id) < ($5, $4)' end;
    up_to constant text := case order_by when 'patch_id' then 'p.patch_id <= $6'
                                         when 'oldest' then '(p.sensing_time, p.patch_id) <= ($7, $6)'
                                         else '(p.sensing_time, p.patch_id) >= ($7, $6)' end;
    after_time timestamptz;
    last_patch_id bigint;
    last_time timestamptz;
    taken bigint := 0;
begin
    if order_by is null or order_by not in ('patch_id', 'oldest', 'newest') then
        raise exception 'patches are not ordered by "%"', order_by
            using errcode = 'invalid_parameter_value', hint = 'Pass patch_id, oldest or newest.';
    end if;
    perform eo_internal.check_max_results(max_results);
    if by_time and after_patch_id is not null then
        select p.sensing_time into after_time from eo.patch p where p.patch_id = after_patch_id;
        if not found then
            raise exception 'there is no patch %', after_patch_id
                using errcode = 'no_data_found', hint = 'Pass the patch_id of the last row of the page before.';
        end if;
    end if;
    -- The planner would walk along the key until the page is full, and if it errs about the filter, to the archive's
    -- end. So it may walk over the next patches only: enough for a page if the filter lets one in 200 pass.
    if max_results is not null then
        if by_time then
            execute format('select p.patch_id, p.sensing_time from eo.patch p where %s order by p.sensing_time %2$s, p.patch_id %2$s offset $1 limit 1',
                           case when after_patch_id is null then 'true' else past end, direction)
                into last_patch_id, last_time
                using 200::bigint * max_results, null, null, after_patch_id, after_time;
        else
            last_patch_id := coalesce(after_patch_id, (select min(p.patch_id) - 1 from eo.patch p)) + 200::bigint * max_results;
        end if;
        return query execute format(
            page, case when after_patch_id is null then 'true' else past end, case when last_patch_id is null then 'true' else up_to end,
            case when by_time then format('p.sensing_time %1$s, p.patch_id %1$s', direction) else 'p.patch_id' end)
            using filter, max_results, label_names, after_patch_id, after_time, last_patch_id, last_time;
        get diagnostics taken = row_count;
        if taken >= max_results or last_patch_id is null then
            return;
        end if;
        after_patch_id := last_patch_id;
        after_time := last_time;
    end if;
    -- Few pass: found by the other indexes and sorted. What is added to the keys keeps them from giving an order to walk along.
    return query execute format(
        page, case when after_patch_id is null then 'true' else past end, 'true',
        case when by_time then format('p.sensing_time + interval ''0'' %1$s, p.patch_id %1$s', direction) else 'p.patch_id + 0' end)
        using filter, max_results - taken, label_names, after_patch_id, after_time;
end
$$;
comment on function eo.search(eo.filter, integer, bigint, text) is
'The patches that a filter lets pass, by patch_id, or by sensing time (order_by: oldest or newest); labels are names, in the order of label_ids. max_results null: all; after_patch_id: the last row''s, for the next page. Raises invalid_parameter_value for another order and fewer than 0 results, no_data_found for an after_patch_id that is none.';

create or replace function eo.count_patches(filter eo.filter default null, exact boolean default true)
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
    -- An estimate only for who asks for it: not where exact is null.
    if exact is false then
        -- PostgreSQL allows EXPLAIN in volatile functions only.
        execute 'explain (format json) select from eo.patches($1)' into plan using filter;
        counted := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
    else
        select count(*) into counted from eo.patches(filter);
    end if;
    return counted;
end
$$;
comment on function eo.count_patches(eo.filter, boolean) is
'How many patches a filter lets pass: counted, or, where exact is false, estimated by the planner from the statistics of the last ANALYZE, in constant time.';

create or replace function eo.label_statistics(filter eo.filter default null, nomenclature text default null)
returns table (label_id smallint, scheme text, code text, name text, color text, patches bigint, fraction double precision)
language plpgsql
stable parallel safe
security invoker
rows 40
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    wanted text := nomenclature;
begin
    if wanted is not null and not exists (select from eo.label l where l.scheme = wanted) then
        raise exception 'there is no nomenclature "%"', wanted
            using errcode = 'undefined_object',
                  hint = 'There are: ' || (select string_agg(distinct l.scheme collate "C", ', ') from eo.label l) || '.';
    end if;
    return query
        -- There are far fewer sets of labels than patches.
        with label_set as materialized (
            select case wanted when 'scl' then p.scene_class_ids else p.label_ids end as ids, count(*) as patches
            from eo.patches(filter) p
            group by 1
        ),
        shown as materialized (
            select coalesce(wanted, (
                select l.scheme
                from label_set s
                join eo.label l on l.label_id = any (s.ids)
                group by l.scheme
                order by sum(s.patches) desc, min(l.label_id)
                limit 1)) as scheme
        ),
        class as materialized (
            select l.*, c.descendant_id
            from eo.label l
            join eo.label_closure c on c.ancestor_id = l.label_id
            where l.scheme = (select shown.scheme from shown)
              and l.level = (select max(e.level) from eo.label e, shown where e.scheme = shown.scheme)
        )
        select c.label_id, c.scheme, c.code, c.name, c.color, sum(c.patches)::bigint,
               (sum(c.patches) / (select sum(every.patches) from label_set every))::double precision
        from (select distinct class.label_id, class.scheme, class.code, class.name, class.color, s.ids, s.patches
              from label_set s
              join class on class.descendant_id = any (s.ids)) c
        group by 1, 2, 3, 4, 5
        order by 6 desc, 1;
end
$$;
comment on function eo.label_statistics(eo.filter, text) is
'How many of the patches that a filter lets pass bear each class of a nomenclature (a scheme of eo.label; null: that of most of their labels; scl: scene classes), themselves or by a descendant, and which fraction of them that is (0 to 1), most frequent first. Raises undefined_object for an unknown nomenclature.';

create or replace function eo.patch_statistics(by text, filter eo.filter default null)
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
            from eo.patches(filter) p
            group by 1
        )
        select v.value, sum(s.patches)::bigint,
               (sum(s.patches) / (select sum(every.patches) from value_set every))::double precision
        from value_set s, unnest(s.elements) as v (value)
        group by v.value
        order by 2 desc, v.value collate "C";
end
$$;
comment on function eo.patch_statistics(text, eo.filter) is
'How many of the patches that a filter lets pass are of each country, season, platform, split or source (by), and which fraction of them that is (0 to 1), most frequent first; null where it is not known. A patch in two countries counts for both.';
