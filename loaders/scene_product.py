"""What product a Sentinel-2 scene is: from its metadata file (STAC, tileInfo.json, Earth Engine) and folder name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import shapely
from pyproj import Transformer
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from loaders.errors import InputError
from loaders.patches import PLATFORMS, Product

OFFICIAL_NAME = re.compile(
    r"(?P<platform>S2[ABC])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[A-Z]{3})_\d{8}T\d{6}"
)
EARTH_ENGINE_NAME = re.compile(r"(?P<time>\d{8}T\d{6})_\d{8}T\d{6}_T(?P<tile>\d{2}[A-Z]{3})")
SSL4EO_LEVELS = {"s2a": "L2A", "s2c": "L1C"}


@dataclass(frozen=True)
class Metadata:
    """What a metadata file says of the product; `footprint` is in EPSG:4326, `document` the file's content."""

    name: str
    platform: str | None
    sensing_time: datetime | None
    cloud_cover: float | None
    footprint: shapely.Geometry | None
    document: dict[str, Any]


def describe_product(
    path: Path,
    bounds: shapely.Geometry,
    srid: int,
    likely_level: str,
    name: str | None = None,
    sensing_time: datetime | None = None,
    platform: str | None = None,
) -> Product:
    """Put together what arguments, metadata file and folder name (in this order) say of the scene's product.

    `bounds` of the pixels, in `srid`, are its footprint where no metadata tell; `likely_level` is for a product whose
    name does not tell its level. Raises InputError when name, time or platform
    remain unknown.
    """
    path = path.resolve()
    metadata = read_metadata(path)
    known_name = metadata.name if metadata else path.name.removesuffix(".SAFE")
    known_platform, level, tile, known_time = None, likely_level, None, None
    if official := OFFICIAL_NAME.fullmatch(known_name):
        known_platform, level = PLATFORMS[official["platform"]], official["level"]
        tile, known_time = official["tile"], parse_time(official["time"])
    elif earth_engine := EARTH_ENGINE_NAME.fullmatch(known_name):
        tile, known_time = earth_engine["tile"], parse_time(earth_engine["time"])
        level = next((SSL4EO_LEVELS[part] for part in reversed(path.parts) if part in SSL4EO_LEVELS), likely_level)
        known_name = f"{known_name}_{level}"
    elif metadata is None:
        known_name = ""
    if metadata:
        known_platform, known_time = metadata.platform or known_platform, metadata.sensing_time or known_time
    name, sensing_time, platform = name or known_name, sensing_time or known_time, platform or known_platform
    if not (name and sensing_time and platform):
        facts = {"--name": name, "--time": sensing_time, "--platform": platform}
        raise InputError(
            f"{path}: neither a metadata file (STAC item, tileInfo.json, metadata.json) nor the folder's name tells"
            " what product this is",
            f"Say so with {', '.join(option for option, value in facts.items() if not value)}.",
        )
    outline = metadata.footprint if metadata else None
    if outline is None or not outline.is_valid:
        outline = to_wgs84(bounds, srid)
    return Product(
        name=name,
        platform=platform,
        level=level,
        sensing_time=sensing_time,
        mgrs_tile=tile,
        cloud_cover=metadata.cloud_cover if metadata else None,
        footprint=shapely.to_wkb(shapely.multipolygons([outline]) if outline.geom_type == "Polygon" else outline),
        source_path=str(path),
        metadata=metadata.document if metadata else None,
    )


def read_metadata(path: Path) -> Metadata | None:
    """Read the scene's metadata file, if there is one of a known kind. Raises InputError for a damaged JSON file."""
    found = []
    for file in sorted(path.glob("*.json")):
        try:
            document = json.loads(file.read_bytes())
            if isinstance(document, dict):
                found += [(rank, understand(document)) for rank, understand in enumerate(METADATA_KINDS)]
        except (OSError, LookupError, TypeError, ValueError, AttributeError, ShapelyError, ProjError) as error:
            raise InputError(
                f"{file}: not valid metadata: {type(error).__name__}: {error}",
                "Replace the file, or remove it and give --name, --time and --platform.",
            ) from error
    return min(
        ((rank, metadata) for rank, metadata in found if metadata), key=lambda ranked: ranked[0], default=(0, None)
    )[1]


def from_stac_item(document: dict[str, Any]) -> Metadata | None:
    """Metadata from a STAC item, as Earth Search publishes them."""
    if document.get("type") != "Feature" or "stac_version" not in document:
        return None
    properties = document.get("properties", {})
    time = properties.get("datetime") or properties.get("start_datetime")
    platform = str(properties.get("platform")).lower()
    return Metadata(
        name=str(properties.get("s2:product_uri") or document["id"]).removesuffix(".SAFE"),
        platform=platform if platform in PLATFORMS.values() else None,
        sensing_time=parse_time(time) if time else None,
        cloud_cover=properties.get("eo:cloud_cover"),
        footprint=polygon(document.get("geometry"), 4326),
        document=document,
    )


def from_tile_info(document: dict[str, Any]) -> Metadata | None:
    """Metadata from a tileInfo.json, as the Sentinel-2 buckets on AWS have it."""
    if "productName" not in document or "timestamp" not in document:
        return None
    geometry = document.get("tileDataGeometry") or document.get("tileGeometry") or {}
    crs = geometry.get("crs", {}).get("properties", {}).get("name", "")
    return Metadata(
        name=document["productName"],
        platform=None,
        sensing_time=parse_time(document["timestamp"]),
        cloud_cover=document.get("cloudyPixelPercentage"),
        footprint=polygon(geometry, int(crs.rpartition(":")[2])) if crs else None,
        document=document,
    )


def from_earth_engine(document: dict[str, Any]) -> Metadata | None:
    """Metadata from an Earth Engine image's properties, as SSL4EO-S12 keeps them."""
    if "PRODUCT_ID" not in document or "system:time_start" not in document:
        return None
    ring = document.get("system:footprint", {}).get("coordinates")
    return Metadata(
        name=document["PRODUCT_ID"],
        platform=PLATFORMS.get(str(document.get("DATATAKE_IDENTIFIER"))[1:4]),
        sensing_time=datetime.fromtimestamp(document["system:time_start"] / 1000, UTC),
        cloud_cover=document.get("CLOUDY_PIXEL_PERCENTAGE"),
        footprint=polygon({"type": "Polygon", "coordinates": [ring]}, 4326) if ring else None,
        document=document,
    )


METADATA_KINDS = (from_stac_item, from_tile_info, from_earth_engine)  # the most telling first


def parse_time(text: str) -> datetime:
    """An ISO 8601 time; without a zone it is UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def polygon(geometry: dict[str, Any] | None, srid: int) -> shapely.Geometry | None:
    """A GeoJSON polygon or multipolygon in EPSG:4326; None for anything else."""
    if not geometry or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return None
    return to_wgs84(shapely.force_2d(shapely.from_geojson(json.dumps(geometry))), srid)


def to_wgs84(outline: shapely.Geometry, srid: int) -> shapely.Geometry:
    """Transform an outline to EPSG:4326 (longitude, latitude), with more vertices, so that long edges stay in place."""
    if srid == 4326:
        return outline
    transformer = Transformer.from_crs(srid, 4326, always_xy=True)
    return shapely.transform(shapely.segmentize(outline, outline.length / 64), transformer.transform, interleaved=False)
