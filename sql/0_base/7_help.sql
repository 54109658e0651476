-- Help for who opens the archive for the first time: what there is, topic by topic, each with a statement to try.

-- In the order in which they are shown, and in which the statements run one after the other: some use what those above
-- them made. Functions of one name have their first argument beside it. Null: the first rows of a view.
create or replace function eo_internal.examples()
returns table (topic text, name text, example text)
language sql
immutable parallel safe
security invoker
rows 100
begin atomic
    select * from (values
    ('search', 'search', $$select * from eo.search(eo.filter(labels => '{Inland waters}'));$$),
    ('search', 'filter(area)', $$select * from eo.search(eo.filter(countries => '{FI,IE}', from_time => '2017-06-01'));$$),
    ('search', 'filter(document)', $$select * from eo.search(eo.filter('{"labels": ["Inland waters"]}'::jsonb));$$),
    ('search', 'patches', $$select name, srid, metadata from eo.patches(eo.filter(seasons => '{summer}')) limit 10;$$),
    ('search', 'count_patches', $$select eo.count_patches(eo.filter(labels => '{Inland waters}'));$$),
    ('search', 'patch_statistics', $$select * from eo.patch_statistics('season');$$),

    ('areas', 'circle', $$select * from eo.search(eo.filter(area => eo.circle('SRID=4326;POINT(-8 53)', 200000)));$$),
    ('areas', 'rectangle', $$select * from eo.search(eo.filter(area => eo.rectangle(-11, 51, -5, 56)));$$),
    ('areas', 'place', $$select name from eo.search(eo.filter(area => eo.place('Ireland')));$$),
    ('areas', 'cells', $$select cell from eo.cells(eo.rectangle(-11, 51, -5, 56), 3);$$),
    ('areas', 'cell_of', $$select eo.cell_of('SRID=4326;POINT(24.9 60.2)');$$),
    ('areas', 'cell_box', $$select eo.cell_box('ud9wr');$$),
    ('areas', 'cell_neighbours', $$select eo.cell_neighbours('ud9wr');$$),

    ('labels', 'label_statistics', $$select * from eo.label_statistics(eo.filter(countries => '{IE}'));$$),
    ('labels', 'label_meaning', $$select * from eo.label_meaning('{forest,lake}');$$),
    ('labels', 'label_members', $$select name from eo.label where label_id = any (eo.label_members('{Forests}'));$$),

    ('products', 'select_products', $$select * from eo.select_products(eo.product_filter(max_cloud => 50));$$),
    ('products', 'product_filter', $$select * from eo.product_statistics(eo.product_filter(platforms => '{sentinel-2a}'));$$),
    ('products', 'product_statistics', $$select * from eo.product_statistics();$$),

    ('similar', 'similar', $$select * from eo.similar('S2A_MSIL2A_20170613T101031_87_48');$$),
    ('similar', 'similar_to_examples', $$select * from eo.similar_to_examples('{S2A_MSIL2A_20170617T113321_36_85,S2A_MSIL2A_20170617T113321_4_55}');$$),
    ('similar', 'similar_to_image', $$\set image `base64 -w0 patch.tif`
select * from eo.similar_to_image(decode(:'image', 'base64'));$$),
    ('similar', 'similar_to_vector', $$select * from eo.similar_to_vector(eo.example_vector('{S2A_MSIL2A_20170613T101031_87_48}'));$$),
    ('similar', 'example_vector', $$select eo.example_vector('{S2A_MSIL2A_20170617T113321_36_85}', '{S2A_MSIL2A_20171221T112501_56_35}');$$),
    ('similar', 'similar_to_code', $$select * from eo.similar_to_code(eo.hash(eo.example_vector('{S2A_MSIL2A_20170613T101031_87_48}')));$$),
    ('similar', 'explain_similarity', $$select * from eo.explain_similarity('S2A_MSIL2A_20170617T113321_36_85', 'S2A_MSIL2A_20170617T113321_4_55');$$),

    ('segments', 'similar_segments', $$select * from eo.similar_segments('S2A_MSIL2A_20170613T101031_87_48');$$),
    ('segments', 'segment_codes', $$\set image `base64 -w0 patch.tif`
select eo.segment_codes(decode(:'image', 'base64'));$$),
    ('segments', 'similar_to_segments', $$\set image `base64 -w0 patch.tif`
select * from eo.similar_to_segments(eo.segment_codes(decode(:'image', 'base64')));$$),
    ('segments', 'drop_segment_codes', $$select eo.drop_segment_codes('lsh');$$),

    ('change', 'change', null),
    ('change', 'similar_change', $$select * from eo.similar_change('S2A_MSIL2A_20170617T113321_36_85', 'S2A_MSIL2A_20170617T113321_4_55');$$),

    ('hash codes', 'hash', $$select eo.hash(eo.example_vector('{S2A_MSIL2A_20170613T101031_87_48}'));$$),
    ('hash codes', 'within_distance', $$select * from eo.within_distance(eo.hash(eo.example_vector('{S2A_MSIL2A_20170613T101031_87_48}')), 20);$$),
    ('hash codes', 'bucket_members', $$select * from eo.bucket_members(eo.hash(eo.example_vector('{S2A_MSIL2A_20170613T101031_87_48}')));$$),
    ('hash codes', 'buckets_within', $$select * from eo.buckets_within(eo.hash(eo.example_vector('{S2A_MSIL2A_20170613T101031_87_48}')), 20);$$),
    ('hash codes', 'code_statistics', $$select * from eo.code_statistics();$$),
    ('hash codes', 'build_code_index', $$select eo.build_code_index();$$),
    ('hash codes', 'build_plain_code_index', $$select eo.build_plain_code_index();$$),
    ('hash codes', 'store_codes', $$select eo.store_codes(encoder_id, array[patch_id], '{0}', array[code]) from eo.patch_bucket join eo.bucket using (encoder_id, bucket_no) where segment = 0 limit 1;$$),

    ('encoders', 'encode(patch_ids)', $$select * from eo.encode(array(select patch_id from eo.search(eo.filter(names => '{S2A_MSIL2A_20170613T101031_87_48}'))));$$),
    ('encoders', 'encode(rasters)', $$select eo.encode(array(select rast from eo.patch_raster join eo.patch using (patch_id, cell) where name = 'S2A_MSIL2A_20170613T101031_87_48'));$$),
    ('encoders', 'encode_image', $$\set image `base64 -w0 patch.tif`
select eo.encode_image(decode(:'image', 'base64'));$$),
    ('encoders', 'build_vector_index', $$select eo.build_vector_index();$$),
    ('encoders', 'make_current', $$select eo.make_current('spectral:1');$$),
    ('encoders', 'register_encoder', $$select eo.register_encoder('copy', 1, architecture, bands, weights, dimension) from eo.encoder where name = 'spectral';$$),
    ('encoders', 'retire_encoder', $$select eo.retire_encoder('copy:1');$$),

    ('evaluation', 'retrieval_metrics', $$select * from eo.retrieval_metrics('lsh', k => 5);$$),
    ('evaluation', 'evaluate', $$select eo.evaluate('lsh', k => 5);$$),

    ('annotation', 'reference_map', $$select st_summary(eo.reference_map('S2A_MSIL2A_20170613T101031_87_48'));$$),
    ('annotation', 'unannotated_cells', $$select * from eo.unannotated_cells();$$),
    ('annotation', 'annotate', $$call eo.annotate('{country}', source => 'bigearthnet-v1');$$),
    ('annotation', 'derive_corine_parts', $$select eo.derive_corine_parts('{32630}');$$),
    ('annotation', 'derive_nuts_parts', $$select eo.derive_nuts_parts('{32630}');$$),

    ('pictures', 'rgb', $$select eo.rgb('S2A_MSIL2A_20170613T101031_87_48');$$),
    ('pictures', 'contact_sheet', $$select eo.contact_sheet(array_agg(patch_id order by rank)) from eo.similar('S2A_MSIL2A_20170613T101031_87_48');$$),

    ('maps', 'map_patch', null),
    ('maps', 'map_patch_3857', null),
    ('maps', 'map_patch_label', null),
    ('maps', 'map_patch_label_3857', null),
    ('maps', 'map_collection', null),
    ('maps', 'map_collection_3857', null),
    ('maps', 'map_cell', null),
    ('maps', 'map_cell_3857', null),
    ('maps', 'map_corine', null),
    ('maps', 'map_corine_3857', null),
    ('maps', 'map_nuts', null),
    ('maps', 'map_nuts_3857', null),
    ('maps', 'make_raster_layer', $$select eo.make_raster_layer('S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947', layer => 'scene');$$),
    ('maps', 'drop_raster_layer', $$select eo.drop_raster_layer('scene');$$),
    ('maps', 'store_map_styles', $$select eo.store_map_styles();$$),

    ('collections', 'create_collection', $$select eo.create_collection('lakes');$$),
    ('collections', 'add_to_collection', $$select eo.add_to_collection('lakes', array(select patch_id from eo.search(eo.filter(labels => '{Inland waters}'))));$$),
    ('collections', 'collection_patches', $$select * from eo.collection_patches('{lakes}');$$),
    ('collections', 'remove_from_collection', $$select eo.remove_from_collection('lakes', array(select min(patch_id) from eo.collection_patches('{lakes}')));$$),
    ('collections', 'drop_collection', $$select eo.drop_collection('lakes');$$),

    ('runtime', 'runtime', $$select * from eo.runtime();$$),
    ('runtime', 'help', $$select * from eo.help('similar');$$)
    ) listed (topic, name, example);
