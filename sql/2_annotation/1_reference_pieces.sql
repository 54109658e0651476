-- Pieces of the reference polygons, CORINE's and NUTS's, in the patches' reference systems.

create or replace function eo_internal.ensure_partition(parent regclass, key integer)
returns void
language plpgsql
volatile parallel unsafe strict
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    partition_name text := (select relname from pg_class where oid = parent) || '__' || key;
begin
    if to_regclass(format('eo_internal.%I', partition_name)) is null then
        execute format('create table eo_internal.%I partition of %s for values in (%L)', partition_name, parent, key);
        execute format('grant select on eo_internal.%I to eo_reader', partition_name);
    end if;
end
$$;

create or replace function eo_internal.patch_extent(patch_srid integer)
returns public.geometry
language sql
stable parallel safe strict
security invoker
begin atomic
    -- Segmentized: a straight edge in one reference system is a curve in another.
    select public.ST_Segmentize(box, (public.ST_XMax(box::public.box3d) - public.ST_XMin(box::public.box3d) + public.ST_YMax(box::public.box3d) - public.ST_YMin(box::public.box3d)) / 200)
    from (select public.ST_MakeEnvelope(min(west), min(south), max(east), max(north), patch_srid) as box
          from eo.patch
          where srid = patch_srid) extent;
end;

create or replace function eo_internal.pieces(geom public.geometry, srid integer)
returns setof public.geometry
language sql
immutable parallel safe strict
security invoker
rows 10 cost 10000
begin atomic
    select public.ST_Subdivide(case when public.ST_IsValid(projected) then projected
                             else public.ST_CollectionExtract(public.ST_MakeValid(projected), 3) end, 128, -1::double precision)
    from public.ST_Transform(geom, srid) as projected;
end;

-- Whether bounds of parts meet. Those of the whole go around the world where it lies across the antimeridian.
create or replace function eo_internal.near(geom public.geometry, area public.geometry)
returns boolean
language sql
immutable parallel safe strict
security invoker
cost 1000
begin atomic
    select exists (select from public.ST_Dump(geom) part, public.ST_Dump(area) place where part.geom operator(public.&&) place.geom);
end;

create or replace function eo.derive_corine_parts(srids integer[] default null, area public.geometry default null)
returns bigint
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    patch_srid integer;
    extent public.geometry;
    parts bigint;
    total bigint := 0;
begin
    perform eo_internal.is_geographic(srid) from unnest(eo_internal.given_list(srids)) as srid;
    -- Two annotations at once would both find a polygon without its pieces.
    perform pg_advisory_xact_lock('eo_internal.corine_part'::regclass::bigint);
    for patch_srid in select unnest(coalesce(srids, array(select distinct srid from eo.patch))) loop
        perform eo_internal.ensure_partition('eo_internal.corine_part', patch_srid);
        -- A variable, or the archive would be aggregated for every polygon.
        extent := public.ST_Transform(coalesce(eo_internal.search_area(area), eo_internal.patch_extent(patch_srid)), 3035);
        insert into eo_internal.corine_part (srid, corine_id, label_id, geom)
        select patch_srid, c.corine_id, c.label_id, piece
        from eo.corine c, eo_internal.pieces(c.geom, patch_srid) as piece
        where c.geom operator(public.&&) extent
          and not exists (select from eo_internal.corine_part done where done.corine_id = c.corine_id and done.srid = patch_srid);
        get diagnostics parts = row_count;
        total := total + parts;
    end loop;
    return total;
end
$$;
comment on function eo.derive_corine_parts(integer[], public.geometry) is
'Reprojects CORINE polygons near patches, or near an area in any reference system, to the patches'' reference systems (all in use, or the EPSG codes given) and subdivides them, where that is not done. Returns the number of new pieces. (writer)';

create or replace function eo.derive_nuts_parts(srids integer[] default null, area public.geometry default null)
returns bigint
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    patch_srid integer;
    extent public.geometry;
    parts bigint;
    total bigint := 0;
begin
    perform eo_internal.is_geographic(srid) from unnest(eo_internal.given_list(srids)) as srid;
    -- Two annotations at once would both find a polygon without its pieces.
    perform pg_advisory_xact_lock('eo_internal.nuts_part'::regclass::bigint);
    for patch_srid in select unnest(coalesce(srids, array(select distinct srid from eo.patch))) loop
        perform eo_internal.ensure_partition('eo_internal.nuts_part', patch_srid);
        -- Of countries whose places of level 3 came later than they did.
        delete from eo_internal.nuts_part done
        where done.srid = patch_srid
          and done.level < (select max(n.level) from eo.nuts n where n.country_code = done.country_code);
        extent := eo_internal.search_area(coalesce(area, eo_internal.patch_extent(patch_srid)));
        insert into eo_internal.nuts_part (srid, nuts_id, level, country_code, geom)
        select patch_srid, n.nuts_id, n.level, n.country_code, piece
        from eo.nuts n, public.ST_Dump(n.geom) as part, eo_internal.pieces(part.geom, patch_srid) as piece
        where n.level = (select max(level) from eo.nuts lower where lower.country_code = n.country_code)
          and n.geom operator(public.&&) extent
          and case
                  when n.level = 3 then eo_internal.near(n.geom, extent)
                       and not exists (select from eo_internal.nuts_part done where done.nuts_id = n.nuts_id and done.srid = patch_srid)
                  -- Overseas parts of a country lie outside the validity of a European reference system.
                  else eo_internal.near(part.geom, extent)
                       and not exists (select from eo_internal.nuts_part done
                                       where done.nuts_id = n.nuts_id and done.srid = patch_srid
                                         and public.ST_Intersects(done.geom, public.ST_Transform(public.ST_PointOnSurface(part.geom), patch_srid)))
              end;
        get diagnostics parts = row_count;
        total := total + parts;
    end loop;
    return total;
end
$$;
comment on function eo.derive_nuts_parts(integer[], public.geometry) is
'Reprojects NUTS units of the lowest level near patches, or near an area in any reference system, to the patches'' reference systems (all in use, or the EPSG codes given) and subdivides them, where that is not done. Returns the number of new pieces. (writer)';
