-- Query by change: pairs of consecutive acquisitions of one place, and search among them by how their vectors differ.

-- A date is a pass of the satellite: some products tell its start, others the time at the place, minutes later, and one
-- acquisition may be stored as processed twice. Acquisitions less than half an hour apart are of one date; the next pass
-- of a mission over a place comes after 50 minutes (two satellites on opposite sides of an orbit) at the earliest.
create or replace view eo.change as
select pair.cell, before.patch_id as before_patch_id, after.patch_id as after_patch_id, before.name as before_name, after.name as after_name,
       before.sensing_time as before_time, after.sensing_time as after_time, after.sensing_time - before.sensing_time as elapsed
from (
    select dated.cell, array_agg(dated.patch_id) as patch_ids, array_agg(dated.name) as names, array_agg(dated.sensing_time) as times,
           lead(array_agg(dated.patch_id)) over place as next_patch_ids, lead(array_agg(dated.name)) over place as next_names,
           lead(array_agg(dated.sensing_time)) over place as next_times
    from (
        select acquisition.*, count(*) filter (where acquisition.sensing_time - acquisition.time_before >= interval '30 minutes') over place as date_no
        from (
            select p.cell, p.patch_id, p.name, p.sensing_time, p.srid, p.west, p.south, p.east, p.north, p.source,
                   rtrim(p.platform, 'abcd') as mission, product.level, lag(p.sensing_time) over place as time_before
            from eo.patch p
            join eo.product on product.product_id = p.product_id
            -- The bounds determine the cell, which stands here so that conditions on it reach the index of eo.patch.
            window place as (
                partition by p.cell, p.srid, p.west, p.south, p.east, p.north, p.source, rtrim(p.platform, 'abcd'), product.level
                order by p.sensing_time
            )
        ) acquisition
        window place as (
            partition by acquisition.cell, acquisition.srid, acquisition.west, acquisition.south, acquisition.east, acquisition.north,
                         acquisition.source, acquisition.mission, acquisition.level
            order by acquisition.sensing_time
        )
    ) dated
    group by dated.cell, dated.srid, dated.west, dated.south, dated.east, dated.north, dated.source, dated.mission, dated.level, dated.date_no
    window place as (
        partition by dated.cell, dated.srid, dated.west, dated.south, dated.east, dated.north, dated.source, dated.mission, dated.level
        order by dated.date_no
    )
) pair,
unnest(pair.patch_ids, pair.names, pair.times) as before (patch_id, name, sensing_time),
unnest(pair.next_patch_ids, pair.next_names, pair.next_times) as after (patch_id, name, sensing_time);
comment on view eo.change is
'Pairs of consecutive acquisitions of one place: every patch of a date (passes less than half an hour apart) with every one of the next, of the same native bounds, source, mission and processing level. Select by cell, and an index finds the place.';
comment on column eo.change.cell is 'Geohash (precision 5) of the centre of both patches';
comment on column eo.change.before_patch_id is 'The earlier patch';
comment on column eo.change.after_patch_id is 'The later patch';
comment on column eo.change.before_name is 'Name of the earlier patch';
comment on column eo.change.after_name is 'Name of the later patch';
comment on column eo.change.before_time is 'Sensing time of the earlier patch';
comment on column eo.change.after_time is 'Sensing time of the later patch';
comment on column eo.change.elapsed is 'Time between the two';

create or replace function eo.similar_change(
    before text,
    after text,
    filter eo.filter default null,
    max_results integer default 10,
    encoder text default null
)
returns table (
    rank bigint, before_patch_id bigint, after_patch_id bigint, cell text, before_name text, after_name text,
    distance double precision
)
language plpgsql
stable parallel safe
security invoker
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    wanted public.vector := eo_internal.example_embedding(after, used_encoder) operator(public.-) eo_internal.example_embedding(before, used_encoder);
begin
    perform eo_internal.check_max_results(max_results);
    return query
        with passing as materialized (
            select p.patch_id, p.cell
            from eo.patches(filter) p
        )
        select row_number() over (order by found.distance, found.after_patch_id, found.before_patch_id), found.*
        from (
            select c.before_patch_id, c.after_patch_id, c.cell, c.before_name, c.after_name,
                   (later.embedding operator(public.-) earlier.embedding) operator(public.<->) wanted as distance
            from eo.change c
            join passing on passing.patch_id = c.after_patch_id and passing.cell = c.cell
            join eo.embedding earlier
                on earlier.encoder_id = used_encoder and earlier.patch_id = c.before_patch_id and earlier.cell = c.cell
            join eo.embedding later
                on later.encoder_id = used_encoder and later.patch_id = c.after_patch_id and later.cell = c.cell
            -- Only the places of patches that pass are looked at.
            where c.cell = any (array(select distinct passing.cell from passing))
              and (c.before_name, c.after_name) <> (before, after)
            order by 6, c.after_patch_id, c.before_patch_id
            limit max_results
        ) found
        order by 1;
end
$$;
comment on function eo.similar_change(text, text, eo.filter, integer, text) is
'Query by change: the max_results pairs of eo.change (null: all) whose change, the difference of two embeddings, is nearest (Euclidean) to that from one stored patch to another, itself left out; the filter is for the later patch. encoder: a name or name:version; null: the current one. Exact.';
