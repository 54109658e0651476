-- How well an encoder or hash function retrieves, what its codes are like, and why two patches are alike.

-- The hash function of a name or name:version, else the encoder.
create or replace function eo_internal.ranking_id(encoder text)
returns smallint
language sql
stable parallel safe
security invoker
begin atomic
    select eo_internal.encoder_id(
        encoder, exists (select from eo.encoder e where e.bits is not null and encoder in (e.name, e.name || ':' || e.version)));
end;

create or replace function eo_internal.filtered_patches(filter eo.filter, out patch_ids bigint[], out cells text[])
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
    select coalesce(array_agg(p.patch_id), '{}'), coalesce(array_agg(p.cell), '{}') into patch_ids, cells
    from (select p.patch_id, p.cell from eo.patches(filter) p order by p.patch_id) p;
end
$$;

-- The features (a code, or a vector) and the labels of patches, each column a binary value per patch, by patch_id: labels
-- are the bits of a word, classes of the scheme's level in the order of their ids; labelled tells whether they are known,
-- encoded whether there are features, of which there are only so many.
create or replace function eo_internal.labelled_features(encoder_id smallint, wanted bigint[], cells text[], scheme text, level integer)
returns table (patch_ids bytea, labels bytea, labelled bytea, encoded bytea, features bytea)
language sql
stable parallel safe
security invoker
rows 1
begin atomic
    with class as (
        select c.descendant_id, bit_or(1::bigint << l.position) as bit
        from (select e.label_id, row_number() over (order by e.label_id)::integer - 1 as position
              from eo.label e
              where e.scheme = labelled_features.scheme and e.level = labelled_features.level) l
        join eo.label_closure c on c.ancestor_id = l.label_id
        group by c.descendant_id
    ),
    patch as (
        select p.patch_id, coalesce(varbit_send(b.code), public.vector_send(e.embedding)) as features,
               case when labelled_features.scheme = 'scl' then p.scene_class_ids else p.label_ids end as label_ids
        from unnest(wanted, cells) as w (patch_id, cell)
        join eo.patch p on p.patch_id = w.patch_id and p.cell = w.cell
        left join eo.patch_bucket pb
            on pb.patch_id = p.patch_id and pb.cell = p.cell and pb.encoder_id = labelled_features.encoder_id and pb.segment = 0
        left join eo.bucket b on b.encoder_id = pb.encoder_id and b.bucket_no = pb.bucket_no
        left join eo.embedding e
            on e.patch_id = p.patch_id and e.cell = p.cell and e.encoder_id = labelled_features.encoder_id
    )
    select string_agg(int8send(p.patch_id), '' order by p.patch_id),
           string_agg(int8send(coalesce((select bit_or(c.bit) from class c where c.descendant_id = any (p.label_ids)), 0)),
                      '' order by p.patch_id),
           string_agg(boolsend(p.label_ids is not null), '' order by p.patch_id),
           string_agg(boolsend(p.features is not null), '' order by p.patch_id),
           string_agg(p.features, '' order by p.patch_id)
    from patch p;
end;

create or replace function eo.retrieval_metrics(
    encoder text,
    queries eo.filter default null,
    archive eo.filter default null,
    k integer default 20,
    relevance text default 'any',
    scheme text default 'ben19',
    level integer default null,
    max_queries integer default null,
    seed integer default 0
)
returns table (metric text, value double precision, chance double precision)
language plpgsql
stable parallel unsafe
security definer
rows 20 cost 1000000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.ranking_id(encoder);
    used_level integer := coalesce(level, (select max(l.level) from eo.label l where l.scheme = retrieval_metrics.scheme));
    classes bigint := (select count(*) from eo.label l where l.scheme = retrieval_metrics.scheme and l.level = used_level);
begin
    perform eo_internal.require_python();
    if k is null or k < 1 or max_queries < 1 or seed is null or seed < 0 then
        raise exception 'k is %, max_queries %, seed %', k, max_queries, seed
            using errcode = 'invalid_parameter_value',
                  hint = 'k and max_queries are numbers of patches, at least 1 (max_queries null: all); seed is at least 0.';
    end if;
    if classes = 0 then
        raise exception 'there is no nomenclature "%"%', scheme, coalesce(' of level ' || level, '')
            using errcode = 'undefined_object',
                  hint = 'There are (scheme and level): ' || (select string_agg(distinct l.scheme || ' ' || l.level, ', ') from eo.label l) || '.';
    elsif classes > 64 then
        raise exception 'nomenclature "%" has % classes', scheme, classes
            using errcode = 'program_limit_exceeded', hint = 'Sets of up to 64 can be compared; choose an upper level.';
    end if;
    return query
        select m.metric, m.value, m.chance
        from eo_internal.filtered_patches(queries) q,
             eo_internal.filtered_patches(archive) a,
             eo_internal.retrieval_metrics(
                 used_encoder, q.patch_ids, q.cells, a.patch_ids, a.cells, scheme, used_level, k, relevance, max_queries, seed) m;
