-- Map layers for QGIS and its like: views with an integer key and one typed geometry each, their default styles, and
-- tables of raster tiles.
--
-- Every view runs as its reader (security_invoker), so row-level security shows everyone their own collections only.
-- The key is a layer's first column, `geom` its last, in EPSG:4326. `pgearth migrate` makes the view of the suffix _3857, in
-- EPSG:3857, out of each (eo_internal.make_web_mercator_layers). A filter by map bounds finds the indexes of revision 0003
-- and, by the same expressions, those of revisions 0008 and 0016.

-- A cell of five characters read as a number of base 32.
create or replace function eo_internal.cell_number(cell text)
returns integer
language sql
immutable parallel safe strict
security invoker
begin atomic
    select (strpos('0123456789bcdefghjkmnpqrstuvwxyz', substr(cell, 1, 1)) - 1 << 20)
           + (strpos('0123456789bcdefghjkmnpqrstuvwxyz', substr(cell, 2, 1)) - 1 << 15)
           + (strpos('0123456789bcdefghjkmnpqrstuvwxyz', substr(cell, 3, 1)) - 1 << 10)
           + (strpos('0123456789bcdefghjkmnpqrstuvwxyz', substr(cell, 4, 1)) - 1 << 5)
           + (strpos('0123456789bcdefghjkmnpqrstuvwxyz', substr(cell, 5, 1)) - 1);
end;

create or replace view eo.map_patch with (security_invoker = true) as
select p.patch_id, p.name, p.source, p.platform, p.sensing_time, p.season, p.cell,
       (select string_agg(l.name, ', ' order by f.fraction desc nulls last, l.label_id)
        from unnest(p.label_ids, p.label_fraction) as f (label_id, fraction)
        join eo.label l on l.label_id = f.label_id) as labels,
       p.country_codes, p.split, p.seasonal_snow, p.cloud_or_shadow, p.footprint as geom
from eo.patch p;
comment on view eo.map_patch is 'Map layer: patches, EPSG:4326';
comment on column eo.map_patch.patch_id is 'Key';
comment on column eo.map_patch.name is 'Name of the patch';
comment on column eo.map_patch.source is 'Data set or loader';
comment on column eo.map_patch.platform is 'Satellite';
comment on column eo.map_patch.sensing_time is 'Start of sensing';
comment on column eo.map_patch.season is 'Meteorological season';
comment on column eo.map_patch.cell is 'Geohash (precision 5) of the patch centre';
comment on column eo.map_patch.labels is 'Names of the labels, largest share of the patch first where shares are known';
comment on column eo.map_patch.country_codes is 'Countries (ISO 3166-1 alpha-2)';
comment on column eo.map_patch.split is 'train, validation or test';
comment on column eo.map_patch.seasonal_snow is 'Under seasonal snow';
comment on column eo.map_patch.cloud_or_shadow is 'With cloud or cloud shadow';
comment on column eo.map_patch.geom is 'Footprint, EPSG:4326';

create or replace view eo.map_patch_label with (security_invoker = true) as
select (p.patch_id << 16) + l.label_id as feature_id, p.patch_id, p.name, l.label_id, l.scheme, l.code, l.name as label,
       l.color, f.fraction, p.source, p.sensing_time, p.footprint as geom
from eo.patch p
cross join unnest(p.label_ids, p.label_fraction) as f (label_id, fraction)
join eo.label l on l.label_id = f.label_id;
comment on view eo.map_patch_label is 'Map layer: footprints by label, one row per patch and label, EPSG:4326';
comment on column eo.map_patch_label.feature_id is 'Key: patch_id * 65536 + label_id';
comment on column eo.map_patch_label.patch_id is 'Patch';
comment on column eo.map_patch_label.name is 'Name of the patch';
comment on column eo.map_patch_label.label_id is 'Label (eo.label)';
comment on column eo.map_patch_label.scheme is 'Nomenclature: clc, ben43, ben19 or nlcd';
comment on column eo.map_patch_label.code is 'Code within the nomenclature';
comment on column eo.map_patch_label.label is 'Name of the label';
comment on column eo.map_patch_label.color is 'Official colour, #RRGGBB';
comment on column eo.map_patch_label.fraction is 'Share of the patch area, 0 to 1; null where the source gives none';
comment on column eo.map_patch_label.source is 'Data set or loader';
comment on column eo.map_patch_label.sensing_time is 'Start of sensing';
comment on column eo.map_patch_label.geom is 'Footprint of the patch, EPSG:4326';

