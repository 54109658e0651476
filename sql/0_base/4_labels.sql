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

-- What each of the labels means, of every nomenclature that knows it by name or by synonym; scheme null means all but the
-- scene classes, which no patch has among its labels. A CORINE code needs no scheme, nor does another's where it is given.
create or replace function eo_internal.meant_labels(labels text[], scheme text)
returns table (number bigint, label_id smallint, understood text)
language sql
stable parallel safe
security invoker
rows 10
begin atomic
    with selected as (
        select l.name, lower(l.name collate "C") as folded, l.number from unnest(labels) with ordinality as l (name, number)
    ),
    meant as (
        select l.number, s.label_id, case when lower(e.name collate "C") = l.folded then 'name' else 'spelling' end as understood
        from selected l
        join eo.label_spelling s on lower(s.spelling collate "C") = l.folded
        join eo.label e on e.label_id = s.label_id
        union all
        select l.number, e.label_id, 'code'
        from selected l
        join eo.label e on e.scheme = split_part(l.folded, ':', 1) and e.code = split_part(l.folded, ':', 2)
        union all
        select l.number, e.label_id, 'code' from selected l join eo.label e on e.scheme = coalesce(meant_labels.scheme, 'clc') and e.code = l.name
        union all
        select l.number, s.label_id, 'synonym' from selected l join eo.label_synonym s on lower(s.synonym collate "C") = l.folded
    )
    select distinct on (m.number, m.label_id) m.number, m.label_id, m.understood
    from meant m
    join eo.label e on e.label_id = m.label_id and case when meant_labels.scheme is null then e.scheme <> 'scl' else e.scheme = meant_labels.scheme end
    order by m.number, m.label_id, array_position(array['name', 'spelling', 'code', 'synonym'], m.understood);
end;

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
    unknown text;
begin
    if labels is null then
        return null;
    end if;
    -- All at once, because a search may name many. With a class come those that lie in it, but with a synonym none of
    -- CORINE's that lie in a class of BigEarthNet's: lakes are among its inland waters, and so are rivers.
    with member as (
        select m.number, array_agg(distinct c.descendant_id order by c.descendant_id) as ids
        from eo_internal.meant_labels(labels, label_groups.scheme) m
        join eo.label_closure c on c.ancestor_id = m.label_id
        join eo.label ancestor on ancestor.label_id = c.ancestor_id
        join eo.label descendant on descendant.label_id = c.descendant_id
        where m.understood <> 'synonym' or ancestor.scheme in ('clc', descendant.scheme)
        group by m.number
    )
    select array_agg(case when m.ids is not null then row (m.ids)::eo_internal.label_group end order by l.number),
           (array_agg(l.name order by l.number) filter (where m.ids is null))[1]
    into groups, unknown
    from unnest(eo_internal.given_list(labels)) with ordinality as l (name, number)
    left join member m on m.number = l.number;
    if array_position(groups, null) is not null then
        raise exception 'there is no % "%"', case label_groups.scheme when 'scl' then 'scene class' else 'label' end, unknown
            using errcode = 'invalid_parameter_value',
                  hint = case
                      when label_groups.scheme is null and exists (select from eo_internal.meant_labels(array[unknown], 'scl'))
                          then 'It is a scene class: pass it as one of scene_classes.'
                      when label_groups.scheme = 'scl' and exists (select from eo_internal.meant_labels(array[unknown], null))
                          then 'It is a label: pass it as one of labels.'
                      else coalesce(
                          eo_internal.did_you_mean(unknown, array(
                              select named.name
                              from (select l.scheme, l.name from eo.label l union select s.scheme, s.synonym from eo.label_synonym s) named
                              where case when label_groups.scheme is null then named.scheme <> 'scl' else named.scheme = label_groups.scheme end)),
                          'Pass a name, a CORINE code, or scheme:code of eo.label.')
                  end;
    end if;
    return coalesce(groups, '{}');
end
$$;

-- All that is in one of the groups.
create or replace function eo_internal.label_ids(groups eo_internal.label_group[])
returns smallint[]
language plpgsql
immutable parallel safe strict
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    return array(select distinct m.id from unnest(groups) as g, unnest(g.member_ids) as m (id) order by m.id);
end
$$;

create or replace function eo.label_members(labels text[])
returns smallint[]
language sql
stable parallel safe strict
security invoker
begin atomic
    select eo_internal.label_ids(eo_internal.label_groups(labels));
end;
comment on function eo.label_members(text[]) is
'Ids of all labels that mean one of the given labels (names, synonyms, CORINE codes or scheme:code) or a descendant of one, as searches by label take them: eo.label_meaning shows what each means. Raises invalid_parameter_value for an unknown label.';

create or replace function eo.label_meaning(labels text[])
returns table (given text, scheme text, code text, name text, understood text)
language plpgsql
stable parallel safe strict
security invoker
rows 10
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    perform eo_internal.label_groups(labels);
    return query
        select selected.name, l.scheme, l.code, l.name, m.understood
        from eo_internal.meant_labels(labels, null) m
        join unnest(labels) with ordinality as selected (name, number) on selected.number = m.number
        join eo.label l on l.label_id = m.label_id
        order by m.number, m.label_id;
end
$$;
comment on function eo.label_meaning(text[]) is
'Which classes each of the given labels means in searches, and how it was understood: by its name, another spelling, its code, or as a synonym. Classes that lie in these are found with them: eo.label_members has them all. Raises invalid_parameter_value for an unknown label.';
