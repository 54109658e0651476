-- Land cover from CORINE, countries and places from NUTS, scene classes from stored pixels, for many patches at a time.
--
-- A patch is an axis-aligned box in its own reference system, so polygons are reprojected to that system once and
-- subdivided (DESIGN.md section 4): a join of boxes with small pieces replaces one ST_Intersection per patch. Patches are
-- taken cell by cell: what lies near a cell is looked up once for its patches, and of several patches of one place (an
-- archive has many) only one is held against it.

create or replace function eo_internal.land_cover_raster(west double precision, south double precision, east double precision, north double precision, srid integer, polygons public.geomval[])
returns public.raster
language sql
immutable parallel safe
security invoker
cost 100000
begin atomic
    -- 10 m pixels, as many as fit best; a pixel has the class of the polygon that its centre is in. Polygons are cut to
    -- what lies near, or a raster of the whole of each would be made.
    select public.ST_SetValues(
        public.ST_AddBand(
            public.ST_MakeEmptyRaster(size.columns, size.rows, west, north, (east - west) / size.columns, (south - north) / size.rows,
                                      0::double precision, 0::double precision, srid),
            array[(1, '16BUI', 0, 0)::public.addbandarg]),
        1,
        array(
            select (cut.geom, cut.val)::public.geomval
            from (
                select public.ST_ClipByBox2D(p.geom, public.ST_MakeEnvelope(west - 10, south - 10, east + 10, north + 10, srid)::public.box2d) as geom, p.val, p.number
                from unnest(polygons) with ordinality as p (geom, val, number)
            ) cut
            where not public.ST_IsEmpty(cut.geom)
            order by cut.number
        ),
        false)
    from (select round((east - west) / 10)::integer as columns, round((north - south) / 10)::integer as rows) size;
end;

-- Where classes cover a patch more than once, polygons overlap, and no share is right. Official polygons meet to the metre.
create or replace function eo_internal.check_cover(share double precision, cell text, srid integer, west double precision, south double precision)
returns boolean
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if share > 1.001 then
        raise exception 'polygons of eo.corine overlap: they cover % times the patch at % % (EPSG:%) in cell %', round(share::numeric, 3), west, south, srid, cell
            using errcode = 'data_exception',
                  hint = 'Load one edition, each place once: pgearth load corine --replace puts a file in place of all that was loaded.';
    end if;
    return true;
end
$$;

-- Parts of the annotations below, which are inlined there: they may neither be strict nor have settings.

-- Bounds with the patches that have them in common, and whether any of these lacks land cover or places.
create or replace function eo_internal.unannotated_places(cells text[], what text[], source text, "replace" boolean)
returns table (
    cell text, srid integer, west double precision, south double precision, east double precision, north double precision,
    patch_ids bigint[], unlabelled boolean, unlocated boolean
)
language sql
stable parallel safe
security invoker
begin atomic
    select p.cell, p.srid, p.west, p.south, p.east, p.north, array_agg(p.patch_id),
           'land_cover' = any (what) and bool_or("replace" or p.label_ids is null),
           'country' = any (what) and bool_or("replace" or p.nuts_ids is null)
    from eo_internal.unannotated_in(cells, what, unannotated_places.source, "replace") p
    group by p.cell, p.srid, p.west, p.south, p.east, p.north;
end;

-- What of each cell is covered by places, by reference system.
create or replace function eo_internal.cells_of_places(cells text[], boxes public.geometry[])
returns table (cell text, srid integer, geom public.geometry)
language sql
stable parallel safe
security invoker
begin atomic
    select p.cell, public.ST_SRID(p.box), public.ST_Envelope(public.ST_Collect(p.box))
    from unnest(cells, boxes) as p (cell, box)
    group by p.cell, public.ST_SRID(p.box);
end;

-- Pieces of land cover near a cell. Bounds as numbers: compared a hundred times for each patch.
create or replace function eo_internal.land_cover_near(srid integer, box public.geometry)
returns table (
    part_id bigint, label_id smallint, geom public.geometry, west double precision, south double precision, east double precision,
    north double precision
)
language sql
stable parallel safe
security invoker
begin atomic
    select c.part_id, c.label_id, c.geom, public.ST_XMin(c.geom::public.box3d), public.ST_YMin(c.geom::public.box3d),
           public.ST_XMax(c.geom::public.box3d), public.ST_YMax(c.geom::public.box3d)
    from eo_internal.corine_part c
    where c.srid = land_cover_near.srid and c.geom operator(public.&&) box
    offset 0;
