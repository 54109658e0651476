-- Vectors of patches and of uploaded images.

create or replace function eo.encode(patch_ids bigint[], encoder text default null)
returns table (patch_id bigint, embedding public.vector)
language plpgsql
stable parallel unsafe
security definer
rows 64 cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    at_once constant bigint := 64 * 12 * 120 * 120;
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    cells text[];
    missing bigint;
    start_number integer := 1;
    batch integer;
    largest bigint;
begin
    perform eo_internal.require_python();
    cells := eo_internal.cells_of(eo_internal.given_list(patch_ids));
    select wanted.id into missing
    from unnest(patch_ids, cells) as wanted (id, cell)
    where not exists (select from eo.patch_raster r where r.patch_id = wanted.id and r.cell = wanted.cell)
    limit 1;
    if found then
        raise exception 'patch % has no pixels', missing
            using errcode = 'no_data_found', hint = 'Only patches with rows in eo.patch_raster can be encoded.';
    end if;
    -- Batches keep the arrays small (DESIGN.md section 4) and let the query be cancelled between them. Of patches that are
    -- larger than BigEarthNet's there are fewer in one.
    while start_number <= coalesce(cardinality(patch_ids), 0) loop
        select max(sized.pixels) into largest
        from (
            select max(public.ST_Width(r.rast))::bigint * max(public.ST_Height(r.rast)) * sum(public.ST_NumBands(r.rast)) as pixels
            from unnest(patch_ids[start_number:start_number + 63], cells[start_number:start_number + 63])
                with ordinality as wanted (id, cell, number)
            join eo.patch_raster r on r.patch_id = wanted.id and r.cell = wanted.cell
            group by wanted.number
        ) sized;
        perform eo_internal.check_image_pixels(largest, 'a patch');
        batch := least(64, greatest(1, at_once / largest));
        return query
            select patch_ids[start_number - 1 + e.number], e.embedding
            from (
                -- The coarsest first: of a band in several resolutions the last is taken.
                select array_agg(wanted.number::integer order by wanted.number, r.resolution desc) as numbers,
                       array_agg(array_to_string(r.bands, ',') order by wanted.number, r.resolution desc) as bands,
                       array_agg(public.ST_AsWKB(r.rast, true) order by wanted.number, r.resolution desc) as rasters
                from unnest(patch_ids[start_number:start_number + batch - 1], cells[start_number:start_number + batch - 1])
                    with ordinality as wanted (id, cell, number)
                join eo.patch_raster r on r.patch_id = wanted.id and r.cell = wanted.cell
            ) input,
            eo_internal.encode(used_encoder, input.numbers, input.bands, input.rasters) with ordinality as e (embedding, failure, number);
        start_number := start_number + batch;
    end loop;
end
$$;
comment on function eo.encode(bigint[], text) is
'Vectors of stored patches under an encoder (a name or name:version; null: the current one), in the order of patch_ids. The same numbers as pgearth encode stores. Raises no_data_found for a patch without pixels.';


create or replace function eo.encode(rasters public.raster[], encoder text default null)
returns public.vector
language plpgsql
stable parallel unsafe
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    used_encoder smallint := eo_internal.encoder_id(encoder, false);
    wanted text[] := (select e.bands from eo.encoder e where e.encoder_id = used_encoder);
    given integer := (select sum(public.ST_NumBands(r)) from unnest(rasters) as r);
begin
    perform eo_internal.require_python();
    if array_position(rasters, null) is not null then
        raise exception 'raster % is null', array_position(rasters, null)
            using errcode = 'null_value_not_allowed', hint = 'Leave out rasters that are not there; those given have all bands of the encoder together.';
    end if;
    if given is distinct from cardinality(wanted) then
        raise exception 'the rasters have % bands, but the encoder reads %', coalesce(given, 0), cardinality(wanted)
            using errcode = 'invalid_parameter_value',
                  hint = 'Pass rasters whose bands are, in this order: ' || array_to_string(wanted, ', ') || '.';
    end if;
    -- By their headers, on the grid of the finest, which encoders may bring the others to.
    perform eo_internal.check_image_pixels(max(public.ST_Width(r))::bigint * max(public.ST_Height(r)) * sum(public.ST_NumBands(r)), 'the image')
    from unnest(rasters) as r;
    return (
        select (eo_internal.encode_rasters(used_encoder, input.bands, input.rasters)).embedding
        from (
            select array_agg(public.ST_AsWKB(rast, true) order by number) as rasters,
                   array_agg(array_to_string(wanted[first_band:first_band + public.ST_NumBands(rast) - 1], ',') order by number) as bands
            from (
                select rast, number, 1 + coalesce(sum(public.ST_NumBands(rast)) over (order by number rows between unbounded preceding and 1 preceding), 0)::integer as first_band
                from unnest(encode.rasters) with ordinality as r (rast, number)
            ) placed
        ) input
    );
end
$$;
comment on function eo.encode(public.raster[], text) is
'Vector of one image given as rasters (of one or several resolutions) whose bands, taken together, are those of the encoder in its order, in its units (eo.encoder.units). Raises numeric_value_out_of_range for numbers of other units, program_limit_exceeded beyond pgearth.max_image_pixels.';

create or replace function eo_internal.check_image(image bytea, bands text[])
returns void
language plpgsql
immutable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if image is null then
        raise exception 'no image was given' using errcode = 'null_value_not_allowed', hint = 'Pass the bytes of a GeoTIFF.';
    end if;
    perform eo_internal.given_list(bands);
end
$$;

create or replace function eo.encode_image(image bytea, encoder text default null, bands text[] default null)
returns public.vector
language plpgsql
stable parallel unsafe
security definer
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    perform eo_internal.require_python();
    perform eo_internal.check_image(image, bands);
    return (eo_internal.encode_image(eo_internal.encoder_id(encoder, false), image, bands)).embedding;
end
$$;
comment on function eo.encode_image(bytea, text, text[]) is
'Vector of an uploaded GeoTIFF, whose bands are found by their descriptions, or named by bands in the order of the file, in the encoder''s units (eo.encoder.units) or with scale and offset: docs/limits.md. Raises numeric_value_out_of_range for numbers of other units, program_limit_exceeded beyond pgearth.max_image_pixels.';
