-- The nearest buckets of a hash function in plain SQL: the twin of the packed codes (eo_internal.nearest_codes), for servers
-- without PL/Python and for composing. Exact.
--
-- eo.build_plain_code_index makes B-trees on the substrings of the codes (multi-index hashing: Norouzi, Punjani, Fleet 2012,
-- "Fast search in Hamming space with multi-index hashing", sections 3 and 4). Two codes that differ in few bits differ in
-- fewer in one of their substrings, so the buckets whose substrings are like the query's hold all that are near. Where that
-- would be too many probes, without the indexes, and for several examples, all codes of the hash function are scanned.
--
-- Measured on 220,000 distinct clustered codes of 128 bits (CPU milliseconds of one process, median / 95th percentile):
--
--                            radius 2     radius 8    radius 16    10 nearest    1,000 nearest    build     size
--   scan                      26 / 26      26 / 26      26 / 37       44 / 44          45 / 46
--   substrings of 13 bits    4.2 / 6.7    5.5 / 11      11 / 33      5.0 / 11
--   substrings of 16 bits    3.1 / 13     5.6 / 12     8.0 / 28      4.0 / 8.9                      2 s    13 MB
--   substrings of 21 bits    2.0 / 5.4    3.4 / 9.7    6.8 / 27      3.4 / 7.4         19 / 54      2 s    11 MB
--   substrings of 26 bits    1.9 / 5.5    3.8 / 10      11 / 32      3.5 / 13
--   HNSW, ef_search 40                                               1.1 / 2.0                    168 s    67 MB
--   HNSW, ef_search 1000                                             6.1 / 12         7.6 / 14
--
-- HNSW answers no radius and is not exact (recall 0.990, at 1000 0.998 of the 1,000 nearest). On uniformly random codes,
-- whose neighbours lie beyond what probes reach, the 10 nearest take 40 / 43, most of it the scan. Inserting a bucket
-- takes 33 us instead of 7.

-- About 20 bits each: the best of the table, and near the logarithm of the number of codes, as the paper advises.
create or replace function eo_internal.code_substrings(bits integer)
returns table (number integer, first_bit integer, width integer)
language sql
immutable parallel safe
rows 8
begin atomic
    select j, 1 + (j - 1) * bits / m.substrings, j * bits / m.substrings - (j - 1) * bits / m.substrings
    from (select greatest(1, round(bits / 20.0)::integer)) m (substrings), generate_series(1, m.substrings) as j;
end;

-- The numbers of width bits of which at most weight are set; none for a negative weight.
create or replace function eo_internal.bit_masks(width integer, weight integer)
returns integer[]
language sql
immutable parallel safe
begin atomic
    with recursive mask (value, set_bits, lowest) as (
        select 0, 0, width
        union all
        select mask.value | (1 << position), mask.set_bits + 1, position
        from mask, generate_series(0, mask.lowest - 1) as position
        where mask.set_bits < weight
    )
    select coalesce(array_agg(mask.value), '{}') from mask where weight >= 0;
end;

create or replace function eo.build_plain_code_index(encoder text default null)
returns integer
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    bits integer := (select e.bits from eo.encoder e where e.encoder_id = used_encoder);
    part record;
    built integer := 0;
begin
    if bits > 512 then
        raise exception 'codes of % bits are too long for substring indexes', bits
            using errcode = 'program_limit_exceeded', hint = 'Codes of up to 512 bits are indexed; longer ones are found by a scan.';
    end if;
    for part in select * from eo_internal.code_substrings(bits) loop
        execute format('create index if not exists %I on eo.bucket ((substring(code, %s, %s)::integer)) where encoder_id = %s',
                       format('bucket__%s__substring_%s', used_encoder, part.number), part.first_bit, part.width, used_encoder);
        built := built + 1;
    end loop;
    analyze eo.bucket;
    return built;
end
$$;
comment on function eo.build_plain_code_index(text) is
'Builds the substring indexes of exact searches by code on a server without PL/Python, which follow every later insert, and returns how many there are; inserts wait meanwhile. encoder: hash function, a name or name:version; null: the current one. (writer)';

