"""The STAC item of a Sentinel-2 product."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from pgearth.loaders.archive.footprint import from_geojson
from pgearth.loaders.products.files import parse_time
from pgearth.loaders.products.formats.sentinel2.bands import SCL, band_of, is_jpeg_2000
from pgearth.loaders.products.formats.sentinel2.baselines import baseline_of
from pgearth.loaders.products.formats.sentinel2.metadata import PLATFORM, Metadata, Units

MGRS_CODE = re.compile(r"MGRS-(\d{2}[A-Z]{3})")
BASELINE = re.compile(r"\d\d\.\d\d")


def from_stac_item(document: dict[str, Any]) -> Metadata | None:
    """Metadata from a STAC item of any version, as Earth Search (v0, v1), CDSE and the Planetary Computer publish them.

    Whether the offset of ESA's product has been taken back, Earth Search tells by a flag, which is of its GeoTIFFs;
    in v0 it is missing where it has not been. Assets' addresses in a .SAFE folder are of ESA's own pixels.
    """
    if document.get("type") != "Feature" or "stac_version" not in document:
        return None
    properties = document.get("properties", {})
    start = properties.get("start_datetime") or properties.get("datetime")
    end = properties.get("end_datetime")
    generated = properties.get("s2:generation_time")
    platform = str(properties.get("platform")).lower()
    product_type = str(properties.get("s2:product_type") or properties.get("product:type"))
    applied = properties.get("earthsearch:boa_offset_applied", properties.get("sentinel:boa_offset_applied"))
    if applied is None and "sentinel:processing_baseline" in properties:
        applied = False
    units, in_safe = {}, []
    for asset in document.get("assets", {}).values():
        address = str(asset.get("href")).partition("?")[0]
        band = band_of(address.rpartition("/")[2])
        if band is None or band == SCL:
            continue
        in_safe.append(".SAFE/" in address)
        said = units_of_asset(asset, properties)
        kind = ".jp2" if is_jpeg_2000(address) else ".tif"
        if applied and kind == ".tif":
            said = replace(said, offset=0.0)
        units[f"{band}{kind}"] = said
    identifier = properties.get("s2:product_uri") or properties.get("sentinel:product_id") or document["id"]
    return Metadata(
        source="",
        name=str(identifier).removesuffix(".SAFE"),
        platform=platform if PLATFORM.fullmatch(platform) else None,
        level={"S2MSI1C": "L1C", "S2MSI2A": "L2A"}.get(product_type),
        sensing_time=parse_time(start) if start else None,
        end_time=parse_time(end) if end else None,
        processed_at=parse_time(generated) if generated else None,
        baseline=stac_baseline(properties),
        relative_orbit=properties.get("sat:relative_orbit"),
        tile=tile[1] if (tile := MGRS_CODE.fullmatch(str(properties.get("grid:code")))) else None,
        cloud_cover=properties.get("eo:cloud_cover"),
        outline=from_geojson(document.get("geometry")),
        document=document,
        units=units,
        as_delivered=applied is False or (bool(in_safe) and all(in_safe)),
    )


def units_of_asset(asset: dict[str, Any], properties: dict[str, Any]) -> Units:
    """Scale and offset of a STAC asset of one band, said by its band (STAC 1.0, 1.1), by itself or by the item."""
    places = [*asset.get("raster:bands", [])[:1], *asset.get("bands", [])[:1], asset, properties]
    said = {
        key: next(
            (place[name] for place in places for name in (key, f"raster:{key}") if place.get(name) is not None), None
        )
        for key in ("scale", "offset", "data_type")
    }
    return Units(
        source="",
        scale=None if said["scale"] is None else float(said["scale"]),
        offset=None if said["offset"] is None else float(said["offset"]),
        floating=str(said["data_type"]).startswith("float"),
    )


def stac_baseline(properties: dict[str, Any]) -> str | None:
    """The processing baseline in a STAC item's properties; CDSE writes it as the version of the processor."""
    for name in ("s2:processing_baseline", "sentinel:processing_baseline"):
        if properties.get(name) is not None:
            return baseline_of(properties[name])
    version = str(properties.get("processing:version"))
    return version if BASELINE.fullmatch(version) else None