end;

-- Pieces of NUTS units, cut to a cell. One mostly holds the whole cell; then nothing is left to clip.
create or replace function eo_internal.units_in(srid integer, box public.geometry)
returns table (nuts_id text, level smallint, country_code text, geom public.geometry, whole boolean)
language sql
stable parallel safe
security invoker
begin atomic
    select c.nuts_id, c.level, c.country_code, c.geom, public.ST_Area(c.geom) >= public.ST_Area(box) * (1 - 1e-12)
    from (
        select n.nuts_id, n.level, n.country_code, public.ST_ClipByBox2D(n.geom, box::public.box2d) as geom
        from (
            select d.nuts_id, d.level, d.country_code, d.geom
            from eo_internal.nuts_part d
            where d.srid = units_in.srid and d.geom operator(public.&&) box
            offset 0
        ) n
    ) c
    where public.ST_Area(c.geom) > 0;
end;

-- How many rows a step has, the planner cannot know, here and below: without nested loops, and
-- sorts of polygons for a merge, nothing can go badly wrong. Joins that are to go through an index are lateral (offset 0).

-- Shares of places by class of land cover, and whether a class counts there. A place is a box in a cell.
create or replace function eo_internal.land_cover_shares(place_ids bigint[], cells text[], boxes public.geometry[], rule text, minimal_overlap real)
returns table (place_id bigint, label_id smallint, share double precision, counts boolean)
language plpgsql
stable parallel safe
security invoker
rows 10000 cost 1000000
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set enable_mergejoin = off
set enable_hashjoin = on
set search_path = pg_catalog, eo, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with place as materialized (
        select p.place_id, p.cell, p.geom, public.ST_SRID(p.geom) as srid, bounds.*
        from unnest(place_ids, cells, boxes) as p (place_id, cell, geom)
        cross join lateral (
            select public.ST_XMin(p.geom::public.box3d) as west, public.ST_YMin(p.geom::public.box3d) as south,
                   public.ST_XMax(p.geom::public.box3d) as east, public.ST_YMax(p.geom::public.box3d) as north
        ) bounds
    ),
    cover as materialized (
        select b.cell, b.srid, c.*
        from eo_internal.cells_of_places(cells, boxes) b
        cross join lateral eo_internal.land_cover_near(b.srid, b.geom) c
    ),
    -- Areas come before groups (offset 0), or whole polygons would be sorted.
    overlap as (
        select o.place_id, o.label_id, sum(o.area) / o.place_area as fraction
        from (
            select p.place_id, (p.east - p.west) * (p.north - p.south) as place_area, c.label_id,
                   public.ST_Area(public.ST_ClipByBox2D(c.geom, p.geom::public.box2d)) as area
            from place p
            join cover c on c.cell = p.cell and c.srid = p.srid
                        and c.west < p.east and c.east > p.west and c.south < p.north and c.north > p.south
            where land_cover_shares.rule = 'overlap'
            offset 0
        ) o
        group by o.place_id, o.place_area, o.label_id
    ),
    pixels as (
        select p.place_id, l.label_id, (v.value_count).count as pixels, sum((v.value_count).count) over (partition by p.place_id) as total
        from (
            select p.place_id,
                   eo_internal.land_cover_raster(
                       p.west, p.south, p.east, p.north, p.srid,
                       array_agg((c.geom, l.code::double precision)::public.geomval order by c.part_id)) as rast
            from place p
            join cover c on c.cell = p.cell and c.srid = p.srid
                        and c.west < p.east and c.east > p.west and c.south < p.north and c.north > p.south
            join eo.label l on l.label_id = c.label_id
            where land_cover_shares.rule = 'bigearthnet-v2' and least(p.east - p.west, p.north - p.south) >= 5
            group by p.place_id, p.west, p.south, p.east, p.north, p.srid
        ) p
        cross join lateral (select public._ST_ValueCount(p.rast, 1, false, null::double precision[], 0::double precision) as value_count) v
        left join eo.label l on l.scheme = 'clc' and l.code = (v.value_count).value::integer::text
    )
    select o.place_id, o.label_id, o.fraction, o.fraction > 0 and o.fraction >= minimal_overlap as counts
    from overlap o
    union all
    -- Pixels of classes that BigEarthNet-19 leaves out are unlabelled, as are those without a class.
    select x.place_id, x.label_id, x.pixels::double precision / x.total,
           x.label_id is not null
           and 4 * sum(x.pixels) filter (where x.label_id in (
                   select c.descendant_id
                   from eo.label_closure c
                   join eo.label l on l.label_id = c.ancestor_id
                   where l.scheme = 'ben19'
               )) over (partition by x.place_id) > 3 * x.total
    from pixels x;
