"""Vectors and hash codes of patches and uploads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from pgearth.pyfuncs import queries
from pgearth.pyfuncs.border.session import Session, answer, answers
from pgearth.pyfuncs.errors import NULL_VALUE_NOT_ALLOWED, UNDEFINED_OBJECT, PgearthError
from pgearth.pyfuncs.limits import IMAGE_PIXELS, check_pixels

PIXELS_AT_ONCE = 2_000_000
"""Pixels times bands that are computed without looking for a cancel in between: a fraction of a second."""


def encoder_socket(session: Session) -> Any:
    """Path of the encoder process's socket."""
    from pgearth.pyfuncs.service.protocol import socket_folder

    return socket_folder(session.database()) / "socket"


def encoder(session: Session, encoder_id: int) -> Any:
    """The encoder with its weights, read once per session: a stored version never changes."""
    return session.kept("encoders", encoder_id, lambda: read_encoder(session, queries.ENCODER_QUERY, encoder_id))


def definition(session: Session, encoder_id: int) -> Any:
    """The encoder without its weights, which are large and, where the encoder process computes, not needed."""
    query = queries.ENCODER_WITHOUT_WEIGHTS_QUERY
    return session.kept("definitions", encoder_id, lambda: read_encoder(session, query, encoder_id))


def read_encoder(session: Session, query: str, encoder_id: int) -> Any:
    """An encoder, by one of the queries that end in its id. Raises PgearthError where there is none."""
    rows = session.plpy.execute(query + str(int(encoder_id)))
    if not rows:
        raise PgearthError(
            f"there is no encoder_id {encoder_id}", sqlstate=UNDEFINED_OBJECT, hint="Pass one of eo.encoder."
        )
    return queries.encoder_from_row(rows[0])


def check_no_nulls(*arrays: Sequence[Any]) -> None:
    """Raise PgearthError where an array holds a null."""
    for array in arrays:
        if None in array:
            raise PgearthError(
                f"element {1 + array.index(None)} of {len(array)} is null",
                sqlstate=NULL_VALUE_NOT_ALLOWED,
                hint="Leave it out of the array.",
            )


def pixel_limit(session: Session) -> int:
    """How many pixels times bands a call may get, by the session's setting."""
    return IMAGE_PIXELS.value(session.row(queries.SETTING_QUERY, ["text"], [f"pgearth.{IMAGE_PIXELS.name}"])["value"])


@answer
def check_image_pixels(session: Session, pixels: int, image: str) -> bool:
    """Raise PgearthError for more pixels times bands than a call may get; `image` is what they are of."""
    check_pixels(pixels, pixel_limit(session), image)
    return True


