"""Sentinel-2 products, L1C and L2A: what they say of themselves, and their bands.

A product is a .SAFE folder of any processing baseline or a zip of one, or a folder of single-band COG, GeoTIFF or JPEG
2000 files, as on AWS (with tileInfo.json), in STAC catalogues (with an item), of Earth Engine (with metadata.json, as
SSL4EO-S12 has it) or of Major TOM (with no more than the product's name).

Pixels of products since baseline 04.00 are 1,000 higher than reflectance * 10,000; BandFile.offset takes that back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import shapely
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from loaders.errors import InputError
from loaders.explain import reason_of
from loaders.patches import PLATFORMS, Product
from loaders.product_files import (
    BandFile,
    Folder,
    Given,
    ProductFiles,
    bounds_of,
    footprint,
    from_geojson,
    open_folder,
    parse_time,
)
from loaders.xml_documents import parse_xml, to_json

# In the order of the metadata's band_id, 0 to 12.
REFLECTANCE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
TEN_METRES = ("B02", "B03", "B04", "B08")
SCL = "SCL"
BANDS = (*REFLECTANCE_BANDS, SCL)
EXPECTED = tuple(band for band in REFLECTANCE_BANDS if band != "B10")  # B10 is in L1C only, SCL in L2A only
NODATA = 0
QUANTIFICATION = 10_000
OFFSET = -1000  # since baseline 04.00
OFFSET_BASELINE = (4, 0)
UNKNOWN_BASELINE = (99, 99)  # of processors run outside ESA's ground segment
# Up to nine tenths of MTD_TL.xml, which also has the mean angles.
ANGLE_GRIDS = frozenset({"Sun_Angles_Grid", "Viewing_Incidence_Angles_Grids"})

BAND_FILE = re.compile(r"(?:^|.*_)(B(?:0?[1-9]|1[0-2]|8A)|SCL)(?:_\d+m)?\.(?:tiff?|jp2)", re.IGNORECASE)
BAND_FOLDER = re.compile(r"(GRANULE/[^/]+/IMG_DATA)?/?(?:R\d+m)?")
PRODUCT_METADATA = re.compile(r"MTD_MSI(?:L1C|L2A)\.xml", re.IGNORECASE)
GRANULE_METADATA = re.compile(r"GRANULE/[^/]+/MTD_TL\.xml", re.IGNORECASE)
OFFICIAL_NAME = re.compile(
    r"(?P<platform>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})_N(?P<baseline>\d{4})_R(?P<orbit>\d{3})"
    r"_T(?P<tile>\d{2}[A-Z]{3})_\d{8}T\d{6}"
)
EARTH_ENGINE_NAME = re.compile(r"(?P<time>\d{8}T\d{6})_\d{8}T\d{6}_T(?P<tile>\d{2}[A-Z]{3})")
TILE = re.compile(r"_T(\d{2}[A-Z]{3})_")
SSL4EO_LEVELS = {"s2a": "L2A", "s2c": "L1C"}


@dataclass(frozen=True)
class Metadata:
    """What a metadata file or a name says of the product; `outline` is in EPSG:4326, `document` the file's content.

    `offsets` are those of the pixels of the bands, in their units; a baseline is written as 02.14.
    """

    name: str
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
    quantification: float | None = None
    offsets: dict[str, float] | None = None
    document: dict[str, Any] | None = None


def open_product(path: Path, given: Given) -> ProductFiles | None:
    """Find a product's metadata and bands. None unless there is one of either, or the name is one of Sentinel-2's.

    Raises InputError for damaged metadata and where name, time or platform remain unknown.
    """
    folder = open_folder(path)
    if folder is None:
        return None
    files = find_band_files(folder)
    metadata = read_metadata(folder)
    if not files and metadata is None:
        return None
    metadata = complete(folder, metadata, "L1C" if "B10" in files else "L2A")
    bands = tuple(
        BandFile(
            name,
            folder.gdal_path(file),
            nodata=NODATA,
            offset=round((metadata.offsets or {}).get(name, 0)),
        )
        for name in BANDS
        for file in files.get(name, ())
    )
    product = make_product(folder, metadata, given, bands)
    used = [file for band_files in files.values() for file in band_files]
    return ProductFiles(
        product=product,
        bands=bands,
        expected=EXPECTED,
        grid="bigearthnet",
        classes=SCL if SCL in files else None,
        sources=folder.sources([*used, *metadata_files(folder)]),
    )


def find_band_files(folder: Folder) -> dict[str, list[str]]:
    """Files of each band, by band name (B01 .. B12, B8A, SCL).

    They lie in the folder itself or in its R10m, R20m, R60m; of a .SAFE folder, in GRANULE/*/IMG_DATA. Raises
    InputError when they belong to several granules.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(folder.sizes):
        parent, _, name = file.rpartition("/")
        place, band = BAND_FOLDER.fullmatch(parent), BAND_FILE.fullmatch(name)
        if place and band:
            found.setdefault(place[1] or "", {}).setdefault(normalise(band[1]), []).append(file)
    if len(found) > 1:
        raise InputError(
            f"{folder.path}: the bands lie in several folders: {', '.join(map(folder.label, found))}",
            "Load each of these folders by itself; --name, --time and --platform tell what it is.",
        )
    return next(iter(found.values()), {})


def normalise(name: str) -> str:
    """Band name as the archive writes it: B2 and b02 become B02."""
    name = name.upper()
    return f"B{int(name[1:]):02}" if name[1:].isdigit() else name


def metadata_files(folder: Folder) -> list[str]:
    """Metadata files that read_metadata looks at."""
    return [
        file
        for file in sorted(folder.sizes)
        if PRODUCT_METADATA.fullmatch(file)
        or GRANULE_METADATA.fullmatch(file)
        or ("/" not in file and file.endswith(".json"))
    ]


def read_metadata(folder: Folder) -> Metadata | None:
    """The most telling metadata: SAFE's XML, a STAC item, tileInfo.json, Earth Engine's, the folder's name; or None.

    Raises InputError for a damaged file.
    """
    files = metadata_files(folder)
    if documents := [file for file in files if PRODUCT_METADATA.fullmatch(file)]:
        return from_safe(folder, documents[0], [file for file in files if GRANULE_METADATA.fullmatch(file)])
    found = []
    for file in files:
        if not file.endswith(".json"):
            continue
        content = folder.read(file)
        try:
            document = json.loads(content, parse_constant=refuse)
            if isinstance(document, dict):
                found += [(rank, understand(document)) for rank, understand in enumerate(METADATA_KINDS)]
        except (LookupError, TypeError, ValueError, AttributeError, ShapelyError, ProjError) as error:
            raise InputError(
                f"{folder.label(file)}: not valid metadata: {reason_of(error)}",
                "Replace the file, or remove it and give --name, --time and --platform.",
            ) from error
    known = [(rank, metadata) for rank, metadata in found if metadata]
    if known:
        return min(known, key=lambda ranked: ranked[0])[1]
    if OFFICIAL_NAME.fullmatch(folder.name) or EARTH_ENGINE_NAME.fullmatch(folder.name):
        return Metadata(folder.name)
    return None


def refuse(constant: str) -> None:
    """For NaN and the like, which are not JSON, and which jsonb cannot hold."""
    raise ValueError(f"{constant} is not JSON")


def from_safe(folder: Folder, product_file: str, granule_files: list[str]) -> Metadata:
    """Metadata from MTD_MSIL1C.xml or MTD_MSIL2A.xml, with MTD_TL.xml of the granule but for its grids of angles."""
    label = folder.label(product_file)
    root = parse_xml(folder.read(product_file), label)
    document = {Path(product_file).name: to_json(root)}
    for file in granule_files:
        document[Path(file).name] = to_json(parse_xml(folder.read(file), folder.label(file)), ANGLE_GRIDS)
    try:
        level = "L" + text(root, "PROCESSING_LEVEL").removeprefix("Level-")[:2]
        quantification, offset = "QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET"
        if level == "L2A":
            quantification, offset = "BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET"
        offsets = {
            REFLECTANCE_BANDS[int(element.attrib["band_id"])]: float(element.text or "")
            for element in root.iter(offset)
        }
        granules = {element.attrib["granuleIdentifier"] for element in root.iter("Granule")}
        tiles = {match[1] for granule in granules if (match := TILE.search(granule))}
        return Metadata(
            name=text(root, "PRODUCT_URI").removesuffix(".SAFE"),
            platform=text(root, "SPACECRAFT_NAME").lower(),
            level=level,
            sensing_time=parse_time(text(root, "PRODUCT_START_TIME")),
            end_time=parse_time(text(root, "PRODUCT_STOP_TIME")),
            processed_at=parse_time(text(root, "GENERATION_TIME")),
            baseline=text(root, "PROCESSING_BASELINE"),
            relative_orbit=int(text(root, "SENSING_ORBIT_NUMBER")),
            tile=tiles.pop() if len(tiles) == 1 else None,
            cloud_cover=float(text(root, "Cloud_Coverage_Assessment")),
            outline=positions(root),
            quantification=float(text(root, quantification)),
            offsets=offsets or dict.fromkeys(bands_of(level), 0.0),
            document=document,
        )
    except (LookupError, ValueError, ShapelyError) as error:
        raise InputError(f"{label}: not valid metadata: {error}", "Replace it by an intact copy.") from error


def text(root: Element, name: str) -> str:
    """Text of the one element of a name. Raises LookupError if there is none."""
    element = root.find(f".//{name}")
    if element is None or not element.text:
        raise LookupError(f"no {name}")
    return element.text.strip()


def positions(root: Element) -> shapely.Geometry:
    """The product's outline: EXT_POS_LIST has latitudes and longitudes in turn."""
    polygons = []
    for element in root.iter("EXT_POS_LIST"):
        numbers = [float(number) for number in (element.text or "").split()]
        polygons.append(shapely.Polygon(list(zip(numbers[1::2], numbers[::2], strict=True))))
    if not polygons:
        raise LookupError("no EXT_POS_LIST")
    return shapely.multipolygons(polygons)


def from_stac_item(document: dict[str, Any]) -> Metadata | None:
    """Metadata from a STAC item, as Earth Search publishes them.

    Its assets' raster:bands have the offset of the product as ESA delivers it; whether the files still have it, tells
    earthsearch:boa_offset_applied.
    """
    if document.get("type") != "Feature" or "stac_version" not in document:
        return None
    properties = document.get("properties", {})
    start = properties.get("start_datetime") or properties.get("datetime")
    end = properties.get("end_datetime")
    generated = properties.get("s2:generation_time")
    platform = str(properties.get("platform")).lower()
    offsets = {}
    for asset in document.get("assets", {}).values():
        file = BAND_FILE.fullmatch(str(asset.get("href")).rpartition("/")[2])
        raster = (asset.get("raster:bands") or asset.get("bands") or [asset])[0]
        offset, scale = (raster.get(key, raster.get(f"raster:{key}")) for key in ("offset", "scale"))
        if file and scale and offset is not None:
            offsets[normalise(file[1])] = float(offset) / float(scale)
    if properties.get("earthsearch:boa_offset_applied"):
        offsets = dict.fromkeys(REFLECTANCE_BANDS, 0.0)
    return Metadata(
        name=str(properties.get("s2:product_uri") or document["id"]).removesuffix(".SAFE"),
        platform=platform if platform in PLATFORMS.values() else None,
        sensing_time=parse_time(start) if start else None,
        end_time=parse_time(end) if end else None,
        processed_at=parse_time(generated) if generated else None,
        baseline=properties.get("s2:processing_baseline"),
        relative_orbit=properties.get("sat:relative_orbit"),
        cloud_cover=properties.get("eo:cloud_cover"),
        outline=from_geojson(document.get("geometry")),
        offsets={band: offset for band, offset in offsets.items() if band != SCL} or None,
        document=document,
    )


def from_tile_info(document: dict[str, Any]) -> Metadata | None:
    """Metadata from a tileInfo.json, as the buckets on AWS have it; their pixels are as ESA delivers them."""
    if "productName" not in document or "timestamp" not in document:
        return None
    geometry = document.get("tileDataGeometry") or document.get("tileGeometry") or {}
    crs = geometry.get("crs", {}).get("properties", {}).get("name", "")
    return Metadata(
        name=document["productName"],
        sensing_time=parse_time(document["timestamp"]),
        cloud_cover=document.get("cloudyPixelPercentage"),
        outline=from_geojson(geometry, int(crs.rpartition(":")[2])) if crs else None,
        document=document,
    )


def from_earth_engine(document: dict[str, Any]) -> Metadata | None:
    """Metadata from an Earth Engine image's properties, as SSL4EO-S12 keeps them.

    Images of its harmonised collections have no offset any more; their system:id says so.
    """
    if "PRODUCT_ID" not in document or "system:time_start" not in document:
        return None
    ring = document.get("system:footprint", {}).get("coordinates")
    generated = document.get("GENERATION_TIME")
    harmonised = "HARMONIZED" in str(document.get("system:id"))
    return Metadata(
        name=document["PRODUCT_ID"],
        platform=PLATFORMS.get(str(document.get("DATATAKE_IDENTIFIER"))[1:4]),
        sensing_time=datetime.fromtimestamp(document["system:time_start"] / 1000, UTC),
        processed_at=datetime.fromtimestamp(generated / 1000, UTC) if generated else None,
        baseline=document.get("PROCESSING_BASELINE"),
        relative_orbit=document.get("SENSING_ORBIT_NUMBER"),
        cloud_cover=document.get("CLOUDY_PIXEL_PERCENTAGE"),
        outline=from_geojson({"type": "Polygon", "coordinates": [ring]}) if ring else None,
        offsets=dict.fromkeys(REFLECTANCE_BANDS, 0.0) if harmonised else None,
        document=document,
    )


METADATA_KINDS: tuple[Callable[[dict[str, Any]], Metadata | None], ...] = (
    from_stac_item,  # the most telling first
    from_tile_info,
    from_earth_engine,
)


def complete(folder: Folder, metadata: Metadata | None, likely_level: str) -> Metadata:
    """Add what the product's name tells, and offsets by its baseline; `likely_level` is for names without a level."""
    metadata = metadata or Metadata("")
    known: dict[str, Any] = {}
    if official := OFFICIAL_NAME.fullmatch(metadata.name):
        number = official["baseline"]
        known = {
            "platform": f"sentinel-{official['platform'][1:].lower()}",
            "level": official["level"],
            "tile": official["tile"],
            "sensing_time": parse_time(official["time"]),
            "baseline": f"{number[:2]}.{number[2:]}",
            "relative_orbit": int(official["orbit"]),
        }
    elif earth_engine := EARTH_ENGINE_NAME.fullmatch(metadata.name):
        known = {"tile": earth_engine["tile"], "sensing_time": parse_time(earth_engine["time"])}
        parts = reversed(folder.path.parts)
        known["level"] = next((SSL4EO_LEVELS[part] for part in parts if part in SSL4EO_LEVELS), likely_level)
        known["name"] = f"{metadata.name}_{known['level']}"
    elif metadata.level is None:
        known["level"] = likely_level
    metadata = replace(metadata, **{key: value for key, value in known.items() if not getattr(metadata, key)})
    if "name" in known:
        metadata = replace(metadata, name=known["name"])
    if metadata.baseline and metadata.offsets is None:
        version = tuple(int(number) for number in metadata.baseline.split("."))
        offset = OFFSET if OFFSET_BASELINE <= version < UNKNOWN_BASELINE else 0
        metadata = replace(metadata, offsets=dict.fromkeys(REFLECTANCE_BANDS, float(offset)))
    return metadata


def bands_of(level: str | None) -> tuple[str, ...]:
    """Reflectance bands of a product of a level."""
    return REFLECTANCE_BANDS if level == "L1C" else EXPECTED


def make_product(folder: Folder, metadata: Metadata, given: Given, bands: tuple[BandFile, ...]) -> Product:
    """The product's row. Raises InputError where arguments, metadata and name leave open what product it is."""
    name = given.name or metadata.name
    sensing_time = given.sensing_time or metadata.sensing_time
    platform = given.platform or metadata.platform
    if not (name and sensing_time and platform):
        facts = {"--name": name, "--time": sensing_time, "--platform": platform}
        raise InputError(
            f"{folder.path}: neither a metadata file (MTD_MSIL*.xml, STAC item, tileInfo.json, metadata.json) nor the"
            " folder's name tells what product this is",
            f"Say so with {', '.join(option for option, value in facts.items() if not value)}.",
        )
    scale = 1 / (metadata.quantification or QUANTIFICATION)
    reflectance = bands_of(metadata.level) if metadata.offsets is not None else ()
    outline = footprint(metadata.outline)
    if outline is None and bands:
        finest = next((band for band in bands if band.name in TEN_METRES), bands[0])
        outline = footprint(bounds_of(finest))
    return Product(
        name=name,
        platform=platform,
        level=str(metadata.level),
        sensing_time=sensing_time,
        mgrs_tile=metadata.tile,
        cloud_cover=metadata.cloud_cover,
        footprint=outline,
        source_path=str(folder.path),
        metadata=metadata.document,
        end_time=metadata.end_time,
        processed_at=metadata.processed_at,
        processing_baseline=metadata.baseline,
        relative_orbit=metadata.relative_orbit,
        scales=dict.fromkeys(reflectance, scale) or None,
        offsets={band: round((metadata.offsets or {}).get(band, 0.0) * scale, 9) for band in reflectance} or None,
        bytes=sum(folder.sizes.values()),
    )