create or replace view eo.map_collection with (security_invoker = true) as
select (c.collection_id << 40) + p.patch_id as feature_id, c.collection_id, c.name as collection, cp.added_at,
       p.patch_id, p.name, p.source, p.platform, p.sensing_time, p.season, p.labels, p.country_codes, p.geom
from eo.collection c
join eo.collection_patch cp on cp.collection_id = c.collection_id
join eo.map_patch p on p.patch_id = cp.patch_id and p.cell = cp.cell;
comment on view eo.map_collection is 'Map layer: patches of the reader''s own collections, one row per collection and patch, EPSG:4326';
comment on column eo.map_collection.feature_id is 'Key: collection_id * 2^40 + patch_id';
comment on column eo.map_collection.collection_id is 'Collection';
comment on column eo.map_collection.collection is 'Name of the collection, to filter by';
comment on column eo.map_collection.added_at is 'When the patch was added';
comment on column eo.map_collection.patch_id is 'Patch';
comment on column eo.map_collection.name is 'Name of the patch';
comment on column eo.map_collection.source is 'Data set or loader';
comment on column eo.map_collection.platform is 'Satellite';
comment on column eo.map_collection.sensing_time is 'Start of sensing';
comment on column eo.map_collection.season is 'Meteorological season';
comment on column eo.map_collection.labels is 'Names of the labels, largest share of the patch first where shares are known';
comment on column eo.map_collection.country_codes is 'Countries (ISO 3166-1 alpha-2)';
comment on column eo.map_collection.geom is 'Footprint of the patch, EPSG:4326';

create or replace view eo.map_corine with (security_invoker = true) as
select c.corine_id, c.label_id, l.code, l.name as label, l.color, c.source,
       public.ST_Transform(c.geom, 4326)::public.geometry(multipolygon, 4326) as geom
from eo.corine c
join eo.label l on l.label_id = c.label_id;
comment on view eo.map_corine is 'Map layer: CORINE Land Cover, EPSG:4326';
comment on column eo.map_corine.corine_id is 'Key';
comment on column eo.map_corine.label_id is 'Class (eo.label)';
comment on column eo.map_corine.code is 'Code of the class, level 3';
comment on column eo.map_corine.label is 'Name of the class';
comment on column eo.map_corine.color is 'Official colour, #RRGGBB';
comment on column eo.map_corine.source is 'File and layer it came from';
comment on column eo.map_corine.geom is 'Outline, EPSG:4326';

create or replace view eo.map_corine_3857 with (security_invoker = true) as
select c.corine_id, c.label_id, l.code, l.name as label, l.color, c.source,
       public.ST_Transform(c.geom, 3857)::public.geometry(multipolygon, 3857) as geom
from eo.corine c
join eo.label l on l.label_id = c.label_id;

create or replace view eo.map_nuts with (security_invoker = true) as
select n.place_id, n.nuts_id, n.level, n.country_code, n.name, n.geom
from eo.nuts n;
comment on view eo.map_nuts is 'Map layer: NUTS units of all levels, EPSG:4326';
comment on column eo.map_nuts.place_id is 'Key';
comment on column eo.map_nuts.nuts_id is 'NUTS code';
comment on column eo.map_nuts.level is 'NUTS level, to filter by; 0 is a country';
comment on column eo.map_nuts.country_code is 'ISO 3166-1 alpha-2';
comment on column eo.map_nuts.name is 'Name in Latin script';
comment on column eo.map_nuts.geom is 'Outline, EPSG:4326';

create or replace view eo.map_nuts_3857 with (security_invoker = true) as
select m.place_id, m.nuts_id, m.level, m.country_code, m.name,
       public.ST_Transform(m.geom, 3857)::public.geometry(multipolygon, 3857) as geom
from eo.map_nuts m;

create or replace view eo.map_cell with (security_invoker = true) as
-- Materialized, so that a filter by map bounds looks at each cell and not at each patch.
with c as materialized (
    select p.cell, count(*) as patches
    from eo.patch p
    group by p.cell
)
select eo_internal.cell_number(c.cell) as cell_id, c.cell, c.patches,
       public.ST_SetSRID(public.ST_Box2dFromGeoHash(c.cell, null::integer)::public.geometry, 4326)::public.geometry(polygon, 4326) as geom
