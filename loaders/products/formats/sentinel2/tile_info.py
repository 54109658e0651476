"""The tileInfo.json of a Sentinel-2 tile, as the buckets on AWS have it."""

from __future__ import annotations

from typing import Any

from pgearth.loaders.archive.footprint import from_geojson
from pgearth.loaders.products.files import parse_time
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata


def from_tile_info(document: dict[str, Any]) -> Metadata | None:
    """Metadata from a tileInfo.json, as the buckets on AWS have it; their pixels are as ESA delivers them."""
    if "productName" not in document or "timestamp" not in document:
        return None
    geometry = document.get("tileDataGeometry") or document.get("tileGeometry") or {}
    crs = geometry.get("crs", {}).get("properties", {}).get("name", "")
    return Metadata(
        source="",
        name=document["productName"],
        sensing_time=parse_time(document["timestamp"]),
        cloud_cover=document.get("cloudyPixelPercentage"),
        outline=from_geojson(geometry, int(crs.rpartition(":")[2])) if crs else None,
        document=document,
    )