end
$$;

-- Areas that places share with NUTS units.
create or replace function eo_internal.unit_areas(place_ids bigint[], cells text[], boxes public.geometry[])
returns table (place_id bigint, nuts_id text, level smallint, country_code text, area double precision)
language plpgsql
stable parallel safe
security invoker
rows 10000 cost 1000000
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set enable_mergejoin = off
set enable_hashjoin = on
set search_path = pg_catalog, eo, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with unit as materialized (
        select b.cell, b.srid, n.*
        from eo_internal.cells_of_places(cells, boxes) b
        cross join lateral eo_internal.units_in(b.srid, b.geom) n
    )
    select l.place_id, l.nuts_id, l.level, l.country_code, sum(l.area)
    from (
        select p.place_id, r.nuts_id, r.level, r.country_code,
               public.ST_Area(case when r.whole then p.geom else public.ST_ClipByBox2D(r.geom, p.geom::public.box2d) end) as area
        from unnest(place_ids, cells, boxes) as p (place_id, cell, geom)
        join unit r on r.cell = p.cell and r.srid = public.ST_SRID(p.geom)
        offset 0
    ) l
    where l.area > 0
    group by l.place_id, l.nuts_id, l.level, l.country_code;
end
$$;

create or replace function eo_internal.annotations(cells text[], what text[], rule text, minimal_overlap real, source text, "replace" boolean)
returns table (
    patch_id bigint, cell text, covered boolean, label_ids smallint[], label_fraction real[], located boolean, country_codes text[], nuts_ids text[])
language plpgsql
stable parallel safe
security invoker
rows 10000 cost 1000000
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set enable_hashjoin = on
set search_path = pg_catalog, eo, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with place as materialized (
        select row_number() over () as place_id, p.*, public.ST_MakeEnvelope(p.west, p.south, p.east, p.north, p.srid) as geom
        from eo_internal.unannotated_places(cells, what, annotations.source, "replace") p
    ),
    share as (
        select s.*
        from (select array_agg(place_id) as ids, array_agg(cell) as cells, array_agg(geom) as boxes from place where unlabelled) p
        cross join lateral eo_internal.land_cover_shares(p.ids, p.cells, p.boxes, annotations.rule, annotations.minimal_overlap) s
    ),
    located as materialized (
        select u.*
        from (select array_agg(place_id) as ids, array_agg(cell) as cells, array_agg(geom) as boxes from place where unlocated) p
        cross join lateral eo_internal.unit_areas(p.ids, p.cells, p.boxes) u
    ),
    -- One grouping instead of joins: of how many rows these would be, the planner has no idea.
    found as (
        select f.place_id, bool_or(f.is_label) as covered, sum(f.share) filter (where f.is_label) as covered_share,
               array_agg(f.label_id order by f.label_id) filter (where f.counts) as label_ids,
               array_agg(least(f.share, 1)::real order by f.label_id) filter (where f.counts) as label_fraction,
               bool_or(not f.is_label) as located,
               array_agg(f.country_code order by f.share desc, f.country_code collate "C") filter (where f.country_code is not null) as country_codes,
               coalesce(array_agg(f.nuts_id order by f.share desc, f.nuts_id collate "C") filter (where f.nuts_id is not null), '{}') as nuts_ids
        from (
            select place_id, true as is_label, label_id, share, counts, null as country_code, null as nuts_id
            from share
            union all
            select place_id, false, null, sum(area), false, country_code, null
            from located
            group by place_id, country_code
            union all
            select place_id, false, null, area, false, null, nuts_id
            from located
            where level = 3
        ) f
        group by f.place_id
    )
    select unnest(p.patch_ids), p.cell, coalesce(f.covered, false), f.label_ids, f.label_fraction, coalesce(f.located, false),
           f.country_codes, case when f.located then f.nuts_ids end
    from place p
    left join found f on f.place_id = p.place_id
    where (f.place_id is not null or "replace")
      and eo_internal.check_cover(f.covered_share, p.cell, p.srid, p.west, p.south)
    order by 1;
end
$$;