from c;
comment on view eo.map_cell is 'Map layer: geohash cells (precision 5) with the number of their patches, EPSG:4326. Counts all patches at each look.';
comment on column eo.map_cell.cell_id is 'Key: the geohash read as a number';
comment on column eo.map_cell.cell is 'Geohash';
comment on column eo.map_cell.patches is 'Patches whose centre is in the cell';
comment on column eo.map_cell.geom is 'Rectangle of the cell, EPSG:4326';

-- The layers once more, in EPSG:3857, with the same comments. Those of reference polygons are views above, as the indexes
-- know their geometries: reprojected once, and without a limit.
create or replace function eo_internal.make_web_mercator_layers()
returns void
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    limited constant text := '; null beyond 85.06 degrees north or south';
    layer record;
    attribute record;
begin
    for layer in
        select c.oid, c.relname as name, format('eo.%I', c.relname || '_3857') as twin, public.postgis_typmod_type(geom.atttypmod) as shape,
               (select string_agg(format('m.%I', a.attname), ', ' order by a.attnum)
                from pg_attribute a
                where a.attrelid = c.oid and a.attnum between 1 and geom.attnum - 1) as attributes,
               c.relname not in ('map_corine', 'map_nuts') as made_here
        from pg_class c
        join pg_attribute geom on geom.attrelid = c.oid and geom.attname = 'geom'
        where c.relnamespace = 'eo'::regnamespace and c.relkind = 'v' and c.relname ~ '^map_' and c.relname !~ '_3857$'
    loop
        if layer.made_here then
            execute format(
                'create or replace view %s with (security_invoker = true) as
                 select %s,
                        case when public.ST_YMin(m.geom::public.box3d) >= -85.06 and public.ST_YMax(m.geom::public.box3d) <= 85.06
                             then public.ST_Transform(m.geom, 3857) end::public.geometry(%s, 3857) as geom
                 from eo.%I m', layer.twin, layer.attributes, layer.shape, layer.name);
        end if;
        execute format('comment on view %s is %L', layer.twin, replace(obj_description(layer.oid, 'pg_class'), '4326', '3857'));
        for attribute in
            select a.attname as name, col_description(a.attrelid, a.attnum) as meaning
            from pg_attribute a
            where a.attrelid = layer.oid and a.attnum > 0
        loop
            execute format('comment on column %s.%I is %L', layer.twin, attribute.name,
                           replace(attribute.meaning, 'EPSG:4326', 'EPSG:3857' || case when layer.made_here then limited else '' end));
        end loop;
    end loop;
end
$$;

-- Default styles, in QGIS's own XML (QML), for the table that QGIS keeps styles in.

create or replace function eo_internal.fill_symbol(number bigint, fill text, outline text, outline_width numeric, opacity numeric)
returns text
language sql
immutable parallel safe
security invoker
begin atomic
    select format('<symbol type="fill" name="%s" alpha="%s" clip_to_extent="1"><layer class="SimpleFill" enabled="1">'
                  '<prop k="color" v="%s"/><prop k="style" v="%s"/><prop k="outline_color" v="%s"/>'
                  '<prop k="outline_style" v="solid"/><prop k="outline_width" v="%s"/><prop k="outline_width_unit" v="MM"/>'
                  '</layer></symbol>',
                  number, opacity, coalesce(fill, '#FFFFFF'), case when fill is null then 'no' else 'solid' end, outline, outline_width);
end;

create or replace function eo_internal.map_styles()
returns table (layer text, description text, qml xml)
language sql
stable parallel safe
security invoker
rows 6
begin atomic
    with class as (
        select l.*, row_number() over (order by array_position('{clc,ben19,ben43,nlcd}', l.scheme), l.label_id) as number
        from eo.label l
        where l.scheme = 'clc' and l.level = 3 or l.scheme in ('ben19', 'ben43', 'nlcd')
    ),
    -- Symbols of each layer, and what of an attribute each stands for: a value, or a range from lower to upper.
    entry (layer, number, fill, outline, outline_width, opacity, title, value, lower, upper) as (
        select 'map_patch', 0, null, '#1f4e79', 0.26, 1.0, null, null, null::bigint, null::bigint
        union all
        select 'map_collection', 0, '#ff8000', '#c04000', 0.4, 0.6, null, null, null, null
        union all
        select 'map_patch_label', c.number, c.color, '#555555', 0.1, 0.8, c.name || ' (' || c.scheme || ')', c.label_id::text, null, null
        from class c
        union all
        select 'map_corine', c.number, c.color, c.color, 0.1, 1.0, c.code || ' ' || c.name, c.label_id::text, null, null
        from class c
        where c.scheme = 'clc'
        union all
        select 'map_nuts', n.level, null, n.color, n.width, 1.0, n.title, n.level::text, null, null
        from (values (3, '#999999', 0.1, 'level 3'), (2, '#666666', 0.2, 'level 2'), (1, '#333333', 0.3, 'level 1'),
                     (0, '#000000', 0.5, 'countries')) as n (level, color, width, title)
        union all
        select 'map_cell', c.number, c.color, c.color, 0.1, 0.8,
               case when c.upper is null then c.lower || ' or more' else c.lower || ' to ' || c.upper end,
               null, c.lower, coalesce(c.upper, 1000000000)
        from (values (0, '#ffffcc', 1, 3), (1, '#c7e9b4', 4, 7), (2, '#7fcdbb', 8, 15), (3, '#41b6c4', 16, 31),
                     (4, '#2c7fb8', 32, 63), (5, '#253494', 64, null)) as c (number, color, lower, upper)
    ),
    renderer (layer, type, attribute, description) as (
        values ('map_patch', 'singleSymbol', null, 'Outlines'),
               ('map_collection', 'singleSymbol', null, 'Orange'),
               ('map_patch_label', 'categorizedSymbol', 'label_id', 'CORINE Land Cover colours'),
               ('map_corine', 'categorizedSymbol', 'label_id', 'CORINE Land Cover colours'),
               ('map_nuts', 'categorizedSymbol', 'level', 'Outlines by level'),
               ('map_cell', 'graduatedSymbol', 'patches', 'Number of patches')
    )
    select r.layer, r.description,
           format('<qgis version="3.22" styleCategories="Symbology"><renderer-v2 type="%s" attr="%s">'
                  '<categories>%s</categories><ranges>%s</ranges><symbols>%s</symbols></renderer-v2></qgis>',
                  r.type, r.attribute,
                  string_agg(format('<category value="%s" symbol="%s" label="%s" render="true"/>', e.value, e.number, t.escaped), ''
                             order by e.number) filter (where e.value is not null),
                  string_agg(format('<range lower="%s" upper="%s" symbol="%s" label="%s" render="true"/>',
                                    e.lower, e.upper, e.number, t.escaped), ''
                             order by e.number) filter (where e.lower is not null),
                  string_agg(eo_internal.fill_symbol(e.number, e.fill, e.outline, e.outline_width, e.opacity), ''
                             order by e.number))::xml
    from renderer r
    join entry e on e.layer = r.layer
    cross join replace(replace(replace(e.title, '&', '&amp;'), '<', '&lt;'), '"', '&quot;') as t (escaped)
    group by r.layer, r.type, r.attribute, r.description;
end;

create or replace function eo.store_map_styles()
returns void
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if not exists (select from pg_class c join pg_roles r on r.oid = c.relowner
                   where c.oid = 'public.layer_styles'::regclass
                     and (r.rolsuper or r.rolname in ('eo_owner', current_user)
                          or r.oid = (select d.datdba from pg_database d where d.datname = current_database()))) then
        -- Its triggers would run as whoever calls this.
        raise warning 'the styles of map layers were not stored: public.layer_styles belongs to %',
                      (select c.relowner::regrole from pg_class c where c.oid = 'public.layer_styles'::regclass)
            using hint = 'Look at its triggers and defaults, then: alter table public.layer_styles owner to eo_owner;';
        return;
    end if;
    -- QGIS finds a style by the database's name, which a dump brings from where it was made.
    update public.layer_styles s
    set f_table_catalog = current_database()
    where s.f_table_schema in ('eo', 'eo_layers') and s.f_table_catalog <> current_database();
    delete from public.layer_styles s where s.f_table_schema = 'eo' and s.stylename = 'pgearth';
    insert into public.layer_styles
        (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, stylename, styleqml, useasdefault, description)
    select current_database(), 'eo', view.name, 'geom', 'pgearth', s.qml,
           -- Somebody's own default stays.
           not exists (select from public.layer_styles o
                       where o.f_table_schema = 'eo' and o.f_table_name = view.name and o.useasdefault),
           s.description
    from eo_internal.map_styles() s, concat(s.layer, '_3857') as web_mercator, unnest(array[s.layer, web_mercator]) as view (name);
end
$$;
comment on function eo.store_map_styles() is
'Brings the styles of the map layers in public.layer_styles, from which QGIS takes a layer''s default style, up to date with the colours of eo.label and the name of the database. `pgearth migrate` and `pgearth load nomenclature` call it. (writer)';

-- Raster layers: QGIS wants a table with an integer key, constraints that say what all its rasters have in common, and
-- overviews; eo.patch_raster, of many products and grids, can be none.

create or replace function eo_internal.drop_raster_layer(layer text)
returns boolean
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    overview name;
    existed boolean := to_regclass(format('eo_layers.%I', layer)) is not null;
begin
    for overview in
        select o.o_table_name from public.raster_overviews o where o.r_table_schema = 'eo_layers' and o.r_table_name = layer
    loop
        execute format('drop table eo_layers.%I', overview);
    end loop;
    execute format('drop table if exists eo_layers.%I', layer);
    return existed;
end
$$;

create or replace function eo_internal.finish_raster_layer(layer text, description text)
returns void
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    tiles record;
begin
    -- As PostGIS's AddRasterConstraints, whose body looks names up in the caller's search_path, writes them.
    execute format(
        'select min(public.ST_SRID(rast)) as srid, min(public.ST_ScaleX(rast)) as scale_x, min(public.ST_ScaleY(rast)) as scale_y,
                string_agg(distinct public.ST_Width(rast)::text, '','') as widths,
                string_agg(distinct public.ST_Height(rast)::text, '','') as heights,
                (array_agg(public.ST_MakeEmptyRaster(
                    1, 1, public.ST_UpperLeftX(rast), public.ST_UpperLeftY(rast), public.ST_ScaleX(rast), public.ST_ScaleY(rast),
                    public.ST_SkewX(rast), public.ST_SkewY(rast), public.ST_SRID(rast))))[1] as alignment,
                min(public.ST_NumBands(rast)) as bands, min(public._raster_constraint_pixel_types(rast)) as pixel_types,
                min(public._raster_constraint_nodata_values(rast)) as nodata,
                max(public._raster_constraint_nodata_values(rast)) as other_nodata,
                public.ST_SetSRID(public.ST_Extent(public.ST_Envelope(rast))::public.geometry, min(public.ST_SRID(rast))) as extent
         from eo_layers.%I', layer) into tiles;
    execute format(
        'alter table eo_layers.%I
         add constraint enforce_srid_rast check (public.st_srid(rast) = %s),
         add constraint enforce_scalex_rast check (round(public.st_scalex(rast)::numeric, 10) = round(%s::numeric, 10)),
         add constraint enforce_scaley_rast check (round(public.st_scaley(rast)::numeric, 10) = round(%s::numeric, 10)),
         add constraint enforce_width_rast check (public.st_width(rast) in (%s)),
         add constraint enforce_height_rast check (public.st_height(rast) in (%s)),
         add constraint enforce_same_alignment_rast check (public.st_samealignment(rast, %L::public.raster)),
         add constraint enforce_num_bands_rast check (public.st_numbands(rast) = %s),
         add constraint enforce_pixel_types_rast check (public._raster_constraint_pixel_types(rast) = %L::text[]),
         add constraint enforce_out_db_rast check (public._raster_constraint_out_db(rast) = %L::boolean[]),
         add constraint enforce_max_extent_rast check (public.st_envelope(rast) operator(public.@) %L::public.geometry) not valid',
        layer, tiles.srid, tiles.scale_x, tiles.scale_y, tiles.widths, tiles.heights, tiles.alignment, tiles.bands,
        tiles.pixel_types, array_fill(false, array[tiles.bands]), tiles.extent);
    if tiles.nodata is not distinct from tiles.other_nodata then
        execute format('alter table eo_layers.%I add constraint enforce_nodata_values_rast'
                       ' check (public._raster_constraint_nodata_values(rast) = %L::numeric[])', layer, tiles.nodata);
    end if;
    execute format('create index on eo_layers.%I using gist (public.ST_ConvexHull(rast))', layer);
    execute format('analyze eo_layers.%I', layer);
    execute format('grant select on eo_layers.%I to eo_reader', layer);
    execute format('comment on table eo_layers.%I is %L', layer, description);
end
$$;

-- PostGIS's ST_CreateOverview picks one pixel out of factor * factor and is ten times slower.
create or replace function eo_internal.make_overview(layer text, factor integer, finer text, x double precision, y double precision)
returns text
language plpgsql
volatile parallel unsafe
security invoker
set search_path = pg_catalog, eo, pg_temp
as $$
declare
    overview text := format('o_%s_%s', factor, layer);
begin
    execute format('create table eo_layers.%I (rid integer primary key, rast public.raster not null)', overview);
    execute format(
        'insert into eo_layers.%I
         select row_number() over (order by p.y desc, p.x), public.ST_RastFromWKB((eo_internal.overview_tile(array_agg(public.ST_AsWKB(t.rast, false)), p.x, p.y)).tile)
         from eo_layers.%I t
         -- The corner of the tile above; a quarter is added because quotients are halves but for rounding.
         cross join lateral (
             select $1 + width * floor((public.ST_UpperLeftX(t.rast) - $1) / width + 0.25) as x,
                    $2 + height * floor((public.ST_UpperLeftY(t.rast) - $2) / height + 0.25) as y
             from (select 2 * public.ST_Width(t.rast) * public.ST_ScaleX(t.rast) as width, 2 * public.ST_Height(t.rast) * public.ST_ScaleY(t.rast) as height) s
         ) p
         group by p.x, p.y', overview, finer)
        using x, y;
    perform eo_internal.finish_raster_layer(overview, format('Overview of %s', layer));
    -- As PostGIS's AddOverviewConstraints writes it; raster_overviews reads it.
    execute format('alter table eo_layers.%I add constraint enforce_overview_rast'
                   ' check (public._overview_constraint(rast, %s, ''eo_layers''::name, %L::name, ''rast''::name))',
                   overview, factor, layer);
    return overview;
end
$$;

create or replace function eo_internal.product_tiles(product_id bigint, resolution smallint, bands text[])
returns table (rid bigint, patch_id bigint, rast public.raster)
language sql
stable parallel safe
security invoker
rows 100
begin atomic
    select row_number() over (order by p.patch_id), p.patch_id,
           public.ST_Band(r.rast, array(select array_position(r.bands, wanted.band)
                                 from unnest(product_tiles.bands) with ordinality as wanted (band, number)
                                 order by wanted.number))
    from eo.patch p
    join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell
    where p.product_id = product_tiles.product_id
      and r.resolution = product_tiles.resolution
      and r.bands @> product_tiles.bands;
end;

create or replace function eo.make_raster_layer(
    product text,
    bands text[] default '{B04,B03,B02}',
    stretch boolean default true,
    layer text default null
)
returns text
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
set client_min_messages = warning
as $$
declare
    source eo.product := (select p from eo.product p where p.name = make_raster_layer.product);
    -- Unlike a product's name, this fits beside the prefix of an overview into PostgreSQL's 63 bytes.
    made text := coalesce(layer, left(trim('_' from regexp_replace(lower(product collate "C"), '[^a-z0-9]+', '_', 'g')), 44)
                                 || '_' || source.product_id);
    description text := format('%s: %s%s', product, array_to_string(bands, ', '),
                               case when stretch then ', stretched from the 2nd to the 98th percentile' end);
    used_resolution smallint;
    limits double precision[];
    grid record;
    alike boolean := true;
    regular boolean;
    side integer;
    factor integer := 1;
    finer text;
begin
    if source.product_id is null then
        raise exception 'there is no product "%"', product
            using errcode = 'no_data_found', hint = 'eo.product lists the products.';
    end if;
    if made !~ '^[a-z0-9_]{1,55}$' then
        raise exception 'a layer cannot be called "%"', made
            using errcode = 'invalid_parameter_value', hint = 'Pass a name of 1 to 55 of the characters a to z, 0 to 9 and _.';
    end if;
    perform eo_internal.given_list(bands);
    select r.resolution into used_resolution
    from eo.patch p
    join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell
    where p.product_id = source.product_id and r.bands @> make_raster_layer.bands and cardinality(make_raster_layer.bands) > 0
    order by r.resolution
    limit 1;
    if not found then
        raise exception 'product "%" has no pixels of % at one resolution', product, array_to_string(bands, ', ')
            using errcode = 'no_data_found',
                  hint = coalesce('It has: ' || (
                      select string_agg(distinct array_to_string(r.bands, ', '), '; ')
                      from eo.patch p
                      join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell
                      where p.product_id = source.product_id) || '.', 'Its patches have no pixels.');
    end if;
    perform eo_internal.require_python();
    perform eo_internal.drop_raster_layer(made);
    execute format('create table eo_layers.%I (rid integer primary key, patch_id bigint not null, rast public.raster not null)', made);
    execute format('alter table eo_layers.%I alter column rast set storage external', made);
    if stretch then
        -- The same limits for all tiles, or they would not make one picture; a hundred, spread evenly, tell enough.
        select (eo_internal.stretch_limits(array_agg(public.ST_AsWKB(t.rast, false)))).limits into limits
        from (select p.*, count(*) over () as total
              from eo_internal.product_tiles(source.product_id, used_resolution, bands) p) t
        where t.rid % ceil(t.total / 100.0) = 0;
    end if;
    execute format(
        'insert into eo_layers.%I
         select t.rid, t.patch_id, %s
         from eo_internal.product_tiles($1, $2, $3) t',
        made, case when stretch then 'public.ST_RastFromWKB((eo_internal.stretched(public.ST_AsWKB(t.rast, false), $4)).tile)' else 't.rast' end)
        using source.product_id, used_resolution, bands, limits;
    begin
        perform eo_internal.finish_raster_layer(made, description);
    exception when check_violation then
        alike := false;
    end;
    execute format(
        'select min(public.ST_UpperLeftX(rast)) as x, max(public.ST_UpperLeftY(rast)) as y, min(public.ST_Width(rast) * public.ST_ScaleX(rast)) as width,
                min(public.ST_Height(rast) * -public.ST_ScaleY(rast)) as height, max(public.ST_Width(rast)) as columns, max(public.ST_Height(rast)) as lines
         from eo_layers.%I', made) into grid;
    execute format(
        'select count(*) filter (where abs(c - round(c)) + abs(l - round(l)) > 0.001 or public.ST_Width(rast) <> $5 or public.ST_Height(rast) <> $6) = 0,
                (greatest(max(c) * $5, max(l) * $6) + $5)::integer
         from (select rast, (public.ST_UpperLeftX(rast) - $1) / $3 as c, ($2 - public.ST_UpperLeftY(rast)) / $4 as l from eo_layers.%I) t', made)
        into regular, side using grid.x, grid.y, grid.width, grid.height, grid.columns, grid.lines;
    if not alike or not regular then
        raise exception 'the patches of product "%" do not lie on one grid', product
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'A layer takes rasters of one reference system, size, pixel size, alignment and pixel type.';
    end if;
    while side > 512 loop
        factor := factor * 2;
        finer := eo_internal.make_overview(made, factor, coalesce(finer, made), grid.x, grid.y);
        side := side / 2;
    end loop;
    return made;
end
$$;
comment on function eo.make_raster_layer(text, text[], boolean, text) is
'Makes a raster layer of a product for QGIS, or makes it anew: a table in schema eo_layers, with overviews; returns its name. bands: names of bands of one resolution; stretch: from the 2nd to the 98th percentile to 1 to 255 (0: no data), or the pixels as they are. Raises no_data_found for an unknown product or bands that it does not have at one resolution. (writer)';

create or replace function eo.drop_raster_layer(layer text)
returns void
language plpgsql
volatile parallel unsafe
security definer
set search_path = pg_catalog, eo, pg_temp
as $$
begin
    if coalesce(layer, '') = '' then
        raise exception 'no layer was named'
            using errcode = 'invalid_parameter_value', hint = 'Layers are the tables of schema eo_layers.';
    elsif not eo_internal.drop_raster_layer(layer) then
        raise exception 'there is no raster layer "%"', layer
            using errcode = 'undefined_table', hint = 'Layers are the tables of schema eo_layers.';
    end if;
end
$$;
comment on function eo.drop_raster_layer(text) is
'Drops a raster layer made by eo.make_raster_layer, with its overviews. Raises undefined_table for an unknown layer. (writer)';
