"""What PL/Python needs to know of the schema: how an encoder is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyfuncs.encoders import Encoder
from pyfuncs.weights import load

ENCODER_QUERY = """
select encoder_id, name, version, architecture, bands, input_size, dimension, bits, weights, weights_sha256
from eo.encoder
where encoder_id = """
SCHEMA_VERSION_QUERY = "select version from eo_internal.schema_version"


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
