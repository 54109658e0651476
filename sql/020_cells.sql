-- Areas and geohash cells.
--
-- An area is brought to EPSG:4326 before it is held against footprints, which are polygons there of longitudes -180 to
-- 180 with straight edges and are taken not to cross the antimeridian nor to hold a pole. So an area must not either: it
-- is cut at the antimeridian, and about a pole it becomes a band up to latitude 90.

-- Helpers of the filter are folded to constants when eo.patches is inlined. Where it is not, because an argument is a
-- subquery, they would be called for each patch of the archive, which takes minutes. Words of a context are translated,
-- but the name of the function and the number that ends the line are not.
create or replace function eo_internal.check_inlined()
returns void
language plpgsql
stable parallel safe
security invoker
set search_path = eo, public, pg_temp
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
end
$$;

-- A geometry that is known to lie somewhere: in a reference system of the database, at coordinates that can be on the
-- globe. PROJ, which knows better, refuses more of them, with an internal_error that only a subtransaction could catch.
create or replace function eo_internal.located(geom geometry)
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 100
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    furthest constant double precision := 1e8;  -- half the way round the globe in feet is less
    geographic boolean := (select s.proj4text ~ '\+proj=longlat' from public.spatial_ref_sys s where s.srid = public.ST_SRID(geom));
begin
    if public.ST_SRID(geom) = 0 then
        raise exception 'the geometry has no SRID'
            using errcode = 'invalid_parameter_value', hint = 'For longitudes and latitudes: ST_SetSRID(geom, 4326).';
    elsif geographic is null then
        raise exception 'the database has no reference system with the SRID %', public.ST_SRID(geom)
            using errcode = 'invalid_parameter_value', hint = 'Those that it has are in spatial_ref_sys; most are EPSG''s.';
    elsif geographic and not (public.ST_XMin(geom) >= -360 and public.ST_XMax(geom) <= 360
                              and public.ST_YMin(geom) >= -90 and public.ST_YMax(geom) <= 90) then
        raise exception 'the geometry reaches beyond longitude -360 to 360 or latitude -90 to 90: %', public.Box2D(geom)
            using errcode = 'invalid_parameter_value',
                  hint = 'Longitude comes first. Beyond the antimeridian longitudes go on from 180, or from -180.';
    elsif not (public.ST_XMin(geom) >= -furthest and public.ST_XMax(geom) <= furthest
               and public.ST_YMin(geom) >= -furthest and public.ST_YMax(geom) <= furthest) then
        raise exception 'the geometry has coordinates that are nowhere: %', public.Box2D(geom)
            using errcode = 'invalid_parameter_value', hint = 'Coordinates are finite, in the units of the reference system.';
    elsif exists (select from public.ST_Dump(geom) part
                  where public.ST_GeometryType(part.geom) in ('ST_PolyhedralSurface', 'ST_Tin', 'ST_Triangle'))
          or public.ST_GeometryType(geom) in ('ST_PolyhedralSurface', 'ST_Tin', 'ST_Triangle') then
        raise exception 'the geometry has surfaces: %', left(public.ST_AsText(geom), 100)
            using errcode = 'invalid_parameter_value', hint = 'Pass points, lines, polygons, curves or collections of them.';
    end if;
    return geom;
end
$$;

create or replace function eo_internal.wrapped_area(area geometry)
returns geometry
language sql
immutable parallel safe strict
security invoker
cost 1000
begin atomic
    select case
        when ST_XMin(area) >= -180 and ST_XMax(area) <= 180 then area
        else ST_UnaryUnion(ST_WrapX(ST_WrapX(area, 180, -360), -180, 360))
    end;
end;

create or replace function eo_internal.unwound_line(line geometry)
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = eo, public, pg_temp
as $$
declare
    x double precision;
    y double precision;
    last_x double precision;
    pole double precision;
    vertices geometry[] := '{}';