-- Whether what is known of a patch gives way to what was found, or to nothing: what is known stays, unless it is to be
-- replaced and something was found (of several patches of a place one may be without labels and one have those of its data
-- set), or nothing was and it is an older annotation's.
create or replace function eo_internal.gives_way(found boolean, anew boolean, known boolean, annotated boolean)
returns boolean
language sql
immutable parallel safe
security invoker
begin atomic
    select case when found then anew or not known else anew and annotated end;
end;

-- Each patch by its key (no other joins): the whole archive is never read for a batch.
create or replace function eo_internal.annotate_cells(cells text[], what text[], rule text, minimal_overlap real, source text, "replace" boolean)
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set enable_hashjoin = off
set enable_mergejoin = off
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    changed bigint;
    land_cover_edition constant text := eo_internal.edition('corine');
    places_edition constant text := eo_internal.edition('nuts');
    anew_labels constant boolean := "replace" and 'land_cover' = any (what);
    anew_places constant boolean := "replace" and 'country' = any (what);
begin
    -- Where nothing was found, what was found is null.
    update eo.patch p
    set label_ids = case when eo_internal.gives_way(a.covered, anew_labels, p.label_ids is not null, p.label_edition is not null or p.label_fraction is not null)
                         then a.label_ids else p.label_ids end,
        label_fraction = case when eo_internal.gives_way(a.covered, anew_labels, p.label_ids is not null, p.label_edition is not null or p.label_fraction is not null)
                              then a.label_fraction else p.label_fraction end,
        label_edition = case when eo_internal.gives_way(a.covered, anew_labels, p.label_ids is not null, p.label_edition is not null or p.label_fraction is not null)
                             then case when a.label_ids is not null then land_cover_edition end else p.label_edition end,
        country_codes = case when eo_internal.gives_way(a.located, anew_places, p.nuts_ids is not null, p.nuts_ids is not null)
                             then case when a.located then a.country_codes when p.source_country is not null then array[p.source_country] end
                             else p.country_codes end,
        nuts_ids = case when eo_internal.gives_way(a.located, anew_places, p.nuts_ids is not null, p.nuts_ids is not null)
                        then a.nuts_ids else p.nuts_ids end,
        nuts_edition = case when eo_internal.gives_way(a.located, anew_places, p.nuts_ids is not null, p.nuts_ids is not null)
                            then case when a.located then places_edition end else p.nuts_edition end
    from eo_internal.annotations(cells, array_remove(what, 'scene_classes'), rule, minimal_overlap, annotate_cells.source, "replace") a
    where p.patch_id = a.patch_id and p.cell = a.cell
      and (eo_internal.gives_way(a.covered, anew_labels, p.label_ids is not null, p.label_edition is not null or p.label_fraction is not null)
           and (p.label_ids, p.label_fraction, p.label_edition)
               is distinct from (a.label_ids, a.label_fraction, case when a.label_ids is not null then land_cover_edition end)
           or eo_internal.gives_way(a.located, anew_places, p.nuts_ids is not null, p.nuts_ids is not null)
              and (p.nuts_ids, p.nuts_edition, p.country_codes)
                  is distinct from (a.nuts_ids, case when a.located then places_edition end,
                                    case when a.located then a.country_codes when p.source_country is not null then array[p.source_country] end));
    get diagnostics changed = row_count;
    return changed;
end
$$;

create or replace function eo_internal.annotate_scene_classes(cells text[], source text, "replace" boolean)
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set plan_cache_mode = force_custom_plan
set search_path = pg_catalog, eo, pg_temp
as $$
#variable_conflict use_column
declare
    changed bigint;
