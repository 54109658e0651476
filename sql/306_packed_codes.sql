-- The nearest buckets of a hash function: by the packed codes where there are any, else by plain SQL (305_plain_codes.sql);
-- and, from what is packed of patches, the nearest that may pass a filter.

-- Of all buckets, by the sum of distances to positives less that to negatives: those within radius, the nearest wanted of
-- them and all as near as the last of these, nearest first. by_patches: wanted is a number of patches, of which the buckets
-- are taken to hold as many as when they were packed; plain SQL takes one for each. complete: there are no others.
create or replace function eo_internal.nearest_codes(
    encoder_id smallint,
    positives bit varying[],
    negatives bit varying[],
    wanted integer,
    radius integer,
    by_patches boolean default false,
    out bucket_nos integer[],
    out distances integer[],
    out complete boolean
)
language plpgsql
stable parallel unsafe
security definer
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if current_setting('pgearth.code_scan', true) is distinct from 'sql' and eo_internal.has_python() then
        select c.bucket_nos, c.distances, c.complete into bucket_nos, distances, complete
        from eo_internal.packed_codes(encoder_id, positives, negatives, wanted, radius, by_patches) c;
    end if;
    if bucket_nos is null then
        select c.bucket_nos, c.distances into bucket_nos, distances
        from eo_internal.nearest_codes_sql(encoder_id, positives, negatives, wanted, radius) c;
        complete := wanted is null or cardinality(bucket_nos) < wanted;
    end if;
end
$$;

-- As nearest_codes, but patches: those that may pass a filter (conditions: see pyfuncs.packed_patches), ordered by distance
-- and patch_id, wanted of them after the first skipped ones. Null where no patches are packed, or where the search sees a
-- change that was made after they were.
create or replace function eo_internal.nearest_packed_patches(
    encoder_id smallint,
    positives bit varying[],
    negatives bit varying[],
    wanted bigint,
    skipped bigint,
    radius integer,
    conditions jsonb,
    out patch_ids bigint[],
    out distances integer[]
)
language plpgsql
stable parallel unsafe
security definer
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if current_setting('pgearth.code_scan', true) is distinct from 'sql' and eo_internal.has_python() then
        select c.patch_ids, c.distances into patch_ids, distances
        from eo_internal.packed_patches(encoder_id, positives, negatives, wanted, skipped, radius, conditions) c;
    end if;
end
$$;

create or replace function eo.build_code_index(encoder text default null)
returns integer
language plpgsql
volatile parallel unsafe
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    -- Random, so that no file that an older or a restored archive has left can be taken for this one.
    new_version uuid := gen_random_uuid();
    -- Taken before anything is read: what is committed meanwhile counts as a later change, whether it was read or not.
    seen text := pg_current_snapshot()::text;
    packed record;
begin
    perform eo_internal.require_python();
    -- One at a time: each removes the files of those before it.
    perform pg_advisory_xact_lock('eo.code_index'::regclass::oid::integer, used_encoder);
    select * into packed from eo_internal.pack_codes(used_encoder, new_version);
    if packed.buckets > 0 then
        insert into eo.code_index (encoder_id, version, buckets, patches, bytes, snapshot)
        values (used_encoder, new_version, packed.buckets, packed.patches, packed.bytes, seen)
        on conflict (encoder_id) do update
        set version = excluded.version, buckets = excluded.buckets, patches = excluded.patches, bytes = excluded.bytes,
            snapshot = excluded.snapshot, built_at = excluded.built_at;
        -- Changes that every index has seen no longer matter.
        delete from eo.patch_change c
        where not exists (select from eo.code_index i
                          where not pg_visible_in_snapshot(c.changed_by::text::xid8, i.snapshot::pg_snapshot));
    end if;
    return packed.buckets;
end
$$;
comment on function eo.build_code_index(text) is
'Packs the codes of a hash function (a name or name:version; null: the current one), and what filters read of its patches, into files that searches map into memory, and returns how many buckets that are. All of it is derived: searches are exact with old files or without any, only slower. Buckets that were added since are read beside them; packed patches serve until patches or their codes are stored or changed. Build again after loading, annotating or encoding. (writer)';
