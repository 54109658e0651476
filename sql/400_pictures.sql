-- Pictures of patches.

create or replace function eo_internal.rgb_png(bands text[], rasters bytea[])
returns bytea
language plpython3u
stable parallel restricted strict
security invoker
cost 100000
set search_path = eo, public, pg_temp
as $$
from pyfuncs import session

return session.rgb_png(plpy, GD, bands, rasters)
$$;

create or replace function eo.rgb(patch text)
returns bytea
language plpgsql
stable parallel restricted strict
security definer
cost 100000
set search_path = eo, public, pg_temp
as $$
declare
    input record;
begin
    select array_agg(array_to_string(r.bands, ',') order by r.resolution) as bands,
           array_agg(ST_AsWKB(r.rast) order by r.resolution) as rasters into input
    from eo.patch_raster r
    where r.patch_id = (select p.patch_id from eo.patch p
                        where p.name = rgb.patch and exists (select from eo.patch_raster o where o.patch_id = p.patch_id)
                        order by p.patch_id limit 1);
    if input.rasters is null then
        raise exception 'there is no patch "%" with pixels', patch
            using errcode = 'no_data_found', hint = 'Patches with pixels have rows in eo.patch_raster.';
    end if;
    return eo_internal.rgb_png(input.bands, input.rasters);
end
$$;
comment on function eo.rgb(text) is
'PNG of a patch: B04, B03, B02 for Sentinel-2 and VV, VH, VV - VH for Sentinel-1, each stretched from its 2nd to its 98th percentile. Raises no_data_found for a patch without pixels.';
