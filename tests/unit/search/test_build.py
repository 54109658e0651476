"""Packing codes and patches: what the files hold is what was read, however it came in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.search import build, code_file, patch_file
from pgearth.pyfuncs.search.code_cache import CodeState
from tests.unit.search.test_code_file import sent

BITS = 16
random = np.random.default_rng(2)
CODES = np.unique(random.integers(0, 2, (40, BITS)).astype(bool), axis=0)
PATCH_IDS = np.sort(random.choice(1000, 90, replace=False))
BUCKET_NOS = random.integers(0, len(CODES) - 1, 90)  # the last is empty
BOUNDS = np.sort(random.random((4, 90)), axis=0)
LABEL_SETS = [["", "3", "3,7"][number] for number in random.integers(0, 3, 90)]
KINDS = [patch_file.SEPARATOR.join(["s2", "x", "train", "winter", "", "", "FI,SE"]) for _ in range(90)]
STATE = CodeState("guard", "old", BITS, len(CODES), True)


def read_codes(first: int, end: int) -> bytes:
    return sent(CODES[first:end])


def read_patches(after: int, most: int) -> dict[str, Any]:
    chosen = np.flatnonzero(after < PATCH_IDS)[:most]
    return {
        "patches": len(chosen),
        "last": int(PATCH_IDS[chosen[-1]]) if len(chosen) else None,
        "patch_ids": PATCH_IDS[chosen].astype(">i8").tobytes(),
        "bucket_nos": BUCKET_NOS[chosen].astype(">i4").tobytes(),
        "times": (PATCH_IDS[chosen] * 10).astype(">i8").tobytes(),
        **{name: row[chosen].astype(">f8").tobytes() for name, row in zip(patch_file.BOUNDS, BOUNDS, strict=True)},
        "label_sets": [LABEL_SETS[place] for place in chosen],
        "kinds": [KINDS[place] for place in chosen],
    }


@pytest.mark.parametrize("at_once", [7, 90, 100_000])
def test_files_hold_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(build, "PATCHES_AT_ONCE", at_once)
    codes, patches = tmp_path / "1-new.codes.safetensors", tmp_path / "1-new.patches.safetensors"
    count, size = build.build(STATE, codes, patches, read_codes, read_patches, lambda: None)
    assert (count, size) == (90, codes.stat().st_size + patches.stat().st_size)
    packed, found = code_file.read(codes), patch_file.read(patches)
    np.testing.assert_array_equal(
        packed.members[np.argsort(packed.bucket_nos)], np.bincount(BUCKET_NOS, minlength=len(CODES))
    )
    np.testing.assert_array_equal(found.patch_ids, PATCH_IDS)
    np.testing.assert_array_equal(packed.bucket_nos[found.codes], BUCKET_NOS)
    np.testing.assert_array_equal(found.times, PATCH_IDS * 10)
    assert [sorted(np.flatnonzero(found.set_members[number])) for number in found.label_sets] == [
        [int(label) for label in text.split(",") if label] for text in LABEL_SETS
    ]


def test_gaps_in_the_numbers_of_buckets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PgearthError, match="their numbers have gaps"):
        build.build(
            STATE,
            tmp_path / "c",
            tmp_path / "p",
            lambda first, end: sent(CODES[first : end - 1]),
            read_patches,
            lambda: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_versions_are_removed(tmp_path: Path) -> None:
    for name in ("1-a.codes.safetensors", "1-a.patches.safetensors", "1-b.codes.safetensors", "11-a.codes.safetensors"):
        (tmp_path / name).touch()
    assert build.remove_files(tmp_path, 1, kept="b") == 2
    assert {file.name for file in tmp_path.iterdir()} == {"1-b.codes.safetensors", "11-a.codes.safetensors"}
    assert build.remove_files(tmp_path, 1) == 1
    assert build.remove_files(tmp_path, 1) == 0
