-- Vectors and hash codes.

create or replace function eo_internal.encode(encoder_id smallint, patch_numbers integer[], bands text[], rasters bytea[])
returns table (embedding public.vector, failure eo_internal.failure)
language plpython3u
stable parallel unsafe strict
security invoker
rows 64 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.encode(plpy, GD, encoder_id, patch_numbers, bands, rasters)
$$;

create or replace function eo_internal.encode_image(
    encoder_id smallint,
    image bytea,
    bands text[],
    out embedding public.vector,
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.encode_image(plpy, GD, encoder_id, image, bands)
$$;

create or replace function eo_internal.encode_rasters(
    encoder_id smallint,
    bands text[],
    rasters bytea[],
    out embedding public.vector,
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.encode_rasters(plpy, GD, encoder_id, bands, rasters)
$$;

-- The limit to what a call gets, before it is read (pgearth.pyfuncs.limits): pixels times bands of what is called image.
create or replace function eo_internal.check_image_pixels(pixels bigint, image text, out passed boolean, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.check_image_pixels(plpy, GD, pixels, image)
$$;

create or replace function eo_internal.hash(encoder_id smallint, vectors bytea[])
returns table (code bit varying, failure eo_internal.failure)
language plpython3u
stable parallel unsafe strict
security invoker
rows 64 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.hash(plpy, GD, encoder_id, vectors)
$$;

-- The code of an uploaded image under a hash function, encoder_id, over the vectors of an encoder, parent_id; and those of
-- its segments. The vectors come along, for their type refuses numbers that are not finite.
create or replace function eo_internal.hash_image(
    encoder_id smallint,
    parent_id smallint,
    image bytea,
    bands text[],
    out code bit varying,
    out embedding public.vector,
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.hash_image(plpy, GD, encoder_id, parent_id, image, bands)
$$;

create or replace function eo_internal.hash_segments(encoder_id smallint, parent_id smallint, image bytea, bands text[], segmentation jsonb)
returns table (code bit varying, embedding public.vector, failure eo_internal.failure)
language plpython3u
stable parallel unsafe
security invoker
rows 4 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.hash_segments(plpy, GD, encoder_id, parent_id, image, bands, segmentation)
$$;

create or replace function eo_internal.check_encoder(encoder eo.encoder, parent_dimension integer, out passed boolean, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import encoding

return encoding.check_encoder(plpy, GD, encoder, parent_dimension)
$$;
