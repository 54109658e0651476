-- Geohash cells.

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
