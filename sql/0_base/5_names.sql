-- What people type, turned into what the archive stores: countries, platforms, splits, sources, places. An unknown name is
-- an error, for a search would find nothing and not say why.
--
-- The functions that filters call are declared immutable for the reason that 4_labels.sql gives. Platforms and sources of
-- a user's own are looked for in the archive when no other is meant; plans kept since before they were stored do not exist,
-- for there the name was an error.

-- A null in a list would let all pass, or none, without a word.
create or replace function eo_internal.given_list(list anyarray)
returns anyarray
language plpgsql
immutable parallel safe strict
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if array_ndims(list) > 1 then
        raise exception 'a list has % dimensions: %', array_ndims(list), left(list::text, 100)
            using errcode = 'invalid_parameter_value', hint = 'Pass an array of one dimension.';
    elsif array_position(list, null) is not null then
        raise exception 'a list has a null: %', left(list::text, 100)
            using errcode = 'null_value_not_allowed',
                  hint = 'What should find it found nothing. Leave the null out of the list.';
    end if;
    return list;
end
$$;

-- A name without what people vary: case, accents, hyphens, apostrophes. The same in every locale: letters lose their
-- accents by Unicode's decomposition, and what it leaves of Latin, Greek and Cyrillic letters beyond ASCII is listed.
create or replace function eo_internal.folded_name(name text)
returns text
language sql
immutable parallel safe strict
security invoker
begin atomic
    select btrim(regexp_replace(
        replace(replace(replace(replace(
            lower(translate(
                regexp_replace(normalize(name, nfkd) collate "C", '[\u0300-\u036f]+' collate "C", '', 'g'),
                'ØøÐðĐđĦħŁłıÆŒÞΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣςΤΥΦΧΨΩАБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯІЄЈЉЊЋЂЏ',
                'OoDdDdHhLliæœþαβγδεζηθικλμνξοπρσστυφχψωабвгдежзиклмнопрстуфхцчшщъыьэюяієјљњћђџ'
            ) collate "C"),
            'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe'), 'þ', 'th') collate "C",
        '[^a-z0-9\u0080-\U0010ffff]+|[\u2010-\u201f]+' collate "C", ' ', 'g'));
end;

-- Groups of three letters, as pg_trgm has them.
create or replace function eo_internal.trigrams(name text)
returns text[]
language sql
immutable parallel safe strict
security invoker
begin atomic
    select array_agg(distinct substr('  ' || w.word || ' ', n.start, 3))
    from string_to_table(eo_internal.folded_name(name), ' ') as w (word), generate_series(1, length(w.word) + 1) as n (start);
end;

-- The nearest of the names that there are, as a hint, or null where none is near: those with two of the value's trigrams, and
-- with a third of them, most alike first.
create or replace function eo_internal.did_you_mean(value text, candidates text[])
returns text
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    wanted text[] := eo_internal.trigrams(left(value, 200));
begin
    return (
        select 'Did you mean: ' || string_agg(quote_ident(nearest.name), ', ' order by nearest.likeness desc, nearest.name) || '?'
        from (
            select near.name, near.shared::float8 / (cardinality(wanted) + near.trigrams - near.shared) as likeness
            from (
                select c.name collate "C" as name, cardinality(t.trigrams) as trigrams,
                       (select count(*) from unnest(t.trigrams) as one where one = any (wanted)) as shared
                from (
                    -- Of names that differ in case alone the one with capitals.
                    select min(u.name collate "C") as name from unnest(candidates) as u (name) group by eo_internal.folded_name(u.name)
                ) c
                cross join lateral (select eo_internal.trigrams(c.name)) as t (trigrams)
            ) near
            where near.shared >= 2 and 3 * near.shared >= cardinality(wanted)
            order by likeness desc, near.name
            limit 5
        ) nearest
    );
end
$$;

-- The country that a code or a name means; null where it is none.
create or replace function eo_internal.country_code(name text)
returns text
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    folded text := eo_internal.folded_name(name);
begin
    return coalesce(
        (select c.code from eo.country c where c.code = upper(folded collate "C")),
        (select c.code from eo.country c where c.alpha3 = upper(folded collate "C")),
        (select c.code from eo.country c where eo_internal.folded_name(c.name) = folded),
        (select n.code from eo.country_name n where eo_internal.folded_name(n.name) = folded limit 1)
    );
end
$$;

create or replace function eo_internal.country_codes(countries text[])
returns text[]
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    country text;
    codes text[] := '{}';
begin
    foreach country in array eo_internal.given_list(countries) loop
        codes := codes || eo_internal.country_code(country);
        if codes[cardinality(codes)] is null then
            raise exception 'there is no country "%"', country
                using errcode = 'invalid_parameter_value',
                      hint = coalesce(
                          eo_internal.did_you_mean(country, array(select c.name from eo.country c union select n.name from eo.country_name n)),
                          'Pass a code of ISO 3166-1, such as DE or DEU, or a name: see eo.country and eo.country_name.');
        end if;
    end loop;
    return array(select distinct c.code collate "C" from unnest(codes) as c (code) order by 1);
end
$$;

-- What loaders store, and names of it without case, spaces and hyphens. A mission means all of its satellites.
create or replace function eo_internal.known_values()
returns table (attribute text, value text, names text[])
language sql
immutable parallel safe
security invoker
rows 40
begin atomic
    select known.attribute, known.value, known.names
    from (values
        ('platform', 'sentinel-1', '{sentinel1,s1}'::text[]),
        ('platform', 'sentinel-1a', '{sentinel1a,s1a,sentinel1,s1}'),
        ('platform', 'sentinel-1b', '{sentinel1b,s1b,sentinel1,s1}'),
        ('platform', 'sentinel-1c', '{sentinel1c,s1c,sentinel1,s1}'),
        ('platform', 'sentinel-1d', '{sentinel1d,s1d,sentinel1,s1}'),
        ('platform', 'sentinel-2', '{sentinel2,s2}'),
        ('platform', 'sentinel-2a', '{sentinel2a,s2a,sentinel2,s2}'),
        ('platform', 'sentinel-2b', '{sentinel2b,s2b,sentinel2,s2}'),
        ('platform', 'sentinel-2c', '{sentinel2c,s2c,sentinel2,s2}'),
        ('platform', 'sentinel-2d', '{sentinel2d,s2d,sentinel2,s2}'),
        ('platform', 'landsat-4', '{landsat4,l4,lt04,lt4,landsat}'),
        ('platform', 'landsat-5', '{landsat5,l5,lt05,lt5,landsat}'),
        ('platform', 'landsat-7', '{landsat7,l7,le07,le7,landsat}'),
        ('platform', 'landsat-8', '{landsat8,l8,lc08,lc8,lo08,landsat}'),
        ('platform', 'landsat-9', '{landsat9,l9,lc09,lc9,lo09,landsat}'),
        ('platform', 'terra', '{terra,modis,mod}'),
        ('platform', 'aqua', '{aqua,modis,myd}'),
        ('platform', 'terra+aqua', '{terraaqua,modis,mcd}'),
        ('level', 'L1C', '{l1c,level1c}'),
        ('level', 'L2A', '{l2a,level2a}'),
        ('level', 'GRD', '{grd}'),
        ('level', 'L1TP', '{l1tp}'),
        ('level', 'L1GT', '{l1gt}'),
        ('level', 'L1GS', '{l1gs}'),
        ('level', 'L2SP', '{l2sp}'),
        ('level', 'L2SR', '{l2sr}'),
        ('level', 'L3', '{l3,level3}'),
        ('source', 'bigearthnet-v1', '{bigearthnetv1,bigearthnet1,benv1,bigearthnet,ben}'),
        ('source', 'bigearthnet-v2', '{bigearthnetv2,bigearthnet2,benv2,rebigearthnet,reben,bigearthnet,ben}'),
        ('source', 'product', '{product,products}'),
        ('source', 'synthetic', '{synthetic}'),
        ('source', 'corine-grid', '{corinegrid}'),
        ('split', 'train', '{train,training}'),
        ('split', 'validation', '{validation,val,valid,validate,dev,development}'),
        ('split', 'test', '{test,testing}'),
        ('season', 'winter', '{winter}'),
        ('season', 'spring', '{spring}'),
        ('season', 'summer', '{summer}'),
        ('season', 'autumn', '{autumn,fall}')
    ) as known (attribute, value, names);
end;

-- Values of a column of eo.patch that are frequent, as the last ANALYZE found them.
create or replace function eo_internal.frequent_values(attribute text)
returns text[]
language sql
stable parallel safe strict
security invoker
begin atomic
    select coalesce(array_agg(distinct v.value), '{}')
    from pg_stats s, unnest(s.most_common_vals::text::text[]) as v (value)
    where s.schemaname = 'eo' and s.tablename = 'patch' and s.attname = attribute;
end;

-- Whether a user's own platform, level or source is in the archive: among the products and the frequent ones of patches, or else,
-- for one that is rare or new, by reading all patches.
create or replace function eo_internal.is_stored(attribute text, value text)
returns boolean
language plpgsql
stable parallel safe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    case attribute
        when 'platform' then
            return exists (select from eo.product p where p.platform = value)
                or value = any (eo_internal.frequent_values(attribute))
                or exists (select from eo.patch p where p.platform = value);
        when 'level' then
            return exists (select from eo.product p where p.level = value);
        when 'source' then
            return value = any (eo_internal.frequent_values(attribute))
                or exists (select from eo.patch p where p.source = value);
        else
            return false;
    end case;
end
$$;

-- What the given names mean of an attribute of patches or products: platform, level, source, split or season.
create or replace function eo_internal.values_meant(attribute text, given text[])
returns text[]
language plpgsql
immutable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    name text;
    meant text[];
    found_values text[] := '{}';
begin
    foreach name in array eo_internal.given_list(given) loop
        meant := array(
            select k.value from eo_internal.known_values() k
            where k.attribute = values_meant.attribute and replace(eo_internal.folded_name(name), ' ', '') = any (k.names));
        if meant = '{}' and eo_internal.is_stored(attribute, name) then
            meant := array[name];
        end if;
        if meant = '{}' then
            meant := array(
                select k.value collate "C" from eo_internal.known_values() k where k.attribute = values_meant.attribute
                union
                select v.value from unnest(eo_internal.frequent_values(attribute)) as v (value)
                order by 1);
            raise exception 'there is no % "%"', attribute, name
                using errcode = 'invalid_parameter_value',
                      hint = coalesce(eo_internal.did_you_mean(name, meant), 'Pass one of: ' || array_to_string(meant, ', ') || '.');
        end if;
        found_values := found_values || meant;
    end loop;
    return array(select distinct f.value collate "C" from unnest(found_values) as f (value) order by 1);
end
$$;

-- The one source that a name means, for what is done to patches of one.
create or replace function eo_internal.source_meant(source text)
returns text
language plpgsql
stable parallel safe strict
security invoker
cost 10000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    meant text[] := eo_internal.values_meant('source', array[source]);
begin
    if cardinality(meant) > 1 then
        raise exception '"%" means several sources', source
            using errcode = 'invalid_parameter_value', hint = 'Pass one of: ' || array_to_string(meant, ', ') || '.';
    end if;
    return meant[1];
end
$$;

-- Tiles of MGRS as products have them: T33UUP and 33uup are 33UUP, too.
create or replace function eo_internal.tiles_meant(tiles text[])
returns text[]
language plpgsql
immutable parallel safe strict
security invoker
cost 1000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    tile text;
    parts text[];
    meant text[] := '{}';
begin
    foreach tile in array eo_internal.given_list(tiles) loop
        parts := regexp_match(upper(btrim(tile) collate "C"), '^T?(0?[1-9]|[1-5][0-9]|60)([C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])$');
        if parts is null then
            raise exception '"%" is no tile of MGRS', tile
                using errcode = 'invalid_parameter_value',
                      hint = 'A tile has a zone of two digits, 01 to 60, a letter of a band and two of a square, such as 33UUP.';
        end if;
        meant := meant || (lpad(parts[1], 2, '0') || parts[2]);
    end loop;
    return meant;
end
$$;

-- The names that a unit of NUTS is found by: its name, each of several languages, without "Prov." and the country in
-- brackets, with umlauts written out.
create or replace function eo_internal.names_of_place(name text)
returns setof text
language sql
immutable parallel safe
security invoker
rows 2
begin atomic
    select eo_internal.folded_name(spelling.text)
    from string_to_table(
        concat_ws(
            '/', name,
            case when position('/' in name) > 0 then replace(name, '/', ' ') end,
            case when name collate "C" ~ '^Prov\. | \([A-Z]{2}\)$' then regexp_replace(name collate "C", '^Prov\. | \([A-Z]{2}\)$' collate "C", '', 'g') end,
            case when name collate "C" ~ '[äöüÄÖÜ]' then
                replace(replace(replace(replace(replace(replace(name, 'ä', 'ae'), 'ö', 'oe'), 'ü', 'ue'), 'Ä', 'Ae'), 'Ö', 'Oe'), 'Ü', 'Ue')
            end
        ),
        '/'
    ) as spelling (text);
end;

-- Immutable for the reason that 4_labels.sql tells: so that the planner knows the area and an index finds the patches.
create or replace function eo.place(name text)
returns public.geometry
language plpgsql
immutable parallel safe strict
security invoker
cost 100000
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    folded text := eo_internal.folded_name(name);
    country text := eo_internal.country_code(name);
    names text[];
    ids text[];
begin
    if not exists (select from eo.nuts) then
        raise exception 'there is no place "%": the archive has no units of NUTS', name
            using errcode = 'object_not_in_prerequisite_state', hint = 'Load them: pgearth load nuts FILE';
    end if;
    ids := array(select n.nuts_id from eo.nuts n where n.nuts_id = upper(btrim(place.name) collate "C"));
    if ids = '{}' then
        ids := array(select n.nuts_id from eo.nuts n where n.level = 0 and n.country_code = country);
    end if;
    if ids = '{}' then
        -- A country of its own in ISO 3166-1 may be a place of another in NUTS, as Guadeloupe is.
        names := folded || array(
            select eo_internal.folded_name(p.name) from eo.place_name p where eo_internal.folded_name(p.english_name) = folded
            union
            select eo_internal.folded_name(c.name) from eo.country c where c.code = country
            union
            select eo_internal.folded_name(n.name) from eo.country_name n where n.code = country);
        ids := array(
            select n.nuts_id
            from eo.nuts n
            where exists (select from eo_internal.names_of_place(n.name) as own where own = any (names))
            order by n.level, n.nuts_id collate "C");
    end if;
    if ids = '{}' then
        raise exception 'there is no place "%"', name
            using errcode = 'invalid_parameter_value',
                  hint = case
                      when country is not null then 'The units of NUTS that are loaded have no such country.'
                      else coalesce(
                          eo_internal.did_you_mean(name, array(
                              select n.name from eo.nuts n
                              union
                              select p.english_name from eo.place_name p
                              union
                              select c.name from eo.country c where c.code in (select n.country_code from eo.nuts n where n.level = 0))),
                          'Pass the id or the name of a unit of NUTS: select nuts_id, name from eo.nuts.')
                  end;
    end if;
    -- Units of different levels may be the same place, as Berlin is; others of one name are not.
    if exists (select from unnest(ids) as i (id) where not starts_with(i.id, ids[1])) then
        raise exception 'there are several places "%": %', name, array_to_string(ids, ', ')
            using errcode = 'invalid_parameter_value',
                  hint = 'Pass the id of one of them, such as ' || ids[1] || ': select nuts_id, level, name from eo.nuts.';
    end if;
    return (select n.geom from eo.nuts n where n.nuts_id = ids[1]);
end
$$;
comment on function eo.place(text) is
'A unit of NUTS as an area to search, a MultiPolygon in EPSG:4326: by its id (DE2), its name (Bayern) or its English name (Bavaria), or a country by any name or code. Raises invalid_parameter_value for an unknown name and for one of several places, object_not_in_prerequisite_state where NUTS is not loaded.';
