-- Geohash cells: a base-32 text of n characters names a cell of 5n bits, which halve longitude and latitude in turn,
-- longitude first (https://en.wikipedia.org/wiki/Geohash).

create or replace function eo.cell_of(geom public.geometry, "precision" integer default 5)
returns text
language plpgsql
immutable parallel safe strict
security invoker
cost 200
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    centre public.geometry := public.ST_Centroid(eo_internal.located(geom));
begin
    if public.ST_XMin(geom::public.box3d) = -180 and public.ST_XMax(geom::public.box3d) = 180
       and eo_internal.is_geographic(public.ST_SRID(geom))
    then
        -- Parts on both sides of the antimeridian belong together; about a pole, the middle is on a map of the pole.
        if not exists (select from public.ST_Dump(geom) part where public.ST_XMin(part.geom::public.box3d) < 0 and public.ST_XMax(part.geom::public.box3d) > 0) then
            centre := public.ST_Centroid(public.ST_ShiftLongitude(geom));
        elsif public.ST_YMax(geom::public.box3d) = 90 and public.ST_YMin(geom::public.box3d) > -90 then
            centre := public.ST_Centroid(public.ST_Transform(geom, 3995));
        elsif public.ST_YMin(geom::public.box3d) = -90 and public.ST_YMax(geom::public.box3d) < 90 then
            centre := public.ST_Centroid(public.ST_Transform(geom, 3031));
        end if;
    end if;
    return public.ST_GeoHash(eo_internal.wrapped_area(public.ST_Transform(centre, 4326)), eo_internal.check_precision("precision"));
end
$$;
comment on function eo.cell_of(public.geometry, integer) is
'Geohash of the centre of a geometry (any SRID but 0); precision 5 is that of a patch''s cell, about 5 x 5 km. Parts on both sides of the antimeridian have their centre between them, and what lies about a pole has it there. https://en.wikipedia.org/wiki/Geohash';

create or replace function eo_internal.check_precision("precision" integer)
returns integer
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if "precision" is null or "precision" not between 1 and 12 then
        raise exception 'the precision of a cell is 1 to 12 characters, not %', "precision"
            using errcode = 'invalid_parameter_value', hint = 'Precision 5, about 5 x 5 km, is that of eo.patch.cell.';
    end if;
    return "precision";
end
$$;

create or replace function eo.cell_box(cell text)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if cell !~ '^[0-9bcdefghjkmnpqrstuvwxyz]{1,12}$' then
        raise exception '"%" is no geohash', cell
            using errcode = 'invalid_parameter_value',
                  hint = 'A geohash has 1 to 12 characters out of 0123456789bcdefghjkmnpqrstuvwxyz.';
    end if;
    -- Not ST_GeomFromGeoHash, whose body looks names up in the caller's search_path.
    return public.ST_SetSRID(public.ST_Box2dFromGeoHash(cell, null::integer)::public.geometry, 4326);
end
$$;
comment on function eo.cell_box(text) is
'The rectangle of a geohash cell, a polygon in EPSG:4326. Raises invalid_parameter_value for what is no geohash of 1 to 12 characters.';

create or replace function eo_internal.cells_of_part(part public.geometry, "precision" integer)
returns table (cell text, geom public.geometry)
language plpgsql
immutable parallel safe strict
security invoker
rows 100
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    bits integer := 5 * "precision";
    columns bigint := 1::bigint << (bits + 1) / 2;
    lines bigint := 1::bigint << bits / 2;
    -- A cell has its west and south edge, and the part may just touch it from the other side: one cell more there.
    west bigint := greatest(ceil((public.ST_XMin(part::public.box3d) + 180) / 360 * columns)::bigint - 1, 0);
    east bigint := least(floor((public.ST_XMax(part::public.box3d) + 180) / 360 * columns)::bigint, columns - 1);
    south bigint := greatest(ceil((public.ST_YMin(part::public.box3d) + 90) / 180 * lines)::bigint - 1, 0);
    north bigint := least(floor((public.ST_YMax(part::public.box3d) + 90) / 180 * lines)::bigint, lines - 1);
begin
    if (east - west + 1) * (north - south + 1) > 4000000 then
        raise exception 'the area has % cells of precision % in its bounds', (east - west + 1) * (north - south + 1), "precision"
            using errcode = 'program_limit_exceeded', hint = 'Take a lower precision or a smaller area.';
    end if;
    return query
        select public.ST_GeoHash(public.ST_Point((-180 + (x + 0.5) * 360.0 / columns)::double precision, (-90 + (y + 0.5) * 180.0 / lines)::double precision, 4326), "precision"), box
        from generate_series(west, east) as x, generate_series(south, north) as y,
             public.ST_MakeEnvelope((-180 + x * 360.0 / columns)::double precision, (-90 + y * 180.0 / lines)::double precision,
                                    (-180 + (x + 1) * 360.0 / columns)::double precision, (-90 + (y + 1) * 180.0 / lines)::double precision, 4326) as box
        where public.ST_Intersects(box, part);
end
$$;

create or replace function eo.cells(area public.geometry, "precision" integer default 5)
returns table (cell text, geom public.geometry)
language plpgsql
immutable parallel safe strict
security invoker
rows 100
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return query
        select distinct on (c.cell collate "C") c.cell, c.geom
        from public.ST_Dump(eo_internal.search_area(area)) d,
             eo_internal.cells_of_part(d.geom, eo_internal.check_precision("precision")) c
        order by c.cell collate "C";
end
$$;
comment on function eo.cells(public.geometry, integer) is
'The geohash cells that meet an area (as in eo.patches), with their rectangles in EPSG:4326, by geohash: together they cover it. Cells that only touch it are among them. Raises program_limit_exceeded for more than 4 million cells in the bounds of a part of the area.';

create or replace function eo.cell_neighbours(cell text)
returns setof text
language plpgsql
immutable parallel safe strict
security invoker
rows 8
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    box public.geometry := eo.cell_box(cell);
    width double precision := public.ST_XMax(box::public.box3d) - public.ST_XMin(box::public.box3d);
    height double precision := public.ST_YMax(box::public.box3d) - public.ST_YMin(box::public.box3d);
    x double precision := public.ST_XMin(box::public.box3d) + width / 2;
    y double precision := public.ST_YMin(box::public.box3d) + height / 2;
begin
    return query
        select distinct public.ST_GeoHash(
            public.ST_Point(case when x + dx * width > 180 then x + dx * width - 360
                          when x + dx * width < -180 then x + dx * width + 360
                          else x + dx * width end, y + dy * height, 4326), length(cell)) collate "C"
        from generate_series(-1, 1) as dx, generate_series(-1, 1) as dy
        where (dx, dy) <> (0, 0) and y + dy * height between -90 and 90
        order by 1;
end
$$;
comment on function eo.cell_neighbours(text) is
'The up to eight cells around a geohash cell, across the antimeridian too; at a pole there are five.';

create or replace function eo_internal.cell_prefixes(cells text[], longest integer)
returns text[]
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    wrong text;
begin
    select c.cell into wrong from unnest(cells) as c (cell) where (c.cell ~ '^[0-9bcdefghjkmnpqrstuvwxyz]{1,12}$') is not true limit 1;
    if found then
        raise exception '"%" is no geohash', wrong
            using errcode = 'invalid_parameter_value',
                  hint = 'A geohash has 1 to 12 characters out of 0123456789bcdefghjkmnpqrstuvwxyz.';
    end if;
    return array(select distinct left(c.cell, longest) collate "C" from unnest(cells) as c (cell) order by 1);
end
$$;

-- Cells as patches have them, for what looks for these alone.
create or replace function eo_internal.patch_cells(cells text[])
returns text[]
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    other text;
begin
    perform eo_internal.cell_prefixes(eo_internal.given_list(cells), 5);
    select c.cell into other from unnest(cells) as c (cell) where length(c.cell) <> 5 limit 1;
    if found then
        raise exception 'the cell "%" has % characters, but those of patches have 5', other, length(other)
            using errcode = 'invalid_parameter_value', hint = 'Pass cells of eo.patch or of eo.cells(area).';
    end if;
    return cells;
end
$$;
