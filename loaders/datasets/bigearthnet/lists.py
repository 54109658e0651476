"""The official lists of BigEarthNet v1: splits, snow and clouds."""

from __future__ import annotations

import bz2
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgearth.loaders.datasets.bigearthnet.names import is_patch_name
from pgearth.pyfuncs.errors import PgearthError


@dataclass(frozen=True)
class Lists:
    """Official v1 lists: the split of Sentinel-2 patches, and those under seasonal snow or with cloud or shadow."""

    splits: dict[str, str]
    seasonal_snow: set[str]
    cloud_or_shadow: set[str]


def read_lists(folder: Path) -> Lists:
    """Read the v1 lists in `folder` (.csv or .csv.bz2). Raises PgearthError if one is missing or names no patch."""
    splits = {"train": "train", "val": "validation", "test": "test"}
    return Lists(
        splits={name: split for stem, split in splits.items() for name in read_list(folder, stem)},
        seasonal_snow=set(read_list(folder, "patches_with_seasonal_snow")),
        cloud_or_shadow=set(read_list(folder, "patches_with_cloud_and_shadow")),
    )


def read_list(folder: Path, stem: str) -> Iterator[str]:
    """Names in one v1 list: one per row, in the first column, without a header."""
    path = folder / f"{stem}.csv.bz2"
    if not path.is_file():
        path = folder / f"{stem}.csv"
    try:
        with bz2.open(path, "rt") if path.suffix == ".bz2" else path.open() as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row or not is_patch_name(row[0]):
                    raise PgearthError(
                        f"{path}, row {number}: {','.join(row)!r} is not the name of a BigEarthNet patch",
                        "Take this list from the archive again: names of patches, one in a row, and no header.",
                    )
                yield row[0]
    except FileNotFoundError as error:
        raise PgearthError(
            f"{folder}: no {stem}.csv.bz2 or {stem}.csv", "All lists of splits, snow and clouds are needed."
        ) from error
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise PgearthError(f"{path}: it cannot be read: {error}", "Take this list from the archive again.") from error
