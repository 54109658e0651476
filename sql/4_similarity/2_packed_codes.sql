-- The nearest buckets of a hash function: by the packed codes where there are any, else by plain SQL (1_plain_codes.sql);
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

-- As nearest_codes, but patches: those that may pass a filter (conditions: see pgearth.pyfuncs.search.patch_file), ordered by distance
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

-- What packed files rest on, and what proves it. Codes rest on eo.bucket being append-only, patches on every change being
-- noted in eo_internal.patch_change. Triggers see to both; that these fired for all that was written, the guard proves: it names the
-- tables and the versions of the triggers' rows in pg_trigger, for to disable a trigger is to write a new one. It is read in
-- the search's own snapshot. Notes are marked by what has seen them: numbers of transactions,
-- which mean nothing in a restored dump, do not come into it.
create or replace function eo_internal.watched_triggers()
returns table (kind text, relation text, name name, wanted "char", state "char", mark text)
language plpgsql
stable parallel safe
security invoker
rows 7
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return query
        select w.kind, w.relation, w.name, w.wanted, t.tgenabled, t.oid || ' ' || t.xmin
        from (values ('patches', 'eo.patch', 'note_patch_change'::name, 'A'::"char"),
                     ('patches', 'eo.patch', 'note_patch_change_replicated', 'R'),
                     ('patches', 'eo.patch_bucket', 'note_patch_change', 'A'),
                     ('patches', 'eo.patch_bucket', 'note_patch_change_replicated', 'R'),
                     ('codes', 'eo.bucket', 'keep_buckets', 'A'),
                     ('codes', 'eo.bucket', 'keep_buckets_in_use', 'A'),
                     ('codes', 'eo.bucket', 'keep_buckets_whole', 'A')) w (kind, relation, name, wanted)
        left join pg_trigger t on t.tgrelid = to_regclass(w.relation) and t.tgname = w.name;
end
$$;

-- kind: codes or patches. Null where a trigger does not fire as it should, or rows may lie in other tables that inherit.
create or replace function eo_internal.change_guard(kind text)
returns text
language plpgsql
stable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    triggers text;
    relations text;
begin
    select string_agg(w.mark, ', ' order by w.mark) filter (where w.state = w.wanted) into triggers
    from eo_internal.watched_triggers() w
    where w.kind = change_guard.kind
    having bool_and(coalesce(w.state = w.wanted, false));
    -- Truncating loses notes, and gives the table another file.
    select string_agg(c.oid || case when c.oid = 'eo_internal.patch_change'::regclass then ' ' || c.relfilenode else '' end, ', ' order by c.oid)
    into relations
    from pg_class c
    where c.oid = any (case when change_guard.kind = 'codes' then array['eo.bucket'::regclass]
                            else array['eo.patch'::regclass, 'eo.patch_bucket', 'eo_internal.patch_change'] end)
    having not bool_or(c.relhassubclass);
    return triggers || '; ' || relations;
end
$$;

-- Why packed codes do not serve a search of the present snapshot; null: they do, where the files are there.
create or replace function eo_internal.unproved_codes(index eo.code_index)
returns text
language plpgsql
stable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    guard text := eo_internal.change_guard('codes');
begin
    return case
        when guard is null then 'a trigger that keeps eo.bucket append-only is disabled'
        when guard is distinct from index.codes_guard then 'a trigger that keeps eo.bucket append-only was disabled since'
    end;
end
$$;

create or replace function eo_internal.unproved_patches(index eo.code_index)
returns text
language plpgsql
stable parallel safe
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    guard text := eo_internal.change_guard('patches');
begin
    return case
        when guard is null then 'a trigger that notes changes of patches is disabled, or a table inherits from theirs'
        when guard is distinct from index.patches_guard then 'a trigger that notes changes of patches was disabled, or notes removed, since'
        when exists (select from eo_internal.patch_change c where index.encoder_id <> all (c.seen_by)) then 'patches changed since'
    end;
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
    watched record;
    used_guards record;
    packed record;
begin
    perform eo_internal.require_python();
    -- One at a time: each removes the files of those before it, and the notes that all have seen.
    perform pg_advisory_xact_lock('eo.code_index'::regclass::oid::bigint);
    for watched in
        select w.* from eo_internal.watched_triggers() w where w.state is distinct from w.wanted
    loop
        if watched.state is null then
            raise exception 'the trigger % of % is missing', watched.name, watched.relation
                using errcode = 'object_not_in_prerequisite_state',
                      hint = 'Without it nothing packed can be trusted. Make it again as the revisions in migrations/versions do.';
        end if;
        raise warning 'the trigger % of % was disabled: it is enabled again', watched.name, watched.relation;
        execute format('alter table %s enable %s trigger %I', watched.relation,
                       case watched.wanted when 'A' then 'always' else 'replica' end, watched.name);
    end loop;
    -- Before anything is read: what is committed meanwhile counts as a later change, whether it was read or not.
    select eo_internal.change_guard('codes') as codes, eo_internal.change_guard('patches') as patches into used_guards;
    update eo_internal.patch_change set seen_by = seen_by || used_encoder where used_encoder <> all (seen_by);
    select * into packed from eo_internal.pack_codes(used_encoder, new_version);
    if packed.buckets > 0 then
        insert into eo.code_index (encoder_id, version, buckets, patches, bytes, codes_guard, patches_guard)
        values (used_encoder, new_version, packed.buckets, packed.patches, packed.bytes, used_guards.codes, used_guards.patches)
        on conflict (encoder_id) do update
        set version = excluded.version, buckets = excluded.buckets, patches = excluded.patches, bytes = excluded.bytes,
            codes_guard = excluded.codes_guard, patches_guard = excluded.patches_guard, built_at = excluded.built_at;
        -- Changes that every index has seen no longer matter. An older snapshot might not show every index.
        if current_setting('transaction_isolation') = 'read committed' then
            delete from eo_internal.patch_change c
            where not exists (select from eo.code_index i where i.encoder_id <> all (c.seen_by));
        end if;
    end if;
    return packed.buckets;
end
$$;
comment on function eo.build_code_index(text) is
'Packs the codes of a hash function (a name or name:version; null: the current one), and what filters read of its patches, into files that make searches fast, and returns how many buckets that are; eo.runtime tells when to build again. Enables triggers that note changes where they were disabled, with a warning. (writer)';
