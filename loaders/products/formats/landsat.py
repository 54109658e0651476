"""Landsat 8 and 9, Collection 2, Level 1 and Level 2: a folder, or tar archive as delivered, with an MTL file.

Bands keep their names: B1 to B11 of Level 1, SR_B1 to SR_B7 and ST_B10 of Level 2, and QA_PIXEL; a product of one of
the two sensors (LO08, LT08) has its bands only. Pixels stay as they are. The product's scales and offsets turn them
into reflectance (of Level 1 at the top of the atmosphere, not corrected for the sun's elevation), those of B10 and B11
into radiance in W/(m2 sr um), those of ST_B10 into kelvin.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import shapely

from pgearth.loaders.archive.footprint import footprint
from pgearth.loaders.archive.write import Product
from pgearth.loaders.files.xml_documents import parse_xml, to_json
from pgearth.loaders.products.files import BandFile, Given, ProductFiles, parse_time
from pgearth.loaders.products.folder import Folder, open_folder
from pgearth.loaders.products.not_loaded import COLLECTION_2, LANDSAT, WITHOUT_METADATA, not_loaded
from pgearth.loaders.work.explain import reason_of
from pgearth.pyfuncs.documents import check_depth, parse_json
from pgearth.pyfuncs.errors import PgearthError

METADATA = re.compile(r"L\w+_MTL\.(?:json|xml|txt)", re.IGNORECASE)
FILE = re.compile(r"(?P<product>L[COTEM]\d\d_L\w{3}_\d{6}_\d{8}_\d{8}_\d\d_\w\w)_(?P<part>\w+)\.TIF", re.IGNORECASE)
ROOT = "LANDSAT_METADATA_FILE"
SATELLITES = ("LANDSAT_8", "LANDSAT_9")
LEVEL_1 = tuple(f"B{number}" for number in range(1, 12))
LEVEL_2 = (*(f"SR_B{number}" for number in range(1, 8)), "ST_B10")
QUALITY = "QA_PIXEL"
FILL = {QUALITY: 1}  # bit 0 of QA_PIXEL; 0 in all other bands


def open_product(path: Path, given: Given) -> ProductFiles | None:
    """Read the MTL file (JSON, else XML, else text) and list the bands.

    Raises PgearthError for a folder with Landsat bands but without MTL, another satellite, another collection, and
    damaged metadata.
    """
    folder = open_folder(path)
    if folder is None:
        return None
    documents = sorted((file for file in folder.sizes if METADATA.fullmatch(file)), key=lambda file: Path(file).suffix)
    files = {match["part"].upper(): file for file in sorted(folder.sizes) if (match := FILE.fullmatch(file))}
    if not documents and not files:
        return None
    for file in (*documents, *files.values()):
        if (known := not_loaded(file)) and known != WITHOUT_METADATA:
            raise PgearthError(f"{folder.path}: {known[0]}: {file}", known[1])
    if not documents:
        raise PgearthError(f"{folder.path}: {WITHOUT_METADATA[0]}", WITHOUT_METADATA[1])
    document = min(documents, key=lambda file: (".json", ".xml", ".txt").index(Path(file).suffix.lower()))
    products = {match["product"] for file in folder.sizes if (match := FILE.fullmatch(file))}
    if len(products) > 1:
        raise PgearthError(
            f"{folder.path}: files of {len(products)} products: {', '.join(sorted(products))}",
            "Put each product into a folder of its own.",
        )
    metadata = read_metadata(folder, document)
    try:
        product = make_product(folder, metadata, given)
    except (LookupError, ValueError) as error:
        raise damaged(folder, document, error) from error
    bands = LEVEL_1 if product.level.startswith("L1") else LEVEL_2
    # L2SR has no surface temperature, LO08 no thermal bands, LT08 no others.
    expected = tuple(band for band in bands if band in (product.scales or {}))
    scales, offsets = product.scales or {}, product.offsets or {}
    units = {band: (scale, offsets[band]) for band, scale in scales.items()}
    found = tuple(
        BandFile(band, folder.gdal_path(files[band]), nodata=FILL.get(band, 0), units=units.get(band))
        for band in (*bands, QUALITY)
        if band in files
    )
    return ProductFiles(
        product=product,
        bands=found,
        expected=expected,
        grid="aligned:120",
        sources=folder.sources([document, *(files[band.name] for band in found)]),
    )


def damaged(folder: Folder, document: str, error: Exception) -> PgearthError:
    """The error for metadata that lack something or have it wrong."""
    what = f"no {error.args[0]}" if isinstance(error, KeyError) else reason_of(error)
    return PgearthError(f"{folder.label(document)}: not valid metadata: {what}", "Replace the file by an intact copy.")


def read_metadata(folder: Folder, document: str) -> dict[str, Any]:
    """The groups of an MTL file: an object of objects of texts, the same of all three encodings."""
    content = folder.read(document)
    suffix = Path(document).suffix.lower()
    try:
        if suffix == ".xml":
            groups = to_json(parse_xml(content, folder.label(document)))
        else:
            known = parse_json(content) if suffix == ".json" else parse_odl(content.decode())
            groups = known.get(ROOT) or known["L1_METADATA_FILE"]
        if not all(isinstance(group, dict) for group in groups.values()):
            raise ValueError("values outside of groups")
    except (LookupError, ValueError, AttributeError) as error:
        raise damaged(folder, document, error) from error
    return dict(groups)


def parse_odl(content: str) -> dict[str, Any]:
    """Groups and values of USGS's object description language; values stay text, without quotes."""
    stack: list[dict[str, Any]] = [{}]
    for number, line in enumerate(content.splitlines(), start=1):
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator:
            if key not in ("", "END"):
                raise ValueError(f"line {number}: {line!r}")
        elif key == "GROUP":
            stack.append(stack[-1].setdefault(value, {}))
            check_depth(len(stack))
        elif key == "END_GROUP":
            stack.pop()
            if not stack:
                raise ValueError(f"line {number}: the end of no group")
        else:
            stack[-1][key] = value.strip('"')
    if len(stack) > 1:
        raise ValueError("it is cut off")
    return stack[0]


