-- Areas and footprints.
--
-- One rule for all outlines, of areas as of footprints (RFC 7946, section 3.1.9): in EPSG:4326 with longitudes -180 to 180
-- and straight edges, cut at the antimeridian; about a pole an outline becomes a band up to latitude 90. What is cut has
-- bounds around the world, so an index proposes it too often; the test of the parts that follows is exact.

-- Whether a reference system counts in degrees of longitude and latitude. Raises for one that the database does not have, and
-- for one of space and not of maps: PROJ makes a place of its X and Y without Z, but another one.
create or replace function eo_internal.is_geographic(srid integer)
returns boolean
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    geographic boolean;
    geocentric boolean;
begin
    select s.proj4text ~ '\+proj=longlat', s.proj4text ~ '\+proj=(geocent|cart)\M' or s.srtext ~ '^GEOCCS|^GEODCRS.*\mCS\[Cartesian'
    into geographic, geocentric
    from public.spatial_ref_sys s
    where s.srid = is_geographic.srid;
    if srid = 0 then
        raise exception 'the geometry has no SRID'
            using errcode = 'invalid_parameter_value', hint = 'For longitudes and latitudes: ST_SetSRID(geom, 4326).';
    elsif geographic is null then
        raise exception 'the database has no reference system with the SRID %', srid
            using errcode = 'invalid_parameter_value', hint = 'Those that it has are in spatial_ref_sys; most are EPSG''s.';
    elsif geocentric then
        raise exception 'the reference system with the SRID % is geocentric', srid
            using errcode = 'invalid_parameter_value', hint = 'It has X, Y and Z from the centre of the earth. Pass longitudes and latitudes (4326) or coordinates of a map.';
    end if;
    return geographic;
end
$$;

