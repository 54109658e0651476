"""What PL/Python needs to know of the schema: how encoders and hash codes are read, and where packed codes lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyfuncs.encoders import Encoder
from pyfuncs.weights import load

ENCODER_QUERY = """
select encoder_id, name, version, architecture, bands, input_size, dimension, bits, weights, weights_sha256
from eo.encoder
where encoder_id = """
SCHEMA_VERSION_QUERY = "select version from eo_internal.schema_version"
CODE_STATE_QUERY = """
select 'eo.bucket'::regclass::oid::bigint as table_oid,
       (select i.version::text from eo.code_index i where i.encoder_id = $1) as version,
       coalesce((select max(b.bucket_no) + 1 from eo.bucket b where b.encoder_id = $1), 0) as buckets,
       pg_current_xact_id_if_assigned() is null as settled
"""
CODE_BITS_QUERY = "select bits from eo.encoder where encoder_id = $1"
UNCHANGED_QUERY = """
select not exists (select from eo.patch_change c
                   where not pg_visible_in_snapshot(c.changed_by::text::xid8, i.snapshot::pg_snapshot)) as unchanged
from eo.code_index i
where i.encoder_id = $1
"""
CODES_QUERY = """
select coalesce(string_agg(varbit_send(b.code), ''::bytea order by b.bucket_no), '') as codes
from eo.bucket b
where b.encoder_id = $1 and b.bucket_no >= $2 and b.bucket_no < $3
"""
PATCHES_QUERY = """
select count(*) as patches, max(patch_id) as last,
       string_agg(int8send(patch_id), '') as patch_ids,
       string_agg(int4send(bucket_no), '') as bucket_nos,
       string_agg(float8send(ST_XMin(footprint)), '') as west,
       string_agg(float8send(ST_YMin(footprint)), '') as south,
       string_agg(float8send(ST_XMax(footprint)), '') as east,
       string_agg(float8send(ST_YMax(footprint)), '') as north,
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
DATABASE_QUERY = "select oid::bigint from pg_database where datname = current_database()"


def encoder_from_row(row: Mapping[str, Any]) -> Encoder:
    """Build an encoder from a row of ENCODER_QUERY; raises PgearthError unless the weights match their checksum."""
    return Encoder(
        encoder_id=row["encoder_id"],
        name=row["name"],
        version=row["version"],
        architecture=row["architecture"],
        bands=tuple(row["bands"]),
        input_size=row["input_size"],
        dimension=row["dimension"],
        bits=row["bits"],
        weights=load(bytes(row["weights"]), row["weights_sha256"]),
    )


def packed_file(database_oid: int, encoder_id: int, version: str, kind: str) -> Path:
    """File of a hash function's packed "codes" or "patches": below the data directory, in which every backend works."""
    return Path("pgearth") / str(database_oid) / f"{encoder_id}-{version}.{kind}.safetensors"
