"""The metadata of a .SAFE folder: MTD_MSIL1C.xml or MTD_MSIL2A.xml, and MTD_TL.xml of the granule."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import shapely
from shapely.errors import ShapelyError

from pgearth.loaders.files.xml_documents import elements, find_text, parse_xml, to_json
from pgearth.loaders.products.files import parse_time
from pgearth.loaders.products.folder import Folder
from pgearth.loaders.products.formats.sentinel2.bands import REFLECTANCE_BANDS, bands_of
from pgearth.loaders.products.formats.sentinel2.baselines import UNKNOWN_BASELINE, baseline_of, delivered_offset
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata, Units
from pgearth.pyfuncs.errors import PgearthError

# Up to nine tenths of MTD_TL.xml, which also has the mean angles.
ANGLE_GRIDS = frozenset({"Sun_Angles_Grid", "Viewing_Incidence_Angles_Grids"})
TILE = re.compile(r"_T(\d{2}[A-Z]{3})_")
UNKNOWN_LAYOUT = (
    "Replace it by an intact copy. If it is one, this layout is not known: load the bands from a folder without it,"
    " with --name, --time, --platform and --offset."
)


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
