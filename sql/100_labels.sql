-- Labels by name or code, and which labels of patches they mean.
--
-- Case is folded by collation "C", for the database's own may fold I to another letter than i: that is enough, because every
-- spelling is ASCII.
--
-- The functions of eo_internal are declared immutable though they read the nomenclature, just as ST_Transform is though
-- it reads spatial_ref_sys. So the planner sees the ids themselves: it knows how many patches bear them, chooses its
-- index by that, and looks them up once. A `(select ...)` would be looked up once too, but would be to the planner
-- 0.5 % of the patches, whatever the labels. Ids of labels do not change; plans that other sessions keep over a new
-- `pgearth load nomenclature` hold the older descendants until they are made anew.

create or replace function eo_internal.label_members(selected text, scheme text)
returns smallint[]
language plpgsql
immutable parallel safe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    -- A name that several nomenclatures use means the classes of all of them.
    members smallint[] := array(
        select distinct c.descendant_id
        from (
            select s.label_id from eo.label_spelling s where lower(s.spelling collate "C") = lower(selected collate "C")
            union all
            select l.label_id from eo.label l
            where l.scheme = split_part(lower(selected collate "C"), ':', 1) and l.code = split_part(lower(selected collate "C"), ':', 2)
            union all
            select l.label_id from eo.label l where l.scheme = coalesce(label_members.scheme, 'clc') and l.code = selected
        ) meant
        join eo.label l on l.label_id = meant.label_id and (label_members.scheme is null or l.scheme = label_members.scheme)
        join eo.label_closure c on c.ancestor_id = l.label_id
        order by 1
    );
begin
    if cardinality(members) = 0 then
        raise exception 'there is no % "%"', case scheme when 'scl' then 'scene class' else 'label' end, selected
            using errcode = 'invalid_parameter_value',
                  hint = coalesce(
                      'Did you mean: ' || (
                          select string_agg(quote_ident(near.name), ', ')
                          from (select distinct l.name collate "C" as name, abs(length(l.name) - length(selected)) as difference
                                from eo.label l, regexp_split_to_table(lower(selected collate "C"), '[^[:alpha:]]+') as word
                                where (label_members.scheme is null or l.scheme = label_members.scheme)
                                  and length(word) > 2 and lower(l.name collate "C") ~ ('\m' || left(word, 3))
                                order by difference, 1
                                limit 5) near
                      ) || '?',
                      'Pass a name, a CORINE code, or scheme:code of eo.label.');
    end if;
    return members;
end
$$;

create or replace function eo_internal.label_groups(labels text[], scheme text default null)
returns eo_internal.label_group[]
language plpgsql
immutable parallel safe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    groups eo_internal.label_group[];
begin
    -- All at once, because a search may name many; label_members tells what is wrong with one that means nothing.
    with selected as (
        select l.name, l.number from unnest(labels) with ordinality as l (name, number)
    ),
    meant as (
        select l.number, s.label_id from selected l join eo.label_spelling s on lower(s.spelling collate "C") = lower(l.name collate "C")
        union all
        select l.number, e.label_id from selected l
        join eo.label e on e.scheme = split_part(lower(l.name collate "C"), ':', 1) and e.code = split_part(lower(l.name collate "C"), ':', 2)
        union all
        select l.number, e.label_id from selected l
        join eo.label e on e.scheme = coalesce(label_groups.scheme, 'clc') and e.code = l.name
    ),
    member as (
        select m.number, array_agg(distinct c.descendant_id order by c.descendant_id) as ids
        from meant m
        join eo.label e on e.label_id = m.label_id and (label_groups.scheme is null or e.scheme = label_groups.scheme)
        join eo.label_closure c on c.ancestor_id = m.label_id
        group by m.number
    )
    select coalesce(array_agg(row (member.ids)::eo_internal.label_group order by member.number), '{}') into groups from member;
    if cardinality(groups) < cardinality(labels) then
        perform eo_internal.label_members(l.name, label_groups.scheme) from unnest(labels) as l (name);
    end if;
    return groups;
end
$$;

create or replace function eo_internal.label_ids(labels text[], scheme text)
returns smallint[]
language plpgsql
immutable parallel safe
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    perform eo_internal.check_inlined();
    return array(
        select distinct m.id
        from unnest(eo_internal.label_groups(labels, label_ids.scheme)) as g, unnest(g.member_ids) as m (id)
        order by m.id
    );
end
$$;

create or replace function eo.label_members(labels text[])
returns smallint[]
language sql
stable parallel safe strict
security invoker
begin atomic
    select eo_internal.label_ids(labels, null);
end;
comment on function eo.label_members(text[]) is
'Ids of all labels that mean one of the given labels (names, CORINE codes or scheme:code) or a descendant of one. Raises invalid_parameter_value for an unknown label.';