end
$$;
comment on function eo.retrieval_metrics(text, eo.filter, eo.filter, integer, text, text, integer, integer, integer) is
'How well an encoder or hash function finds, in the archive, patches that are relevant to each of the queries: a row per measure, with its mean and the level of a random order, then counts of patches. docs/evaluation.md defines arguments and measures. Raises undefined_object for an unknown encoder or nomenclature, invalid_parameter_value for an unknown relevance and where nothing is left.';

create or replace function eo.evaluate(
    encoder text,
    queries eo.filter default null,
    archive eo.filter default null,
    k integer default 20,
    relevance text default 'any',
    scheme text default 'ben19',
    level integer default null,
    max_queries integer default null,
    seed integer default 0
)
returns table (metric text, value double precision, chance double precision)
language plpgsql
volatile parallel unsafe
security invoker
rows 20 cost 1000000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return query
        with measured as materialized (
            select m.* from eo.retrieval_metrics(encoder, queries, archive, k, relevance, scheme, level, max_queries, seed)
                with ordinality as m (metric, value, chance, number)
        ),
        stored as (
            insert into eo.evaluation (encoder_id, k, relevance, scheme, level, queries, archive, max_queries, seed, metrics)
            select eo_internal.ranking_id(encoder), evaluate.k, evaluate.relevance, evaluate.scheme, evaluate.level,
                   coalesce(jsonb_strip_nulls(to_jsonb(evaluate.queries)), '{}'), coalesce(jsonb_strip_nulls(to_jsonb(evaluate.archive)), '{}'), evaluate.max_queries, evaluate.seed,
                   jsonb_object_agg(m.metric, jsonb_strip_nulls(jsonb_build_object('value', m.value, 'chance', m.chance)))
            from measured m
        )
        select m.metric, m.value, m.chance from measured m order by m.number;
end
$$;
comment on function eo.evaluate(text, eo.filter, eo.filter, integer, text, text, integer, integer, integer) is
'Measures as eo.retrieval_metrics does, stores the result in eo.evaluation and returns it. (writer)';

create or replace function eo.code_statistics(encoder text default null, patches eo.filter default null)
returns table (statistic text, value double precision)
language plpgsql
stable parallel unsafe
security definer
rows 10 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
begin
    perform eo_internal.require_python();
    return query
        select s.statistic, s.value
        from eo_internal.filtered_patches(patches) p, eo_internal.code_statistics(used_encoder, p.patch_ids, p.cells) s;
end
$$;
comment on function eo.code_statistics(text, eo.filter) is
'What the codes of a hash function (a name or name:version; null: the current one) are like, over the patches that a filter lets pass: how many are distinct, how balanced and correlated their bits are (0 to 1), how many patches are in a bucket. docs/evaluation.md defines the statistics.';

-- What is stored of a patch's bands, each from the finest resolution that has it, in words and as the mean.
create or replace function eo_internal.band_statistics(patch_id bigint, cell text)
returns table (band text, statistics text, mean real)
language sql
stable parallel safe
security invoker
rows 12
begin atomic
    select distinct on (b.band collate "C") b.band,
           format('%s ± %s (%s to %s)', round(b.mean::numeric, 1), round(b.std::numeric, 1), b.least, b.most)
           || case when b.valid < 1 then format(', %s %% valid', round((100 * b.valid)::numeric, 1)) else '' end,
           b.mean
    from eo.patch_raster r,
         unnest(r.bands, r.band_mean, r.band_std, r.band_min, r.band_max, r.valid_fraction) as b (band, mean, std, least, most, valid)
    where r.patch_id = band_statistics.patch_id and r.cell = band_statistics.cell
    order by b.band collate "C", r.resolution;
end;

create or replace function eo.explain_similarity(a text, b text, encoder text default null)
returns table (topic text, item text, of_a text, of_b text, difference double precision)
language plpgsql
stable parallel safe
security invoker
rows 30 cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := case when encoder is not null then eo_internal.ranking_id(encoder) end;
    patch_a eo.patch;
    patch_b eo.patch;
