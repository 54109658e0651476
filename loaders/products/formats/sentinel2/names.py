"""What the name of a Sentinel-2 product says: as ESA writes it, or Earth Engine."""

from __future__ import annotations

import re
from datetime import datetime

from pgearth.loaders.products.files import parse_time
from pgearth.loaders.products.formats.sentinel2.baselines import baseline_of
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata
from pgearth.pyfuncs.errors import PgearthError

OFFICIAL_NAME = re.compile(
    r"(?P<platform>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})(?:_N(?P<baseline>\d{4}))?_R(?P<orbit>\d{3})"
    r"_T(?P<tile>\d{2}[A-Z]{3})_\d{8}T\d{6}"
)
EARTH_ENGINE_NAME = re.compile(r"(?P<time>\d{8}T\d{6})_\d{8}T\d{6}_T(?P<tile>\d{2}[A-Z]{3})")


def from_name(name: str, source: str) -> Metadata | None:
    """What a name of ESA's or Earth Engine's says; None for any other. Raises PgearthError for a time that is none."""
    name = name.removesuffix(".SAFE")
    if official := OFFICIAL_NAME.fullmatch(name):
        return Metadata(
            source=f"{source}, {name}",
            name=name,
            platform=f"sentinel-{official['platform'][1:].lower()}",
            level=official["level"],
            tile=official["tile"],
            sensing_time=time_in(name, official["time"]),
            baseline=baseline_of(official["baseline"]) if official["baseline"] else None,
            relative_orbit=int(official["orbit"]),
        )
    if earth_engine := EARTH_ENGINE_NAME.fullmatch(name):
        return Metadata(
            source=f"{source}, {name}",
            name=name,
            tile=earth_engine["tile"],
            sensing_time=time_in(name, earth_engine["time"]),
        )
    return None


def time_in(name: str, text: str) -> datetime:
    """The time in a product's name."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise PgearthError(
            f"{name}: {text} is no time", "Give the product its own name, or say it with --name."
        ) from error
