"""Footprints of patches are MultiPolygons: cut at the antimeridian, up to latitude 90 about a pole."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0016"
down_revision = "0015"

# No column that a view, an SQL function or a generated column names can change its type. Ours come back from sql/; what
# others made is theirs to drop, so that it is not lost without a word.
DROP_DEPENDENTS = """
do $$
declare
    dependent record;
begin
    for dependent in
        with recursive found (class, id, attnum, depth) as (
            select 'pg_class'::regclass::oid, a.attrelid, a.attnum::integer, 0
            from pg_attribute a
            where a.attrelid = 'eo.patch'::regclass and a.attname in ('footprint', 'season')
            union all
            select next.class, next.id, 0, found.depth + 1
            from found
            join pg_depend d on d.refclassid = found.class and d.refobjid = found.id
                            and (found.attnum = 0 or d.refobjsubid = found.attnum)
            left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
            cross join lateral (
                select case when r.oid is null then d.classid else 'pg_class'::regclass::oid end, coalesce(r.ev_class, d.objid)
            ) next (class, id)
            where (r.oid is not null or d.classid = 'pg_proc'::regclass) and (next.class, next.id) <> (found.class, found.id)
        )
        select max(f.depth) as depth, o.type, o.schema, o.identity
        from found f, pg_identify_object(f.class, f.id, 0) o
        where f.depth > 0
        group by o.type, o.schema, o.identity
        order by 1 desc
    loop
        if dependent.schema not in ('eo', 'eo_internal') then
            raise exception 'the % % reads eo.patch.footprint or season, which change', dependent.type, dependent.identity
                using errcode = 'dependent_objects_still_exist',
                      hint = 'Keep its definition, drop it, migrate, and create it again; footprints are MultiPolygons then.';
        end if;
        execute format('drop %s %s', dependent.type, dependent.identity);
    end loop;
end
$$;
drop index eo.patch_footprint_3857;
"""

SEASON = """
    drop column season,
    add column season eo.season not null generated always as (
        case mod(extract(month from sensing_time at time zone 'UTC')::integer
                 + case when public.st_ymax(footprint) < 0 then 6 else 0 end, 12) / 3
            when 0 then 'winter'::eo.season
            when 1 then 'spring'::eo.season
            when 2 then 'summer'::eo.season
            else 'autumn'::eo.season
        end
    ) stored;
comment on column eo.patch.season is 'Meteorological season of the sensing month (UTC) in the patch''s hemisphere';
"""

INDEX = """
create index patch_footprint_3857 on eo.patch using gist (
    (case when public.st_ymin(footprint) >= -85.06 and public.st_ymax(footprint) <= 85.06
          then public.st_transform(footprint, 3857) end::public.geometry({type}, 3857)));
"""

# Patches are convex: one about a pole is the union of what lies between each piece of its outline and the pole.
MEND = """
create function pg_temp.wrapped(outline public.geometry) returns public.geometry
language sql
as $$
    select public.ST_Multi(public.ST_CollectionExtract(
        public.ST_UnaryUnion(public.ST_WrapX(public.ST_WrapX(outline, 180, -360), -180, 360)), 3));
$$;

create function pg_temp.mended(bounds public.geometry) returns public.geometry
language plpgsql
as $$
declare
    shifted public.geometry := public.ST_ShiftLongitude(public.ST_Transform(bounds, 4326));
    outline public.geometry;
    pole double precision;
begin
    if public.ST_XMax(shifted) - public.ST_XMin(shifted) <= 1 then
        return pg_temp.wrapped(shifted);
    end if;
    outline := public.ST_Transform(
        public.ST_Segmentize(bounds, greatest(public.ST_XMax(bounds) - public.ST_XMin(bounds),
                                              public.ST_YMax(bounds) - public.ST_YMin(bounds)) / 32), 4326);
    pole := case when public.ST_YMax(outline) > 85 then 90 when public.ST_YMin(outline) < -85 then -90 end;
    if pole is not null and public.ST_Intersects(bounds, public.ST_Transform(public.ST_Point(0, pole, 4326), public.ST_SRID(bounds))) then
        return (
            select pg_temp.wrapped(public.ST_Union(public.ST_MakePolygon(public.ST_MakeLine(array[
                public.ST_Point(e.x1, e.y1, 4326), public.ST_Point(e.x2, e.y2, 4326), public.ST_Point(e.x2, pole, 4326),
                public.ST_Point(e.x1, pole, 4326), public.ST_Point(e.x1, e.y1, 4326)]))))
            from (
                select p.x as x1, p.y as y1, lead(p.y) over path as y2,
                       lead(p.x) over path - 360 * round((lead(p.x) over path - p.x) / 360) as x2
                from (select d.path, public.ST_X(d.geom) as x, public.ST_Y(d.geom) as y from public.ST_DumpPoints(outline) d) p
                window path as (order by p.path)
            ) e
            where greatest(abs(e.y1), abs(e.y2)) < 90 - 1e-9 and e.x1 <> e.x2
        );
    end if;
    if public.ST_XMax(outline) - public.ST_XMin(outline) > 180 then
        outline := public.ST_ShiftLongitude(outline);
    end if;
    return pg_temp.wrapped(outline);