begin
    perform eo_internal.check_patches(array[a, b]);
    select * into patch_a from eo.patch p where p.name = a order by p.patch_id limit 1;
    select * into patch_b from eo.patch p where p.name = b order by p.patch_id limit 1;
    return query
        select 'distance', e.name || ':' || e.version || coalesce(' (' || e.bits || ' bits)', ''), null::text, null::text, stored.distance
        from (
            select va.encoder_id, va.embedding operator(public.<->) vb.embedding as distance
            from eo.embedding va
            join eo.embedding vb on vb.encoder_id = va.encoder_id
            where (va.patch_id, va.cell) = (patch_a.patch_id, patch_a.cell) and (vb.patch_id, vb.cell) = (patch_b.patch_id, patch_b.cell)
            union all
            select pa.encoder_id, public.hamming_distance(ba.code::pg_catalog.bit, bb.code::pg_catalog.bit)
            from eo.patch_bucket pa
            join eo.patch_bucket pb on pb.encoder_id = pa.encoder_id
            join eo.bucket ba on ba.encoder_id = pa.encoder_id and ba.bucket_no = pa.bucket_no
            join eo.bucket bb on bb.encoder_id = pb.encoder_id and bb.bucket_no = pb.bucket_no
            where (pa.patch_id, pa.cell, pa.segment) = (patch_a.patch_id, patch_a.cell, 0)
              and (pb.patch_id, pb.cell, pb.segment) = (patch_b.patch_id, patch_b.cell, 0)
        ) stored
        join eo.encoder e on e.encoder_id = stored.encoder_id
        where used_encoder is null or used_encoder = e.encoder_id
              or e.encoder_id = (select h.parent_id from eo.encoder h where h.encoder_id = used_encoder)
        order by e.bits nulls first, e.encoder_id;
    if used_encoder is not null and not found then
        raise exception 'one of the patches is not encoded by %', encoder
            using errcode = 'no_data_found', hint = 'If both have pixels, run: pgearth encode';
    end if;
    return query
        select 'label', l.name || ' (' || l.scheme || ':' || l.code || ')',
               case when in_a.label_id is not null then coalesce(round((100 * in_a.share)::numeric, 1) || ' %', 'yes') end,
               case when in_b.label_id is not null then coalesce(round((100 * in_b.share)::numeric, 1) || ' %', 'yes') end,
               null::double precision
        from unnest(patch_a.label_ids, patch_a.label_fraction) as in_a (label_id, share)
        full join unnest(patch_b.label_ids, patch_b.label_fraction) as in_b (label_id, share) on in_b.label_id = in_a.label_id
        join eo.label l on l.label_id = coalesce(in_a.label_id, in_b.label_id)
        order by in_b.label_id is null, in_a.label_id is null, l.label_id;
    return query
        with class as (
            select c.ancestor_id, bool_or(c.descendant_id = any (patch_a.label_ids)) as in_a,
                   bool_or(c.descendant_id = any (patch_b.label_ids)) as in_b
            from eo.label l
            join eo.label_closure c on c.ancestor_id = l.label_id
            where l.scheme = 'ben19' and c.descendant_id = any (patch_a.label_ids || patch_b.label_ids)
            group by c.ancestor_id
        )
        select 'label', 'shared of all classes of ben19', null, null, avg(case when in_a and in_b then 1 else 0 end)::double precision
        from class;
    return query
        select fact.*
        from (values
            ('place', 'cell', patch_a.cell, patch_b.cell, null),
            ('place', 'countries', array_to_string(patch_a.country_codes, ', '), array_to_string(patch_b.country_codes, ', '), null),
            ('place', 'km between centres', null, null,
             public.ST_Distance(eo_internal.patch_centre(patch_a.west, patch_a.south, patch_a.east, patch_a.north, patch_a.srid)::public.geography,
                         eo_internal.patch_centre(patch_b.west, patch_b.south, patch_b.east, patch_b.north, patch_b.srid)::public.geography, true) / 1000),
            ('place', 'overlap, of the smaller footprint', null, null,
             public.ST_Area(public.ST_Intersection(patch_a.footprint, patch_b.footprint, -1::double precision)) / least(public.ST_Area(patch_a.footprint), public.ST_Area(patch_b.footprint))),
            ('time', 'sensing time, days between', patch_a.sensing_time::text, patch_b.sensing_time::text,
             extract(epoch from patch_b.sensing_time - patch_a.sensing_time)::double precision / 86400),
            ('time', 'season', patch_a.season::text, patch_b.season::text, null),
            ('time', 'platform', patch_a.platform, patch_b.platform, null)
        ) fact (topic, item, of_a, of_b, difference);
    return query
        select 'band', band, in_a.statistics, in_b.statistics, (in_b.mean - in_a.mean)::double precision
        from eo_internal.band_statistics(patch_a.patch_id, patch_a.cell) in_a
        full join eo_internal.band_statistics(patch_b.patch_id, patch_b.cell) in_b using (band)
        order by replace(band, 'B8A', 'B08A') collate "C";
end
$$;
comment on function eo.explain_similarity(text, text, text) is
'Why two patches, given by name, are alike or not: a row per fact (distances, labels, place, time, bands), with its value for both and their difference; docs/evaluation.md tells units. Raises no_data_found for an unknown patch and for one that a given encoder has not encoded, undefined_object for an unknown encoder.';
