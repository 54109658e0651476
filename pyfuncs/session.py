"""The PL/Python border: every body calls one function here, passing plpy and GD; nothing else in pyfuncs knows plpy.

What a body calls is decorated (see pyfuncs.failure), so that no error leaves as an exception. This module imports
the standard library and what is written here only, because an error of an import would.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyfuncs
from pyfuncs import db
from pyfuncs.errors import NULL_VALUE_NOT_ALLOWED, OBJECT_NOT_IN_PREREQUISITE_STATE, UNDEFINED_OBJECT, PgearthError
from pyfuncs.failure import answer, answers
from pyfuncs.interrupts import interruptibly
from pyfuncs.limits import IMAGE_PIXELS, check_pixels

PATCHES_AT_ONCE = 100_000
VECTORS_AT_ONCE = 10_000
PIXELS_AT_ONCE = 2_000_000
"""Pixels times bands that are computed without looking for a cancel in between: a fraction of a second."""


@answer
def runtime(plpy: Any) -> str:
    """Versions of what PL/Python runs on, and how the encoder process is, as JSON text."""
    import platform
    from importlib.metadata import version  # takes a twentieth of a second

    return json.dumps(
        {
            "python": platform.python_version(),
            "prefix": sys.prefix,
            "numpy": version("numpy"),
            "torch": version("torch"),
            "package": pyfuncs.__version__,
            "encoder_process": encoder_process(plpy),
            "packed": unreadable_files(plpy),
        }
    )


def encoder_process(plpy: Any) -> dict[str, Any] | None:
    """What the encoder process says of itself; None where it does not run, `error` where it does not answer."""
    from pyfuncs.encoder_client import NotServedError, status

    try:
        return status(encoder_socket(plpy), lambda: plpy.execute("select 1"))
    except NotServedError:
        return None
    except PgearthError as error:
        return {"error": error.message}


def encoder_socket(plpy: Any) -> Any:
    """Path of the encoder process's socket."""
    from pyfuncs.encoder_protocol import socket_folder

    return socket_folder(plpy.execute(db.DATABASE_QUERY)[0]["oid"]) / "socket"


def encoder(plpy: Any, GD: dict[str, Any], encoder_id: int) -> Any:
    """The encoder with its weights, read once per backend: a stored version never changes."""
    check_version(plpy, GD)
    cache = GD.setdefault("pgearth.encoders", {})
    if encoder_id not in cache:
        cache[encoder_id] = db.encoder_from_row(encoder_row(plpy, db.ENCODER_QUERY, encoder_id))
    return cache[encoder_id]


def definition(plpy: Any, GD: dict[str, Any], encoder_id: int) -> Any:
    """The encoder without its weights, which are large and, where the encoder process computes, not needed."""
    check_version(plpy, GD)
    cache = GD.setdefault("pgearth.definitions", {})
    if encoder_id not in cache:
        cache[encoder_id] = db.encoder_from_row(encoder_row(plpy, db.ENCODER_WITHOUT_WEIGHTS_QUERY, encoder_id))
    return cache[encoder_id]


def encoder_row(plpy: Any, query: str, encoder_id: int) -> Any:
    """The row of an encoder, by one of the queries that end in its id. Raises PgearthError where there is none."""
    rows = plpy.execute(query + str(int(encoder_id)))
    if not rows:
        raise PgearthError(
            f"there is no encoder_id {encoder_id}", sqlstate=UNDEFINED_OBJECT, hint="Pass one of eo.encoder."
        )
    return rows[0]


def check_no_nulls(*arrays: Sequence[Any]) -> None:
    """Raise PgearthError where an array holds a null."""
    for array in arrays:
        if None in array:
            raise PgearthError(
                f"element {1 + array.index(None)} of {len(array)} is null",
                sqlstate=NULL_VALUE_NOT_ALLOWED,
                hint="Leave it out of the array.",
            )