def vectors_of(session: Session, encoder_id: int, patches: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Vectors of patches: networks compute in the encoder process where it runs, else here, on the CPU."""
    from pgearth.pyfuncs.convert import to_vector
    from pgearth.pyfuncs.models.encoder import NETWORKS, encode, encode_batch
    from pgearth.pyfuncs.service import client

    def compute_there(encoder: Any, batch: Any) -> Any:
        return client.encode_batch(path, encoder, batch, session.pause)

    def compute_here(encoder: Any, batch: Any) -> Any:
        session.pause()
        if encoder.architecture == "onnx":  # however few pixels, a user's model may compute without end
            from onnxruntime import RunOptions

            from pgearth.pyfuncs.models import onnx

            options = RunOptions()
            return session.interruptibly(
                lambda _: onnx.encode_batch(encoder, batch, options), lambda: setattr(options, "terminate", True)
            )
        if sum(pixels.size for pixels in batch.values()) <= PIXELS_AT_ONCE:
            return encode_batch(encoder, batch)
        return session.interruptibly(lambda _: encode_batch(encoder, batch))

    without_weights = definition(session, encoder_id)
    if without_weights.architecture in NETWORKS:
        path = encoder_socket(session)
        try:
            vectors = encode(without_weights, patches, compute_there, client.PATCHES_AT_ONCE)
            return [to_vector(vector) for vector in vectors]
        except client.NotServedError:
            share_processor()
    return [to_vector(vector) for vector in encode(encoder(session, encoder_id), patches, compute_here)]


def share_processor() -> None:
    """Make networks that this session computes leave the GPU to the encoder process and cores to other sessions.

    To be called before torch is first imported, which looks at these. Threads of OpenMP otherwise spin while they wait:
    where others need the cores, too, computing then takes ten times as long.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@answer
def check_encoder(session: Session, row: dict[str, Any], parent_dimension: int | None) -> bool:
    """Raise PgearthError unless the weights of a row of eo.encoder fit its architecture: see models.encoder.check."""
    from pgearth.pyfuncs.models.encoder import NETWORKS, check

    if row["architecture"] in NETWORKS:
        share_processor()
    read = queries.encoder_from_row(row)
    session.interruptibly(lambda _: check(read, parent_dimension))
    return True


@answers
def encode(
    session: Session,
    encoder_id: int,
    patch_numbers: Sequence[int],
    bands: Sequence[str],
    rasters: Sequence[bytes],
) -> list[list[float]]:
    """Vectors of patches, in ascending order of their numbers; rasters are WKB, each with its comma-joined bands."""
    from pgearth.pyfuncs.pixels.rasters import bands_from_wkb

    check_no_nulls(patch_numbers, bands, rasters)
    patches: dict[int, dict[str, Any]] = {number: {} for number in sorted(set(patch_numbers))}
    for number, names, wkb in zip(patch_numbers, bands, rasters, strict=True):
        patches[number].update(bands_from_wkb(wkb, names.split(",")))
    return vectors_of(session, encoder_id, list(patches.values()))


@answer
def encode_image(session: Session, encoder_id: int, image: bytes, bands: Sequence[str] | None) -> list[float]:
    """Vector of an uploaded GeoTIFF."""
    return vectors_of(session, encoder_id, [uploaded_patch(session, encoder_id, image, bands)])[0]


def uploaded_patch(session: Session, encoder_id: int, image: bytes, bands: Sequence[str] | None) -> dict[str, Any]:
    """The bands of an uploaded GeoTIFF in the units of an encoder."""
    from pgearth.pyfuncs.models.units import in_units
    from pgearth.pyfuncs.pixels.uploads import read_image

    limit, reads = pixel_limit(session), definition(session, encoder_id)
    return session.interruptibly(lambda _: in_units(reads, read_image(image, bands, limit)))


@answer
def encode_rasters(session: Session, encoder_id: int, bands: Sequence[str], rasters: Sequence[bytes]) -> list[float]:
    """Vector of an image given as raster WKB, each with its comma-joined bands, in the units of the encoder."""
    from pgearth.pyfuncs.models.units import check_range
    from pgearth.pyfuncs.pixels.rasters import bands_from_wkb

    patch: dict[str, Any] = {}
    for names, wkb in zip(bands, rasters, strict=True):
        patch.update(bands_from_wkb(wkb, names.split(",")))
    check_range(definition(session, encoder_id), patch)
    return vectors_of(session, encoder_id, [patch])[0]


@answers
def hash(session: Session, encoder_id: int, vectors: Sequence[bytes]) -> list[str]:
    """Hash codes, as strings of 0 and 1, of vectors as vector_send writes them."""
    from pgearth.pyfuncs.convert import vectors_from_send
    from pgearth.pyfuncs.models.encoder import hash_codes

    check_no_nulls(vectors)
    return hash_codes(encoder(session, encoder_id), vectors_from_send(vectors))


@answer
def hash_image(
    session: Session, encoder_id: int, parent_id: int, image: bytes, bands: Sequence[str] | None
) -> tuple[str, list[float]]:
    """Hash code of an uploaded GeoTIFF, by a hash function over the vectors of an encoder, and its vector."""
    return codes_of(session, encoder_id, parent_id, [uploaded_patch(session, parent_id, image, bands)])[0]


@answers
def hash_segments(
    session: Session, encoder_id: int, parent_id: int, image: bytes, bands: Sequence[str] | None, segmentation: str
) -> list[tuple[str, list[float]]]:
    """Hash codes and vectors of the segments of an uploaded GeoTIFF, cut as a segmentation (JSON) says."""
    from pgearth.pyfuncs.pixels.segments import cut_segments

    names = definition(session, parent_id).bands
    patch = uploaded_patch(session, parent_id, image, bands)
    cut = session.interruptibly(lambda _: cut_segments(patch, names, json.loads(segmentation)))
    return codes_of(session, encoder_id, parent_id, cut)


def codes_of(
    session: Session, encoder_id: int, parent_id: int, patches: Sequence[dict[str, Any]]
) -> list[tuple[str, list[float]]]:
    """Hash codes of patches, as strings of 0 and 1, each with the vector that it is of."""
    import numpy as np

    from pgearth.pyfuncs.models.encoder import hash_codes

    vectors = vectors_of(session, parent_id, patches)
    codes = hash_codes(encoder(session, encoder_id), np.array(vectors, np.float32))
    return list(zip(codes, vectors, strict=True))
