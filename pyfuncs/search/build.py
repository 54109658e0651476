"""Packs the codes and patches of a hash function into the files that searches map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgearth.pyfuncs.interrupts import interruptibly
from pgearth.pyfuncs.search import code_file, patch_file
from pgearth.pyfuncs.search.code_cache import CodeState, ReadCodes, read_words

PATCHES_AT_ONCE = 100_000
TYPES = {"patch_ids": ">i8", "bucket_nos": ">i4", "times": ">i8", **dict.fromkeys(patch_file.BOUNDS, ">f8")}
"""Columns of numbers that ReadPatches gives as bytes, as PostgreSQL sends them."""

ReadPatches = Callable[[int, int], Mapping[str, Any]]
"""Of the first so many (the second argument) patches after a patch_id: their number, `patches`; the last of them,
`last`; the columns of TYPES; and lists of texts, `label_sets` and `kinds` (see patch_file.write)."""


def build(
    state: CodeState,
    codes: Path,
    patches: Path,
    read_codes: ReadCodes,
    read_patches: ReadPatches,
    pause: Callable[[], None],
) -> tuple[int, int]:
    """Write the files `codes` and `patches`; return how many patches there are, and the bytes of both files.

    `pause` is called now and then, and may raise. Raises PgearthError where numbers of buckets have gaps.
    """
    words = read_words(read_codes, 0, state.buckets, state.bits)
    columns, label_sets, kinds = read_columns(read_patches)
    bucket_nos = columns.pop("bucket_nos")
    members = np.bincount(bucket_nos, minlength=state.buckets).astype(np.int32)
    order, size = code_file.write(codes, words, members, state.bits, pause)
    places = np.empty(state.buckets, np.int32)
    places[order] = np.arange(state.buckets, dtype=np.int32)
    columns["codes"] = places.take(bucket_nos)
    size += interruptibly(lambda _: patch_file.write(patches, columns, label_sets, kinds), pause)
    return len(columns["patch_ids"]), size


def read_columns(read_patches: ReadPatches) -> tuple[dict[str, NDArray[Any]], Iterable[str], Iterable[str]]:
    """What filters read of patches: columns by patch_id, and the label sets and kinds whose numbers are in them."""
    parts: dict[str, list[Any]] = {name: [] for name in (*TYPES, "label_sets", "kinds")}
    numbering = {"label_sets": patch_file.Numbering(), "kinds": patch_file.Numbering()}
    row = read_patches(-1, PATCHES_AT_ONCE)
    while row["patches"]:
        for name, dtype in TYPES.items():
            parts[name].append(np.frombuffer(row[name], dtype))
        for name, numbers in numbering.items():
            parts[name].append(np.array(numbers.numbers(row[name]), np.int32))
        row = read_patches(row["last"], PATCHES_AT_ONCE)
    columns = {name: np.concatenate(part) if part else np.empty(0, np.int32) for name, part in parts.items()}
    columns["bucket_nos"] = columns["bucket_nos"].astype(np.int32)
    for name in ("patch_ids", "times"):
        columns[name] = columns[name].astype(np.int64)
    return columns, numbering["label_sets"].texts, numbering["kinds"].texts


def remove_files(folder: Path, encoder_id: int, kept: str | None = None) -> int:
    """Remove what was packed of a hash function, but the version that is kept; return how many files that were."""
    files = [
        file
        for file in folder.glob(f"{encoder_id}-*")
        if kept is None or not file.name.startswith(f"{encoder_id}-{kept}.")
    ]
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)
