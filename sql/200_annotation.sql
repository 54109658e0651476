-- Land cover from CORINE and country from NUTS, for many patches at a time.
--
-- A patch is an axis-aligned box in its own reference system, so polygons are reprojected to that system once and
-- subdivided (DESIGN.md section 4): a join of boxes with small pieces replaces one ST_Intersection per patch.

create or replace function eo_internal.ensure_partition(parent regclass, key integer)
returns void
language plpgsql
volatile parallel unsafe strict
security definer
set search_path = eo, public, pg_temp
as $$
declare
    partition_name text := (select relname from pg_class where oid = parent) || '__' || key;
begin
    if to_regclass(format('eo.%I', partition_name)) is null then
        execute format('create table eo.%I partition of %s for values in (%L)', partition_name, parent, key);
        execute format('grant select on eo.%I to eo_reader', partition_name);
        execute format('grant insert, update, delete on eo.%I to eo_writer', partition_name);
    end if;
end
$$;

create or replace function eo_internal.patch_extent(patch_srid integer)
returns geometry
language sql
stable parallel safe strict
security invoker
begin atomic
    -- Segmentized: a straight edge in one reference system is a curve in another.
    select ST_Segmentize(box, (ST_XMax(box) - ST_XMin(box) + ST_YMax(box) - ST_YMin(box)) / 200)
    from (select ST_MakeEnvelope(min(west), min(south), max(east), max(north), patch_srid) as box
          from eo.patch
          where srid = patch_srid) extent;
end;

create or replace function eo_internal.pieces(geom geometry, srid integer)
returns setof geometry
language sql
immutable parallel safe strict
security invoker
rows 10 cost 10000
begin atomic
    select ST_Subdivide(case when ST_IsValid(projected) then projected
                             else ST_CollectionExtract(ST_MakeValid(projected), 3) end, 128)
    from ST_Transform(geom, srid) as projected;
end;

create or replace function eo.derive_corine_parts(srids integer[] default null)
returns bigint
language plpgsql
volatile parallel unsafe
security definer
set search_path = eo, public, pg_temp
as $$
declare
    patch_srid integer;
    extent geometry;
    parts bigint;
    total bigint := 0;
begin
    for patch_srid in select unnest(coalesce(srids, array(select distinct srid from eo.patch))) loop
        perform eo_internal.ensure_partition('eo.corine_part', patch_srid);
        -- A variable, or the archive would be aggregated for every polygon.
        extent := ST_Transform(eo_internal.patch_extent(patch_srid), 3035);
        insert into eo.corine_part (srid, corine_id, label_id, geom)
        select patch_srid, c.corine_id, c.label_id, piece
        from eo.corine c, eo_internal.pieces(c.geom, patch_srid) as piece
        where c.geom && extent
          and not exists (select from eo.corine_part done where done.corine_id = c.corine_id and done.srid = patch_srid);
        get diagnostics parts = row_count;
        total := total + parts;
    end loop;
    return total;
end
$$;
comment on function eo.derive_corine_parts(integer[]) is
'Reprojects CORINE polygons near patches to the patches'' reference systems (all in use, or those given as EPSG codes) and subdivides them; polygons that have their pieces are left out. Returns the number of new pieces. Called by eo.annotate_land_cover and by the loader. (writer)';

create or replace function eo.derive_nuts_parts(srids integer[] default null)
returns bigint
language plpgsql
volatile parallel unsafe
security definer
set search_path = eo, public, pg_temp
as $$
declare
    patch_srid integer;
    extent geometry;
    parts bigint;
    total bigint := 0;
begin
    for patch_srid in select unnest(coalesce(srids, array(select distinct srid from eo.patch))) loop
        perform eo_internal.ensure_partition('eo.nuts_part', patch_srid);
        extent := ST_Transform(eo_internal.patch_extent(patch_srid), 4326);
        -- By polygon and not by country: overseas parts lie outside the validity of a European reference system.
        insert into eo.nuts_part (srid, nuts_id, level, country_code, geom)
        select patch_srid, n.nuts_id, n.level, n.country_code, piece
        from eo.nuts n, ST_Dump(n.geom) as part, eo_internal.pieces(part.geom, patch_srid) as piece
        where n.level = 0
          and part.geom && extent
          and not exists (select from eo.nuts_part done
                          where done.nuts_id = n.nuts_id and done.srid = patch_srid
                            and ST_Intersects(done.geom, ST_Transform(ST_PointOnSurface(part.geom), patch_srid)));
        get diagnostics parts = row_count;
        total := total + parts;
    end loop;
    return total;
end
$$;
comment on function eo.derive_nuts_parts(integer[]) is
'Reprojects NUTS countries near patches to the patches'' reference systems (all in use, or those given as EPSG codes) and subdivides them; polygons that have their pieces are left out. Returns the number of new pieces. Called by eo.annotate_country and by the loader. (writer)';

create or replace function eo_internal.annotate_land_cover_batch(patch_ids bigint[])
returns integer
language plpgsql
volatile parallel unsafe strict
security invoker
set search_path = eo, public, pg_temp
as $$
declare
    annotated integer;