end;

create or replace function eo.help(inout topic text default null, out name text, out purpose text, out example text)
returns setof record
language plpgsql
stable parallel safe
security invoker
rows 100
set search_path = pg_catalog, eo, pg_temp
as $$
#variable_conflict use_column
begin
    if help.topic <> all (array(select e.topic from eo_internal.examples() e)) then
        raise exception 'there is no topic "%"', help.topic
            using errcode = 'invalid_parameter_value',
                  hint = 'There are: ' || (
                      select string_agg(t.topic, ', ' order by t.place)
                      from (select e.topic, min(e.place) as place
                            from eo_internal.examples() with ordinality as e (topic, name, example, place)
                            group by e.topic) t) || '.';
    end if;
    return query
        select e.topic, coalesce(thing.name, e.name),
               -- The first sentence, and the word that ends the comment of a function that readers may not call.
               coalesce(substring(thing.description from '^.*?[.](?=\s)'), thing.description)
               || case when thing.description like '%. (writer)' then ' (writer)' else '' end,
               coalesce(e.example, format('select * from eo.%I limit 10;', e.name))
        from eo_internal.examples() with ordinality as e (topic, name, example, place)
        left join (
            select p.proname::text, p.proname || '(' || p.proargnames[1] || ')', obj_description(p.oid, 'pg_proc')
            from pg_proc p
            where p.pronamespace = 'eo'::regnamespace
            union all
            select c.relname, null, obj_description(c.oid, 'pg_class')
            from pg_class c
            where c.relnamespace = 'eo'::regnamespace and c.relkind = 'v'
        ) thing (name, with_argument, description) on e.name in (thing.name, thing.with_argument)
        where help.topic is null or e.topic = help.topic
        order by e.place;
end
$$;
comment on function eo.help(text) is
'What there is to call, topic by topic (null: all topics): each function and map layer with what it does and a statement to try. (writer) stands behind what only eo_writer may call; docs/functions.md tells everything. Raises invalid_parameter_value for an unknown topic.';
