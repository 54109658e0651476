-- Ownership and privileges of everything in our schemas, re-run by every migration: DROP and CREATE of a function
-- gives PUBLIC its EXECUTE back, so nothing relies on an earlier run.
--
--   eo_reader  reads tables and views of schema eo, calls its functions, keeps collections of its own
--   eo_writer  also loads, annotates and encodes: writes tables, calls the functions whose COMMENT ends in "(writer)"
--   eo_owner   owns every object; functions of eo that need PL/Python run as eo_owner (security definer)
--
-- All of it, also what revisions made and granted once: a dump that was restored without the roles has none of it.
do $$
declare
    thing record;
begin
    for thing in
        select n.nspname as name
        from pg_namespace n
        where n.nspname in ('eo', 'eo_internal', 'eo_layers') and n.nspowner <> 'eo_owner'::regrole
    loop
        execute format('alter schema %I owner to eo_owner', thing.name);
    end loop;
    -- The schema-level form has no effect on functions; the global one has.
    alter default privileges for role eo_owner revoke execute on functions from public;
    for thing in
        select c.oid::regclass as name, c.relkind
        from pg_class c
        where c.relnamespace in ('eo'::regnamespace, 'eo_internal'::regnamespace, 'eo_layers'::regnamespace)
          and c.relkind in ('r', 'p', 'v', 'm')
          and c.relowner <> 'eo_owner'::regrole
    loop
        execute format('alter %s %s owner to eo_owner',
                       case thing.relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end,
                       thing.name);
    end loop;
    for thing in
        select t.oid::regtype as name
        from pg_type t
        where t.typnamespace in ('eo'::regnamespace, 'eo_internal'::regnamespace)
          and t.typowner <> 'eo_owner'::regrole
          and (t.typtype in ('e', 'd')
               or t.typtype = 'c' and (select relkind from pg_class where oid = t.typrelid) = 'c')
    loop
        execute format('alter type %s owner to eo_owner', thing.name);
    end loop;
    for thing in
        select p.oid::regprocedure as name
        from pg_proc p
        where p.pronamespace in ('eo'::regnamespace, 'eo_internal'::regnamespace)
          and p.proowner <> 'eo_owner'::regrole
    loop
        execute format('alter routine %s owner to eo_owner', thing.name);
    end loop;
end
$$;

revoke all on all tables in schema eo, eo_internal from public, eo_reader, eo_writer;
revoke all on all sequences in schema eo, eo_internal from public, eo_reader, eo_writer;
revoke all on all routines in schema eo, eo_internal from public, eo_reader, eo_writer;

grant usage on schema eo, eo_internal to eo_reader;
grant select on all tables in schema eo to eo_reader;
grant insert, update, delete on all tables in schema eo to eo_writer;
-- What proves that packed files serve is left to the functions that pack.
revoke insert, update, delete on eo.code_index from eo_writer;
grant usage on all sequences in schema eo to eo_writer;
-- Row-level security leaves readers only their own rows of these.
grant insert, update, delete on eo.collection, eo.collection_patch, eo.feedback to eo_reader;
grant usage on sequence eo.collection_collection_id_seq, eo.feedback_feedback_id_seq to eo_reader;

-- What functions that run as their caller read. Writers remove pieces with their polygons; functions make them.
grant select on eo_internal.corine_part, eo_internal.nuts_part, eo_internal.patch_change to eo_reader;
grant delete on eo_internal.corine_part, eo_internal.nuts_part to eo_writer;
do $$
declare
    thing record;
begin
    for thing in
        select c.oid::regclass as name
        from pg_class c
        where c.relnamespace = 'eo_internal'::regnamespace and c.relkind in ('r', 'p') and c.relispartition
    loop
        execute format('grant select on %s to eo_reader', thing.name);
    end loop;
end
$$;

grant usage on schema eo_layers to eo_reader;
grant select on all tables in schema eo_layers to eo_reader;
do $$
begin
    -- Somebody else's table, where QGIS made it: whoever made it grants it.
    if (select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = 'public.layer_styles'::regclass) then
        grant select on public.layer_styles to eo_reader;
        grant insert, update, delete on public.layer_styles to eo_writer;
        execute format('grant usage on sequence %s to eo_writer', pg_get_serial_sequence('public.layer_styles', 'id'));
    end if;
end
$$;

-- Functions of eo by their COMMENT. Helpers of eo_internal run as the caller of a function of eo, so the caller needs
-- them: readers those that only read, writers also those that write. PL/Python helpers, and security definer ones that
-- write, are left to eo_owner, as which the functions that use them run.
do $$
declare
    thing record;
begin
    for thing in
        select p.oid::regprocedure as name,
               case
                   when p.pronamespace = 'eo'::regnamespace
                       then case when obj_description(p.oid, 'pg_proc') like '%(writer)' then 'eo_writer' else 'eo_reader' end
                   when p.provolatile = 'v' then 'eo_writer'
                   else 'eo_reader'
               end as grantee
        from pg_proc p
        join pg_language l on l.oid = p.prolang
        where p.pronamespace = 'eo'::regnamespace
           or p.pronamespace = 'eo_internal'::regnamespace and l.lanname <> 'plpython3u'
              and not (p.prosecdef and p.provolatile = 'v')
    loop
        execute format('grant execute on routine %s to %I', thing.name, thing.grantee);
    end loop;
end
$$;