begin
    for x, y in select ST_X(d.geom), ST_Y(d.geom) from ST_DumpPoints(line) d order by d.path loop
        -- A pole has every longitude: the line runs along latitude 90 from that before it to that after it.
        if abs(y) > 90 - 1e-9 then
            if last_x is not null then
                vertices := vertices || ST_Point(last_x, y, 4326);
            end if;
            pole := y;
            continue;
        end if;
        if last_x is not null then
            x := x - 360 * round((x - last_x) / 360);
            if pole is null and abs(x - last_x) > 170 then
                raise exception 'an edge of the area passes too near to a pole, at longitude % and latitude %', last_x, y
                    using errcode = 'invalid_parameter_value',
                          hint = 'Give the pole as a vertex, move the edge, or use eo.circle or eo.rectangle.';
            end if;
        end if;
        if pole is not null then
            vertices := vertices || ST_Point(x, pole, 4326);
            pole := null;
        end if;
        vertices := vertices || ST_Point(x, y, 4326);
        last_x := x;
    end loop;
    if pole is not null and last_x is null then
        vertices := vertices || array[ST_Point(0, pole, 4326), ST_Point(0, pole, 4326)];
    end if;
    return ST_MakeLine(vertices);
end
$$;

create or replace function eo_internal.unwound_ring(ring geometry, holds_north_pole boolean)
returns geometry
language plpgsql
immutable parallel safe
security invoker
cost 10000
set search_path = eo, public, pg_temp
as $$
declare
    line geometry := eo_internal.unwound_line(ring);
    pole double precision := case when holds_north_pole then 90 else -90 end;
begin
    -- A ring about a pole ends 360 degrees from where it began: it is closed along the pole.
    if abs(ST_X(ST_EndPoint(line)) - ST_X(ST_StartPoint(line))) > 180 then
        line := ST_MakeLine(array[line, ST_Point(ST_X(ST_EndPoint(line)), pole, 4326),
                                  ST_Point(ST_X(ST_StartPoint(line)), pole, 4326)]);
    end if;
    -- What began at a pole or rounding kept open is closed too.
    return ST_Segmentize(eo_internal.wrapped_area(ST_MakeValid(ST_MakePolygon(ST_AddPoint(line, ST_StartPoint(line))))), 90);
end
$$;

create or replace function eo_internal.unwound_area(area geometry)
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = eo, public, pg_temp
as $$
declare
    part geometry;
    parts geometry[] := '{}';
begin
    for part in select d.geom from ST_Dump(area) d loop
        parts := parts || case ST_Dimension(part)
            when 0 then ST_Transform(part, 4326)
            when 1 then eo_internal.wrapped_area(eo_internal.unwound_line(ST_Transform(part, 4326)))
            else (
                select ST_Difference(ST_Union(r.geom) filter (where r.shell),
                                     coalesce(ST_Union(r.geom) filter (where not r.shell), 'SRID=4326;POLYGON EMPTY'))
                from (
                    select d.path[1] = 0 as shell,
                           eo_internal.unwound_ring(
                               ST_Transform(ST_ExteriorRing(d.geom), 4326),
                               ST_Intersects(d.geom, ST_Transform(ST_Point(0, 90, 4326), ST_SRID(area)))) as geom
                    from ST_DumpRings(part) d
                ) r)
        end;
    end loop;
    return ST_UnaryUnion(ST_Collect(parts));
end
$$;

create or replace function eo_internal.search_area(area geometry)
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = eo, public, pg_temp
as $$
declare
    geographic boolean := (select s.proj4text ~ '\+proj=longlat' from spatial_ref_sys s where s.srid = ST_SRID(area));
    edge geometry;
    found geometry;
    fault text;
