-- The border to Python: every PL/Python function of the schema, thin calls into pyfuncs. Only eo_owner may execute them
-- (the functions of eo that use them are security definer and check their arguments first). A server without plpython3u
-- skips this file: nothing else needs the language to be there.
--
-- None of them raises, because PL/Python would show the user a traceback: the last column, failure, is null or an error,
-- which its type raises. pyfuncs.failure makes the rows.

-- Whether the server's Python finds the package. It imports nothing of the package, so that there is nothing to fail.
create or replace function eo_internal.finds_package()
returns boolean
language plpython3u
stable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
from importlib.util import find_spec

return find_spec("pyfuncs") is not None
$$;

create or replace function eo_internal.python_runtime(out runtime jsonb, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.runtime(plpy)
$$;

create or replace function eo_internal.check_encoder(encoder eo.encoder, parent_dimension integer, out passed boolean, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.check_encoder(plpy, GD, encoder, parent_dimension)
$$;

create or replace function eo_internal.encode(encoder_id smallint, patch_numbers integer[], bands text[], rasters bytea[])
returns table (embedding public.vector, failure eo_internal.failure)
language plpython3u
stable parallel unsafe strict
security invoker
rows 64 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.encode(plpy, GD, encoder_id, patch_numbers, bands, rasters)
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
from pyfuncs import session

return session.encode_image(plpy, GD, encoder_id, image, bands)
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
from pyfuncs import session

return session.encode_rasters(plpy, GD, encoder_id, bands, rasters)
$$;

-- The limit to what a call gets, before it is read (pyfuncs.limits): pixels times bands of what is called image.
create or replace function eo_internal.check_image_pixels(pixels bigint, image text, out passed boolean, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.check_image_pixels(plpy, GD, pixels, image)
$$;

create or replace function eo_internal.hash(encoder_id smallint, vectors bytea[])
returns table (code bit varying, failure eo_internal.failure)
language plpython3u
stable parallel unsafe strict
security invoker
rows 64 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.hash(plpy, GD, encoder_id, vectors)
$$;

create or replace function eo_internal.rgb_png(bands text[], rasters bytea[], out png bytea, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.rgb_png(plpy, GD, bands, rasters)
$$;

-- It reads patches in parts, by patch_id: each part from an index, or each would read all.
create or replace function eo_internal.pack_codes(
    encoder_id smallint,
    version uuid,
    out buckets integer,
    out patches bigint,
    out bytes bigint,
    out failure eo_internal.failure
)
returns record
language plpython3u
volatile parallel unsafe strict
security invoker
cost 100000
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.pack_codes(plpy, GD, encoder_id, version)
$$;

create or replace function eo_internal.remove_packed_files(encoder_id smallint, out files integer, out failure eo_internal.failure)
returns record
language plpython3u
volatile parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.remove_packed_files(plpy, encoder_id)
$$;

create or replace function eo_internal.packed_codes(
    encoder_id smallint,
    positives bit varying[],
    negatives bit varying[],
    wanted integer,
    radius integer,
    by_patches boolean,
    out bucket_nos integer[],
    out distances integer[],
    out complete boolean,
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.packed_codes(plpy, GD, encoder_id, positives, negatives, wanted, radius, by_patches)
$$;

create or replace function eo_internal.packed_patches(
    encoder_id smallint,
    positives bit varying[],
    negatives bit varying[],
    wanted bigint,
    skipped bigint,
    radius integer,
    conditions jsonb,
    out patch_ids bigint[],
    out distances integer[],
    out failure eo_internal.failure
)
returns record
language plpython3u
stable parallel unsafe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.packed_patches(plpy, GD, encoder_id, positives, negatives, wanted, skipped, radius, conditions)
$$;

create or replace function eo_internal.stretch_limits(rasters bytea[], out limits double precision[], out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.stretch_limits(plpy, GD, rasters)
$$;

create or replace function eo_internal.stretched(raster bytea, limits double precision[], out tile bytea, out failure eo_internal.failure)
returns record
language plpython3u
stable parallel unsafe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.stretched(plpy, GD, raster, limits)
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
from pyfuncs import session

return session.overview_tile(plpy, GD, rasters, x, y)
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
from pyfuncs import session

return session.contact_sheet(plpy, GD, captions, numbers, bands, rasters, columns)
$$;

create or replace function eo_internal.encode_regions(encoder_id smallint, image bytea, bands text[], segmentation jsonb)
returns table (embedding public.vector, failure eo_internal.failure)
language plpython3u
stable parallel unsafe
security invoker
rows 4 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.encode_regions(plpy, GD, encoder_id, image, bands, segmentation)
$$;

create or replace function eo_internal.retrieval_metrics(
    encoder_id smallint,
    queries bigint[],
    archive bigint[],
    scheme text,
    level integer,
    k integer,
    relevance text,
    max_queries integer,
    seed integer
)
returns table (metric text, value double precision, chance double precision, failure eo_internal.failure)
language plpython3u
stable parallel unsafe
security invoker
rows 20 cost 1000000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.retrieval_metrics(plpy, GD, encoder_id, queries, archive, scheme, level, k, relevance, max_queries, seed)
$$;

create or replace function eo_internal.code_statistics(encoder_id smallint, patch_ids bigint[])
returns table (statistic text, value double precision, failure eo_internal.failure)
language plpython3u
stable parallel unsafe strict
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pyfuncs import session

return session.code_statistics(plpy, GD, encoder_id, patch_ids)
$$;