def check_search(
    state: Any, positives: Sequence[str] | None, negatives: Sequence[str] | None, wanted: int | None
) -> None:
    """Raise PgearthError unless codes are those of a hash function (a CodeState) and `wanted` is a number."""
    if not positives or negatives is None:
        raise PgearthError("no codes were given", hint="Give one code at least, and an empty array for none.")
    lengths = {None if code is None else len(code) for code in (*positives, *negatives)}
    if lengths != {state.bits}:
        wrong = next(length for length in lengths if length != state.bits)
        raise PgearthError(
            f"a code of {wrong or 'no'} bits was given, but the hash function makes {state.bits}",
            hint="Pass codes made by eo.hash with the same hash function.",
        )
    if wanted is not None and wanted < 0:
        raise PgearthError(f"{wanted} results were asked for", hint="Ask for 0 or more; null: all.")


def check_version(plpy: Any, GD: dict[str, Any]) -> None:
    """Raise an error unless the package is of the schema's version; looked up once per backend."""
    if "pgearth.version" not in GD:
        GD["pgearth.version"] = plpy.execute(db.SCHEMA_VERSION_QUERY)[0]["version"]
    if GD["pgearth.version"] != pyfuncs.__version__:
        raise PgearthError(
            f"the Python package is pgearth {pyfuncs.__version__}, the schema is of {GD['pgearth.version']}",
            sqlstate=OBJECT_NOT_IN_PREREQUISITE_STATE,
            hint="Run pgearth migrate with the installed package, then open a new session.",
        )


def pause_of(plpy: Any) -> Callable[[], object]:
    """What is to be called now and then: where the statement was cancelled or its time is up, it raises."""
    return lambda: plpy.execute("select 1")


def pixel_limit(plpy: Any, GD: dict[str, Any]) -> int:
    """How many pixels times bands a call may get, by the session's setting."""
    rows = plpy.execute(prepared(plpy, GD, db.SETTING_QUERY, "text"), [f"pgearth.{IMAGE_PIXELS.name}"])
    return IMAGE_PIXELS.value(rows[0]["value"])


@answer
def check_image_pixels(plpy: Any, GD: dict[str, Any], pixels: int, image: str) -> bool:
    """Raise PgearthError for more pixels times bands than a call may get; `image` is what they are of."""
    check_pixels(pixels, pixel_limit(plpy, GD), image)
    return True


