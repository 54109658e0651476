"""What a source says of a Sentinel-2 product, and what several say together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

import shapely

PLATFORM = re.compile(r"sentinel-2[a-d]")


@dataclass(frozen=True)
class Units:
    """What pixels mean: reflectance = scale * pixel + offset; `source` says so. None: it does not say.

    `floating` is whether it speaks of floating-point pixels; a statement about whole numbers does not hold for them.
    """

    source: str
    scale: float | None = None
    offset: float | None = None
    floating: bool = False


@dataclass(frozen=True)
class Metadata:
    """What one source, a metadata file or a name, says of the product; a baseline is written as 02.14.

    `outline` is in EPSG:4326, `document` the file's content. `units` are by band, or by band and type of file
    (B02.jp2). `as_delivered` is whether the pixels are known to be as ESA delivers them.
    """

    source: str
    name: str = ""
    platform: str | None = None
    level: str | None = None
    sensing_time: datetime | None = None
    end_time: datetime | None = None
    processed_at: datetime | None = None
    baseline: str | None = None
    relative_orbit: int | None = None
    tile: str | None = None
    cloud_cover: float | None = None
    outline: shapely.Geometry | None = None
    document: dict[str, Any] | None = None
    units: dict[str, Units] = field(default_factory=dict)
    as_delivered: bool = True


def merge(sources: Sequence[Metadata]) -> Metadata:
    """What sources say together: the first that says a thing counts. Units are each source's own (see units.py)."""
    merged = Metadata("")
    for source in sources:
        missing = {
            one.name: getattr(source, one.name)
            for one in fields(Metadata)
            if one.name not in ("units", "as_delivered") and getattr(merged, one.name) in (None, "")
        }
        merged = replace(merged, **missing)
    return merged
