-- Hash-table lookups, as in MiLaN: the bucket of a code, and all buckets within a Hamming radius.

create or replace function eo.bucket_members(code bit varying, encoder text default null)
returns table (patch_id bigint, cell text, name text, segment smallint)
language plpgsql
stable parallel safe
security invoker
rows 10
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.hash_function_of(array[code], encoder);
begin
    return query
        select p.patch_id, p.cell, p.name, pb.segment
        from eo.bucket b
        join eo.patch_bucket pb on pb.encoder_id = b.encoder_id and pb.bucket_no = b.bucket_no
        join eo.patch p on p.patch_id = pb.patch_id and p.cell = pb.cell
        where b.encoder_id = used_encoder and b.code = bucket_members.code
        order by p.patch_id, pb.segment;
end
$$;
comment on function eo.bucket_members(bit varying, text) is
'The patches (segment 0) and segments of patches (1 and above) whose hash code is exactly this one, by patch_id. encoder: hash function, a name or name:version; null: the current one.';

create or replace function eo.buckets_within(code bit varying, radius integer, encoder text default null)
returns table (bucket_no integer, bucket_code bit varying, distance integer, patches bigint)
language plpgsql
stable parallel unsafe
security invoker
rows 100 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.hash_function_of(array[code], encoder);
begin
    perform eo_internal.check_radius(radius);
    return query
        select b.bucket_no, b.code, found.distance,
               (select count(*) from eo.patch_bucket pb
                where pb.encoder_id = b.encoder_id and pb.bucket_no = b.bucket_no and pb.segment = 0)
        from eo_internal.nearest_codes(used_encoder, array[buckets_within.code], '{}', null, radius) near,
             unnest(near.bucket_nos, near.distances) as found (bucket_no, distance)
        join eo.bucket b on b.encoder_id = used_encoder and b.bucket_no = found.bucket_no
        order by 3, b.bucket_no;
end
$$;
comment on function eo.buckets_within(bit varying, integer, text) is
'All hash buckets whose codes differ from a code in at most radius bits, nearest first, with the number of whole patches in each. encoder: hash function, a name or name:version; null: the current one.';
