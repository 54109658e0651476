"""What Python knows of the schema: how encoders, hash codes and training data are read, and where packed codes lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from pgearth.pyfuncs.models.encoder import Encoder

ENCODER_QUERY = """
select encoder_id, name, version, architecture, bands, input_size, normalisation, units, dimension, bits, weights,
       weights_sha256
from eo.encoder
where encoder_id = """
ENCODER_WITHOUT_WEIGHTS_QUERY = """
select encoder_id, name, version, architecture, bands, input_size, normalisation, units, dimension, bits
from eo.encoder
where encoder_id = """
ENCODER_SIZE_QUERY = "select octet_length(weights) from eo.encoder where encoder_id = %s"
SETTING_QUERY = "select current_setting($1, true) as value"
SCHEMA_VERSION_QUERY = "select version from eo_internal.schema_version"
CODE_STATE_QUERY = """
select g.guard,
       (select e.bits from eo.encoder e where e.encoder_id = $1) as bits,
       (select i.version::text from eo.code_index i where i.encoder_id = $1 and i.codes_guard = g.guard) as version,
       coalesce((select max(b.bucket_no) + 1 from eo.bucket b where b.encoder_id = $1), 0) as buckets,
       pg_current_xact_id_if_assigned() is null as settled
from (select eo_internal.change_guard('codes') as guard offset 0) g
"""
UNCHANGED_QUERY = """
select eo_internal.unproved_patches(i) is null as unchanged from eo.code_index i where i.encoder_id = $1
"""
PACKED_QUERY = "select encoder_id, version::text from eo.code_index"
CODES_QUERY = """
select coalesce(string_agg(varbit_send(b.code), ''::bytea order by b.bucket_no), '') as codes
from eo.bucket b
where b.encoder_id = $1 and b.bucket_no >= $2 and b.bucket_no < $3
"""
PATCHES_QUERY = """
select count(*) as patches, max(patch_id) as last,
       string_agg(int8send(patch_id), '') as patch_ids,
       string_agg(int4send(bucket_no), '') as bucket_nos,
       string_agg(float8send(public.ST_XMin(footprint::public.box3d)), '') as west,
       string_agg(float8send(public.ST_YMin(footprint::public.box3d)), '') as south,
       string_agg(float8send(public.ST_XMax(footprint::public.box3d)), '') as east,
       string_agg(float8send(public.ST_YMax(footprint::public.box3d)), '') as north,
       string_agg(timestamptz_send(sensing_time), '') as times,
       array_agg(coalesce(array_to_string(label_ids, ','), '')) as label_sets,
       array_agg(concat_ws(e'\\x1f', platform, source, coalesce(split, ''), season,
                           coalesce(seasonal_snow::text, ''), coalesce(cloud_or_shadow::text, ''),
                           coalesce(array_to_string(country_codes, ','), ''))) as kinds
from (
    select p.*, pb.bucket_no
    from eo.patch_bucket pb
    join eo.patch p on p.patch_id = pb.patch_id and p.cell = pb.cell
    where pb.encoder_id = $1 and pb.segment = 0 and pb.patch_id > $2 and pb.bucket_no < $4
    order by pb.patch_id
    limit $3
) patches
"""
FILTERS = {
    "area": "public.geometry",
    "from_time": "timestamptz",
    "to_time": "timestamptz",
    "platforms": "text[]",
    "seasons": "text[]",
    "labels": "text[]",
    "label_match": "eo.label_match",
    "countries": "text[]",
    "splits": "text[]",
    "sources": "text[]",
    "seasonal_snow": "boolean",
    "cloud_or_shadow": "boolean",
    "max_cloud": "real",
    "scene_classes": "text[]",
    "cells": "text[]",
    "patch_ids": "bigint[]",
    "names": "text[]",
}
"""Arguments of eo.filter and their types."""
TRAINING_CLASSES_QUERY = """
select l.name, array_agg(c.descendant_id)
from eo.label l
join eo.label_closure c on c.ancestor_id = l.label_id
where l.scheme = %(scheme)s
  and l.level = coalesce(%(level)s, (select max(e.level) from eo.label e where e.scheme = %(scheme)s))