begin
    perform eo_internal.check_inlined();
    area := eo_internal.located(area);
    if ST_IsEmpty(area) then
        return 'SRID=4326;GEOMETRYCOLLECTION EMPTY';
    end if;
    found := ST_Force2D(ST_CurveToLine(area));
    fault := ST_IsValidReason(found);
    if fault <> 'Valid Geometry' then
        raise exception 'the area is not valid: %', fault
            using errcode = 'invalid_parameter_value', hint = 'ST_MakeValid(area) mends it; look at what it makes of it.';
    end if;
    if geographic then
        if ST_XMax(found) - ST_XMin(found) > 180 then
            select d.geom into edge
            from ST_DumpSegments(found) d
            where abs(ST_X(ST_EndPoint(d.geom)) - ST_X(ST_StartPoint(d.geom))) > 180
              and abs(ST_X(ST_EndPoint(d.geom)) - ST_X(ST_StartPoint(d.geom))) <> 360
            limit 1;
            if edge is not null then
                raise exception 'an edge of the area is longer than 180 degrees of longitude: %', ST_AsText(edge)
                    using errcode = 'invalid_parameter_value',
                          hint = 'Across the antimeridian: eo.rectangle with west > east, or go on from 180, such as 190 for -170. Really that wide: ST_Segmentize(area, 90).';
            end if;
        end if;
        return ST_Transform(eo_internal.wrapped_area(found), 4326);
    end if;
    -- Straight edges bend when they are transformed.
    if ST_Dimension(found) > 0 then
        found := ST_Segmentize(found, greatest(ST_XMax(found) - ST_XMin(found), ST_YMax(found) - ST_YMin(found)) / 256);
    end if;
    area := ST_Transform(found, 4326);
    -- What spans less than 180 degrees of longitude neither crosses the antimeridian nor holds a pole.
    if ST_XMax(area) - ST_XMin(area) < 170 and ST_YMax(area) < 90 - 1e-9 and ST_YMin(area) > -90 + 1e-9 then
        return area;
    end if;
    return eo_internal.unwound_area(found);
end
$$;

create or replace function eo.rectangle(
    west double precision,
    south double precision,
    east double precision,
    north double precision
)
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
set search_path = eo, public, pg_temp
as $$
begin
    if not (west between -180 and 180 and east between -180 and 180 and west <> east
            and south between -90 and 90 and north between -90 and 90 and south < north) then
        raise exception 'west %, south %, east %, north % is no rectangle', west, south, east, north
            using errcode = 'invalid_parameter_value',
                  hint = 'Longitudes are -180 to 180, latitudes -90 to 90, south is less than north; west > east means across the antimeridian.';
    end if;
    -- Edges of at most 90 degrees, so that nobody takes them for those the other way around the globe.
    return ST_Segmentize(
        case
            when west < east then ST_MakeEnvelope(west, south, east, north, 4326)
            else eo_internal.wrapped_area(ST_MakeEnvelope(west, south, east + 360, north, 4326))
        end, 90);
end
$$;
comment on function eo.rectangle(double precision, double precision, double precision, double precision) is
'The area between two meridians and two parallels (degrees), in EPSG:4326; west > east means across the antimeridian, which gives two parts. Raises invalid_parameter_value for what is none.';

create or replace function eo.circle(centre geometry, radius double precision)
returns geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 100000
set search_path = eo, public, pg_temp
as $$
declare
    middle geometry;
    ring geometry;
begin
    if ST_GeometryType(centre) <> 'ST_Point' or ST_IsEmpty(centre) or ST_SRID(centre) = 0 then
        raise exception 'the centre is no point with an SRID: %', ST_AsEWKT(centre)
            using errcode = 'invalid_parameter_value', hint = 'For longitude and latitude: ST_Point(7.6, 51.9, 4326).';
    end if;
    if not (radius > 0 and radius <= 10000000) then
        raise exception 'the radius is more than 0 and at most 10,000,000 m, not %', radius
            using errcode = 'invalid_parameter_value', hint = 'It is in metres.';
    end if;
    middle := eo_internal.search_area(centre);
    -- Vertices lie outside, so that edges touch the circle: one at each degree of azimuth, and more towards the
    -- poles, where longitudes change fast from one to the next.
    select ST_MakeLine(ST_Project(middle::geography, radius / cosd(0.5), radians(a.azimuth))::geometry order by a.azimuth)
    into ring
    from (
        select generate_series(0, 359)::double precision as azimuth
        union
        select a.towards + a.side / 2 ^ k
        from (values (0, 1), (180, -1), (180, 1), (360, -1)) as a (towards, side), generate_series(1, 20) as k
    ) a;
    -- With this radius it holds no pole but the nearer one.
    return eo_internal.unwound_ring(ST_AddPoint(ring, ST_StartPoint(ring)), ST_Y(middle) > 0);