create or replace function eo_internal.nearest_codes_query(score text, encoder_id smallint, condition text)
returns text
language sql
immutable parallel safe
begin atomic
    -- $3: how many; $4: radius; the others belong to score and condition.
    select format(
        'select coalesce(array_agg(f.bucket_no), ''{}''), coalesce(array_agg(f.distance), ''{}'')
         from (
             select n.bucket_no, n.distance
             from (
                 select b.bucket_no, (%1$s)::integer as distance
                 from eo.bucket b
                 where b.encoder_id = %2$s and %1$s <= $4 and %3$s
                 order by 2
                 fetch first $3 rows with ties
             ) n
             order by 2, 1
         ) f', score, encoder_id, condition);
end;

-- Null where there are no substring indexes, or probing them would cost more than a scan.
create or replace function eo_internal.probe_codes(
    encoder_id smallint,
    code bit varying,
    wanted integer,
    radius integer,
    out bucket_nos integer[],
    out distances integer[]
)
language plpgsql
stable parallel safe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
set enable_seqscan = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    substrings integer;
    width integer;
    most_probes integer;
    complete integer;
    far_masks integer[];
    near_masks integer[];
    probes text;
begin
    if to_regclass(format('eo.bucket__%s__substring_1', encoder_id)) is null then
        return;
    end if;
    select count(*), max(part.width) into substrings, width from eo_internal.code_substrings(length(code)) part;
    most_probes := (select least(max(b.bucket_no) + 1, 1 << width) / 40 from eo.bucket b where b.encoder_id = probe_codes.encoder_id);
    -- Without a number wanted, straight to the radius; else outward, each time as far as the same probes reach.
    complete := case when wanted is null then radius else least(radius, substrings - 1) end;
    while complete / substrings <= 4 loop
        -- Of m substrings of two codes that differ in at most m * s + a bits (a < m), one of the first a + 1 differs in at
        -- most s bits, or one of the others in at most s - 1.
        near_masks := eo_internal.bit_masks(width, complete / substrings - 1);
        exit when substrings * cardinality(near_masks) > most_probes;
        far_masks := eo_internal.bit_masks(width, complete / substrings);
        exit when (complete % substrings + 1) * cardinality(far_masks)
                  + (substrings - complete % substrings - 1) * cardinality(near_masks) > most_probes;
        probes := (
            -- The arrays are made by subqueries so that planning does not look at their elements one by one.
            select '(' || string_agg(
                format('substring(b.code, %1$s, %2$s)::integer = any (array(select substring($1, %1$s, %2$s)::integer # mask from unnest(%3$s::integer[]) as mask))',
                       part.first_bit, part.width, case when part.number <= complete % substrings + 1 then '$5' else '$2' end),
                ' or ') || ')'
            from eo_internal.code_substrings(length(code)) part
        );
        execute eo_internal.nearest_codes_query('b.code::pg_catalog.bit operator(public.<~>) $1::pg_catalog.bit', encoder_id, probes) into bucket_nos, distances
            using code, near_masks, coalesce(wanted, 2147483647), complete, far_masks;
        if complete = radius or cardinality(bucket_nos) >= wanted then
            return;
        end if;
        complete := least(radius, complete + substrings);
    end loop;
    bucket_nos := null;
    distances := null;
end
$$;

create or replace function eo_internal.nearest_codes_sql(
    encoder_id smallint,
    positives bit varying[],
    negatives bit varying[],
    wanted integer,
    radius integer,
    out bucket_nos integer[],
    out distances integer[]
)
language plpgsql
stable parallel safe
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    score text;
    condition text;
begin
    if cardinality(positives) = 1 and coalesce(cardinality(negatives), 0) = 0 and (wanted is not null or radius is not null) then
        select p.* into bucket_nos, distances from eo_internal.probe_codes(encoder_id, positives[1], wanted, radius) p;
    end if;
    if bucket_nos is null then
        score := (
            select coalesce(string_agg(format('%s (b.code::pg_catalog.bit operator(public.<~>) $%s[%s]::pg_catalog.bit)', sign, argument, number), ' '), '0')
            from (select '+' as sign, 1 as argument, number from generate_subscripts(positives, 1) as number
                  union all
                  select '-', 2, number from generate_subscripts(negatives, 1) as number) term
        );
        -- The distance that ends the nearest ones of a few buckets ends those of all, too, so that few are left to sort.
        condition := format(
            '%1$s <= coalesce((select %1$s from eo.bucket b where b.encoder_id = %2$s and b.bucket_no < $5 order by 1 offset $3 limit 1), ''infinity'')',
            score, encoder_id);
        execute eo_internal.nearest_codes_query(score, encoder_id, case when wanted is null then 'true' else condition end)
            into bucket_nos, distances
            using positives, negatives, coalesce(wanted, 2147483647), coalesce(radius, 2147483647),
                  (select max(b.bucket_no) / 32 from eo.bucket b where b.encoder_id = nearest_codes_sql.encoder_id);
    end if;
end
$$;
