-- Encoders (patch to vector) and hash functions (vector to code): registration, calls, storage of codes.

create or replace function eo.register_encoder(
    name text,
    version integer,
    architecture text,
    bands text[],
    weights bytea,
    dimension integer default null,
    bits integer default null,
    parent_id smallint default null,
    input_size integer default null,
    normalisation jsonb default null,
    training jsonb default null
)
returns smallint
language plpgsql
volatile parallel unsafe
security definer
set search_path = eo, public, pg_temp
as $$
declare
    sum_of_weights text := encode(sha256(weights), 'hex');
    known eo.encoder;
    new_id smallint;
begin
    -- One at a time, so that two sessions registering the same encoder meet in the check below and not in an error.
    perform pg_advisory_xact_lock('eo.encoder'::regclass::oid::bigint);
    select * into known from eo.encoder e where e.name = register_encoder.name and e.version = register_encoder.version;
    if found then
        if known.architecture = register_encoder.architecture and known.bands = register_encoder.bands
            and known.weights_sha256 = sum_of_weights and known.parent_id is not distinct from register_encoder.parent_id
        then
            return known.encoder_id;
        end if;
        raise exception 'encoder %, version %, is stored with another definition or other weights', name, version
            using errcode = 'unique_violation', hint = 'Register it under a new version: stored vectors belong to the old one.';
    end if;
    insert into eo.encoder (name, version, architecture, bands, input_size, normalisation, dimension, bits, weights,
                            weights_sha256, parent_id, training)
    values (register_encoder.name, register_encoder.version, register_encoder.architecture, register_encoder.bands,
            register_encoder.input_size, register_encoder.normalisation, register_encoder.dimension, register_encoder.bits,
            register_encoder.weights, sum_of_weights, register_encoder.parent_id, register_encoder.training)
    returning encoder_id into new_id;
    if dimension is not null then
        perform eo_internal.ensure_partition('eo.embedding', new_id);
        execute format('alter table eo.%I add check (vector_dims(embedding) = %s)', 'embedding__' || new_id, dimension);
    end if;
    return new_id;
end
$$;
comment on function eo.register_encoder(text, integer, text, text[], bytea, integer, integer, smallint, integer, jsonb, jsonb) is
'Stores a version of an encoder (dimension given) or of a hash function over the encoder parent_id (bits given) and returns its encoder_id; registering the same again returns the same. weights: safetensors. (writer)';

create or replace function eo_internal.encoder_id(encoder text, hashing boolean)
returns smallint
language plpgsql
stable parallel safe
security invoker
set search_path = eo, public, pg_temp
as $$
declare
    found_id smallint;
begin
    select e.encoder_id into found_id
    from eo.encoder e
    where (e.bits is not null) = hashing
      and (encoder is null or encoder in (e.name, e.name || ':' || e.version))
    order by e.version desc, e.encoder_id desc
    limit 1;
    if found_id is null then
        raise exception 'there is no %', case when hashing then 'hash function' else 'encoder' end || coalesce(' "' || encoder || '"', '')
            using errcode = 'undefined_object',
                  hint = coalesce('Known: ' || (select string_agg(distinct e.name || ':' || e.version, ', ')
                                                from eo.encoder e where (e.bits is not null) = hashing) || '.',
                                  'Run: pgearth encode');
    end if;
    return found_id;
end
$$;

create or replace function eo.encode(patch_ids bigint[], encoder text default null)
returns table (patch_id bigint, embedding vector)
language plpgsql
stable parallel restricted
security definer
rows 64 cost 100000
set search_path = eo, public, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    missing bigint;
begin
    perform eo_internal.require_python();
    select wanted into missing
    from unnest(patch_ids) as wanted
    where not exists (select from eo.patch_raster r where r.patch_id = wanted)
    limit 1;
    if found then
        raise exception 'patch % has no pixels', missing
            using errcode = 'no_data_found', hint = 'Only patches with rows in eo.patch_raster can be encoded.';
    end if;
    -- Batches keep the arrays small (DESIGN.md section 4) and let the query be cancelled between them.
    for start_number in 1..coalesce(cardinality(patch_ids), 0) by 64 loop
        return query
            select patch_ids[start_number - 1 + e.number], e.embedding
            from (
                select array_agg(wanted.number::integer order by wanted.number, r.resolution) as numbers,
                       array_agg(array_to_string(r.bands, ',') order by wanted.number, r.resolution) as bands,
                       array_agg(ST_AsWKB(r.rast) order by wanted.number, r.resolution) as rasters
                from unnest(patch_ids[start_number:start_number + 63]) with ordinality as wanted (id, number)
                join eo.patch_raster r on r.patch_id = wanted.id
            ) input,
            eo_internal.encode(used_encoder, input.numbers, input.bands, input.rasters) with ordinality as e (embedding, number);
    end loop;
end
$$;
comment on function eo.encode(bigint[], text) is
'Vectors of stored patches under an encoder (a name or name:version; null: the newest), in the order of patch_ids. The same numbers as pgearth encode stores. Raises no_data_found for a patch without pixels.';