group by l.label_id
order by l.label_id
"""
TRAINING_SCHEMES_QUERY = "select distinct scheme, level from eo.label order by 1, 2"
TRAINING_PATCHES_QUERY = """
with found as materialized (
    select p.patch_id, p.cell,
           case when %(scheme)s::text = 'scl' then p.scene_class_ids else p.label_ids end as label_ids
    from eo.patches({filter}) p
),
checked as (
    select f.patch_id, f.cell, f.label_ids, r.bands = cardinality(%(bands)s::text[]) as complete,
           %(scheme)s::text is null or f.label_ids is not null as labelled
    from found f
    cross join lateral (
        select count(distinct b.band) as bands
        from eo.patch_raster p, unnest(p.bands) as b (band)
        where p.patch_id = f.patch_id and p.cell = f.cell and b.band = any (%(bands)s::text[])
    ) r
)
select coalesce(string_agg(int8send(c.patch_id), '' order by c.patch_id) filter (where c.complete and c.labelled), ''),
       string_agg(c.cell, ',' order by c.patch_id) filter (where c.complete and c.labelled),
       count(*), count(*) filter (where not c.complete), count(*) filter (where c.complete and not c.labelled),
       coalesce(bool_or(c.label_ids && %(label_ids)s::smallint[]) filter (where c.complete), false),
       array(select distinct b.band
             from (select * from found limit 100) f
             join eo.patch_raster p on p.patch_id = f.patch_id and p.cell = f.cell, unnest(p.bands) as b (band)
             order by 1)
from checked c
"""
# The order is that of the rows' pointers to pixels; what is outside of the subquery is done as rows are sent.
TRAINING_COPY = """
copy (
    select s.patch_id, s.label_ids, s.bands, public.ST_AsWKB(s.rast, true)
    from (
        select w.number, w.patch_id, r.bands, r.rast,
               case when %(scheme)s::text = 'scl' then p.scene_class_ids else p.label_ids end as label_ids
        from unnest(%(patch_ids)s::bigint[], %(cells)s::text[]) with ordinality as w (patch_id, cell, number)
        left join eo.patch p on p.patch_id = w.patch_id and p.cell = w.cell
        left join eo.patch_raster r on r.patch_id = p.patch_id and r.cell = p.cell and r.bands && %(bands)s::text[]
        order by w.number, r.resolution
        offset 0
    ) s
) to stdout (format binary)
"""
SIZE_OF_FEATURES_QUERY = "select bits, dimension from eo.encoder where encoder_id = $1"
LABELLED_FEATURES_QUERY = "select * from eo_internal.labelled_features($1, $2, $3, $4, $5)"
DATABASE_QUERY = "select oid::bigint from pg_database where datname = current_database()"


def filter_call(filters: Mapping[str, Any]) -> Composed:
    """The call of eo.filter by which patches are chosen: values (area as EWKT) are parameters of the query, by name.

    A filter that is None is left out.
    """
    from psycopg.sql import SQL, Identifier, Placeholder

    given = [
        SQL("{} => {}::{}").format(Identifier(name), Placeholder(name), SQL(type_name))
        for name, type_name in FILTERS.items()
        if filters.get(name) is not None
    ]
    return SQL("eo.filter({})").format(SQL(", ").join(given))


def encoder_from_row(row: Mapping[str, Any]) -> Encoder:
    """Build an encoder from a row of ENCODER_QUERY, or without weights from one of ENCODER_WITHOUT_WEIGHTS_QUERY.

    Raises PgearthError unless the weights match their checksum.
    """
    from pgearth.pyfuncs.models.encoder import Encoder
    from pgearth.pyfuncs.models.weights import load, load_model

    weights: Mapping[str, Any] = {}
    if "weights" in row:
        read = load_model if row["architecture"] == "onnx" else load
        weights = read(bytes(row["weights"]), row["weights_sha256"])
    return Encoder(
        encoder_id=row["encoder_id"],
        name=row["name"],
        version=row["version"],
        architecture=row["architecture"],
        bands=tuple(row["bands"]),
        input_size=row["input_size"],
        dimension=row["dimension"],
        bits=row["bits"],
        weights=weights,
        normalisation=json.loads(row["normalisation"])
        if isinstance(row["normalisation"], str)
        else row["normalisation"],
        units=None if row["units"] is None else tuple(row["units"]),
    )


def packed_file(database_oid: int, encoder_id: int, version: str, kind: str) -> Path:
    """File of a hash function's packed "codes" or "patches": below the data directory, in which every backend works."""
    return Path("pgearth") / str(database_oid) / f"{encoder_id}-{version}.{kind}.safetensors"
