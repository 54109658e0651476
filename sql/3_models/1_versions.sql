-- Versions of encoders (patch to vector) and hash functions (vector to code).

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
    training jsonb default null,
    units text[] default null
)
returns smallint
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    -- As pgearth.pyfuncs.models.encoder knows them.
    architectures constant text[] := case when bits is null then '{spectral,resnet18,resnet50,onnx}' else '{itq,kslsh,lsh,milan,sign,trivial}' end;
    sum_of_weights text;
    known_id smallint;
    parent_dimension integer;
    new eo.encoder;
    new_id smallint;
begin
    if name is null or name collate "C" !~ '^[^:[:space:]]+$' then
        raise exception '"%" is no name for an encoder', name
            using errcode = 'invalid_parameter_value', hint = 'Give a name without spaces and colons: NAME:VERSION names a version.';
    end if;
    if octet_length(weights) > 500 * 1024 * 1024 then
        raise exception 'the weights of % have % MiB', name, octet_length(weights) / (1024 * 1024)
            using errcode = 'program_limit_exceeded', hint = 'pg_dump reads values of up to 500 MiB; weights in half precision take half the room.';
    end if;
    if architecture is null or bands is null or weights is null then
        raise exception 'architecture, bands and weights of % are needed', name
            using errcode = 'null_value_not_allowed', hint = 'Pass empty bands for a hash function.';
    end if;
    if (dimension is null) = (bits is null) then
        raise exception '% has % dimensions and % bits', name, coalesce(dimension::text, 'no'), coalesce(bits::text, 'no')
            using errcode = 'invalid_parameter_value', hint = 'Give the dimension of an encoder, or the bits of a hash function.';
    elsif dimension not between 1 and 16000 or bits not between 1 and 64000 or input_size < 1 or version < 1 then
        raise exception 'dimension is %, bits %, input_size %, version %', dimension, bits, input_size, version
            using errcode = 'invalid_parameter_value',
                  hint = 'A vector has 1 to 16,000 dimensions, a code 1 to 64,000 bits, an image and a version 1 or more.';
    elsif architecture <> all (architectures) then
        raise exception 'there is no architecture "%" of %', architecture, case when bits is null then 'encoders' else 'hash functions' end
            using errcode = 'invalid_parameter_value', hint = format('There are: %s.', array_to_string(architectures, ', '));
    elsif (cardinality(eo_internal.given_list(bands)) = 0) <> (bits is not null)
          or cardinality(bands) <> (select count(distinct band) from unnest(bands) as band where band <> '') then
        raise exception '% cannot have the bands %', name, bands
            using errcode = 'invalid_parameter_value', hint = 'Name each band of an encoder once, in its order. A hash function has none.';
    end if;
    if units is not null and not (units <@ array['reflectance10000', 'reflectance', 'decibels'] and cardinality(units) = cardinality(bands)) then
        raise exception '% are not the units of % bands', units, cardinality(bands)
            using errcode = 'invalid_parameter_value', hint = 'Give one of reflectance10000, reflectance and decibels for each band, or null where they are not known.';
    end if;
    sum_of_weights := encode(sha256(weights), 'hex');
    -- One at a time, so that two sessions registering the same encoder meet in the checks below and not in an error.
    perform pg_advisory_xact_lock('eo.encoder'::regclass::oid::bigint);
    select e.encoder_id into known_id
    from eo.encoder e
    where e.name = register_encoder.name and e.retired_at is null
      and (register_encoder.version is null or e.version = register_encoder.version)
      and (e.architecture, e.bands, e.input_size, e.normalisation, e.dimension, e.bits, e.weights_sha256, e.parent_id)
          is not distinct from
          (register_encoder.architecture, register_encoder.bands, register_encoder.input_size, register_encoder.normalisation,
           register_encoder.dimension, register_encoder.bits, sum_of_weights, register_encoder.parent_id)
      and (register_encoder.units is null or e.units = register_encoder.units)
    order by e.version desc
    limit 1;
    if found then
        return known_id;
    end if;
    if exists (select from eo.encoder e where e.name = register_encoder.name and e.version = register_encoder.version) then
        raise exception 'encoder %, version %, is stored with another definition or other weights, or was retired', name, version
            using errcode = 'unique_violation', hint = 'Register it under a new version: stored vectors belong to the old one.';
    end if;
    if exists (select from eo.encoder e where e.name = register_encoder.name and (e.bits is null) <> (register_encoder.bits is null)) then
        raise exception '% is the name of %', name, case when bits is null then 'a hash function' else 'an encoder' end
            using errcode = 'invalid_parameter_value', hint = 'Give it another name.';
    end if;
    select e.dimension into parent_dimension from eo.encoder e where e.encoder_id = register_encoder.parent_id and e.retired_at is null;
    if bits is not null and parent_dimension is null then
        raise exception 'encoder_id % is not an encoder in use', parent_id
            using errcode = 'invalid_parameter_value', hint = 'A hash function needs the encoder_id of the encoder whose vectors it reads.';
    end if;
    new.name := name;
    new.version := coalesce(version, 1 + coalesce((select max(e.version) from eo.encoder e where e.name = register_encoder.name), 0));
    new.architecture := architecture;
    new.bands := bands;
    new.input_size := input_size;
    new.normalisation := normalisation;
    new.units := units;
    new.dimension := dimension;
    new.bits := bits;
    new.weights := weights;
    new.weights_sha256 := sum_of_weights;
    new.parent_id := parent_id;
    new.training := training;
    -- Where there is no Python to read them, what encodes and hashes outside does so when it first uses them.
    if eo_internal.has_python() then
        perform eo_internal.check_encoder(new, parent_dimension);
    end if;
    insert into eo.encoder (name, version, architecture, bands, input_size, normalisation, units, dimension, bits, weights,
                            weights_sha256, parent_id, training)
    values (new.name, new.version, new.architecture, new.bands, new.input_size, new.normalisation, new.units, new.dimension, new.bits,
            new.weights, new.weights_sha256, new.parent_id, new.training)
    returning encoder_id into new_id;
    if dimension is not null then
        perform eo_internal.ensure_partition('eo.embedding', new_id);
        execute format('alter table eo_internal.%I add check (public.vector_dims(embedding) = %s)', 'embedding__' || new_id, dimension);
    end if;
    return new_id;