end
$$;
comment on function eo.circle(geometry, double precision) is
'The circle about a point (any SRID but 0) as an area, in EPSG:4326: a polygon of about 450 vertices whose edges touch it from outside; its outline lies within 0.2 % of the radius (metres on the ellipsoid, at most 10,000,000) from it, below latitude 70 and up to 1,000 km within 0.005 %. Cut at the antimeridian; about a pole it reaches up to latitude 90. Raises invalid_parameter_value for another centre or radius.';

-- Geohash cells: a base-32 text of n characters names a cell of 5n bits, which halve longitude and latitude in turn,
-- longitude first (https://en.wikipedia.org/wiki/Geohash).

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

create or replace function eo.cell_of(geom geometry, "precision" integer default 5)
returns text
language sql
immutable parallel safe strict
security invoker
cost 100
begin atomic
    select ST_GeoHash(ST_Transform(ST_Centroid(eo_internal.located(geom)), 4326), eo_internal.check_precision("precision"));
end;
comment on function eo.cell_of(geometry, integer) is
'Geohash of the centre of a geometry (any SRID but 0); precision 5 is the cell that partitions the archive, about 5 x 5 km. https://en.wikipedia.org/wiki/Geohash';

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

create or replace function eo_internal.cells_of_part(part geometry, "precision" integer)
returns table (cell text, geom geometry)
language plpgsql
immutable parallel safe strict
security invoker
rows 100
set search_path = eo, public, pg_temp
as $$
declare
    bits integer := 5 * "precision";
    columns bigint := 1::bigint << (bits + 1) / 2;
    lines bigint := 1::bigint << bits / 2;
    -- A cell has its west and south edge, and the part may just touch it from the other side: one cell more there.
    west bigint := greatest(ceil((ST_XMin(part) + 180) / 360 * columns)::bigint - 1, 0);
    east bigint := least(floor((ST_XMax(part) + 180) / 360 * columns)::bigint, columns - 1);
    south bigint := greatest(ceil((ST_YMin(part) + 90) / 180 * lines)::bigint - 1, 0);
    north bigint := least(floor((ST_YMax(part) + 90) / 180 * lines)::bigint, lines - 1);
begin
    if (east - west + 1) * (north - south + 1) > 4000000 then
        raise exception 'the area has % cells of precision % in its bounds', (east - west + 1) * (north - south + 1), "precision"
            using errcode = 'program_limit_exceeded', hint = 'Take a lower precision or a smaller area.';
    end if;
    return query
        select ST_GeoHash(ST_Point(-180 + (x + 0.5) * 360.0 / columns, -90 + (y + 0.5) * 180.0 / lines, 4326), "precision"), box
        from generate_series(west, east) as x, generate_series(south, north) as y,
             ST_MakeEnvelope(-180 + x * 360.0 / columns, -90 + y * 180.0 / lines,
                             -180 + (x + 1) * 360.0 / columns, -90 + (y + 1) * 180.0 / lines, 4326) as box
        where ST_Intersects(box, part);
end
$$;

create or replace function eo.cells(area geometry, "precision" integer default 5)
returns table (cell text, geom geometry)
language plpgsql
immutable parallel safe strict
security invoker
rows 100
set search_path = eo, public, pg_temp
as $$
begin
    return query
        select distinct on (c.cell) c.cell, c.geom
        from ST_Dump(eo_internal.search_area(area)) d,
             eo_internal.cells_of_part(d.geom, eo_internal.check_precision("precision")) c
        order by c.cell;
end
$$;
comment on function eo.cells(geometry, integer) is
'The geohash cells that meet an area (as in eo.patches), with their rectangles in EPSG:4326, by geohash: together they cover it. Cells that only touch it are among them. Raises program_limit_exceeded for more than 4 million cells in the bounds of a part of the area.';

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

create or replace function eo_internal.cell_prefixes(cells text[], longest integer)
returns text[]
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = eo, public, pg_temp
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
    return array(select distinct left(c.cell, longest) from unnest(cells) as c (cell) order by 1);
end
$$;
