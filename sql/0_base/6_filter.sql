-- The one filter: what every search, count and statistic is asked about. A new condition is an attribute of eo.filter, an
-- argument of its constructor, and a condition of eo.patches.
--
-- A filter holds what is stored: the constructor looks up once what names mean, and areas are in EPSG:4326 and cut at the
-- antimeridian as footprints are.

create or replace function eo_internal.seasons(seasons text[])
returns eo.season[]
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return eo_internal.values_meant('season', seasons)::eo.season[];
end
$$;

-- What an area is that was not given, to tell it from one that was given and is null. No outline is like it.
create or replace function eo_internal.everywhere()
returns public.geometry
language sql
immutable parallel safe
security invoker
begin atomic
    select 'POINT ZM EMPTY'::public.geometry;
end;

-- An area that is null is mostly that of a query that found nothing: it must not mean the whole archive.
create or replace function eo_internal.given_area(area public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if area is null then
        raise exception 'the area is null'
            using errcode = 'null_value_not_allowed',
                  hint = 'What should find it found nothing. eo.place(name) finds places or says why not. To search everywhere, leave area out.';
    end if;
    return case when public.ST_AsEWKB(area) <> public.ST_AsEWKB(eo_internal.everywhere()) then area end;
end
$$;

-- A NaN is greater than any number: as a limit it would let all pass.
create or replace function eo_internal.given_cloud(max_cloud real)
returns real
language plpgsql
immutable parallel safe strict
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if max_cloud not between 0 and 100 then
        raise exception 'max_cloud cannot be %', max_cloud
            using errcode = 'invalid_parameter_value', hint = 'It is the cloud cover that a product has at most, in per cent: 0 to 100.';
    end if;
    return max_cloud;
end
$$;

create or replace function eo_internal.refuse_times(from_time timestamptz, to_time timestamptz)
returns timestamptz
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
set timezone = 'UTC'
as $$
begin
    raise exception 'no time is from % to before %', from_time, to_time
        using errcode = 'invalid_parameter_value', hint = 'from_time is earlier than to_time, which is exclusive: for one day, pass the next as to_time.';
end
$$;

-- A time that ends before it begins, or as it begins, would find nothing without a word. An expression, for that of a
-- time that only the execution knows, such as now() - interval '1 day', is computed for each row.
create or replace function eo_internal.given_from_time(from_time timestamptz, to_time timestamptz)
returns timestamptz
language sql
immutable parallel safe
security invoker
begin atomic
    select case when from_time >= to_time then eo_internal.refuse_times(from_time, to_time) else from_time end;
end;

create or replace function eo.filter(
    area public.geometry default eo_internal.everywhere(),
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    seasons text[] default null,
    labels text[] default null,
    label_match eo.label_match default null,
    countries text[] default null,
    splits text[] default null,
    sources text[] default null,
    seasonal_snow boolean default null,
    cloud_or_shadow boolean default null,
    max_cloud real default null,
    scene_classes text[] default null,
    cells text[] default null,
    patch_ids bigint[] default null,
    names text[] default null
)
returns eo.filter
language sql
immutable parallel safe
security invoker
begin atomic
    select row(
        eo_internal.search_area(eo_internal.given_area(area)), eo_internal.given_from_time(from_time, to_time), to_time,
        eo_internal.values_meant('platform', platforms), eo_internal.seasons(seasons), eo_internal.label_groups(labels), label_match,
        eo_internal.country_codes(countries), eo_internal.values_meant('split', splits), eo_internal.values_meant('source', sources),
        seasonal_snow, cloud_or_shadow, eo_internal.given_cloud(max_cloud),
        eo_internal.label_ids(eo_internal.label_groups(scene_classes, 'scl')), eo_internal.given_list(cells),
        eo_internal.given_list(patch_ids), eo_internal.given_list(names)
    )::eo.filter;
end;
comment on function eo.filter(public.geometry, timestamptz, timestamptz, text[], text[], text[], eo.label_match, text[], text[], text[], boolean, boolean, real, text[], text[], bigint[], text[]) is
'Which patches to find: those that meet every condition given; one left out lets all pass, an empty list none. docs/search.md has them all. from_time is inclusive, to_time exclusive; max_cloud is in per cent, of the product. Raises null_value_not_allowed for a null area and a null in a list, invalid_parameter_value for what does not exist and a from_time that is not before to_time.';

-- The geometry of a GeoJSON object, which PostGIS would refuse, where it is none, with an internal_error.
create or replace function eo_internal.area_of_geojson(document jsonb)
returns public.geometry
language plpgsql
immutable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    kind text := document ->> 'type';
    -- How deep a geometry's positions lie, and how many a line or ring has at least.
    outermost integer := case kind when 'Point' then 1 when 'MultiPoint' then 2 when 'LineString' then 2
                                   when 'MultiLineString' then 3 when 'Polygon' then 3 when 'MultiPolygon' then 4 end;
    least_positions integer := case kind when 'LineString' then 2 when 'MultiLineString' then 2
                                         when 'Polygon' then 4 when 'MultiPolygon' then 4 else 0 end;
    fault text;
begin
    if document ? 'crs' and document -> 'crs' <> 'null' and document #>> '{crs,properties,name}' !~ '(CRS84|EPSG:+4326)$' then
        fault := 'its crs is not EPSG:4326';
    elsif kind = 'Feature' then
        return eo_internal.area_of_geojson(document -> 'geometry');
    elsif kind in ('FeatureCollection', 'GeometryCollection') then
        return (
            select public.ST_Collect(array_agg(eo_internal.area_of_geojson(member) order by number))
            from jsonb_array_elements(
                case when jsonb_typeof(document -> 'features') = 'array' then document -> 'features'
                     when jsonb_typeof(document -> 'geometries') = 'array' then document -> 'geometries'
                     else '[null]' end) with ordinality as m (member, number)
        );
    elsif outermost is null then
        fault := 'it has no type that is a geometry''s';
    else
        with recursive part (value, depth) as (
            select document -> 'coordinates', outermost
            union all
            select member, p.depth - 1
            from part p, jsonb_array_elements(case jsonb_typeof(p.value) when 'array' then p.value else '[]' end) as member
            where p.depth > 0
        )
        select f.fault into fault
        from (
            select case
                when p.depth > 0 and jsonb_typeof(p.value) is distinct from 'array' then 'coordinates are nested otherwise'
                when p.depth = 0 and jsonb_typeof(p.value) <> 'number' then 'a coordinate is no number'
                when p.depth = 0 and abs(p.value::numeric) > 1e15 then 'a coordinate is nowhere'
                when p.depth = 1 and jsonb_array_length(p.value) not between 2 and 4 then 'a position has not two numbers'
                when p.depth = 2 and jsonb_array_length(p.value) < least_positions then 'a line or ring has too few positions'
                when p.depth = 2 and least_positions = 4 and p.value -> 0 <> p.value -> -1 then 'a ring is not closed'
            end as fault
            from part p
        ) f
        where f.fault is not null
        limit 1;
    end if;
    if fault is not null then
        raise exception 'the area is no GeoJSON: %', fault
            using errcode = 'invalid_parameter_value', hint = 'Pass such as {"type": "Point", "coordinates": [9, 50]}, longitude first, in EPSG:4326.';
    end if;
    return public.ST_SetSRID(public.ST_GeomFromGeoJSON(jsonb_build_object('type', kind, 'coordinates', document -> 'coordinates')), 4326);
end
$$;

create or replace function eo_internal.texts(list jsonb)
returns text[]
language sql
immutable parallel safe
security invoker
begin atomic
    select case when jsonb_typeof(list) = 'array' then array(select jsonb_array_elements_text(list)) end;
end;

create or replace function eo.filter(document jsonb)
returns eo.filter
language plpgsql
immutable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
set timezone = 'UTC'
as $$
declare
    given record;
    wanted text;
    found eo.filter;
begin
    if jsonb_typeof(document) is distinct from 'object' then
        raise exception 'a filter is a JSON object, not %', coalesce(left(document::text, 100), 'null')
            using errcode = 'invalid_parameter_value', hint = 'Pass such as {"countries": ["FI"]}, or {} for no condition.';
    end if;
    for given in
        select key, value, format_type(a.atttypid, null) as type
        from jsonb_each(document)
        left join pg_attribute a on a.attrelid = 'eo.filter'::regclass and a.attname = key and a.attnum > 0
    loop
        if given.type is null then
            raise exception 'there is no filter "%"', given.key
                using errcode = 'invalid_parameter_value',
                      hint = 'There are: ' || (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
                                               where a.attrelid = 'eo.filter'::regclass and a.attnum > 0) || '.';
        end if;
        continue when given.value = 'null' and given.key <> 'area';
        wanted := case
            when given.key = 'area' then case when jsonb_typeof(given.value) not in ('object', 'null') then 'GeoJSON, an object' end
            when given.type like '%[]' and given.type <> 'bigint[]' and not given.value @? 'strict $ ? (@.type() == "array" && !exists(@[*] ? (@.type() != "string")))'
                then 'a list of texts'
            when given.type = 'bigint[]' and not given.value @? 'strict $ ? (@.type() == "array" && !exists(@[*] ? (@.type() != "number" || @.floor() != @)))'
                then 'a list of whole numbers'
            when given.type = 'boolean' and jsonb_typeof(given.value) <> 'boolean' then 'true or false'
            when given.type = 'real' and not given.value @? 'strict $ ? (@.type() == "number" && @.abs() < 1e30)' then 'a number'
            when given.type = 'timestamp with time zone' and not (
                jsonb_typeof(given.value) = 'string' and given.value #>> '{}' ~ '^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)? ?(Z|[+-]\d\d(:?\d\d)?)?)?$')
                then 'a time as ISO 8601 has it, such as 2017-06-13 or 2017-06-13T10:10:31Z'
            when given.key = 'label_match' and not (given.value #>> '{}') = any (enum_range(null::eo.label_match)::text[])
                then 'some, at_least or exactly'
        end;
        if wanted is not null then
            raise exception 'the filter''s % cannot be %', given.key, left(given.value::text, 100)
                using errcode = 'invalid_parameter_value', hint = format('Pass %s.', wanted);
        end if;
    end loop;
    found := jsonb_populate_record(null::eo.filter, document - '{area,seasons,labels,scene_classes}'::text[]);
    return eo.filter(
        case when not document ? 'area' then eo_internal.everywhere()
             when document -> 'area' <> 'null' then eo_internal.area_of_geojson(document -> 'area') end,
        found.from_time, found.to_time, found.platforms, eo_internal.texts(document -> 'seasons'),
        eo_internal.texts(document -> 'labels'), found.label_match, found.countries, found.splits, found.sources,
        found.seasonal_snow, found.cloud_or_shadow, found.max_cloud, eo_internal.texts(document -> 'scene_classes'), found.cells, found.patch_ids, found.names);
end
$$;
comment on function eo.filter(jsonb) is
'The filter of a JSON object, such as {"labels": ["Inland waters"], "countries": ["FI"]}: keys are the arguments of the other eo.filter, area is GeoJSON in EPSG:4326, times are ISO 8601 (UTC where no zone is given). Raises invalid_parameter_value for unknown keys and values of another type.';

-- The same filter for such patches only.
create or replace function eo_internal.among(filter eo.filter, patch_ids bigint[])
returns eo.filter
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    filter.patch_ids := among.patch_ids;
    return filter;
end
$$;

create or replace function eo.product_filter(
    area public.geometry default eo_internal.everywhere(),
    from_time timestamptz default null,
    to_time timestamptz default null,
    platforms text[] default null,
    levels text[] default null,
    tiles text[] default null,
    seasons text[] default null,
    max_cloud real default null,
    product_ids bigint[] default null
)
returns eo.product_filter
language sql
immutable parallel safe
security invoker
begin atomic
    select row(
        eo_internal.search_area(eo_internal.given_area(area)), eo_internal.given_from_time(from_time, to_time), to_time,
        eo_internal.values_meant('platform', platforms), eo_internal.values_meant('level', levels), eo_internal.tiles_meant(tiles),
        eo_internal.seasons(seasons), eo_internal.given_cloud(max_cloud), eo_internal.given_list(product_ids)
    )::eo.product_filter;
end;
comment on function eo.product_filter(public.geometry, timestamptz, timestamptz, text[], text[], text[], text[], real, bigint[]) is
'Which products to find: those that meet every condition given; one left out lets all pass, an empty list none. from_time is inclusive, to_time exclusive; levels: such as L2A; tiles: such as 33UUP; max_cloud: 0 to 100 per cent. Raises null_value_not_allowed for an area that is null and a null in a list, invalid_parameter_value for what does not exist and a from_time that is not before to_time.';

-- A filter that was made by hand, as a row, has had none of its values looked at. Values that mean nothing find nothing, but an
-- area in another reference system would be compared with footprints by its numbers, where PostGIS does not refuse it.
create or replace function eo_internal.check_area(area public.geometry)
returns boolean
language plpgsql
immutable parallel safe strict
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if public.ST_SRID(area) <> 4326 then
        raise exception 'the filter''s area has the SRID %, not 4326', public.ST_SRID(area)
            using errcode = 'invalid_parameter_value', hint = 'Make filters by eo.filter(area => ...) or eo.product_filter(area => ...), which transform areas.';
    end if;
    return true;
end
$$;

-- True, where eo.patches is inlined, which the planner finds out: the argument, an attribute of the filter, is a constant
-- then. Where it is not inlined, because a subquery is within the filter, no index would be used, which takes minutes.
-- Words of a context are translated, but the name of the function and the number that ends the line are not.
create or replace function eo_internal.inlined(attribute eo.label_match)
returns boolean
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    context text;
begin
    get diagnostics context = pg_context;
    if context ~ '(?n)\mpatches\M[^(]* 1$' then
        raise exception 'a subquery as an argument keeps eo.patches from being inlined'
            using errcode = 'feature_not_supported',
                  hint = 'Call eo.search(..., max_results => null), or pass the value itself. In a select list: move eo.patches to from.';
    end if;
    return true;
end
$$;
