"""The metadata.json of a Sentinel-2 image of Earth Engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pgearth.loaders.archive.footprint import from_geojson
from pgearth.loaders.archive.write import PLATFORMS
from pgearth.loaders.products.formats.sentinel2.bands import QUANTIFICATION, REFLECTANCE_BANDS
from pgearth.loaders.products.formats.sentinel2.baselines import baseline_of
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata, Units


def from_earth_engine(document: dict[str, Any]) -> Metadata | None:
    """Metadata from an Earth Engine image's properties, as SSL4EO-S12 keeps them.

    Images of its harmonised collections have no offset any more; their system:id says so, where it is there.
    """
    if "PRODUCT_ID" not in document or "system:time_start" not in document:
        return None
    ring = document.get("system:footprint", {}).get("coordinates")
    generated = document.get("GENERATION_TIME")
    collection = str(document.get("system:id") or document.get("id") or "")
    harmonised = "HARMONIZED" in collection
    return Metadata(
        source="",
        name=document["PRODUCT_ID"],
        platform=PLATFORMS.get(str(document.get("DATATAKE_IDENTIFIER"))[1:4]),
        sensing_time=datetime.fromtimestamp(document["system:time_start"] / 1000, UTC),
        processed_at=datetime.fromtimestamp(generated / 1000, UTC) if generated else None,
        baseline=baseline_of(document["PROCESSING_BASELINE"]) if document.get("PROCESSING_BASELINE") else None,
        relative_orbit=document.get("SENSING_ORBIT_NUMBER"),
        cloud_cover=document.get("CLOUDY_PIXEL_PERCENTAGE"),
        outline=from_geojson({"type": "Polygon", "coordinates": [ring]}) if ring else None,
        document=document,
        units=dict.fromkeys(REFLECTANCE_BANDS, Units("", 1 / QUANTIFICATION, 0.0)) if harmonised else {},
        as_delivered=bool(collection) and not harmonised,
    )
