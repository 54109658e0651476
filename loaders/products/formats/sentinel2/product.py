"""Sentinel-2 products, L1C and L2A: what they say of themselves, and their bands.

A product is a .SAFE folder of any processing baseline or a zip of one, or a folder of single-band COG, GeoTIFF or JPEG
2000 files, as on AWS (with tileInfo.json), in STAC catalogues (with an item), of Earth Engine (with metadata.json, as
SSL4EO-S12 has it) or of Major TOM (with no more than the product's name).

The archive stores reflectance * 10,000. As ESA delivers them, pixels since baseline 04.00 are 1,000 higher; services
that publish them again have taken that back, or not, and some write reflectance itself. What a file's pixels mean is
found by one rule (find_units), whatever tells it: the caller, the tags of the file, metadata, or the baseline in a
name. Where that leaves it open, the bands cannot be loaded; where two tell different things, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import shapely
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError
from shapely.errors import ShapelyError

from pgearth.loaders.archive.footprint import footprint, from_geojson
from pgearth.loaders.archive.write import PLATFORMS, Product
from pgearth.loaders.files.xml_documents import elements, find_text, parse_xml, to_json
from pgearth.loaders.products.files import LONGEST_DATA_TAKE, BandFile, Given, ProductFiles, bounds_of, parse_time
from pgearth.loaders.products.folder import Folder, open_folder
from pgearth.loaders.work.explain import reason_of
from pgearth.pyfuncs.documents import parse_json
from pgearth.pyfuncs.errors import PgearthError

# In the order of the metadata's band_id, 0 to 12.
REFLECTANCE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
TEN_METRES = ("B02", "B03", "B04", "B08")
SCL = "SCL"
BANDS = (*REFLECTANCE_BANDS, SCL)
EXPECTED = tuple(band for band in REFLECTANCE_BANDS if band != "B10")  # B10 is in L1C only, SCL in L2A only
NODATA = 0
QUANTIFICATION = 10_000
OFFSET = -0.1  # of products as ESA delivers them, since this baseline:
OFFSET_BASELINE = "04.00"
OFFSET_SINCE = datetime(2022, 1, 25, tzinfo=UTC)
# Of processors run outside ESA's ground segment, which keep the offset of what they are given.
UNKNOWN_BASELINE = "99.99"
# Up to nine tenths of MTD_TL.xml, which also has the mean angles.
ANGLE_GRIDS = frozenset({"Sun_Angles_Grid", "Viewing_Incidence_Angles_Grids"})

BAND_FILE = re.compile(r"(?:^|.*_)(B(?:0?[1-9]|1[0-2]|8A)|SCL)(?:_\d+m)?\.(?:tiff?|jp2)", re.IGNORECASE)
BAND_FOLDER = re.compile(r"(GRANULE/[^/]+/IMG_DATA)?/?(?:R\d+m)?")
OLD_FORMAT = re.compile(r"S2[AB]_(?:OPER|USER)_MTD_\w+\.xml", re.IGNORECASE)
PRODUCT_METADATA = re.compile(r"MTD_MSI(?:L1C|L2A)\.xml", re.IGNORECASE)
GRANULE_METADATA = re.compile(r"GRANULE/[^/]+/MTD_TL\.xml", re.IGNORECASE)
OFFICIAL_NAME = re.compile(
    r"(?P<platform>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})(?:_N(?P<baseline>\d{4}))?_R(?P<orbit>\d{3})"
    r"_T(?P<tile>\d{2}[A-Z]{3})_\d{8}T\d{6}"
)
EARTH_ENGINE_NAME = re.compile(r"(?P<time>\d{8}T\d{6})_\d{8}T\d{6}_T(?P<tile>\d{2}[A-Z]{3})")
PLATFORM = re.compile(r"sentinel-2[a-d]")
TILE = re.compile(r"_T(\d{2}[A-Z]{3})_")
MGRS_CODE = re.compile(r"MGRS-(\d{2}[A-Z]{3})")
BASELINE = re.compile(r"\d\d\.\d\d")
UNKNOWN_LAYOUT = (
    "Replace it by an intact copy. If it is one, this layout is not known: load the bands from a folder without it,"
    " with --name, --time, --platform and --offset."
)
SSL4EO_LEVELS = {"s2a": "L2A", "s2c": "L1C"}


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


def open_product(path: Path, given: Given) -> ProductFiles | None:
    """Find a product's metadata and bands. None unless there is one of either.

    Raises PgearthError for damaged metadata, for sources that contradict each other, and where name, time or platform
    remain unknown.
    """
    folder = open_folder(path)
    if folder is None:
        return None
    if old := [file for file in folder.sizes if OLD_FORMAT.fullmatch(file)]:
        granules = {match[0] for file in folder.sizes if (match := re.match(r"GRANULE/[^/]+", file))}
        raise PgearthError(
            f"{folder.label(old[0])}: a Sentinel-2 product in the format of before December 2016, of {len(granules)}"
            " granules: not supported",
            "Download the tiles in today's format (ESA has processed them again), or load the IMG_DATA folder of each"
            " granule by itself, with --name, --time, --platform and --offset 0.",
        )
    files = find_band_files(folder)
    documents = read_metadata(folder)
    if not files and not documents:
        return None
    names = {"the name given": given.name, "the folder's name": folder.name}
    sources = [*documents, *(known for source, name in names.items() if name and (known := from_name(name, source)))]
    check_agreement(folder, sources)
    metadata = complete(folder, merge(sources), "L1C" if "B10" in files else "L2A")
    tags = {
        file: read_tags(folder.gdal_path(file))
        for band_files in files.values()
        for file in band_files
        if not is_jpeg_2000(file)
    }
    check_resolutions(folder, files, tags)
    units = {
        file: find_units(folder, name, file, sources, metadata, given, tags.get(file))
        for name, band_files in files.items()
        for file in band_files
        if name != SCL
    }
    bands = tuple(make_band(folder, name, file, units.get(file)) for name in BANDS for file in files.get(name, ()))
    of_row = {name: units[files[name][0]] for name in REFLECTANCE_BANDS if name in files}
    if not files:
        of_row = {
            name: find_units(folder, name, "", sources, metadata, given, None) for name in bands_of(metadata.level)
        }
    product = make_product(folder, metadata, given, bands, of_row)
    used = [file for band_files in files.values() for file in band_files]
    return ProductFiles(
        product=product,
        bands=bands,
        expected=EXPECTED,
        # Without a tile, BigEarthNet's windows would be counted from a corner that may move from date to date.
        grid="bigearthnet" if metadata.tile else "aligned:120",
        classes=SCL if SCL in files else None,
        sources=folder.sources([*used, *metadata_files(folder)]),
    )


def find_band_files(folder: Folder) -> dict[str, list[str]]:
    """Files of each band, by band name (B01 .. B12, B8A, SCL).

    They lie in the folder itself or in its R10m, R20m, R60m; of a .SAFE folder, in GRANULE/*/IMG_DATA. Raises
    PgearthError when they belong to several granules.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(folder.sizes):
        parent, _, name = file.rpartition("/")
        place, band = BAND_FOLDER.fullmatch(parent), BAND_FILE.fullmatch(name)
        if place and band:
            found.setdefault(place[1] or "", {}).setdefault(normalise(band[1]), []).append(file)
    if len(found) > 1:
        raise PgearthError(
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


def read_metadata(folder: Folder) -> list[Metadata]:
    """What the metadata files say, the most telling first: SAFE's XML, a STAC item, tileInfo.json, Earth Engine's.

    Raises PgearthError for a damaged file.
    """
    files = metadata_files(folder)
    found = []
    if documents := [file for file in files if PRODUCT_METADATA.fullmatch(file)]:
        found.append(from_safe(folder, documents[0], [file for file in files if GRANULE_METADATA.fullmatch(file)]))
    in_json = []
    for file in files:
        if not file.endswith(".json"):
            continue
        content = folder.read(file)
        try:
            document = parse_json(content, parse_constant=refuse)
            if isinstance(document, dict):
                in_json += [(rank, understand(document)) for rank, understand in enumerate(METADATA_KINDS)]
        except (LookupError, TypeError, ValueError, AttributeError, ShapelyError, ProjError) as error:
            raise PgearthError(
                f"{folder.label(file)}: not valid metadata: {reason_of(error)}",
                "Replace the file, or remove it and give --name, --time and --platform.",
            ) from error
        in_json = [(rank, metadata and replace(metadata, source=metadata.source or file)) for rank, metadata in in_json]
    known = [(rank, metadata) for rank, metadata in in_json if metadata]
    found += [metadata for _, metadata in sorted(known, key=lambda ranked: ranked[0])]
    return [with_its_name(metadata) for metadata in found]


def refuse(constant: str) -> None:
    """For NaN and the like, which are not JSON, and which jsonb cannot hold."""
    raise ValueError(f"{constant} is not JSON")


def from_safe(folder: Folder, product_file: str, granule_files: list[str]) -> Metadata:
    """Metadata from MTD_MSIL1C.xml or MTD_MSIL2A.xml, with MTD_TL.xml of the granule but for its grids of angles.

    Elements have other names in products of 2017 and 2018 (version 14.2 of the Product Specification Document).
    """
    label = folder.label(product_file)
    root = parse_xml(folder.read(product_file), label)
    document = {Path(product_file).name: to_json(root)}
    for file in granule_files:
        document[Path(file).name] = to_json(parse_xml(folder.read(file), folder.label(file)), ANGLE_GRIDS)
    try:
        level = "L" + find_text(root, "PROCESSING_LEVEL").removeprefix("Level-")[:2]  # 2Ap: of the pilot phase
        quantification, offset = ["QUANTIFICATION_VALUE"], "RADIO_ADD_OFFSET"
        if level == "L2A":
            quantification, offset = ["BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"], "BOA_ADD_OFFSET"
        baseline = baseline_of(find_text(root, "PROCESSING_BASELINE"))
        scale = 1 / float(find_text(root, *quantification))
        offsets = {
            REFLECTANCE_BANDS[int(element.attrib["band_id"])]: float(element.text or "") * scale
            for element in elements(root, offset)
        }
        if not offsets:
            known = 0.0 if baseline == UNKNOWN_BASELINE else delivered_offset(baseline, None)
            offsets = {} if known is None else dict.fromkeys(bands_of(level), known)
        granules = {element.attrib["granuleIdentifier"] for element in elements(root, "Granule")}
        tiles = {match[1] for granule in granules if (match := TILE.search(granule))}
        return Metadata(
            source=product_file,
            name=find_text(root, f"PRODUCT_URI_{level[1:]}", "PRODUCT_URI").removesuffix(".SAFE"),
            platform=find_text(root, "SPACECRAFT_NAME").lower(),
            level=level,
            sensing_time=parse_time(find_text(root, "PRODUCT_START_TIME")),
            end_time=parse_time(find_text(root, "PRODUCT_STOP_TIME")),
            processed_at=parse_time(find_text(root, "GENERATION_TIME")),
            baseline=baseline,
            relative_orbit=int(find_text(root, "SENSING_ORBIT_NUMBER")),
            tile=tiles.pop() if len(tiles) == 1 else None,
            cloud_cover=float(find_text(root, "Cloud_Coverage_Assessment")),
            outline=positions(root),
            document=document,
            units={band: Units(product_file, scale, round(value, 9)) for band, value in offsets.items()},
        )
    except (LookupError, ValueError, ShapelyError) as error:
        raise PgearthError(f"{label}: not valid metadata: {error}", UNKNOWN_LAYOUT) from error


def positions(root: Element) -> shapely.Geometry:
    """The product's outline: EXT_POS_LIST has latitudes and longitudes in turn."""
    polygons = []
    for element in elements(root, "EXT_POS_LIST"):
        numbers = [float(number) for number in (element.text or "").split()]
        polygons.append(shapely.Polygon(list(zip(numbers[1::2], numbers[::2], strict=True))))
    if not polygons:
        raise LookupError("no EXT_POS_LIST")
    return shapely.multipolygons(polygons)


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
        file = BAND_FILE.fullmatch(address.rpartition("/")[2])
        if not file or normalise(file[1]) == SCL:
            continue
        in_safe.append(".SAFE/" in address)
        said = units_of_asset(asset, properties)
        kind = ".jp2" if is_jpeg_2000(address) else ".tif"
        if applied and kind == ".tif":
            said = replace(said, offset=0.0)
        units[f"{normalise(file[1])}{kind}"] = said
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


def baseline_of(value: Any) -> str:
    """A processing baseline as it is written here, 04.00, from 4, "4.0", "0400" or "04.00".

    Raises ValueError for anything else.
    """
    text = str(value).strip()
    if re.fullmatch(r"\d{4}", text):
        text = f"{text[:2]}.{text[2:]}"
    match = re.fullmatch(r"(\d{1,2})(?:\.(\d{1,2}))?", text)
    if match is None:
        raise ValueError(f"{value!r} is no processing baseline")
    return f"{match[1]:0>2}.{match[2] or '':0<2}"


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


METADATA_KINDS: tuple[Callable[[dict[str, Any]], Metadata | None], ...] = (
    from_stac_item,  # the most telling first
    from_tile_info,
    from_earth_engine,
)


def from_name(name: str, source: str) -> Metadata | None:
    """What a name of ESA's or Earth Engine's says; None for any other."""
    name = name.removesuffix(".SAFE")
    if official := OFFICIAL_NAME.fullmatch(name):
        return Metadata(
            source=f"{source}, {name}",
            name=name,
            platform=f"sentinel-{official['platform'][1:].lower()}",
            level=official["level"],
            tile=official["tile"],
            sensing_time=parse_time(official["time"]),
            baseline=baseline_of(official["baseline"]) if official["baseline"] else None,
            relative_orbit=int(official["orbit"]),
        )
    if earth_engine := EARTH_ENGINE_NAME.fullmatch(name):
        return Metadata(
            source=f"{source}, {name}",
            name=name,
            tile=earth_engine["tile"],
            sensing_time=parse_time(earth_engine["time"]),
        )
    return None


def with_its_name(document: Metadata) -> Metadata:
    """A document's metadata, with what its product's name tells that it has no word of its own for."""
    known = from_name(document.name, document.source)
    if known is None:
        return document
    return replace(merge([document, known]), units=document.units, as_delivered=document.as_delivered)


def check_agreement(folder: Folder, sources: Sequence[Metadata]) -> None:
    """Raise PgearthError, which names both, where two sources say that they are of different products."""
    facts = {
        "platform": "platform",
        "level": "level",
        "baseline": "processing baseline",
        "relative_orbit": "relative orbit",
        "tile": "tile",
        "sensing_time": "sensing time",
    }
    for fact, words in facts.items():
        first: Metadata | None = None
        for source in sources:
            value = getattr(source, fact)
            if value is None:
                continue
            first = first or source
            expected = getattr(first, fact)
            differ = abs(value - expected) > LONGEST_DATA_TAKE if fact == "sensing_time" else value != expected
            if differ:
                raise PgearthError(
                    f"{folder.path}: {first.source} says {words} {expected}, {source.source} says {value}",
                    "Correct --name, or put each product with its own metadata into a folder of its own.",
                )


def merge(sources: Sequence[Metadata]) -> Metadata:
    """What sources say together: the first that says a thing counts. Units are each source's own (find_units)."""
    merged = Metadata("")
    for source in sources:
        missing = {
            one.name: getattr(source, one.name)
            for one in fields(Metadata)
            if one.name not in ("units", "as_delivered") and getattr(merged, one.name) in (None, "")
        }
        merged = replace(merged, **missing)
    return merged


def complete(folder: Folder, metadata: Metadata, likely_level: str) -> Metadata:
    """Add the level, `likely_level` where nothing else tells it; Earth Engine's names are the same for both levels."""
    level = metadata.level
    if EARTH_ENGINE_NAME.fullmatch(metadata.name):
        parts = reversed(folder.path.parts)
        level = level or next((SSL4EO_LEVELS[part] for part in parts if part in SSL4EO_LEVELS), likely_level)
        metadata = replace(metadata, name=f"{metadata.name}_{level}")
    return replace(metadata, level=level or likely_level)


def delivered_offset(baseline: str | None, sensing_time: datetime | None) -> float | None:
    """The offset of a product as ESA delivers it, by its baseline; None where that does not tell."""
    if baseline is None or (baseline == UNKNOWN_BASELINE and (sensing_time is None or sensing_time >= OFFSET_SINCE)):
        return None
    return OFFSET if OFFSET_BASELINE <= baseline < UNKNOWN_BASELINE else 0.0


def is_jpeg_2000(file: str) -> bool:
    """Whether a file is JPEG 2000: as ESA delivers it."""
    return file.lower().endswith(".jp2")


@dataclass(frozen=True)
class Tags:
    """What a GeoTIFF says of itself: `units` if it has tags of scale or offset, and the height of its pixels."""

    floating: bool
    units: Units | None
    pixel_height: float


def read_tags(path: str) -> Tags | None:
    """The tags of a band's file; None for one that cannot be read, which an error tells when the band is loaded."""
    try:
        with BandFile("", path).open() as dataset:
            scale, offset = dataset.scales[0], dataset.offsets[0]
            return Tags(
                floating=dataset.dtypes[0].startswith("float"),
                # An offset of 0 is what GDAL has for one that is not there.
                units=Units(f"the tags of {path}", scale, offset or None) if (scale, offset) != (1, 0) else None,
                pixel_height=-dataset.transform.e,
            )
    except RasterioError:
        return None


def check_resolutions(folder: Folder, files: dict[str, list[str]], tags: dict[str, Tags | None]) -> None:
    """Raise PgearthError where band 8 is finer than band 2, as in Landsat; Sentinel-2 has both in the same pixels."""
    blue, wide = (
        [abs(known.pixel_height) for file in files.get(band, ()) if (known := tags.get(file))]
        for band in ("B02", "B08")
    )
    if blue and wide and min(wide) < 0.9 * min(blue):
        raise PgearthError(
            f"{folder.path}: B8 has finer pixels than B2, so these are bands of Landsat, not of Sentinel-2",
            "Landsat 8 and 9 are loaded with their metadata: add the product's _MTL.json, _MTL.xml or _MTL.txt.",
        )


def find_units(
    folder: Folder,
    band: str,
    file: str,
    sources: Sequence[Metadata],
    metadata: Metadata,
    given: Given,
    tags: Tags | None,
) -> Units:
    """What the pixels of a band's file mean; of it, or of any file of the band where `file` is "".

    The caller knows best, then the file's tags, the metadata (which speak of whole numbers unless they say otherwise)
    and the baseline. Where that leaves something open, it is None, and `source` says why. Raises PgearthError where
    tags and metadata, or two metadata files, say different things and the caller does not decide.
    """
    path = folder.label(file)
    floating = tags is not None and tags.floating
    statements = [tags.units] if tags and tags.units else []
    statements += [said for source in sources if (said := units_said(source, band, file)) and said.floating == floating]
    scale = decide(folder, "scale", given.scale, statements)
    offset = decide(folder, "offset", given.offset, statements)
    delivered = delivered_offset(metadata.baseline, metadata.sensing_time)
    if floating and scale is None:
        return Units(f"{path}: floating-point pixels, whose units no tag and no metadata tell")
    if offset and given.offset is None and delivered == 0:
        who = next(units.source for units in statements if units.offset is not None)
        raise PgearthError(
            f"{path}: {who} says offset {offset:g}, but pixels of baseline {metadata.baseline} have none",
            f"Say which is right: --offset {offset:g} or --offset 0 (reflectance = scale * pixel + offset).",
        )
    if offset is None and floating:
        offset = 0.0
    if offset is None and delivered:
        published = [source.source for source in sources if not source.as_delivered]
        published += [tags.units.source] if tags and tags.units else []
        if published and not is_jpeg_2000(file):
            return Units(
                f"{path}: pixels of baseline {metadata.baseline}, but {published[0]} does not say whether its offset of"
                f" {OFFSET} has been applied to them"
            )
    if offset is None and delivered is None:
        return Units(
            f"{path}: pixels of {'unknown baseline' if metadata.baseline is None else 'baseline ' + metadata.baseline},"
            f" which does not tell whether they have an offset of {OFFSET}"
        )
    return Units("", 1 / QUANTIFICATION if scale is None else scale, delivered if offset is None else offset)


def units_said(source: Metadata, band: str, file: str) -> Units | None:
    """What a source says of a band's file: of its type if it can, else of the band."""
    kinds = (".jp2",) if is_jpeg_2000(file) else (".tif", ".jp2")
    said = next(
        (source.units[key] for key in (*(f"{band}{kind}" for kind in kinds), band) if key in source.units), None
    )
    return replace(said, source=said.source or source.source) if said else None


def decide(folder: Folder, fact: str, given: float | None, statements: Iterable[Units]) -> float | None:
    """The scale or offset given, else the one that all statements have. Raises PgearthError where they differ."""
    if given is not None:
        return given
    said = [(getattr(units, fact), units.source) for units in statements if getattr(units, fact) is not None]
    if not said:
        return None
    value: float = said[0][0]
    for other, source in said[1:]:
        if abs(other - value) > 1e-6 * max(abs(value), abs(other), 1e-3):
            raise PgearthError(
                f"{folder.path}: {said[0][1]} say {fact} {value:g}, {source} says {other:g}",
                f"Say which is right: --{fact} {value:g} or --{fact} {other:g} (reflectance = scale * pixel + offset).",
            )
    return value


def make_band(folder: Folder, name: str, file: str, units: Units | None) -> BandFile:
    """A band, converted to reflectance * 10,000 on reading; scene classes, without units, stay as they are."""
    band = BandFile(name, folder.gdal_path(file), nodata=NODATA)
    if units is None:
        return band
    if units.scale is None or units.offset is None:
        return replace(band, unknown_units=units.source)
    return replace(band, factor=round(units.scale * QUANTIFICATION, 9), offset=round(units.offset * QUANTIFICATION, 5))


def bands_of(level: str | None) -> tuple[str, ...]:
    """Reflectance bands of a product of a level."""
    return REFLECTANCE_BANDS if level == "L1C" else EXPECTED


def make_product(
    folder: Folder, metadata: Metadata, given: Given, bands: tuple[BandFile, ...], units: dict[str, Units]
) -> Product:
    """The product's row. Raises PgearthError where arguments, metadata and name leave open what product it is."""
    name = given.name or metadata.name
    sensing_time = given.sensing_time or metadata.sensing_time
    platform = given.platform or metadata.platform
    if not (name and sensing_time and platform):
        facts = {"--name": name, "--time": sensing_time, "--platform": platform}
        raise PgearthError(
            f"{folder.path}: neither a metadata file (MTD_MSIL*.xml, STAC item, tileInfo.json, metadata.json) nor the"
            " folder's name tells what product this is",
            f"Say so with {', '.join(option for option, value in facts.items() if not value)}.",
        )
    if not PLATFORM.fullmatch(platform):
        raise PgearthError(
            f"{folder.path}: bands named as Sentinel-2's, but the platform is {platform}",
            "What is loaded of other missions is listed in docs/loading.md; --platform sentinel-2a, -2b or -2c.",
        )
    known = {band: one for band, one in units.items() if one.scale is not None and one.offset is not None}
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
        scales={band: one.scale for band, one in known.items() if one.scale is not None} or None,
        offsets={band: one.offset for band, one in known.items() if one.offset is not None} or None,
        bytes=sum(folder.sizes.values()),
    )
