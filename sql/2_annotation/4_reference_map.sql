create or replace function eo.reference_map(patch text)
returns public.raster
language plpgsql
stable parallel safe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    place record;
begin
    select p.srid, p.west, p.south, p.east, p.north, public.ST_MakeEnvelope(p.west, p.south, p.east, p.north, p.srid) as geom
    into place
    from eo.patch p
    where p.name = patch
    order by p.patch_id
    limit 1;
    if not found then
        raise exception 'there is no patch "%"', patch
            using errcode = 'no_data_found', hint = 'Pass the name of a patch: select name from eo.search(...).';
    end if;
    if least(place.east - place.west, place.north - place.south) < 5 then
        raise exception 'patch "%" is not in a reference system in metres: EPSG:%', patch, place.srid
            using errcode = 'feature_not_supported', hint = 'Reference maps have pixels of 10 m in the patch''s own reference system.';
    end if;
    return eo_internal.land_cover_raster(
        place.west, place.south, place.east, place.north, place.srid,
        array(
            select (c.geom, l.code::double precision)::public.geomval
            from (
                select d.part_id, d.label_id, d.geom
                from eo_internal.corine_part d
                where d.srid = place.srid and d.geom operator(public.&&) place.geom
                union all
                -- Pieces are derived for patches when they are annotated.
                select null, w.label_id, piece
                from eo.corine w, eo_internal.pieces(w.geom, place.srid) as piece
                where w.geom operator(public.&&) public.ST_Transform(place.geom, 3035)
                  and not exists (select from eo_internal.corine_part d where d.corine_id = w.corine_id and d.srid = place.srid)
            ) c
            join eo.label l on l.label_id = c.label_id
            order by c.part_id
        ));
end
$$;
comment on function eo.reference_map(text) is
'Land cover of a patch (by name) as a raster like the reference maps of BigEarthNet v2: CORINE codes (312) in one band of 16BUI, nodata 0, pixels of 10 m on the patch''s bounds. Raises no_data_found for an unknown patch, feature_not_supported for one in degrees.';