create or replace function eo.encode(rasters raster[], encoder text default null)
returns vector
language plpgsql
stable parallel restricted
security definer
cost 100000
set search_path = eo, public, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    wanted text[] := (select e.bands from eo.encoder e where e.encoder_id = used_encoder);
    given integer := (select sum(ST_NumBands(r)) from unnest(rasters) as r);
begin
    perform eo_internal.require_python();
    if given is distinct from cardinality(wanted) then
        raise exception 'the rasters have % bands, but the encoder reads %', coalesce(given, 0), cardinality(wanted)
            using errcode = 'invalid_parameter_value',
                  hint = 'Pass rasters whose bands are, in this order: ' || array_to_string(wanted, ', ') || '.';
    end if;
    return (
        select e.embedding
        from (
            select array_agg(1) as numbers, array_agg(ST_AsWKB(rast) order by number) as rasters,
                   array_agg(array_to_string(wanted[first_band:first_band + ST_NumBands(rast) - 1], ',') order by number) as bands
            from (
                select rast, number, 1 + coalesce(sum(ST_NumBands(rast)) over (order by number rows between unbounded preceding and 1 preceding), 0)::integer as first_band
                from unnest(encode.rasters) with ordinality as r (rast, number)
            ) placed
        ) input, eo_internal.encode(used_encoder, input.numbers, input.bands, input.rasters) as e (embedding)
    );
end
$$;
comment on function eo.encode(raster[], text) is
'Vector of one image given as rasters (of one or several resolutions) whose bands, taken together, are those of the encoder in its order.';

create or replace function eo.encode_image(image bytea, encoder text default null, bands text[] default null)
returns vector
language plpgsql
stable parallel restricted
security definer
cost 100000
set search_path = eo, public, pg_temp
as $$
begin
    perform eo_internal.require_python();
    if image is null then
        raise exception 'no image was given' using errcode = 'null_value_not_allowed', hint = 'Pass the bytes of a GeoTIFF.';
    end if;
    return eo_internal.encode_image(eo_internal.encoder_id(encoder, false), image, bands);
end
$$;
comment on function eo.encode_image(bytea, text, text[]) is
'Vector of an uploaded GeoTIFF, of any size. Its bands are found by their descriptions, or named by bands in the order of the file; at least those that the encoder reads must be there.';

create or replace function eo.hash(vec vector, encoder text default null)
returns bit varying
language plpgsql
stable parallel restricted
security definer
cost 100000
set search_path = eo, public, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, true);
    wanted integer := (select parent.dimension from eo.encoder e join eo.encoder parent on parent.encoder_id = e.parent_id
                       where e.encoder_id = used_encoder);
begin
    perform eo_internal.require_python();
    if vector_dims(vec) <> wanted then
        raise exception 'the vector has % dimensions, but the hash function reads %', vector_dims(vec), wanted
            using errcode = 'invalid_parameter_value', hint = 'Hash vectors of the encoder that the hash function was made for.';
    end if;
    return (select h.code from eo_internal.hash(used_encoder, array[vector_send(vec)]) as h (code));
end
$$;
comment on function eo.hash(vector, text) is
'Hash code of a vector under a hash function (a name or name:version; null: the newest). The same bits as pgearth encode stores.';

create or replace function eo.store_codes(encoder_id smallint, patch_ids bigint[], segments smallint[], codes bit varying[])
returns bigint
language plpgsql
volatile parallel unsafe strict
security definer
set search_path = eo, public, pg_temp
as $$
declare
    wanted integer;
    wrong bit varying;
    next_number integer;
    stored bigint;
begin
    -- The lock on the hash function's row makes bucket numbers dense in commit order (DESIGN.md section 4). It is one
    -- that rows referring to the hash function, such as those of eo.code_index, do not wait for.
    select e.bits into wanted from eo.encoder e where e.encoder_id = store_codes.encoder_id for no key update;
    if wanted is null then
        raise exception 'encoder % is not a hash function', encoder_id
            using errcode = 'invalid_parameter_value', hint = 'Pass an encoder_id of eo.encoder whose bits are set.';
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
          where not exists (select from eo.bucket b where b.encoder_id = store_codes.encoder_id and b.code = given.code)
          group by code) new;
    insert into eo.patch_bucket (patch_id, segment, encoder_id, cell, bucket_no)
    select p.patch_id, given.segment, store_codes.encoder_id, p.cell, b.bucket_no
    from unnest(patch_ids, segments, codes) as given (patch_id, segment, code)
    join eo.patch p on p.patch_id = given.patch_id
    join eo.bucket b on b.encoder_id = store_codes.encoder_id and b.code = given.code
    on conflict do nothing;
    get diagnostics stored = row_count;
    return stored;
end
$$;
comment on function eo.store_codes(smallint, bigint[], smallint[], bit varying[]) is
'Stores hash codes of patches (segment 0) or of their regions (1 and above): a bucket per new distinct code, and the patches'' places in them. Returns how many places were new. (writer)';