def vectors_of(plpy: Any, GD: dict[str, Any], encoder_id: int, patches: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Vectors of patches: networks compute in the encoder process where it runs, else here, on the CPU."""
    from pyfuncs import encoder_client
    from pyfuncs.convert import to_vector
    from pyfuncs.encoders import NETWORKS, encode, encode_batch

    pause = pause_of(plpy)

    def compute_there(encoder: Any, batch: Any) -> Any:
        return encoder_client.encode_batch(path, encoder, batch, pause)

    def compute_here(encoder: Any, batch: Any) -> Any:
        pause()
        if encoder.architecture == "onnx":  # however few pixels, a user's model may compute without end
            from onnxruntime import RunOptions

            from pyfuncs.networks import onnx

            options = RunOptions()
            return interruptibly(
                lambda _: onnx.encode_batch(encoder, batch, options),
                pause,
                lambda: setattr(options, "terminate", True),
            )
        if sum(pixels.size for pixels in batch.values()) <= PIXELS_AT_ONCE:
            return encode_batch(encoder, batch)
        return interruptibly(lambda _: encode_batch(encoder, batch), pause)

    without_weights = definition(plpy, GD, encoder_id)
    if without_weights.architecture in NETWORKS:
        path = encoder_socket(plpy)
        try:
            vectors = encode(without_weights, patches, compute_there, encoder_client.PATCHES_AT_ONCE)
            return [to_vector(vector) for vector in vectors]
        except encoder_client.NotServedError:
            share_processor()
    return [to_vector(vector) for vector in encode(encoder(plpy, GD, encoder_id), patches, compute_here)]


def share_processor() -> None:
    """Make networks that this session computes leave the GPU to the encoder process and cores to other sessions.

    To be called before torch is first imported, which looks at these. Threads of OpenMP otherwise spin while they wait:
    where others need the cores, too, computing then takes ten times as long.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@answers
def encode(
    plpy: Any,
    GD: dict[str, Any],
    encoder_id: int,
    patch_numbers: Sequence[int],
    bands: Sequence[str],
    rasters: Sequence[bytes],
) -> list[list[float]]:
    """Vectors of patches, in ascending order of their numbers; rasters are WKB, each with its comma-joined bands."""
    from pyfuncs.rasters import bands_from_wkb

    check_version(plpy, GD)
    check_no_nulls(patch_numbers, bands, rasters)
    patches: dict[int, dict[str, Any]] = {number: {} for number in sorted(set(patch_numbers))}
    for number, names, wkb in zip(patch_numbers, bands, rasters, strict=True):
        patches[number].update(bands_from_wkb(wkb, names.split(",")))
    return vectors_of(plpy, GD, encoder_id, list(patches.values()))


@answer
def encode_image(
    plpy: Any, GD: dict[str, Any], encoder_id: int, image: bytes, bands: Sequence[str] | None
) -> list[float]:
    """Vector of an uploaded GeoTIFF."""
    check_version(plpy, GD)
    return vectors_of(plpy, GD, encoder_id, [uploaded_patch(plpy, GD, encoder_id, image, bands)])[0]


def uploaded_patch(
    plpy: Any, GD: dict[str, Any], encoder_id: int, image: bytes, bands: Sequence[str] | None
) -> dict[str, Any]:
    """The bands of an uploaded GeoTIFF in the units of an encoder."""
    from pyfuncs.image import read_image
    from pyfuncs.units import in_units

    limit, reads = pixel_limit(plpy, GD), definition(plpy, GD, encoder_id)
    return interruptibly(lambda _: in_units(reads, read_image(image, bands, limit)), pause_of(plpy))


@answer
def encode_rasters(
    plpy: Any, GD: dict[str, Any], encoder_id: int, bands: Sequence[str], rasters: Sequence[bytes]
) -> list[float]:
    """Vector of an image given as raster WKB, each with its comma-joined bands, in the units of the encoder."""
    from pyfuncs.rasters import bands_from_wkb
    from pyfuncs.units import check_range

    check_version(plpy, GD)
    patch: dict[str, Any] = {}
    for names, wkb in zip(bands, rasters, strict=True):
        patch.update(bands_from_wkb(wkb, names.split(",")))
    check_range(definition(plpy, GD, encoder_id), patch)
    return vectors_of(plpy, GD, encoder_id, [patch])[0]


@answers
def encode_regions(
    plpy: Any, GD: dict[str, Any], encoder_id: int, image: bytes, bands: Sequence[str] | None, segmentation: str
) -> list[list[float]]:
    """Vectors of the regions of an uploaded GeoTIFF, cut as a segmentation (JSON) says."""
    from pyfuncs.regions import cut_regions

    names = definition(plpy, GD, encoder_id).bands
    patch = uploaded_patch(plpy, GD, encoder_id, image, bands)
    cut = interruptibly(lambda _: cut_regions(patch, names, json.loads(segmentation)), pause_of(plpy))
    return vectors_of(plpy, GD, encoder_id, cut)


@answers
def hash(plpy: Any, GD: dict[str, Any], encoder_id: int, vectors: Sequence[bytes]) -> list[str]:
    """Hash codes, as strings of 0 and 1, of vectors as vector_send writes them."""
    from pyfuncs.convert import vectors_from_send
    from pyfuncs.encoders import hash_codes

    check_no_nulls(vectors)
    return hash_codes(encoder(plpy, GD, encoder_id), vectors_from_send(vectors))


@answer
def rgb_png(plpy: Any, GD: dict[str, Any], bands: Sequence[str], rasters: Sequence[bytes]) -> bytes:
    """PNG of a patch given as raster WKB, each with its comma-joined bands."""
    from pyfuncs.picture import patch_png
    from pyfuncs.rasters import bands_from_wkb

    check_version(plpy, GD)
    patch: dict[str, Any] = {}
    for names, wkb in zip(bands, rasters, strict=True):
        patch.update(bands_from_wkb(wkb, names.split(",")))
    return interruptibly(lambda _: patch_png(patch), pause_of(plpy))


@answer
def stretch_limits(plpy: Any, GD: dict[str, Any], rasters: Sequence[bytes]) -> list[list[float]]:
    """For a map layer: the values of each band, over all rasters (WKB), to be drawn darkest, and those brightest."""
    from pyfuncs.convert import to_vector
    from pyfuncs.picture import layer_limits
    from pyfuncs.rasters import from_wkb

    check_version(plpy, GD)
    limits = interruptibly(lambda _: layer_limits([from_wkb(wkb) for wkb in rasters]), pause_of(plpy))
    return [to_vector(limit) for limit in limits]


@answer
def stretched(plpy: Any, GD: dict[str, Any], raster: bytes, limits: Sequence[Sequence[float]]) -> bytes:
    """A tile of a map layer, WKB in and out, stretched between what stretch_limits gave."""
    import numpy as np

    from pyfuncs.picture import layer_tile
    from pyfuncs.rasters import from_wkb, to_wkb

    check_version(plpy, GD)
    return to_wkb(layer_tile(from_wkb(raster), *np.asarray(limits)))


@answer
def overview_tile(plpy: Any, GD: dict[str, Any], rasters: Sequence[bytes], left: float, top: float) -> bytes:
    """A tile of a map layer's overview from the up to four tiles below it, WKB in and out."""
    from pyfuncs.picture import overview_tile as halve
    from pyfuncs.rasters import from_wkb, to_wkb

    check_version(plpy, GD)
    return to_wkb(halve([from_wkb(wkb) for wkb in rasters], left, top))


@answer
def contact_sheet(
    plpy: Any,
    GD: dict[str, Any],
    captions: Sequence[str],
    numbers: Sequence[int],
    bands: Sequence[str],
    rasters: Sequence[bytes],
    columns: int,
) -> bytes:
    """PNG of patches with captions; rasters are WKB, each with its patch's number from 1 and its comma-joined bands."""
    from pyfuncs.picture import Tile
    from pyfuncs.picture import contact_sheet as draw
    from pyfuncs.rasters import bands_from_wkb

    check_version(plpy, GD)
    patches: list[dict[str, Any]] = [{} for _ in captions]
    for number, names, wkb in zip(numbers, bands, rasters, strict=True):
        patches[number - 1].update(bands_from_wkb(wkb, names.split(",")))
    tiles = [Tile(caption.splitlines(), patch) for caption, patch in zip(captions, patches, strict=True)]
    return interruptibly(lambda _: draw(tiles, columns), pause_of(plpy))


@answer
def packed_codes(
    plpy: Any,
    GD: dict[str, Any],
    encoder_id: int,
    positives: Sequence[str],
    negatives: Sequence[str],
    wanted: int | None,
    radius: int | None,
    by_patches: bool,
) -> tuple[list[int], list[int], bool] | None:
    """Numbers and distances of buckets, and whether they are all (see eo_internal.nearest_codes).

    None where too many codes are not packed.
    """
    check_version(plpy, GD)
    state = code_state(plpy, GD, encoder_id)
    check_search(state, positives, negatives, wanted)
    nearest = code_cache(GD, encoder_id).find(
        state,
        lambda kind, version: packed_file(plpy, encoder_id, version, kind),
        lambda first, end: read_codes(plpy, GD, encoder_id, first, end),
        positives,
        negatives,
        wanted,
        radius,
        by_patches,
    )
    if nearest is None:
        return None
    found, complete = nearest
    return found.bucket_nos.tolist(), found.distances.tolist(), complete


@answer
def packed_patches(
    plpy: Any,
    GD: dict[str, Any],
    encoder_id: int,
    positives: Sequence[str],
    negatives: Sequence[str],
    wanted: int | None,
    skipped: int | None,
    radius: int | None,
    conditions: str | None,
) -> tuple[list[int], list[int]] | None:
    """Ids and distances of patches (see eo_internal.nearest_packed_patches), or None where packed ones do not serve."""
    check_version(plpy, GD)
    unchanged = prepared(plpy, GD, db.UNCHANGED_QUERY, "smallint")
    rows = plpy.execute(unchanged, [encoder_id])
    if not rows or not rows[0]["unchanged"]:
        return None
    state = code_state(plpy, GD, encoder_id)
    check_search(state, positives, negatives, wanted)
    found = code_cache(GD, encoder_id).find_patches(
        state,
        lambda kind, version: packed_file(plpy, encoder_id, version, kind),
        positives,
        negatives,
        wanted,
        skipped or 0,
        radius,
        json.loads(conditions or "{}"),
    )
    return None if found is None else (found.patch_ids.tolist(), found.distances.tolist())


@answer
def pack_codes(plpy: Any, GD: dict[str, Any], encoder_id: int, version: str) -> tuple[int, int, int]:
    """Write a hash function's codes and patches into files of this version; return how many they are, and the bytes."""
    import numpy as np

    from pyfuncs import packed_codes as files
    from pyfuncs.code_cache import read_words
    from pyfuncs.packed_patches import write as write_patches

    check_version(plpy, GD)
    state = code_state(plpy, GD, encoder_id)
    if state.buckets == 0:
        return 0, 0, 0
    path = packed_file(plpy, encoder_id, version, "codes")
    # Backends may still be about to open the files of the version that this one follows.
    for old in path.parent.glob(f"{encoder_id}-*"):
        if not (state.version and old.name.startswith(f"{encoder_id}-{state.version}.")):
            old.unlink(missing_ok=True)
    words = read_words(lambda first, end: read_codes(plpy, GD, encoder_id, first, end), 0, state.buckets, state.bits)
    columns, numbering = read_patches(plpy, GD, encoder_id, state.buckets)
    bucket_nos = columns.pop("bucket_nos")
    members = np.bincount(bucket_nos, minlength=state.buckets).astype(np.int32)
    order, size = files.write(path, words, members, state.bits, lambda: plpy.execute("select 1"))
    places = np.empty(state.buckets, np.int32)
    places[order] = np.arange(state.buckets, dtype=np.int32)
    columns["codes"] = places.take(bucket_nos)
    patches = packed_file(plpy, encoder_id, version, "patches")
    size += interruptibly(lambda _: write_patches(patches, columns, *numbering), pause_of(plpy))
    return state.buckets, len(columns["patch_ids"]), size


def unreadable_files(plpy: Any) -> dict[str, str]:
    """Why files of packed codes or patches cannot be read, by version; those that can be are left out."""
    from pyfuncs.mapped_tensors import map_tensors

    reasons = {}
    for row in plpy.execute(db.PACKED_QUERY):
        try:
            for kind in ("codes", "patches"):
                map_tensors(packed_file(plpy, row["encoder_id"], row["version"], kind))
        except FileNotFoundError:
            reasons[row["version"]] = "the files are not on this server, as after a restore or on a standby"
        except OSError as error:
            reasons[row["version"]] = f"a file cannot be read ({error.strerror or error})"
    return reasons


@answer
def remove_packed_files(plpy: Any, encoder_id: int) -> int:
    """Remove what was packed of a hash function; return how many files that were."""
    files = list(packed_file(plpy, encoder_id, "", "").parent.glob(f"{encoder_id}-*"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def read_patches(
    plpy: Any, GD: dict[str, Any], encoder_id: int, buckets: int
) -> tuple[dict[str, Any], tuple[Iterable[str], Iterable[str]]]:
    """Read what filters read of the patches of a hash function: columns by patch_id, label sets and kinds.

    Patches in later buckets than the first so many are left out: their change is later, too, than what the build saw.
    """
    import numpy as np

    from pyfuncs import packed_patches as files

    types = {"patch_ids": ">i8", "bucket_nos": ">i4", "times": ">i8", **dict.fromkeys(files.BOUNDS, ">f8")}
    parts: dict[str, list[Any]] = {name: [] for name in (*types, "label_sets", "kinds")}
    numbering = {"label_sets": files.Numbering(), "kinds": files.Numbering()}
    query = prepared(plpy, GD, db.PATCHES_QUERY, "smallint", "bigint", "integer", "integer")
    row = plpy.execute(query, [encoder_id, -1, PATCHES_AT_ONCE, buckets])[0]
    while row["patches"]:
        for name, dtype in types.items():
            parts[name].append(np.frombuffer(row[name], dtype))
        for name, numbers in numbering.items():
            parts[name].append(np.array(numbers.numbers(row[name]), np.int32))
        row = plpy.execute(query, [encoder_id, row["last"], PATCHES_AT_ONCE, buckets])[0]
    columns = {name: np.concatenate(part) if part else np.empty(0, np.int32) for name, part in parts.items()}
    columns["bucket_nos"] = columns["bucket_nos"].astype(np.int32)
    for name in ("patch_ids", "times"):
        columns[name] = columns[name].astype(np.int64)
    return columns, (numbering["label_sets"].texts, numbering["kinds"].texts)


def code_cache(GD: dict[str, Any], encoder_id: int) -> Any:
    """What this backend has read of a hash function's codes."""
    from pyfuncs.code_cache import CodeCache

    caches = GD.setdefault("pgearth.codes", {})
    if encoder_id not in caches:
        caches[encoder_id] = CodeCache()
    return caches[encoder_id]


def code_state(plpy: Any, GD: dict[str, Any], encoder_id: int) -> Any:
    """What the snapshot shows of a hash function's buckets, as a CodeState. Raises PgearthError unless it is one."""
    from pyfuncs.code_cache import CodeState

    row = plpy.execute(prepared(plpy, GD, db.CODE_STATE_QUERY, "smallint"), [encoder_id])[0]
    if row["bits"] is None:
        raise PgearthError(
            f"encoder_id {encoder_id} is no hash function",
            sqlstate=UNDEFINED_OBJECT,
            hint="Those of eo.encoder whose bits are set are.",
        )
    return CodeState(row["guard"], row["version"], row["bits"], row["buckets"], row["settled"])


def packed_file(plpy: Any, encoder_id: int, version: str, kind: str) -> Any:
    """Path of a file of packed codes or patches."""
    return db.packed_file(plpy.execute(db.DATABASE_QUERY)[0]["oid"], encoder_id, version, kind)


def prepared(plpy: Any, GD: dict[str, Any], query: str, *types: str) -> Any:
    """The plan of a query, made once per backend."""
    plans = GD.setdefault("pgearth.plans", {})
    if query not in plans:
        plans[query] = plpy.prepare(query, types)
    return plans[query]


def read_codes(plpy: Any, GD: dict[str, Any], encoder_id: int, first: int, end: int) -> bytes:
    """Codes of buckets by number, as varbit_send writes them, one after the other."""
    query = prepared(plpy, GD, db.CODES_QUERY, "smallint", "integer", "integer")
    codes: bytes = plpy.execute(query, [encoder_id, first, end])[0]["codes"]
    return codes


@answer
def check_encoder(plpy: Any, GD: dict[str, Any], row: dict[str, Any], parent_dimension: int | None) -> bool:
    """Raise PgearthError unless the weights of a row of eo.encoder fit its architecture (pyfuncs.encoders.check)."""
    from pyfuncs.encoders import NETWORKS, check

    check_version(plpy, GD)
    if row["architecture"] in NETWORKS:
        share_processor()
    read = db.encoder_from_row(row)
    interruptibly(lambda _: check(read, parent_dimension), pause_of(plpy))
    return True


@answers
def retrieval_metrics(
    plpy: Any,
    GD: dict[str, Any],
    encoder_id: int,
    queries: Sequence[int],
    archive: Sequence[int],
    scheme: str,
    level: int,
    k: int,
    relevance: str | None,
    max_queries: int | None,
    seed: int,
) -> list[tuple[str, float, float | None]]:
    """Measures of retrieval with their chance levels, and numbers of patches (see eo.retrieval_metrics)."""
    from pyfuncs.retrieval_metrics import evaluate, relevance_rule

    check_version(plpy, GD)
    rule = relevance_rule(relevance or "")
    patches = read_labelled_features(plpy, GD, encoder_id, sorted({*queries, *archive}), scheme, level)
    return interruptibly(
        lambda check: evaluate(patches, queries, archive, k, rule, max_queries, seed, check), pause_of(plpy)
    )


@answers
def code_statistics(
    plpy: Any, GD: dict[str, Any], encoder_id: int, patch_ids: Sequence[int]
) -> list[tuple[str, float | None]]:
    """Statistics of the hash codes of patches (see eo.code_statistics)."""
    from pyfuncs.retrieval_metrics import code_statistics as describe

    check_version(plpy, GD)
    patches = read_labelled_features(plpy, GD, encoder_id, patch_ids, None, None)
    assert patches.bits is not None
    codes = patches.features[patches.encoded].T
    return list(interruptibly(lambda _: describe(codes, patches.bits), pause_of(plpy)).items())


def read_labelled_features(
    plpy: Any, GD: dict[str, Any], encoder_id: int, patch_ids: Sequence[int], scheme: str | None, level: int | None
) -> Any:
    """Read codes or vectors, and labels, of patches given by ascending ids, as LabelledFeatures."""
    import numpy as np

    from pyfuncs.packed_codes import pack
    from pyfuncs.retrieval_metrics import LabelledFeatures

    row = plpy.execute(prepared(plpy, GD, db.SIZE_OF_FEATURES_QUERY, "smallint"), [encoder_id])[0]
    bits, dimension = row["bits"], row["dimension"]
    count = len(patch_ids)
    width, dtype = (dimension, np.float32) if bits is None else (-(-bits // 64), np.uint64)
    features: Any = np.zeros((count, width), dtype)
    labels = np.zeros(count, np.uint64)
    labelled, encoded = np.zeros(count, bool), np.zeros(count, bool)
    query = prepared(plpy, GD, db.LABELLED_FEATURES_QUERY, "smallint", "bigint[]", "text", "integer")
    for start in range(0, count, VECTORS_AT_ONCE):
        rows = slice(start, start + VECTORS_AT_ONCE)
        row = plpy.execute(query, [encoder_id, list(patch_ids[rows]), scheme, level])[0]
        labels[rows] = np.frombuffer(row["labels"], ">u8")
        labelled[rows] = np.frombuffer(row["labelled"], bool)
        encoded[rows] = np.frombuffer(row["encoded"], bool)
        if row["features"] is None:
            continue
        if bits is None:
            table = np.frombuffer(row["features"], np.uint8).reshape(-1, 4 + 4 * dimension)[:, 4:]
            features[rows][encoded[rows]] = np.ascontiguousarray(table).view(">f4")
        else:
            features[rows][encoded[rows]] = pack(row["features"], bits).T
    return LabelledFeatures(np.array(patch_ids, np.int64), labels, labelled, encoded, features, bits)