end
$$;
comment on function eo.register_encoder(text, integer, text, text[], bytea, integer, integer, smallint, integer, jsonb, jsonb, text[]) is
'Stores a version of an encoder (dimension given) or of a hash function over the encoder parent_id (bits given) and returns its encoder_id; registering the same again returns the same. version null: the next one; weights: safetensors, or an ONNX model; units: of each band. Raises invalid_parameter_value and invalid_binary_representation for what does not fit together. (writer)';

create or replace function eo_internal.version_id(encoder text)
returns smallint
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    found_id smallint;
    retired timestamptz;
begin
    select e.encoder_id, e.retired_at into found_id, retired
    from eo.encoder e
    where encoder = e.name || ':' || e.version;
    if not found then
        raise exception 'there is no version "%"', encoder
            using errcode = 'undefined_object', hint = 'Give the NAME:VERSION of an encoder or hash function; pgearth encoder list shows them.';
    end if;
    if retired is not null then
        raise exception '% was retired on %', encoder, retired::date
            using errcode = 'undefined_object', hint = 'Its vectors and codes are gone. Name another version; pgearth encoder list shows them.';
    end if;
    return found_id;
end
$$;

create or replace function eo_internal.encoder_id(encoder text, hashing boolean)
returns smallint
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    found_id smallint;
begin
    select e.encoder_id into found_id
    from eo.encoder e
    where (e.bits is not null) = hashing and e.retired_at is null
      and (encoder is null or encoder in (e.name, e.name || ':' || e.version))
    order by e.current_since desc nulls last, e.version desc, e.encoder_id desc
    limit 1;
    if found_id is null then
        if exists (select from eo.encoder e where encoder = e.name || ':' || e.version and e.retired_at is not null) then
            perform eo_internal.version_id(encoder);
        end if;
        raise exception 'there is no %', case when hashing then 'hash function' else 'encoder' end || coalesce(' "' || encoder || '"', '')
            using errcode = 'undefined_object',
                  hint = coalesce('Known: ' || (select string_agg(distinct e.name || ':' || e.version, ', ')
                                                from eo.encoder e
                                                where (e.bits is not null) = hashing and e.retired_at is null) || '.',
                                  'Run: pgearth encode');
    end if;
    return found_id;
end
$$;

create or replace function eo.make_current(encoder text)
returns void
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.version_id(encoder);
begin
    if not exists (select from eo.embedding e where e.encoder_id = used_encoder)
        and not exists (select from eo.patch_bucket pb where pb.encoder_id = used_encoder) then
        raise exception 'nothing is encoded with % yet', encoder
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run: pgearth encode --encoder ' || encoder;
    end if;
    update eo.encoder e set current_since = clock_timestamp() where e.encoder_id = used_encoder;
end
$$;
comment on function eo.make_current(text) is
'Makes a version of an encoder or hash function (name:version) the one that searches use where they name none, or its name only. pgearth encode does it once it has encoded the whole archive. Raises object_not_in_prerequisite_state where nothing is encoded with it. (writer)';

create or replace function eo.retire_encoder(encoder text)
returns bigint
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint;
    dependent text;
    substring_index regclass;
    removed bigint;
begin
    -- As in eo.register_encoder, so that no hash function is registered over it meanwhile.
    perform pg_advisory_xact_lock('eo.encoder'::regclass::oid::bigint);
    used_encoder := eo_internal.version_id(encoder);
    select string_agg(e.name || ':' || e.version, ', ' order by e.encoder_id) into dependent
    from eo.encoder e
    where e.parent_id = used_encoder and e.retired_at is null;
    if dependent is not null then
        raise exception '% is in use by %', encoder, dependent
            using errcode = 'dependent_objects_still_exist', hint = 'These hash functions read its vectors: retire them first.';
    end if;
    update eo.encoder e set retired_at = clock_timestamp() where e.encoder_id = used_encoder;
    delete from eo.patch_bucket pb where pb.encoder_id = used_encoder;
    get diagnostics removed = row_count;
    delete from eo.code_index i where i.encoder_id = used_encoder;
    delete from eo.bucket b where b.encoder_id = used_encoder;
    for substring_index in
        select i.indexrelid from pg_index i join pg_class c on c.oid = i.indexrelid
        where i.indrelid = 'eo.bucket'::regclass and starts_with(c.relname, format('bucket__%s__', used_encoder))
    loop
        execute format('drop index %s', substring_index);
    end loop;
    if eo_internal.has_python() then
        perform eo_internal.remove_packed_files(used_encoder);
    end if;
    if to_regclass(format('eo_internal.%I', 'embedding__' || used_encoder)) is not null then
        execute format('select count(*) from eo_internal.%I', 'embedding__' || used_encoder) into removed;
        execute format('drop table eo_internal.%I', 'embedding__' || used_encoder);
    end if;
    return removed;
end
$$;
comment on function eo.retire_encoder(text) is
'Retires a version of an encoder or hash function (name:version) for good: removes its vectors or codes with their indexes, and returns how many there were; its row stays. Raises dependent_objects_still_exist while a hash function reads its vectors. (writer)';
