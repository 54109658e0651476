-- Collections: each role's own sets of patches, filled from the results of searches. Row-level security on the tables
-- keeps one role's from another; these functions run as their caller.

create or replace function eo_internal.own_collection(collection text)
returns bigint
language plpgsql
stable parallel safe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    found_id bigint;
begin
    select c.collection_id into found_id from eo.collection c where c.name = own_collection.collection and c.owner = current_user;
    if found_id is null then
        raise exception 'you have no collection "%"', collection
            using errcode = 'no_data_found',
                  hint = 'Make it with eo.create_collection; eo.collection lists those that you have.';
    end if;
    return found_id;
end
$$;

create or replace function eo.create_collection(name text, description text default null)
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    new_id bigint;
begin
    if name is null or length(name) > 200 or name collate "C" !~ '[^[:space:]]' then
        raise exception '"%" is no name for a collection', name
            using errcode = 'invalid_parameter_value', hint = 'Give a name of 1 to 200 characters that are not all blank.';
    end if;
    if exists (select from eo.collection c where c.name = create_collection.name and c.owner = current_user) then
        raise exception 'you have a collection "%" already', name
            using errcode = 'unique_violation', hint = 'Choose another name, or add to that one.';
    end if;
    insert into eo.collection (name, description) values (create_collection.name, create_collection.description)
    returning collection_id into new_id;
    return new_id;
end
$$;
comment on function eo.create_collection(text, text) is
'Makes an empty collection that belongs to the calling role and returns its collection_id. Raises invalid_parameter_value for a blank name or one of more than 200 characters, unique_violation when the role has one of this name.';

create or replace function eo.drop_collection(name text)
returns void
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    delete from eo.collection c where c.collection_id = eo_internal.own_collection(drop_collection.name);
end
$$;
comment on function eo.drop_collection(text) is
'Deletes a collection of the calling role; its patches stay in the archive.';

create or replace function eo.add_to_collection(collection text, patch_ids bigint[])
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    own_id bigint := eo_internal.own_collection(collection);
    cells text[] := eo_internal.cells_of(eo_internal.given_list(patch_ids));
    added bigint;
begin
    if array_position(cells, null) is not null then
        raise exception 'there is no patch %', patch_ids[array_position(cells, null)]
            using errcode = 'no_data_found', hint = 'Pass ids from eo.search or eo.similar.';
    end if;
    insert into eo.collection_patch (collection_id, patch_id, cell)
    select distinct own_id, given.patch_id, given.cell
    from unnest(patch_ids, cells) as given (patch_id, cell)
    on conflict do nothing;
    get diagnostics added = row_count;
    return added;
end
$$;
comment on function eo.add_to_collection(text, bigint[]) is
'Adds patches, such as array(select patch_id from eo.search(...)), to a collection of the calling role; returns how many were not in it. Raises no_data_found for an unknown collection or patch, and adds nothing then.';

create or replace function eo.remove_from_collection(collection text, patch_ids bigint[])
returns bigint
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    own_id bigint := eo_internal.own_collection(collection);
    removed bigint;
begin
    delete from eo.collection_patch cp where cp.collection_id = own_id and cp.patch_id = any (eo_internal.given_list(patch_ids));
    get diagnostics removed = row_count;
    return removed;
end
$$;
comment on function eo.remove_from_collection(text, bigint[]) is
'Removes patches from a collection of the calling role; returns how many were in it.';

create or replace function eo.collection_patches(collections text[])
returns table (
    patch_id bigint, name text, sensing_time timestamptz, season eo.season, platform text, labels text[], countries text[],
    cell text, source text, split text, seasonal_snow boolean, cloud_or_shadow boolean, product_id bigint,
    label_ids smallint[], footprint public.geometry
)
language plpgsql
stable parallel safe
security invoker
rows 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    own_ids bigint[] := array(select eo_internal.own_collection(wanted) from unnest(eo_internal.given_list(collections)) as wanted);
begin
    return query
        select *
        from eo.search(eo.filter(patch_ids => array(select cp.patch_id from eo.collection_patch cp where cp.collection_id = any (own_ids))),
                       max_results => null);
end
$$;
comment on function eo.collection_patches(text[]) is
'The patches of one or several collections of the calling role, each once, by patch_id, with the columns of eo.search: the list to export.';