def make_product(folder: Folder, groups: dict[str, Any], given: Given) -> Product:
    """The product's row. Raises LookupError or ValueError where the metadata lack something."""
    if "PRODUCT_CONTENTS" not in groups:
        raise PgearthError(f"{folder.path}: Landsat Collection 1 is not supported", COLLECTION_2)
    contents, image, projection = (
        groups[name] for name in ("PRODUCT_CONTENTS", "IMAGE_ATTRIBUTES", "PROJECTION_ATTRIBUTES")
    )
    if image["SPACECRAFT_ID"] not in SATELLITES:
        raise PgearthError(f"{folder.path}: a product of {image['SPACECRAFT_ID']}, which is not supported", LANDSAT)
    level = contents["PROCESSING_LEVEL"]
    record = groups[f"LEVEL{level[1]}_PROCESSING_RECORD"]
    corners = [
        tuple(float(projection[f"CORNER_{corner}_{axis}_PRODUCT"]) for axis in ("LON", "LAT"))
        for corner in ("UL", "UR", "LR", "LL")
    ]
    cloud_cover = float(image["CLOUD_COVER"])
    scales, offsets = calibration(groups, level)
    return Product(
        name=given.name or contents["LANDSAT_PRODUCT_ID"],
        platform=given.platform or image["SPACECRAFT_ID"].lower().replace("_", "-"),
        level=level,
        sensing_time=given.sensing_time or parse_time(f"{image['DATE_ACQUIRED']}T{image['SCENE_CENTER_TIME']}"),
        cloud_cover=None if cloud_cover < 0 else cloud_cover,  # -1: not assessed
        footprint=footprint(shapely.Polygon(corners)),
        source_path=str(folder.path),
        metadata={ROOT: groups},
        processed_at=parse_time(record["DATE_PRODUCT_GENERATED"]),
        processing_baseline=contents["COLLECTION_NUMBER"],
        relative_orbit=int(image["WRS_PATH"]),
        scales=scales,
        offsets=offsets,
        bytes=sum(folder.sizes.values()),
    )


def calibration(groups: dict[str, Any], level: str) -> tuple[dict[str, float], dict[str, float]]:
    """Scale and offset by band."""
    if level.startswith("L1"):
        rescaling = groups["LEVEL1_RADIOMETRIC_RESCALING"]
        sources = {
            band: (rescaling, "RADIANCE" if band in ("B10", "B11") else "REFLECTANCE", band[1:])
            for band in LEVEL_1
            if sensor_has(groups, band)
        }
    else:
        reflectance = groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]
        sources = {band: (reflectance, "REFLECTANCE", band[4:]) for band in LEVEL_2[:-1]}
        if temperature := groups.get("LEVEL2_SURFACE_TEMPERATURE_PARAMETERS"):
            sources["ST_B10"] = (temperature, "TEMPERATURE", "ST_B10")
    return (
        {band: float(group[f"{kind}_MULT_BAND_{key}"]) for band, (group, kind, key) in sources.items()},
        {band: float(group[f"{kind}_ADD_BAND_{key}"]) for band, (group, kind, key) in sources.items()},
    )


def sensor_has(groups: dict[str, Any], band: str) -> bool:
    """Whether the sensors that a Level 1 product is of have a band: OLI B1 to B9, TIRS B10 and B11."""
    sensors = str(groups["IMAGE_ATTRIBUTES"].get("SENSOR_ID", "OLI_TIRS")).split("_")
    return ("TIRS" if band in ("B10", "B11") else "OLI") in sensors
