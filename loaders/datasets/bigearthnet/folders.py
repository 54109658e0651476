"""The folders of a BigEarthNet archive: which patches lie where.

v1 keeps one folder per patch, with a JSON file beside the bands. v2 keeps the patches of a product in one folder and
has no JSON: its labels are in the catalogue.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pgearth.loaders.datasets.bigearthnet.descriptions import Description, read_description
from pgearth.loaders.datasets.bigearthnet.names import is_patch_name, parse_patch_name
from pgearth.loaders.work.counted import Counted
from pgearth.pyfuncs.errors import PgearthError

REFERENCE_MAPS = "Reference_Maps"
DEEPEST_LEVEL = 3
BAND_FILE = re.compile(r"S[12][AB]_.*_(B\d[\dA]|VV|VH)\.tif")


@dataclass(frozen=True)
class Batch:
    """Patches of one product in one folder; `source` is their name in the ledger, `descriptions` (by name) are v1's."""

    folder: Path
    source: Path
    product: str
    names: list[str]
    descriptions: dict[str, Description] | None

    @property
    def faults(self) -> Counter[str]:
        """The known slips of v1 in the names and descriptions of these patches, by kind."""
        descriptions = self.descriptions or {}
        return Counter(
            fault for name in descriptions for fault in parse_patch_name(name).faults + descriptions[name].faults
        )


def find_batches(root: Path) -> Generator[Batch, None, Counter[str]]:
    """Walk an archive and yield its patches by product; return how many reference maps were passed over.

    Holds no more than the names of one folder and, for v1, the descriptions of one acquisition (a few tiles).
    """
    folders = Counted(walk(root))
    for folder, names in folders:
        for acquisition, group in groupby(sorted(names), key=lambda name: parse_patch_name(name).product):
            if folder.name == acquisition:
                yield Batch(folder, folder, acquisition, list(group), None)
                continue
            products: dict[str, dict[str, Description]] = {}
            for name in group:
                description = read_description(folder / name)
                products.setdefault(description.product, {})[name] = description
            for product, descriptions in products.items():
                yield Batch(folder, folder / product, product, list(descriptions), descriptions)
    return folders.counts


def walk(folder: Path, level: int = 0) -> Generator[tuple[Path, list[str]], None, Counter[str]]:
    """Yield folders that hold patch folders, with the names of those; return how many reference maps were passed over.

    Raises PgearthError for bands in any other folder.
    """
    patches: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                (patches if is_patch_name(entry.name) else others).append(entry.name)
            elif BAND_FILE.fullmatch(entry.name) and not is_patch_name(folder.name):
                raise PgearthError(
                    f"{folder}: it holds bands, but its name is not that of a BigEarthNet patch",
                    "Take the folder from the archive again, or move it elsewhere.",
                )
    if patches:
        yield folder, patches
    ignored: Counter[str] = Counter()
    for name in sorted(others):
        if name == REFERENCE_MAPS:
            ignored["reference maps ignored"] += sum(1 for _ in (folder / name).glob("*/*/"))
        elif level < DEEPEST_LEVEL:
            ignored += yield from walk(folder / name, level + 1)
    return ignored
