"""What a BigEarthNet patch of each sensor consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sensor:
    """What a patch of a sensor consists of: bands by resolution (metres), pixel type, nodata of files without a tag."""

    bands: Mapping[int, tuple[str, ...]]
    dtype: str
    nodata: float | None


# For Sentinel-2, BigEarthNet defines 0 as no data; the files of v2 are tagged so, those of v1 are not tagged.
SENTINEL_2 = Sensor(
    {
        10: ("B02", "B03", "B04", "B08"),
        20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
        60: ("B01", "B09"),
    },
    dtype="uint16",
    nodata=0,
)
SENTINEL_1 = Sensor({10: ("VV", "VH")}, dtype="float32", nodata=None)


def sensor_of(platform: str) -> Sensor:
    """What the patches of a platform consist of."""
    return SENTINEL_1 if platform.startswith("sentinel-1") else SENTINEL_2
