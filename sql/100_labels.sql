-- Labels by name or code, and what it means that a patch matches selected labels.

create or replace function eo_internal.label_groups(labels text[])
returns eo_internal.label_group[]
language plpgsql
stable parallel safe strict
security invoker
set search_path = eo, public, pg_temp
as $$
declare
    selected text;
    members smallint[];
    groups eo_internal.label_group[] := '{}';
begin
    foreach selected in array labels loop
        -- A name that several nomenclatures use means the classes of all of them.
        members := array(
            select distinct c.descendant_id
            from eo.label l
            join eo.label_closure c on c.ancestor_id = l.label_id
            where l.scheme || ':' || l.code = lower(selected)
               or l.scheme = 'clc' and l.code = selected
               or l.label_id in (select s.label_id from eo.label_spelling s where lower(s.spelling) = lower(selected))
            order by 1
        );
        if cardinality(members) = 0 then
            raise exception 'there is no label "%"', selected
                using errcode = 'invalid_parameter_value',
                      hint = coalesce(
                          'Did you mean: ' || (
                              select string_agg(quote_ident(near.name), ', ')
                              from (select distinct l.name, abs(length(l.name) - length(selected)) as difference
                                    from eo.label l, regexp_split_to_table(lower(selected), '[^[:alpha:]]+') as word
                                    where length(word) > 2 and lower(l.name) ~ ('\m' || left(word, 3))
                                    order by difference, l.name
                                    limit 5) near
                          ) || '?',
                          'Pass a name, a CORINE code, or scheme:code of eo.label.');
        end if;
        groups := groups || row (members)::eo_internal.label_group;
    end loop;
    return groups;
end
$$;

create or replace function eo.label_members(labels text[])
returns smallint[]
language sql
stable parallel safe strict
security invoker
begin atomic
    select array_agg(distinct m.id order by m.id)
    from unnest(eo_internal.label_groups(labels)) as g, unnest(g.member_ids) as m (id);
end;
comment on function eo.label_members(text[]) is
'Ids of all labels that mean one of the given labels (names, CORINE codes or scheme:code) or a descendant of one. Raises invalid_parameter_value for an unknown label.';

create or replace function eo_internal.all_labels_match(
    label_ids smallint[],
    groups eo_internal.label_group[],
    and_no_others boolean
)
returns boolean
language sql
immutable parallel safe
security invoker
begin atomic
    select not exists (select from unnest(groups) g where not g.member_ids && label_ids)
           and not (and_no_others
                    and exists (select from unnest(label_ids) as l (id)
                                where not exists (select from unnest(groups) g where l.id = any (g.member_ids))));
end;
