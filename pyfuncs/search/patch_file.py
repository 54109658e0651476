"""What filters read of the patches of one hash function, packed beside its codes: filtered search without an index.

For each patch: its code, the bounds of its footprint, its time, and the numbers of its set of labels and of its kind
(platform, source, split, season, flags, countries together), of which there are few. Conditions are tested in the
cheapest order, each on what the ones before have left. What passes is a superset of what the filter lets pass (an area
counts by its bounds, and cloud cover, scene classes and lengthy cells are not looked at): the caller tests it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.tensor_file import map_tensors, write_tensors

BOUNDS = ("west", "south", "east", "north")
KIND = ("platform", "source", "split", "season", "seasonal_snow", "cloud_or_shadow", "countries")
SEPARATOR = "\x1f"
"""Between the fields of a kind."""


@dataclass(frozen=True)
class PatchFile:
    """A mapped file of packed patches, by patch_id."""

    patch_ids: NDArray[np.int64]
    codes: NDArray[np.int32]
    """Position of the patch's code in the file of codes."""
    bounds: NDArray[np.float32]
    """(4, n): west, south, east, north in degrees, rounded outward."""
    times: NDArray[np.int64]
    """Microseconds since 2000-01-01, as PostgreSQL counts them."""
    label_sets: NDArray[np.int32]
    kinds: NDArray[np.int32]
    set_members: NDArray[np.bool_]
    """(sets, labels): which label_ids a set holds; the set of a patch without labels holds none."""
    kind_fields: Sequence[Sequence[str]]
    """The fields of KIND of each kind; an unknown one is empty."""

    def passing(self, conditions: Mapping[str, Any]) -> NDArray[np.intp]:
        """Positions of the patches that may pass the filter, ascending.

        conditions (each may be missing): patch_ids; boxes: [[west, south, east, north], ...], any of them; from_time,
        to_time: as in `times`; platforms, sources, splits, seasons, countries: lists; seasonal_snow, cloud_or_shadow:
        true or false; label_groups: [[label_id, ...], ...]; label_match: some, at_least or exactly. Raises PgearthError
        for any other.
        """
        try:
            return self._passing(conditions)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise PgearthError(
                f"the conditions are not those of a filter: {json.dumps(conditions)}",
                hint="Pass what eo_internal.packed_conditions makes.",
            ) from error

    def _passing(self, conditions: Mapping[str, Any]) -> NDArray[np.intp]:
        chosen = Selection(len(self.patch_ids))
        if "patch_ids" in conditions:
            wanted = np.unique(np.asarray(conditions["patch_ids"], np.int64))
            chosen.keep_positions(np.flatnonzero(np.isin(self.patch_ids, wanted, assume_unique=True)))
        if "from_time" in conditions:
            chosen.keep(lambda some: some(self.times) >= conditions["from_time"])
        if "to_time" in conditions:
            chosen.keep(lambda some: some(self.times) < conditions["to_time"])
        if "boxes" in conditions:
            chosen.keep(lambda some: self._in_boxes(some, conditions["boxes"]))
        kinds = np.array([kind_passes(fields, conditions) for fields in self.kind_fields], bool)
        if not kinds.all():
            chosen.keep(lambda some: kinds.take(some(self.kinds)))
        if "label_groups" in conditions:
            sets = self._passing_sets(conditions["label_groups"], conditions["label_match"])
            chosen.keep(lambda some: sets.take(some(self.label_sets)))
        return chosen.positions()

    def _in_boxes(self, some: Some, boxes: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
        west, south, east, north = self.bounds
        found = np.zeros(len(some(west)), bool)
        for box in boxes:
            lowest = np.nextafter(np.asarray(box, np.float32), np.float32(-np.inf))
            highest = np.nextafter(np.asarray(box, np.float32), np.float32(np.inf))
            inside = some(east) >= lowest[0]
            inside &= some(west) <= highest[2]
            inside &= some(north) >= lowest[1]
            inside &= some(south) <= highest[3]
            found |= inside
        return found

    def _passing_sets(self, groups: Sequence[Sequence[int]], match: str) -> NDArray[np.bool_]:
        known = self.set_members.shape[1]
        columns = [[label_id for label_id in group if label_id < known] for group in groups]
        hits = np.array([self.set_members[:, group].any(axis=1) for group in columns])
        passing: NDArray[np.bool_] = np.asarray(hits.any(axis=0) if match == "some" else hits.all(axis=0))
        if match == "exactly":
            selected = sorted({label_id for group in columns for label_id in group})
            passing &= self.set_members[:, selected].sum(axis=1) == self.set_members.sum(axis=1)
        return passing


Some = Callable[[NDArray[Any]], NDArray[Any]]
"""Takes, of an array over all patches, the part that is still chosen."""


class Selection:
    """Positions that have passed so far: all, then, once a condition was tested, those in an array."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._positions: NDArray[np.intp] | None = None

    def keep(self, test: Callable[[Some], NDArray[np.bool_]]) -> None:
        """Keep those for which `test` is true."""
        if self._positions is None:
            self._positions = np.flatnonzero(test(lambda array: array))
        else:
            positions = self._positions
            self._positions = positions[test(lambda array: array.take(positions))]

    def keep_positions(self, positions: NDArray[np.intp]) -> None:
        """Keep these only; the first condition."""
        self._positions = positions

    def positions(self) -> NDArray[np.intp]:
        """What is left."""
        return np.arange(self._count) if self._positions is None else self._positions


def kind_passes(fields: Sequence[str], conditions: Mapping[str, Any]) -> bool:
    """Whether patches of a kind may pass."""
    platform, source, split, season, seasonal_snow, cloud_or_shadow, countries = fields
    for name, value in (("platforms", platform), ("sources", source), ("splits", split), ("seasons", season)):
        if name in conditions and value not in conditions[name]:
            return False
    for name, value in (("seasonal_snow", seasonal_snow), ("cloud_or_shadow", cloud_or_shadow)):
        if name in conditions and value != str(conditions[name]).lower():
            return False
    return "countries" not in conditions or not set(countries.split(",")).isdisjoint(conditions["countries"])


class Numbering:
    """Numbers for distinct texts, in the order of their first appearance."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """Numbers of the texts, new ones for those not seen before."""
        known = self.texts
        return [known.setdefault(text, len(known)) for text in texts]


def write(path: Path, columns: Mapping[str, NDArray[Any]], label_sets: Iterable[str], kinds: Iterable[str]) -> int:
    """Write packed patches, by patch_id, as a file under `path`; return its size in bytes.

    columns: patch_ids, codes, times, label_sets, kinds, and west, south, east, north in double precision. label_sets:
    the sets as comma-joined label_ids, in the order of their numbers; kinds: the fields of KIND, joined by SEPARATOR.
    """
    inward = np.stack([columns[name] for name in BOUNDS]).astype(np.float32)
    outward = np.concatenate(
        [np.nextafter(inward[:2], np.float32(-np.inf)), np.nextafter(inward[2:], np.float32(np.inf))]
    )
    tensors = {name: columns[name] for name in ("patch_ids", "codes", "times", "label_sets", "kinds")}
    metadata = {"label_sets": json.dumps(list(label_sets)), "kinds": json.dumps(list(kinds))}
    return write_tensors(path, {**tensors, "bounds": outward}, metadata)


def read(path: Path) -> PatchFile:
    """Map a file that `write` wrote. Raises OSError where there is none."""
    tensors, metadata = map_tensors(path)
    sets = [[int(label_id) for label_id in text.split(",") if label_id] for text in json.loads(metadata["label_sets"])]
    members = np.zeros((len(sets), 1 + max((max(labels, default=0) for labels in sets), default=0)), bool)
    for row, labels in zip(members, sets, strict=True):
        row[labels] = True
    kinds = [text.split(SEPARATOR) for text in json.loads(metadata["kinds"])]
    return PatchFile(**tensors, set_members=members, kind_fields=kinds)
