-- Geohash cells: a base-32 text of n characters names a cell of 5n bits, which halve longitude and latitude in turn,
-- longitude first (https://en.wikipedia.org/wiki/Geohash).

create or replace function eo.cell_of(geom geometry, "precision" integer default 5)
returns text
language sql
immutable parallel safe strict
security invoker
cost 100
begin atomic
    select ST_GeoHash(ST_Transform(ST_Centroid(geom), 4326), "precision");
end;
comment on function eo.cell_of(geometry, integer) is
'Geohash of the centre of a geometry (any SRID but 0); precision 5 is the cell that partitions the archive, about 5 x 5 km. https://en.wikipedia.org/wiki/Geohash';

create or replace function eo_internal.check_precision("precision" integer)
returns integer
language plpgsql
immutable parallel safe
security invoker
set search_path = eo, public, pg_temp
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
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
set search_path = eo, public, pg_temp
as $$
begin
    if cell !~ '^[0-9bcdefghjkmnpqrstuvwxyz]{1,12}$' then
        raise exception '"%" is no geohash', cell
            using errcode = 'invalid_parameter_value',
                  hint = 'A geohash has 1 to 12 characters out of 0123456789bcdefghjkmnpqrstuvwxyz.';
    end if;
    return ST_SetSRID(ST_GeomFromGeoHash(cell), 4326);
end
$$;
comment on function eo.cell_box(text) is
'The rectangle of a geohash cell, a polygon in EPSG:4326. Raises invalid_parameter_value for what is no geohash of 1 to 12 characters.';

create or replace function eo.cells(area geometry, "precision" integer default 5)
returns table (cell text, geom geometry)
language plpgsql
immutable parallel safe strict
security invoker
rows 100
set search_path = eo, public, pg_temp
as $$
declare
    bits integer := 5 * eo_internal.check_precision("precision");
    columns bigint := 1::bigint << (bits + 1) / 2;
    lines bigint := 1::bigint << bits / 2;
    wgs84 geometry := ST_Transform(area, 4326);
    west bigint;
    east bigint;
    south bigint;
    north bigint;
begin
    if ST_IsEmpty(wgs84) then
        return;
    end if;
    if ST_XMin(wgs84) < -180 or ST_XMax(wgs84) > 180 or ST_YMin(wgs84) < -90 or ST_YMax(wgs84) > 90 then
        raise exception 'the area reaches beyond longitude -180 to 180 or latitude -90 to 90: %', Box2D(wgs84)
            using errcode = 'invalid_parameter_value',
                  hint = 'Split an area at the antimeridian into a multipolygon with a part on either side.';
    end if;
    -- A cell has its west and south edge, and the area may just touch it from the other side: one cell more there.
    west := greatest(ceil((ST_XMin(wgs84) + 180) / 360 * columns)::bigint - 1, 0);
    east := least(floor((ST_XMax(wgs84) + 180) / 360 * columns)::bigint, columns - 1);
    south := greatest(ceil((ST_YMin(wgs84) + 90) / 180 * lines)::bigint - 1, 0);
    north := least(floor((ST_YMax(wgs84) + 90) / 180 * lines)::bigint, lines - 1);
    if (east - west + 1) * (north - south + 1) > 4000000 then
        raise exception 'the area has % cells of precision % in its bounds', (east - west + 1) * (north - south + 1), "precision"
            using errcode = 'program_limit_exceeded', hint = 'Take a lower precision or a smaller area.';
    end if;
    return query
        select ST_GeoHash(ST_Point(-180 + (x + 0.5) * 360.0 / columns, -90 + (y + 0.5) * 180.0 / lines, 4326), "precision"), box
        from generate_series(west, east) as x, generate_series(south, north) as y,
             ST_MakeEnvelope(-180 + x * 360.0 / columns, -90 + y * 180.0 / lines,
                             -180 + (x + 1) * 360.0 / columns, -90 + (y + 1) * 180.0 / lines, 4326) as box
        where ST_Intersects(box, wgs84)
        order by 1;
end
$$;
comment on function eo.cells(geometry, integer) is
'The geohash cells that meet an area (any SRID but 0), with their rectangles in EPSG:4326, by geohash: together they cover it. Cells that only touch it are among them. Raises program_limit_exceeded for more than 4 million cells.';

create or replace function eo.cell_neighbours(cell text)
returns setof text
language plpgsql
immutable parallel safe strict
security invoker
rows 8
set search_path = eo, public, pg_temp
as $$
declare
    box geometry := eo.cell_box(cell);
    width double precision := ST_XMax(box) - ST_XMin(box);
    height double precision := ST_YMax(box) - ST_YMin(box);
    x double precision := ST_XMin(box) + width / 2;
    y double precision := ST_YMin(box) + height / 2;
begin
    return query
        select distinct ST_GeoHash(
            ST_Point(case when x + dx * width > 180 then x + dx * width - 360
                          when x + dx * width < -180 then x + dx * width + 360
                          else x + dx * width end, y + dy * height, 4326), length(cell))
        from generate_series(-1, 1) as dx, generate_series(-1, 1) as dy
        where (dx, dy) <> (0, 0) and y + dy * height between -90 and 90
        order by 1;
end
$$;
comment on function eo.cell_neighbours(text) is
'The up to eight cells around a geohash cell, across the antimeridian too; at a pole there are five.';