end
$$;

-- MODIS's sinusoidal map ends at the antimeridian: what lay beyond it was put on the other side of the globe.
with globe as (
    select public.ST_MakePolygon(public.ST_AddPoint(edge.line, public.ST_StartPoint(edge.line))) as geom
    from (
        select public.ST_MakeLine(
                   public.ST_Point(side.sign * pi() * (1 - 1e-9) * 6371007.181 * cosd(l.latitude), 6371007.181 * radians(l.latitude), 906974)
                   order by side.sign, side.sign * l.latitude) as line
        from (select greatest(least(n / 10.0, 90 - 1e-7), 1e-7 - 90)::double precision as latitude from generate_series(-900, 900) n) l,
             (values (-1), (1)) as side (sign)
    ) edge
)
update eo.patch p
set footprint = public.ST_Multi(public.ST_CollectionExtract(public.ST_Transform(public.ST_Segmentize(
        public.ST_Intersection(public.ST_MakeEnvelope(p.west, p.south, p.east, p.north, 906974), globe.geom),
        greatest(p.east - p.west, p.north - p.south) / 32), 4326), 3))
from globe
where p.srid = 906974
  and greatest(-p.west, p.east) > 6371007.181 * pi() * cos(greatest(-p.south, p.north) / 6371007.181)
  and public.ST_Area(public.ST_Intersection(public.ST_MakeEnvelope(p.west, p.south, p.east, p.north, 906974), globe.geom)) > 0;

update eo.patch p
set footprint = pg_temp.mended(public.ST_MakeEnvelope(p.west, p.south, p.east, p.north, p.srid))
where public.ST_XMax(p.footprint) - public.ST_XMin(p.footprint) > 1
  and p.srid <> 906974
  and p.srid not in (select s.srid from public.spatial_ref_sys s where s.proj4text ~ '\\+proj=longlat');
update eo.product
set footprint = pg_temp.wrapped(footprint)
where public.ST_XMin(footprint) < -180 or public.ST_XMax(footprint) > 180;
drop function pg_temp.mended(public.geometry), pg_temp.wrapped(public.geometry);
"""


def upgrade() -> None:
    run_sql(
        op.get_bind(),
        DROP_DEPENDENTS
        + """
        alter table eo.patch
            alter column footprint type public.geometry(MultiPolygon, 4326) using public.ST_Multi(footprint),
        """
        + SEASON
        + MEND
        + INDEX.format(type="MultiPolygon")
        + """
        comment on column eo.patch.footprint is 'Outline, EPSG:4326; cut at the antimeridian, up to latitude 90 about a pole';
        comment on column eo.product.footprint is 'Outline on the ground, EPSG:4326; cut at the antimeridian, up to latitude 90 about a pole';
        """,
    )


def downgrade() -> None:
    # Functions of the older revision come from the older checkout.
    run_sql(op.get_bind(), DROP_DEPENDENTS)
    run_sql(
        op.get_bind(),
        """
        drop function if exists eo_internal.footprint(double precision, double precision, double precision, double precision, integer),
            eo_internal.patch_centre(double precision, double precision, double precision, double precision, integer),
            eo_internal.with_far_edges(public.geometry), eo_internal.line_in_degrees(public.geometry), eo_internal.on_sinusoidal_map(public.geometry),
            eo_internal.near(public.geometry, public.geometry);
        alter table eo.patch
            alter column footprint type public.geometry(Polygon, 4326) using
                case when public.ST_NumGeometries(footprint) = 1 then public.ST_GeometryN(footprint, 1)
                     else public.ST_Transform(public.ST_MakeEnvelope(west, south, east, north, srid), 4326) end,
        """
        + SEASON
        + INDEX.format(type="Polygon")
        + """
        comment on column eo.patch.footprint is 'Outline, EPSG:4326';
        comment on column eo.product.footprint is 'Outline on the ground, EPSG:4326';
        """,
    )
    run_sql(op.get_bind(), "delete from eo_internal.sql_file")
