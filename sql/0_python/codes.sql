-- The nearest codes and patches, from packed files.

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
from pgearth.pyfuncs.border import codes

return codes.pack_codes(plpy, GD, encoder_id, version)
$$;

create or replace function eo_internal.remove_packed_files(encoder_id smallint, out files integer, out failure eo_internal.failure)
returns record
language plpython3u
volatile parallel unsafe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
from pgearth.pyfuncs.border import codes

return codes.remove_packed_files(plpy, GD, encoder_id)
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
from pgearth.pyfuncs.border import codes

return codes.packed_codes(plpy, GD, encoder_id, positives, negatives, wanted, radius, by_patches)
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
from pgearth.pyfuncs.border import codes

return codes.packed_patches(plpy, GD, encoder_id, positives, negatives, wanted, skipped, radius, conditions)
$$;