begin
    with pixels as (
        select p.patch_id, p.cell, v.value as class, v.count::double precision as pixels
        from eo_internal.unannotated_in(cells, '{scene_classes}', annotate_scene_classes.source, "replace") p
        cross join lateral (
            select pr.rast, pr.bands
            from eo.patch_raster pr
            where pr.patch_id = p.patch_id and pr.cell = p.cell and 'SCL' = any (pr.bands)
            order by pr.resolution
            limit 1
        ) r
        left join lateral public._ST_ValueCount(r.rast, array_position(r.bands, 'SCL'), true, null::double precision[], 0::double precision) v on v.value > 0
    ),
    -- Of a patch without any classified pixel all is null.
    scene as (
        select v.patch_id, v.cell, array_agg(l.label_id order by l.label_id) filter (where l.label_id is not null) as class_ids,
               array_agg((v.pixels / v.classified)::real order by l.label_id) filter (where l.label_id is not null) as fraction,
               bool_or(v.class in (3, 8, 9, 10)) filter (where l.label_id is not null) as cloud_or_shadow,
               bool_or(v.class = 11) filter (where l.label_id is not null) as snow
        from (select x.*, sum(x.pixels) over (partition by x.patch_id) as classified from pixels x) v
        left join eo.label l on l.scheme = 'scl' and l.code = v.class::integer::text
        group by v.patch_id, v.cell
    )
    update eo.patch p
    set scene_class_ids = s.class_ids, scene_class_fraction = s.fraction, cloud_or_shadow = s.cloud_or_shadow, seasonal_snow = s.snow
    from scene s
    where p.patch_id = s.patch_id and p.cell = s.cell and (s.class_ids is not null or "replace")
      and (p.scene_class_ids is distinct from s.class_ids or p.scene_class_fraction is distinct from s.fraction
           or p.cloud_or_shadow is distinct from s.cloud_or_shadow or p.seasonal_snow is distinct from s.snow);
    get diagnostics changed = row_count;
    return changed;
end
$$;

-- A procedure that commits can neither be security definer nor pin a search_path: every name is qualified, and operands have
-- one type, so that pg_catalog's operators fit best.

create or replace procedure eo.annotate(
    what text[] default null,
    rule text default 'overlap',
    minimal_overlap real default 0,
    source text default null,
    cells text[] default null,
    "replace" boolean default false,
    batch_size integer default 10000,
    inout annotated bigint default null
)
language plpgsql
security invoker
as $$
declare
    there constant text[] := eo_internal.annotatable();
    kinds constant text[] := eo_internal.annotation_kinds(what);
    used_source constant text := eo_internal.source_meant(source);
    used_cells constant text[] := eo_internal.patch_cells(cells);
    batch text[];
    visiting bigint;
    visited bigint := 0;
begin
    annotated := 0;
    if rule is null or rule not in ('overlap', 'bigearthnet-v2') then
        raise exception 'there is no rule "%"', rule
            using errcode = 'invalid_parameter_value', hint = 'overlap or bigearthnet-v2.';
    end if;
    if minimal_overlap is null or minimal_overlap < 0::real or minimal_overlap > 1::real or minimal_overlap > 0::real and rule <> 'overlap' then
        raise exception 'minimal_overlap cannot be % by the rule %', minimal_overlap, rule
            using errcode = 'invalid_parameter_value', hint = 'It is a share of the patch''s area, 0 to 1, for the rule overlap.';
    end if;
    if batch_size is null or batch_size < 1 then
        raise exception 'batch_size must be at least 1, not %', batch_size
            using errcode = 'invalid_parameter_value', hint = 'Leave it out for the default.';
    end if;
    if 'land_cover' = any (kinds) and not 'land_cover' = any (there) then
        raise exception 'there is no land cover to annotate with: eo.corine is empty'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run: pgearth load corine FILE';
    end if;
    if 'country' = any (kinds) and not 'country' = any (there) then
        raise exception 'there are no countries to annotate with: eo.nuts is empty'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run: pgearth load nuts FILE';
    end if;
    for batch, visiting in
        select pg_catalog.array_agg(c.cell order by c.cell collate "C"), pg_catalog.sum(c.patches)
        from (
            select u.cell, u.patches,
                   pg_catalog.div(pg_catalog.sum(u.patches) over (order by u.cell collate "C") - u.patches::numeric, batch_size::numeric) as number
            from eo.unannotated_cells(kinds, used_source, used_cells, annotate."replace") u
        ) c
        group by c.number
        order by c.number
    loop
        perform eo_internal.derive_parts(batch, kinds, used_source, "replace");
        commit;  -- lets go of the lock on deriving
        annotated := annotated + eo_internal.annotate_cells(batch, kinds, rule, minimal_overlap, used_source, "replace");
        if 'scene_classes' = any (kinds) then
            annotated := annotated + eo_internal.annotate_scene_classes(batch, used_source, "replace");
        end if;
        visited := visited + visiting;
        commit;
        raise notice '% patches annotated of % visited', annotated, visited;
    end loop;
end
$$;
comment on procedure eo.annotate(text[], text, real, text, text[], boolean, integer, bigint) is
'Annotates patches that lack it (with "replace": all) with land_cover, country and scene_classes, or those named in what, and returns how many were changed; docs/loading.md tells of the rules. Commits after each batch of about batch_size patches: it may be interrupted and called again. Raises data_exception where polygons of eo.corine overlap in a patch. (writer)';
