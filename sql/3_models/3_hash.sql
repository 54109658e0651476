-- Hash codes of vectors, and how they are stored.

create or replace function eo.hash(vec public.vector, encoder text default null)
returns bit varying
language plpgsql
stable parallel unsafe
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    wanted integer := (select parent.dimension from eo.encoder e join eo.encoder parent on parent.encoder_id = e.parent_id
                       where e.encoder_id = used_encoder);
begin
    perform eo_internal.require_python();
    if vec is null then
        raise exception 'no vector was given' using errcode = 'null_value_not_allowed', hint = 'Pass a vector made by eo.encode.';
    end if;
    if public.vector_dims(vec) <> wanted then
        raise exception 'the vector has % dimensions, but the hash function reads %', public.vector_dims(vec), wanted
            using errcode = 'invalid_parameter_value', hint = 'Hash vectors of the encoder that the hash function was made for.';
    end if;
    return (select h.code from eo_internal.hash(used_encoder, array[public.vector_send(vec)]) as h);
end
$$;
comment on function eo.hash(public.vector, text) is
'Hash code of a vector under a hash function (a name or name:version; null: the current one). The same bits as pgearth encode stores.';

-- Whatever the planner believes of a table that it last saw before the hash function was registered, every look-up is one
-- step into one index: the order that is asked for is that of the index by code, and to sort is forbidden.
create or replace function eo.store_codes(encoder_id smallint, patch_ids bigint[], segments smallint[], codes bit varying[])
returns bigint
language plpgsql
volatile parallel unsafe strict
security definer
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    wanted integer;
    wrong bit varying;
    next_number integer;
    stored bigint;
begin
    perform eo_internal.given_list(patch_ids), eo_internal.given_list(segments), eo_internal.given_list(codes);
    if cardinality(patch_ids) <> cardinality(segments) or cardinality(patch_ids) <> cardinality(codes) then
        raise exception '% patches, % segments and % codes were given', cardinality(patch_ids), cardinality(segments), cardinality(codes)
            using errcode = 'invalid_parameter_value', hint = 'Pass a segment and a code for each patch, in the same order.';
    end if;
    -- The lock on the hash function's row makes bucket numbers dense in commit order (DESIGN.md section 4). It is one
    -- that rows referring to the hash function, such as those of eo.code_index, do not wait for.
    select e.bits into wanted from eo.encoder e
    where e.encoder_id = store_codes.encoder_id and e.retired_at is null
    for no key update;
    if wanted is null then
        raise exception 'encoder % is not a hash function in use', encoder_id
            using errcode = 'invalid_parameter_value', hint = 'Pass an encoder_id of eo.encoder whose bits are set and that is not retired.';
    end if;
    select code into wrong from unnest(codes) as code where length(code) <> wanted limit 1;
    if found then
        raise exception 'a code has % bits, but the hash function makes %', length(wrong), wanted
            using errcode = 'invalid_parameter_value', hint = 'Store only codes that this hash function made.';
    end if;
    select coalesce(max(b.bucket_no) + 1, 0) into next_number from eo.bucket b where b.encoder_id = store_codes.encoder_id;
    insert into eo.bucket (encoder_id, bucket_no, code)
    select store_codes.encoder_id, next_number + (row_number() over (order by new.first))::integer - 1, new.code
    from (select code, min(number) as first
          from unnest(codes) with ordinality as given (code, number)
          group by code) new
    left join lateral (
        select true as stored
        from eo.bucket b
        where b.encoder_id = store_codes.encoder_id and b.code between new.code and new.code
        order by b.code
        limit 1
    ) known on true
    where known.stored is null;
    insert into eo.patch_bucket (patch_id, segment, encoder_id, cell, bucket_no)
    select p.patch_id, given.segment, store_codes.encoder_id, p.cell, b.bucket_no
    from unnest(patch_ids, segments, codes) as given (patch_id, segment, code)
    cross join lateral (
        select own.patch_id, own.cell from eo.patch own where own.patch_id = given.patch_id offset 0
    ) p
    cross join lateral (
        select own.bucket_no
        from eo.bucket own
        where own.encoder_id = store_codes.encoder_id and own.code between given.code and given.code
        order by own.code
        limit 1
    ) b
    on conflict do nothing;
    get diagnostics stored = row_count;
    return stored;
end
$$;
comment on function eo.store_codes(smallint, bigint[], smallint[], bit varying[]) is
'Stores hash codes of patches (segment 0) or of their segments (1 and above): a bucket per new distinct code, and the patches'' places in them. Returns how many places were new. (writer)';
