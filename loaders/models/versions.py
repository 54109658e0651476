"""Versions of encoders and hash functions in the archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import Connection, errors
from psycopg.rows import dict_row
from psycopg.sql import SQL
from psycopg.types.json import Jsonb

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.queries import ENCODER_QUERY, encoder_from_row


def register(
    connection: Connection,
    name: str,
    architecture: str,
    weights: bytes,
    *,
    bands: Sequence[str] = (),
    dimension: int | None = None,
    bits: int | None = None,
    parent_id: int | None = None,
    input_size: int | None = None,
    normalisation: Mapping[str, Sequence[float]] | None = None,
    training: Mapping[str, Any] | None = None,
    units: Sequence[str] | None = None,
) -> Encoder:
    """Store the next version of an encoder (`dimension`) or hash function (`bits`, `parent_id`) and read it back.

    Where a version in use has the same definition and weights, it is that one, whatever `training` says of it. Raises
    PgearthError for a name that is none or of the other kind, and for weights that are too big or do not fit.
    """
    with refusals_reported():
        row = connection.execute(
            """
            select eo.register_encoder(
                name => %(name)s, version => null, architecture => %(architecture)s, bands => %(bands)s::text[],
                weights => %(weights)b, dimension => %(dimension)s, bits => %(bits)s,
                parent_id => %(parent_id)s::smallint, input_size => %(input_size)s,
                normalisation => %(normalisation)s, training => %(training)s, units => %(units)s::text[])
            """,
            {
                "name": name,
                "architecture": architecture,
                "bands": list(bands),
                "weights": weights,
                "dimension": dimension,
                "bits": bits,
                "parent_id": parent_id,
                "input_size": input_size,
                "normalisation": normalisation and Jsonb(normalisation),
                "training": training and Jsonb(training),
                "units": units and list(units),
            },
        ).fetchone()
    assert row is not None
    return stored_encoder(connection, row[0])


def check_definition(connection: Connection, name: str, architecture: str, **definition: Any) -> None:
    """Raise PgearthError where `register` would refuse a definition, before there are weights of it."""
    try:
        with connection.transaction(force_rollback=True):
            register(connection, name, architecture, b"", **definition)
    except PgearthError as error:
        if not isinstance(error.__cause__, errors.InvalidBinaryRepresentation):  # that of the weights, the last check
            raise


def find(connection: Connection, text: str | None, hashing: bool) -> Encoder:
    """The encoder, or with `hashing` the hash function, that SQL finds by NAME, NAME:VERSION or None (the current one).

    Raises PgearthError where there is none.
    """
    with refusals_reported():
        row = connection.execute("select eo_internal.encoder_id(%s, %s)", (text, hashing)).fetchone()
    assert row is not None
    return stored_encoder(connection, row[0])


def newest_version(connection: Connection, text: str) -> Encoder:
    """The encoder or hash function NAME:VERSION, or the newest version in use of NAME.

    Raises PgearthError where there is none, or it was retired.
    """
    with refusals_reported():
        row = connection.execute(
            """
            select eo_internal.version_id(coalesce((
                select e.name || ':' || max(e.version) from eo.encoder e
                where e.name = %(text)s and e.retired_at is null
                group by e.name), %(text)s))
            """,
            {"text": text},
        ).fetchone()
    assert row is not None
    return stored_encoder(connection, row[0])


def parent(connection: Connection, hashing: Encoder) -> Encoder:
    """The encoder whose vectors a hash function reads."""
    row = connection.execute("select parent_id from eo.encoder where encoder_id = %s", (hashing.encoder_id,)).fetchone()
    assert row is not None
    return stored_encoder(connection, row[0])


def stored_encoder(connection: Connection, encoder_id: int) -> Encoder:
    """Read an encoder with its weights."""
    # Binary: as text, weights would be twice as many bytes.
    with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        cursor.execute(SQL(ENCODER_QUERY) + SQL("%s"), (encoder_id,))
        row = cursor.fetchone()
    assert row is not None
    return encoder_from_row(row)


@contextmanager
def refusals_reported() -> Iterator[None]:
    """Turn what functions of the registry refuse into a PgearthError."""
    try:
        yield
    except (
        errors.UndefinedObject,
        errors.DependentObjectsStillExist,
        errors.InvalidBinaryRepresentation,
        errors.InvalidParameterValue,
        errors.ProgramLimitExceeded,
    ) as error:
        raise PgearthError(f"{error.diag.message_primary}.", error.diag.message_hint or "") from error


def version_name(encoder: Encoder) -> str:
    """NAME:VERSION."""
    return f"{encoder.name}:{encoder.version}"


def add_onnx(
    connection: Connection,
    name: str,
    file: Path,
    bands: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    scale: float = 1.0,
    output: str | None = None,
    units: Sequence[str] | None = None,
) -> Encoder:
    """Store an ONNX model as the next version of an encoder; the same again is the version that it was.

    `mean` and `std` of each band are those of digital numbers times `scale`. `units` are those of the bands, one for
    all or one for each (default: those that the archive's have, where they are known). Raises PgearthError for what
    does not fit together: see pgearth.loaders.models.onnx_file.
    """
    import onnxruntime

    from pgearth.loaders.models.onnx_file import read_model

    check_bands(connection, bands)
    for option, numbers in (("--mean", mean), ("--std", std)):
        if len(numbers) != len(bands):
            raise PgearthError(
                f"{option} has {len(numbers)} numbers, --bands {len(bands)} names.", "Give one number for each band."
            )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and min(std) > 0):
        raise PgearthError("--mean and --std are not all finite, or a deviation is not above 0.", "Check the numbers.")
    if units is not None and len(units) == 1:
        units = list(units) * len(bands)
    model, dimension = read_model(file, bands, size, output)
    return register(
        connection,
        name,
        "onnx",
        model,
        bands=bands,
        dimension=dimension,
        normalisation={"mean": [number / scale for number in mean], "std": [number / scale for number in std]},
        training={
            "method": "imported",
            "data": None,
            "seed": None,
            "parameters": {"file": file.name, "size": size, "scale": scale, "output": output},
            "metrics": None,
            "software": {"onnxruntime": onnxruntime.__version__},
        },
        units=stored_units(connection, bands) if units is None else units,
    )


def stored_units(connection: Connection, bands: Sequence[str]) -> list[str] | None:
    """Units of the numbers that the archive has of bands; None where they are not known.

    Known are those of Sentinel-1 (decibels) and Sentinel-2 (reflectance times 10,000), in an archive of these alone.
    """
    platforms = connection.execute("select distinct platform from eo.product").fetchall()
    if not platforms or not all(platform.startswith(("sentinel-1", "sentinel-2")) for (platform,) in platforms):
        return None
    known = dict.fromkeys(spectral.BANDS, "reflectance10000") | {"B10": "reflectance10000"}
    known |= dict.fromkeys(("VV", "VH", "HH", "HV"), "decibels")
    return [known[band] for band in bands] if set(bands) <= known.keys() else None


def check_bands(connection: Connection, bands: Sequence[str]) -> None:
    """Raise PgearthError for a band that is named twice or, where the archive has pixels, that it does not have."""
    if len(set(bands)) != len(bands) or not all(bands):
        raise PgearthError(f"--bands names a band twice, or none: {','.join(bands)}.", "Name each band once.")
    row = connection.execute(
        """
        select array(select band from unnest(%s::text[]) as band
                     where not exists (select from eo.patch_raster r where band = any (r.bands)))
        where exists (select from eo.patch_raster)
        """,
        (list(bands),),
    ).fetchone()
    if row and row[0]:
        known = connection.execute(
            "select distinct band from (select bands from eo.patch_raster limit 1000) r, unnest(bands) band order by 1"
        )
        raise PgearthError(
            f"No patch has a band {', '.join(row[0])}.", f"There are {', '.join(band for (band,) in known)}."
        )


def listed_versions(connection: Connection) -> list[tuple[str, ...]]:
    """All versions by name: what each is, its architecture, what it makes, of how many patches, and its state."""
    return connection.execute(
        """
            select e.name || ':' || e.version,
                   coalesce('hash of ' || p.name || ':' || p.version, 'encoder'),
                   e.architecture,
                   coalesce(e.dimension || ' dimensions', e.bits || ' bits'),
                   to_char(coalesce(v.patches, b.patches, 0), 'FM999,999,999,990'),
                   case when e.retired_at is not null then 'retired ' || e.retired_at::date
                        when e.current_since is null then 'not yet encoded'
                        when e.encoder_id = eo_internal.encoder_id(null, e.bits is not null) then 'default'
                        when e.encoder_id = eo_internal.encoder_id(e.name, e.bits is not null) then 'current'
                        else 'older' end
            from eo.encoder e
            left join eo.encoder p on p.encoder_id = e.parent_id
            left join (select encoder_id, count(*) as patches from eo.embedding group by encoder_id) v
                   on v.encoder_id = e.encoder_id
            left join (select encoder_id, count(*) as patches from eo.patch_bucket where segment = 0
                       group by encoder_id) b on b.encoder_id = e.encoder_id
            order by e.name collate "C", e.version
        """
    ).fetchall()


def retire_version(connection: Connection, version: str) -> int:
    """Retire NAME:VERSION; return how many vectors or codes were removed. Raises PgearthError where there is none."""
    with refusals_reported():
        row = connection.execute("select eo.retire_encoder(%s)", (version,)).fetchone()
    assert row is not None
    removed: int = row[0]
    return removed
