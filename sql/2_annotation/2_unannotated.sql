-- Which patches lack what, and the pieces that they need for it.

-- The edition that patches are annotated with; a word where its polygons were not loaded by pgearth.
create or replace function eo_internal.edition(reference text)
returns text
language sql
stable parallel safe
security invoker
begin atomic
    select coalesce((select e.edition from eo.edition e where e.reference = edition.reference), 'unknown');
end;

create or replace function eo_internal.unannotated(what text[], source text, "replace" boolean)
returns table (
    patch_id bigint, cell text, srid integer, west double precision, south double precision, east double precision,
    north double precision, label_ids smallint[], nuts_ids text[]
)
language sql
stable parallel safe
security invoker
begin atomic
    select p.patch_id, p.cell, p.srid, p.west, p.south, p.east, p.north, p.label_ids, p.nuts_ids
    from eo.patch p
    where (unannotated.source is null or p.source = unannotated.source)
      and ('land_cover' = any (what) and ("replace" or p.label_ids is null)
           or 'country' = any (what) and ("replace" or p.nuts_ids is null)
           or 'scene_classes' = any (what) and ("replace" or p.scene_class_ids is null)
              and exists (select from eo.patch_raster r
                          where r.patch_id = p.patch_id and r.cell = p.cell and 'SCL' = any (r.bands)));
end;

create or replace function eo_internal.unannotated_in(cells text[], what text[], source text, "replace" boolean)
returns table (
    patch_id bigint, cell text, srid integer, west double precision, south double precision, east double precision,
    north double precision, label_ids smallint[], nuts_ids text[]
)
language sql
stable parallel safe
security invoker
begin atomic
    -- Offset 0: cell by cell, each from an index, whatever the planner thinks.
    select p.*
    from unnest(cells) as c (cell)
    cross join lateral (
        select u.*
        from eo_internal.unannotated(what, unannotated_in.source, "replace") u
        where u.cell = c.cell collate "C"
        offset 0
    ) p;
end;

create or replace function eo_internal.annotatable()
returns text[]
language sql
stable parallel safe
security invoker
begin atomic
    select array_remove(array[
        case when exists (select from eo.corine) then 'land_cover' end,
        case when exists (select from eo.nuts) then 'country' end,
        case when exists (select from eo.patch_raster where 'SCL' = any (bands)) then 'scene_classes' end], null);
end;

-- What patches are to be annotated with: by default all there is data for.
create or replace function eo_internal.annotation_kinds(what text[])
returns text[]
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if not what <@ '{land_cover,country,scene_classes}' then
        raise exception 'what is % to be annotated with?', what
            using errcode = 'invalid_parameter_value', hint = 'Name land_cover, country and scene_classes, or leave it out for all there is data for.';
    end if;
    return coalesce(what, eo_internal.annotatable());
end
$$;

-- Custom plans, here and below: only with the arguments known do partial indexes of patches without annotations serve.

create or replace function eo.unannotated_cells(what text[] default null, source text default null, cells text[] default null, "replace" boolean default false)
returns table (cell text, patches bigint)
language plpgsql
stable parallel safe
security invoker
rows 100000
set plan_cache_mode = force_custom_plan
set search_path = pg_catalog, eo, pg_temp
as $$
#variable_conflict use_column
declare
    kinds text[] := eo_internal.annotation_kinds(what);
    used_source text := eo_internal.source_meant(source);
begin
    if cells is null then
        return query
            select p.cell, count(*)
            from eo_internal.unannotated(kinds, used_source, "replace") p
            group by p.cell;
    else
        return query
            select p.cell, count(*)
            from eo_internal.unannotated_in(eo_internal.patch_cells(cells), kinds, used_source, "replace") p
            group by p.cell;
    end if;
end
$$;
comment on function eo.unannotated_cells(text[], text, text[], boolean) is
'Cells (of those given; null: all) with patches that eo.annotate would visit, and how many; arguments as there. Parts of it passed as eo.annotate(cells => ...) share the work among several connections.';

create or replace function eo_internal.derive_parts(cells text[], what text[], source text, "replace" boolean)
returns void
language plpgsql
volatile parallel unsafe
security invoker
set plan_cache_mode = force_custom_plan
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    perform case when 'land_cover' = any (what) then eo.derive_corine_parts(array[extent.srid], extent.area) end,
            case when 'country' = any (what) then eo.derive_nuts_parts(array[extent.srid], extent.area) end
    from (
        select e.srid, public.ST_Segmentize(public.ST_MakeEnvelope(e.west, e.south, e.east, e.north, e.srid), (e.east - e.west + e.north - e.south) / 200) as area
        from (
            select p.srid, min(p.west) as west, min(p.south) as south, max(p.east) as east, max(p.north) as north
            from eo_internal.unannotated_in(cells, what, derive_parts.source, "replace") p
            group by p.srid
        ) e
    ) extent;
end
$$;

-- _ST_ValueCount, here and below: ST_ValueCount, which calls it, looks names up in the caller's search_path.
