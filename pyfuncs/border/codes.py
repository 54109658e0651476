"""The nearest codes and patches, from packed files; and what these are packed from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pgearth.pyfuncs import queries
from pgearth.pyfuncs.border.session import Session, answer
from pgearth.pyfuncs.errors import UNDEFINED_OBJECT, PgearthError


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
    from pgearth.pyfuncs.search.build import build, remove_files

    state = code_state(session, encoder_id)
    if state.buckets == 0:
        return 0, 0, 0
    codes, patches = (packed_file(session, encoder_id, version, kind) for kind in ("codes", "patches"))
    # Backends may still be about to open the files of the version that this one follows.
    remove_files(codes.parent, encoder_id, kept=state.version)
    count, size = build(
        state,
        codes,
        patches,
        lambda first, end: read_codes(session, encoder_id, first, end),
        lambda after, most: read_patches(session, encoder_id, after, most, state.buckets),
        session.pause,
    )
    return state.buckets, count, size


@answer
def remove_packed_files(session: Session, encoder_id: int) -> int:
    """Remove what was packed of a hash function; return how many files that were."""
    from pgearth.pyfuncs.search.build import remove_files

    return remove_files(packed_file(session, encoder_id, "", "").parent, encoder_id)


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


def read_patches(session: Session, encoder_id: int, after: int, most: int, buckets: int) -> Any:
    """What filters read of the first patches after a patch_id (see search.build.ReadPatches).

    Those in later buckets than the first so many are left out: their change is later, too, than what a build saw.
    """
    return session.row(
        queries.PATCHES_QUERY, ("smallint", "bigint", "integer", "integer"), [encoder_id, after, most, buckets]
    )
