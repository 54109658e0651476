"""The nearest codes and patches, from packed files; and how these are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pgearth.pyfuncs import queries
from pgearth.pyfuncs.border.session import Session, answer
from pgearth.pyfuncs.errors import UNDEFINED_OBJECT, PgearthError

PATCHES_AT_ONCE = 100_000


@answer
def packed_codes(
    session: Session,
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
    state = code_state(session, encoder_id)
    check_search(state, positives, negatives, wanted)
    nearest = code_cache(session, encoder_id).find(
        state,
        lambda kind, version: packed_file(session, encoder_id, version, kind),
        lambda first, end: read_codes(session, encoder_id, first, end),
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
    session: Session,
    encoder_id: int,
    positives: Sequence[str],
    negatives: Sequence[str],
    wanted: int | None,
    skipped: int | None,
    radius: int | None,
    conditions: str | None,
) -> tuple[list[int], list[int]] | None:
    """Ids and distances of patches (see eo_internal.nearest_packed_patches), or None where packed ones do not serve."""
    rows = session.rows(queries.UNCHANGED_QUERY, ["smallint"], [encoder_id])
    if not rows or not rows[0]["unchanged"]:
        return None
    state = code_state(session, encoder_id)
    check_search(state, positives, negatives, wanted)
    found = code_cache(session, encoder_id).find_patches(
        state,
        lambda kind, version: packed_file(session, encoder_id, version, kind),
        positives,
        negatives,
        wanted,
        skipped or 0,
        radius,
        json.loads(conditions or "{}"),
    )
    return None if found is None else (found.patch_ids.tolist(), found.distances.tolist())


@answer
def pack_codes(session: Session, encoder_id: int, version: str) -> tuple[int, int, int]:
    """Write a hash function's codes and patches into files of this version; return how many they are, and the bytes."""
    import numpy as np

    from pgearth.pyfuncs.search import code_file as files
    from pgearth.pyfuncs.search.code_cache import read_words
    from pgearth.pyfuncs.search.patch_file import write as write_patches

    state = code_state(session, encoder_id)
    if state.buckets == 0:
        return 0, 0, 0
    path = packed_file(session, encoder_id, version, "codes")
    # Backends may still be about to open the files of the version that this one follows.
    for old in path.parent.glob(f"{encoder_id}-*"):
        if not (state.version and old.name.startswith(f"{encoder_id}-{state.version}.")):
            old.unlink(missing_ok=True)
    words = read_words(lambda first, end: read_codes(session, encoder_id, first, end), 0, state.buckets, state.bits)
    columns, numbering = read_patches(session, encoder_id, state.buckets)
    bucket_nos = columns.pop("bucket_nos")
    members = np.bincount(bucket_nos, minlength=state.buckets).astype(np.int32)
    order, size = files.write(path, words, members, state.bits, session.pause)
    places = np.empty(state.buckets, np.int32)
    places[order] = np.arange(state.buckets, dtype=np.int32)
    columns["codes"] = places.take(bucket_nos)
    patches = packed_file(session, encoder_id, version, "patches")
    size += session.interruptibly(lambda _: write_patches(patches, columns, *numbering))
    return state.buckets, len(columns["patch_ids"]), size


@answer
def remove_packed_files(session: Session, encoder_id: int) -> int:
    """Remove what was packed of a hash function; return how many files that were."""
    files = list(packed_file(session, encoder_id, "", "").parent.glob(f"{encoder_id}-*"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def read_patches(
    session: Session, encoder_id: int, buckets: int
) -> tuple[dict[str, Any], tuple[Iterable[str], Iterable[str]]]:
    """Read what filters read of the patches of a hash function: columns by patch_id, label sets and kinds.

    Patches in later buckets than the first so many are left out: their change is later, too, than what the build saw.
    """
    import numpy as np

    from pgearth.pyfuncs.search import patch_file as files

    types = {"patch_ids": ">i8", "bucket_nos": ">i4", "times": ">i8", **dict.fromkeys(files.BOUNDS, ">f8")}
    parts: dict[str, list[Any]] = {name: [] for name in (*types, "label_sets", "kinds")}
    numbering = {"label_sets": files.Numbering(), "kinds": files.Numbering()}
    types_of_query = ("smallint", "bigint", "integer", "integer")
    row = session.row(queries.PATCHES_QUERY, types_of_query, [encoder_id, -1, PATCHES_AT_ONCE, buckets])
    while row["patches"]:
        for name, dtype in types.items():
            parts[name].append(np.frombuffer(row[name], dtype))
        for name, numbers in numbering.items():
            parts[name].append(np.array(numbers.numbers(row[name]), np.int32))
        row = session.row(queries.PATCHES_QUERY, types_of_query, [encoder_id, row["last"], PATCHES_AT_ONCE, buckets])
    columns = {name: np.concatenate(part) if part else np.empty(0, np.int32) for name, part in parts.items()}
    columns["bucket_nos"] = columns["bucket_nos"].astype(np.int32)
    for name in ("patch_ids", "times"):
        columns[name] = columns[name].astype(np.int64)
    return columns, (numbering["label_sets"].texts, numbering["kinds"].texts)


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


def code_cache(session: Session, encoder_id: int) -> Any:
    """What this session has read of a hash function's codes."""
    from pgearth.pyfuncs.search.code_cache import CodeCache

    return session.kept("codes", encoder_id, CodeCache)


def code_state(session: Session, encoder_id: int) -> Any:
    """What the snapshot shows of a hash function's buckets, as a CodeState. Raises PgearthError unless it is one."""
    from pgearth.pyfuncs.search.code_cache import CodeState

    row = session.row(queries.CODE_STATE_QUERY, ["smallint"], [encoder_id])
    if row["bits"] is None:
        raise PgearthError(
            f"encoder_id {encoder_id} is no hash function",
            sqlstate=UNDEFINED_OBJECT,
            hint="Those of eo.encoder whose bits are set are.",
        )
    return CodeState(row["guard"], row["version"], row["bits"], row["buckets"], row["settled"])


def packed_file(session: Session, encoder_id: int, version: str, kind: str) -> Any:
    """Path of a file of packed codes or patches."""
    return queries.packed_file(session.database(), encoder_id, version, kind)


def read_codes(session: Session, encoder_id: int, first: int, end: int) -> bytes:
    """Codes of buckets by number, as varbit_send writes them, one after the other."""
    types = ("smallint", "integer", "integer")
    codes: bytes = session.row(queries.CODES_QUERY, types, [encoder_id, first, end])["codes"]
    return codes