-- A geometry that is known to lie somewhere: in a reference system of the database, at coordinates that can be on the
-- globe. PROJ, which knows better, refuses more of them, with an internal_error that only a subtransaction could catch.
create or replace function eo_internal.located(geom public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 100
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    furthest constant double precision := 1e8;  -- half the way round the globe in feet is less
    geographic boolean := eo_internal.is_geographic(public.ST_SRID(geom));
begin
    if geographic and not (public.ST_XMin(geom::public.box3d) >= -360 and public.ST_XMax(geom::public.box3d) <= 360
                              and public.ST_YMin(geom::public.box3d) >= -90 and public.ST_YMax(geom::public.box3d) <= 90) then
        raise exception 'the geometry reaches beyond longitude -360 to 360 or latitude -90 to 90: %', public.Box2D(geom)
            using errcode = 'invalid_parameter_value',
                  hint = 'Longitude comes first. Beyond the antimeridian longitudes go on from 180, or from -180.';
    elsif not (public.ST_XMin(geom::public.box3d) >= -furthest and public.ST_XMax(geom::public.box3d) <= furthest
               and public.ST_YMin(geom::public.box3d) >= -furthest and public.ST_YMax(geom::public.box3d) <= furthest) then
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

create or replace function eo_internal.wrapped_area(area public.geometry)
returns public.geometry
language sql
immutable parallel safe strict
security invoker
cost 1000
begin atomic
    select case
        when public.ST_XMin(area::public.box3d) >= -180 and public.ST_XMax(area::public.box3d) <= 180 then area
        else public.ST_UnaryUnion(public.ST_WrapX(public.ST_WrapX(area, 180::double precision, -360::double precision), -180::double precision, 360::double precision), -1::double precision)
    end;
end;

create or replace function eo_internal.unwound_line(line public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    x double precision;
    y double precision;
    last_x double precision;
    pole double precision;
    vertices public.geometry[] := '{}';
begin
    for x, y in select public.ST_X(d.geom), public.ST_Y(d.geom) from public.ST_DumpPoints(line) d order by d.path loop
        -- A pole has every longitude: the line runs along latitude 90 from that before it to that after it.
        if abs(y) > 90 - 1e-9 then
            if last_x is not null then
                vertices := vertices || public.ST_Point(last_x, y, 4326);
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
            vertices := vertices || public.ST_Point(x, pole, 4326);
            pole := null;
        end if;
        vertices := vertices || public.ST_Point(x, y, 4326);
        last_x := x;
    end loop;
    if pole is not null and last_x is null then
        vertices := vertices || array[public.ST_Point(0::double precision, pole, 4326), public.ST_Point(0::double precision, pole, 4326)];
    end if;
    return public.ST_MakeLine(vertices);
end
$$;

-- A projected line in EPSG:4326. Where an edge passes a pole, longitudes change fast: it gets vertices where it is nearest
-- to the pole, and more and more of them towards there.
create or replace function eo_internal.line_in_degrees(line public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    found public.geometry := public.ST_Transform(line, 4326);
    latitude double precision := case when public.ST_YMax(found::public.box3d) > 89 then 90 when public.ST_YMin(found::public.box3d) < -89 then -90 end;
    pole public.geometry;
begin
    if latitude is null then
        return found;
    end if;
    pole := public.ST_Transform(public.ST_Point(0::double precision, latitude, 4326), public.ST_SRID(line));
    select public.ST_Transform(public.ST_MakeLine(public.ST_LineInterpolatePoint(edge.geom, place.fraction) order by edge.path, place.fraction), 4326)
    into found
    from public.ST_DumpSegments(line) edge
    cross join lateral (
        select public.ST_LineLocatePoint(edge.geom, pole) as fraction, public.ST_Distance(edge.geom, pole) < public.ST_Length(edge.geom) as near
    ) nearest
    cross join lateral (
        select 0::double precision
        union
        select 1
        union
        select nearest.fraction
        union
        select unnest(array[nearest.fraction * (1 - 0.5 ^ k), 1 - (1 - nearest.fraction) * (1 - 0.5 ^ k)])::double precision
        from generate_series(1, 8) as k
        where nearest.near
    ) place (fraction);
    return public.ST_RemoveRepeatedPoints(found, 0::double precision);
end
$$;

create or replace function eo_internal.unwound_ring(ring public.geometry, holds_north_pole boolean)
returns public.geometry
language plpgsql
immutable parallel safe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    line public.geometry := eo_internal.unwound_line(ring);
    pole double precision := case when holds_north_pole then 90 else -90 end;
begin
    -- A ring about a pole ends 360 degrees from where it began: it is closed along the pole.
    if abs(public.ST_X(public.ST_EndPoint(line)) - public.ST_X(public.ST_StartPoint(line))) > 180 then
        line := public.ST_MakeLine(array[line, public.ST_Point(public.ST_X(public.ST_EndPoint(line)), pole, 4326),
                                  public.ST_Point(public.ST_X(public.ST_StartPoint(line)), pole, 4326)]);
    end if;
    -- What began at a pole or rounding kept open is closed too.
    return public.ST_Segmentize(eo_internal.wrapped_area(public.ST_MakeValid(public.ST_MakePolygon(public.ST_AddPoint(line, public.ST_StartPoint(line))))), 90::double precision);
end
$$;

create or replace function eo_internal.unwound_area(area public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    part public.geometry;
    parts public.geometry[] := '{}';
begin
    for part in select d.geom from public.ST_Dump(area) d loop
        parts := parts || case public.ST_Dimension(part)
            when 0 then public.ST_Transform(part, 4326)
            when 1 then eo_internal.wrapped_area(eo_internal.unwound_line(eo_internal.line_in_degrees(part)))
            else (
                select public.ST_Difference(public.ST_Union(r.geom) filter (where r.shell),
                                     coalesce(public.ST_Union(r.geom) filter (where not r.shell), 'SRID=4326;POLYGON EMPTY'),
                                     -1::double precision)
                from (
                    select d.path[1] = 0 as shell,
                           eo_internal.unwound_ring(
                               eo_internal.line_in_degrees(public.ST_ExteriorRing(d.geom)),
                               public.ST_Intersects(d.geom, public.ST_Transform(public.ST_Point(0::double precision, 90::double precision, 4326), public.ST_SRID(area)))) as geom
                    from public.ST_DumpRings(part) d
                ) r)
        end;
    end loop;
    return public.ST_UnaryUnion(public.ST_Collect(parts), -1::double precision);
end
$$;

-- What ends at the antimeridian touches what begins there on its other side. Only an edge that lies on it exactly can.
create or replace function eo_internal.with_far_edges(area public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    far_edges public.geometry;
begin
    if public.ST_XMin(area::public.box3d) > -180 and public.ST_XMax(area::public.box3d) < 180 then
        return area;
    end if;
    select public.ST_Collect(public.ST_WrapX(public.ST_Intersection(part.geom, side.meridian, -1::double precision), 0::double precision, side.turn))
    into far_edges
    from public.ST_Dump(area) part,
         (values ('SRID=4326;LINESTRING(180 -90, 180 90)'::public.geometry, -360::double precision),
                 ('SRID=4326;LINESTRING(-180 -90, -180 90)'::public.geometry, 360::double precision)) as side (meridian, turn);
    return public.ST_UnaryUnion(public.ST_Collect(area, far_edges), -1::double precision);
end
$$;

create or replace function eo_internal.search_area(area public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    geographic boolean;
    edge public.geometry;
    found public.geometry;
    fault text;
begin
    area := eo_internal.located(area);
    geographic := eo_internal.is_geographic(public.ST_SRID(area));
    if public.ST_IsEmpty(area) then
        return 'SRID=4326;GEOMETRYCOLLECTION EMPTY';
    end if;
    found := public.ST_Force2D(public.ST_CurveToLine(area, 32::double precision, 0, 0));
    if geographic then
        if public.ST_XMax(found::public.box3d) - public.ST_XMin(found::public.box3d) > 180 then
            select d.geom into edge
            from public.ST_DumpSegments(found) d
            where abs(public.ST_X(public.ST_EndPoint(d.geom)) - public.ST_X(public.ST_StartPoint(d.geom))) > 180
              and abs(public.ST_X(public.ST_EndPoint(d.geom)) - public.ST_X(public.ST_StartPoint(d.geom))) <> 360
            limit 1;
            if edge is not null then
                raise exception 'an edge of the area is longer than 180 degrees of longitude: %', public.ST_AsText(edge)
                    using errcode = 'invalid_parameter_value',
                          hint = 'Across the antimeridian: eo.rectangle with west > east, a part on either side, or go on from 180, such as 190 for -170. About a pole: eo.circle, or up to latitude 90. Really that wide: ST_Segmentize(area, 90).';
            end if;
        end if;
    end if;
    fault := public.ST_IsValidReason(found);
    if fault <> 'Valid Geometry' then
        raise exception 'the area is not valid: %', fault
            using errcode = 'invalid_parameter_value', hint = 'ST_MakeValid(area) mends it; look at what it makes of it.';
    end if;
    if geographic then
        return eo_internal.with_far_edges(public.ST_Transform(eo_internal.wrapped_area(found), 4326));
    end if;
    -- Straight edges bend when they are transformed.
    if public.ST_Dimension(found) > 0 then
        found := public.ST_Segmentize(found, greatest(public.ST_XMax(found::public.box3d) - public.ST_XMin(found::public.box3d), public.ST_YMax(found::public.box3d) - public.ST_YMin(found::public.box3d)) / 256);
    end if;
    area := public.ST_Transform(found, 4326);
    -- What spans less than 180 degrees of longitude neither crosses the antimeridian nor holds a pole.
    if public.ST_XMax(area::public.box3d) - public.ST_XMin(area::public.box3d) < 170 and public.ST_YMax(area::public.box3d) < 90 - 1e-9 and public.ST_YMin(area::public.box3d) > -90 + 1e-9 then
        return area;
    end if;
    return eo_internal.with_far_edges(eo_internal.unwound_area(found));
end
$$;

create or replace function eo.rectangle(
    west double precision,
    south double precision,
    east double precision,
    north double precision
)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    -- 180 and -180 are one meridian.
    if not (west between -180 and 180 and east between -180 and 180 and west - east not in (0, 360)
            and south between -90 and 90 and north between -90 and 90 and south < north) then
        raise exception 'west %, south %, east %, north % is no rectangle', west, south, east, north
            using errcode = 'invalid_parameter_value',
                  hint = 'Longitudes are -180 to 180, latitudes -90 to 90, south is less than north; west > east means across the antimeridian.';
    end if;
    -- Edges of at most 90 degrees, so that nobody takes them for those the other way around the globe.
    return public.ST_Segmentize(
        case
            when west < east then public.ST_MakeEnvelope(west, south, east, north, 4326)
            when west = 180 then public.ST_MakeEnvelope(-180::double precision, south, east, north, 4326)
            when east = -180 then public.ST_MakeEnvelope(west, south, 180::double precision, north, 4326)
            else public.ST_Collect(public.ST_MakeEnvelope(west, south, 180::double precision, north, 4326),
                                   public.ST_MakeEnvelope(-180::double precision, south, east, north, 4326))
        end, 90::double precision);
end
$$;
comment on function eo.rectangle(double precision, double precision, double precision, double precision) is
'The area between two meridians and two parallels (degrees), in EPSG:4326; west > east means across the antimeridian, which gives two parts. Raises invalid_parameter_value for what is none.';

create or replace function eo.circle(centre public.geometry, radius double precision)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    middle public.geometry;
    ring public.geometry;
begin
    if public.ST_GeometryType(centre) <> 'ST_Point' or public.ST_IsEmpty(centre) or public.ST_SRID(centre) = 0 then
        raise exception 'the centre is no point with an SRID: %', public.ST_AsEWKT(centre)
            using errcode = 'invalid_parameter_value', hint = 'For longitude and latitude: ST_Point(7.6, 51.9, 4326).';
    end if;
    -- Of a smaller one, vertices are the same numbers.
    if radius not between 0.001 and 10000000 then
        raise exception 'the radius is 0.001 to 10,000,000 m, not %', radius
            using errcode = 'invalid_parameter_value', hint = 'It is in metres. For a point alone, pass the point as the area.';
    end if;
    -- A point on the antimeridian lies there twice.
    middle := public.ST_GeometryN(eo_internal.search_area(centre), 1);
    -- Vertices lie outside, so that edges touch the circle: one at each degree of azimuth, and more towards the
    -- poles, where longitudes change fast from one to the next.
    select public.ST_MakeLine(public.ST_Project(middle::public.geography, radius / cosd(0.5), radians(a.azimuth))::public.geometry order by a.azimuth)
    into ring
    from (
        select generate_series(0, 359)::double precision as azimuth
        union
        select a.towards + a.side / 2 ^ k
        from (values (0, 1), (180, -1), (180, 1), (360, -1)) as a (towards, side), generate_series(1, 20) as k
    ) a;
    -- With this radius it holds no pole but the nearer one.
    return eo_internal.unwound_ring(public.ST_AddPoint(ring, public.ST_StartPoint(ring)), public.ST_Y(middle) > 0);
end
$$;
comment on function eo.circle(public.geometry, double precision) is
'The circle about a point (any SRID but 0) as an area in EPSG:4326: its outline lies within 0.2 % of the radius (metres on the ellipsoid, 0.001 to 10,000,000) from it. Cut at the antimeridian; about a pole it reaches up to latitude 90. Raises invalid_parameter_value for another centre or radius.';

create or replace function eo_internal.patch_centre(
    west double precision,
    south double precision,
    east double precision,
    north double precision,
    srid integer
)
returns public.geometry
language sql
immutable parallel safe strict
security invoker
cost 100
begin atomic
    select eo_internal.wrapped_area(public.ST_Transform(public.ST_Point((west + east) / 2, (south + north) / 2, srid), 4326));
end;

-- What of a patch of MODIS is on the globe. Its map, the sinusoidal one, ends at the antimeridian: beyond there is nothing.
create or replace function eo_internal.on_sinusoidal_map(bounds public.geometry)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    radius constant double precision := 6371007.181;
    globe public.geometry;
begin
    if greatest(-public.ST_XMin(bounds::public.box3d), public.ST_XMax(bounds::public.box3d))
       <= radius * pi() * cos(greatest(-public.ST_YMin(bounds::public.box3d), public.ST_YMax(bounds::public.box3d)) / radius)
    then
        return bounds;
    end if;
    -- A little inside of its outline, where longitudes do not flip their sign and have a meaning at the poles.
    select public.ST_MakePolygon(public.ST_AddPoint(edge.line, public.ST_StartPoint(edge.line))) into globe
    from (
        select public.ST_MakeLine(
                   public.ST_Point(side.sign * pi() * (1 - 1e-9) * radius * cosd(l.latitude), radius * radians(l.latitude), 906974)
                   order by side.sign, side.sign * l.latitude) as line
        from (select greatest(least(n / 10.0, 90 - 1e-7), 1e-7 - 90)::double precision as latitude from generate_series(-900, 900) n) l,
             (values (-1), (1)) as side (sign)
    ) edge;
    return public.ST_Intersection(bounds, globe, -1::double precision);
end
$$;

-- The footprint of a patch by its native bounds.
create or replace function eo_internal.footprint(
    west double precision,
    south double precision,
    east double precision,
    north double precision,
    srid integer
)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    bounds public.geometry := public.ST_MakeEnvelope(west, south, east, north, srid);
    longest double precision := greatest(east - west, north - south) / 32;
    outline public.geometry;
begin
    if srid = 906974 then
        bounds := eo_internal.on_sinusoidal_map(bounds);
    end if;
    outline := public.ST_Transform(bounds, 4326);
    -- Straight edges stay nearly straight in degrees but over wide patches and near the poles. What crosses the
    -- antimeridian or holds a pole is wide, too, until it is cut.
    if public.ST_XMin(outline::public.box3d) >= -180 and public.ST_XMax(outline::public.box3d) <= 180 and public.ST_XMax(outline::public.box3d) - public.ST_XMin(outline::public.box3d) <= 1
       and public.ST_YMin(outline::public.box3d) >= -90 and public.ST_YMax(outline::public.box3d) <= 90
    then
        return public.ST_Multi(outline);
    end if;
    if srid = 906974 then
        outline := public.ST_Segmentize(public.ST_Transform(public.ST_Segmentize(bounds, longest), 4326), 90::double precision);
    else
        -- Of numbers that are as good as 0, GEOS's ST_WrapX has run out of stack and taken the server down.
        select public.ST_MakeEnvelope(b.edge[1], b.edge[2], b.edge[3], b.edge[4], srid) into bounds
        from (select array_agg(case when abs(e.edge) < 1e-300 then 0 else e.edge end order by e.number) as edge
              from unnest(array[west, south, east, north]) with ordinality as e (edge, number)) b;
        if eo_internal.is_geographic(srid) then
            -- Grids of the whole globe may reach half a pixel beyond the poles.
            outline := public.ST_Segmentize(
                public.ST_Intersection(public.ST_Transform(eo_internal.wrapped_area(bounds), 4326),
                                       public.ST_MakeEnvelope(-180::double precision, -90::double precision, 180::double precision, 90::double precision, 4326),
                                       -1::double precision), 90::double precision);
        else
            -- Narrow, and just across the antimeridian, needs no more vertices.
            if public.ST_XMax(public.ST_ShiftLongitude(outline)) - public.ST_XMin(public.ST_ShiftLongitude(outline)) > 1 then
                bounds := public.ST_Segmentize(bounds, longest);
            end if;
            outline := eo_internal.unwound_area(bounds);
        end if;
    end if;
    outline := public.ST_Multi(public.ST_CollectionExtract(outline, 3));
    if public.ST_IsEmpty(outline) or public.ST_XMin(outline::public.box3d) < -180 or public.ST_XMax(outline::public.box3d) > 180 then
        raise exception 'bounds of a patch that are not on the globe: west %, south %, east %, north % in EPSG:%', west, south, east, north, srid
            using errcode = 'invalid_parameter_value', hint = 'Longitudes count from -180 to 180 or from 0 to 360, latitudes from -90 to 90.';
    end if;
    return outline;
end
$$;