begin
    with box as materialized (
        select p.patch_id, p.cell, p.srid, ST_MakeEnvelope(p.west, p.south, p.east, p.north, p.srid) as geom,
               (p.east - p.west) * (p.north - p.south) as area
        from eo.patch p
        where p.patch_id = any (patch_ids)
    ),
    share as (
        select b.patch_id, b.cell, c.label_id, sum(ST_Area(ST_ClipByBox2D(c.geom, b.geom))) / b.area as fraction
        from box b
        join eo.corine_part c on c.srid = b.srid and ST_Intersects(c.geom, b.geom)
        group by b.patch_id, b.cell, b.area, c.label_id
        having sum(ST_Area(ST_ClipByBox2D(c.geom, b.geom))) > 0
    ),
    annotation as (
        select patch_id, cell, array_agg(label_id order by label_id) as label_ids,
               array_agg(least(fraction, 1)::real order by label_id) as label_fraction
        from share
        group by patch_id, cell
    )
    update eo.patch p
    set label_ids = a.label_ids, label_fraction = a.label_fraction
    from annotation a
    where p.patch_id = a.patch_id and p.cell = a.cell;
    get diagnostics annotated = row_count;
    return annotated;
end
$$;

create or replace function eo_internal.annotate_country_batch(patch_ids bigint[])
returns integer
language plpgsql
volatile parallel unsafe strict
security invoker
set search_path = eo, public, pg_temp
as $$
declare
    annotated integer;
begin
    with box as materialized (
        select p.patch_id, p.cell, p.srid, ST_MakeEnvelope(p.west, p.south, p.east, p.north, p.srid) as geom
        from eo.patch p
        where p.patch_id = any (patch_ids)
    ),
    share as (
        select b.patch_id, b.cell, n.country_code, sum(ST_Area(ST_ClipByBox2D(n.geom, b.geom))) as area
        from box b
        join eo.nuts_part n on n.srid = b.srid and n.level = 0 and ST_Intersects(n.geom, b.geom)
        group by b.patch_id, b.cell, n.country_code
        having sum(ST_Area(ST_ClipByBox2D(n.geom, b.geom))) > 0
    ),
    annotation as (
        select patch_id, cell, array_agg(country_code order by area desc, country_code) as country_codes
        from share
        group by patch_id, cell
    )
    update eo.patch p
    set country_codes = a.country_codes
    from annotation a
    where p.patch_id = a.patch_id and p.cell = a.cell
      and p.country_codes is distinct from a.country_codes;
    get diagnostics annotated = row_count;
    return annotated;
end
$$;

-- Procedures that commit can neither be security definer nor pin a search_path: every name is qualified.

create or replace procedure eo.annotate_land_cover(
    source text default null,
    "replace" boolean default false,
    batch_size integer default 10000
)
language plpgsql
security invoker
as $$
declare
    batch bigint[];
    last_id bigint := -1;
    visited bigint := 0;
    annotated bigint := 0;
begin
    if batch_size < 1 then
        raise exception 'batch_size must be at least 1, not %', batch_size
            using errcode = 'invalid_parameter_value', hint = 'Leave it out for the default.';
    end if;
    if not exists (select from eo.corine) then
        raise exception 'there is no land cover to annotate with: eo.corine is empty'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run: pgearth load corine FILE';
    end if;
    perform eo.derive_corine_parts();
    commit;
    loop
        batch := array(
            select p.patch_id
            from eo.patch p
            where p.patch_id > last_id
              and (annotate_land_cover.source is null or p.source = annotate_land_cover.source)
              and (annotate_land_cover."replace" or p.label_ids is null)
            order by p.patch_id
            limit batch_size
        );
        exit when pg_catalog.cardinality(batch) = 0;
        annotated := annotated + eo_internal.annotate_land_cover_batch(batch);
        visited := visited + pg_catalog.cardinality(batch);
        last_id := batch[pg_catalog.cardinality(batch)];
        commit;
        raise notice 'land cover: % patches annotated of % visited', annotated, visited;
    end loop;
end
$$;
comment on procedure eo.annotate_land_cover(text, boolean, integer) is
'Sets label_ids and label_fraction of patches that have no labels (with "replace": of all patches) of a source (null: any) from the CORINE polygons: the classes that share area with the patch, in its native reference system, and the share of each, 0 to 1. Patches that meet no polygon stay without labels. Commits after each batch of batch_size patches, so it may be interrupted and called again. (writer)';

create or replace procedure eo.annotate_country(
    source text default null,
    "replace" boolean default false,
    batch_size integer default 10000
)
language plpgsql
security invoker
as $$
declare
    batch bigint[];
    last_id bigint := -1;
    visited bigint := 0;
    annotated bigint := 0;
begin
    if batch_size < 1 then
        raise exception 'batch_size must be at least 1, not %', batch_size
            using errcode = 'invalid_parameter_value', hint = 'Leave it out for the default.';
    end if;
    if not exists (select from eo.nuts where level = 0) then
        raise exception 'there are no countries to annotate with: eo.nuts has no regions of level 0'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run: pgearth load nuts FILE';
    end if;
    perform eo.derive_nuts_parts();
    commit;
    loop
        batch := array(
            select p.patch_id
            from eo.patch p
            where p.patch_id > last_id
              and (annotate_country.source is null or p.source = annotate_country.source)
              and (annotate_country."replace" or p.country_codes is null)
            order by p.patch_id
            limit batch_size
        );
        exit when pg_catalog.cardinality(batch) = 0;
        annotated := annotated + eo_internal.annotate_country_batch(batch);
        visited := visited + pg_catalog.cardinality(batch);
        last_id := batch[pg_catalog.cardinality(batch)];
        commit;
        raise notice 'country: % patches changed of % visited', annotated, visited;
    end loop;
end
$$;
comment on procedure eo.annotate_country(text, boolean, integer) is
'Sets country_codes of patches that have none (with "replace": of all patches) of a source (null: any) from the NUTS regions of level 0: the countries that share area with the patch, largest share first. Patches that meet no country keep what they have. Commits after each batch of batch_size patches, so it may be interrupted and called again. (writer)';
