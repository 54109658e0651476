"""The PL/Python border: every body calls one function here, passing plpy and GD; nothing else in pyfuncs knows plpy."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyfuncs
from pyfuncs import db
from pyfuncs.convert import to_vector, vectors_from_send
from pyfuncs.errors import PgearthError


def runtime() -> str:
    """Versions of what PL/Python runs on, as JSON text; imports torch, to ask for its device."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return json.dumps(
        {
            "python": platform.python_version(),
            "prefix": sys.prefix,
            "numpy": importlib.metadata.version("numpy"),
            "torch": torch.__version__,
            "device": device,
            "package": pyfuncs.__version__,
        }
    )


@contextmanager
def reported(plpy: Any) -> Iterator[None]:
    """Turn a PgearthError into a database error with its SQLSTATE and hint."""
    try:
        yield
    except PgearthError as error:
        plpy.error(str(error), sqlstate=error.sqlstate, hint=error.hint)


def encoder(plpy: Any, GD: dict[str, Any], encoder_id: int) -> Any:
    """The encoder with its weights, read once per backend: a stored version never changes."""
    check_version(plpy, GD)
    cache = GD.setdefault("pgearth.encoders", {})
    if encoder_id not in cache:
        rows = plpy.execute(db.ENCODER_QUERY + str(int(encoder_id)))
        cache[encoder_id] = db.encoder_from_row(rows[0])
    return cache[encoder_id]


def check_version(plpy: Any, GD: dict[str, Any]) -> None:
    """Raise an error unless the package is of the schema's version; looked up once per backend."""
    if "pgearth.version" not in GD:
        GD["pgearth.version"] = plpy.execute(db.SCHEMA_VERSION_QUERY)[0]["version"]
    if GD["pgearth.version"] != pyfuncs.__version__:
        plpy.error(
            f"the Python package is pgearth {pyfuncs.__version__}, the schema is of {GD['pgearth.version']}",
            sqlstate="55000",
            hint="Run pgearth migrate with the installed package, then open a new session.",
        )


def encode(
    plpy: Any,
    GD: dict[str, Any],
    encoder_id: int,
    patch_numbers: Sequence[int],
    bands: Sequence[str],
    rasters: Sequence[bytes],
) -> Iterator[list[float]]:
    """Vectors of patches, in ascending order of their numbers; rasters are WKB, each with its comma-joined bands."""
    from pyfuncs.encoders import encode as encode_patches
    from pyfuncs.rasters import bands_from_wkb

    with reported(plpy):
        patches: dict[int, dict[str, Any]] = {number: {} for number in sorted(set(patch_numbers))}
        for number, names, wkb in zip(patch_numbers, bands, rasters, strict=True):
            patches[number].update(bands_from_wkb(wkb, names.split(",")))
        vectors = encode_patches(encoder(plpy, GD, encoder_id), list(patches.values()))
    return iter([to_vector(vector) for vector in vectors])


def encode_image(
    plpy: Any, GD: dict[str, Any], encoder_id: int, image: bytes, bands: Sequence[str] | None
) -> list[float]:
    """Vector of an uploaded GeoTIFF."""
    from pyfuncs.encoders import encode as encode_patches
    from pyfuncs.image import read_image

    with reported(plpy):
        return to_vector(encode_patches(encoder(plpy, GD, encoder_id), [read_image(image, bands)])[0])


def hash(plpy: Any, GD: dict[str, Any], encoder_id: int, vectors: Sequence[bytes]) -> list[str]:
    """Hash codes, as strings of 0 and 1, of vectors as vector_send writes them."""
    from pyfuncs.encoders import hash_codes

    with reported(plpy):
        return hash_codes(encoder(plpy, GD, encoder_id), vectors_from_send(vectors))


def rgb_png(plpy: Any, GD: dict[str, Any], bands: Sequence[str], rasters: Sequence[bytes]) -> bytes:
    """PNG of a patch given as raster WKB, each with its comma-joined bands."""
    from pyfuncs.picture import patch_png
    from pyfuncs.rasters import bands_from_wkb

    check_version(plpy, GD)
    with reported(plpy):
        patch: dict[str, Any] = {}
        for names, wkb in zip(bands, rasters, strict=True):
            patch.update(bands_from_wkb(wkb, names.split(",")))
        return patch_png(patch)
