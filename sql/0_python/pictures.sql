-- Pictures and tiles of map layers.

create or replace function eo_internal.rgb_png(bands text[], rasters bytea[], out png bytea, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import pictures

return pictures.rgb_png(plpy, GD, bands, rasters)
$$;

create or replace function eo_internal.stretch_limits(rasters bytea[], out limits double precision[], out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import pictures

return pictures.stretch_limits(plpy, GD, rasters)
$$;

create or replace function eo_internal.stretched(raster bytea, limits double precision[], out tile bytea, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import pictures

return pictures.stretched(plpy, GD, raster, limits)
$$;

create or replace function eo_internal.overview_tile(
    rasters bytea[],
    x double precision,
    y double precision,
    out tile bytea,
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import pictures

return pictures.overview_tile(plpy, GD, rasters, x, y)
$$;

create or replace function eo_internal.contact_sheet(
    captions text[],
    numbers integer[],
    bands text[],
    rasters bytea[],
    columns integer,
    out png bytea,
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 1000000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import pictures

return pictures.contact_sheet(plpy, GD, captions, numbers, bands, rasters, columns)
$$;
