"""Names of products that are not loaded, so that an error says what they are, and none is taken for Sentinel-2's.

Other missions call their bands B1, B2, ..., too.
"""

from __future__ import annotations

import re

COLLECTION_2 = "Download the scene of Collection 2: USGS has processed all scenes again."
LANDSAT = "Of Landsat, scenes of Landsat 8 and 9 of Collection 2 are loaded, levels 1 and 2, with their MTL file."
MISSIONS = "docs/loading.md lists what is loaded: Sentinel-2 L1C and L2A, Sentinel-1 GRD, Landsat 8 and 9, MODIS."
SENTINEL_2 = "Of Sentinel-2, L1C and L2A in the format since December 2016 are loaded."
SENTINEL_1 = "Of Sentinel-1, GRD products are loaded: the whole .SAFE folder or zip, with manifest.safe."

WITHOUT_METADATA = (
    "Landsat bands without their metadata",
    "Add the product's _MTL.json, _MTL.xml or _MTL.txt to the folder.",
)

# The first that fits counts. Names stand at the start of a file's or folder's name.
NOT_LOADED = tuple(
    (re.compile(pattern, re.IGNORECASE), what, hint)
    for pattern, what, hint in (
        (r"L[COTEM]\d\d_L\w{3}_\d{6}_\d{8}_\d{8}_01_\w\w", "Landsat Collection 1 is not supported", COLLECTION_2),
        (
            r"L[COTEM]\d{14}[A-Z]{3}\d\d",
            "a Landsat scene of before the collections is not supported",
            COLLECTION_2,
        ),
        (r"L[COTEM]0[1-7]_L\w{3}_\d{6}_", "Landsat 1 to 7 are not supported", LANDSAT),
        (r"L[COTEM]0[89]_L\w{3}_\d{6}_", *WITHOUT_METADATA),
        (r"L[COTEM]0\d_[A-Z]{2}_\d{6}_\d{8}_", "Landsat's Analysis Ready Data are not supported", LANDSAT),
        (r"L[COTEM]0\d_\d{6}_\d{8}", "a Landsat scene of Earth Engine is not supported", LANDSAT),
        (r"HLS\.[LS]30\.", "Harmonized Landsat Sentinel-2 (HLS) is not supported", MISSIONS),
        (r"S2[A-D]_(?:\w{4}_)?MSI_?L(?:0|1A|1B)", "Sentinel-2 below level 1C is not supported", SENTINEL_2),
        (r"SENTINEL2[A-D]_\d{8}-", "a MAJA product of Theia is not supported", SENTINEL_2),
        (r"S1[A-D]_(?:IW|EW|WV|S\d|RVL?)_", "not a complete Sentinel-1 GRD product", SENTINEL_1),
        (r"S3[A-D]_\w{2}_\d", "Sentinel-3 is not supported", MISSIONS),
        (r"S5P_", "Sentinel-5P is not supported", MISSIONS),
        (r"S6[AB]_", "Sentinel-6 is not supported", MISSIONS),
        (r"\d{8}_\d{6}_(?:\d{2}_)?\w{4}_(?:1A|1B|3A|3B)_", "PlanetScope is not supported", MISSIONS),
        (r"PSScene|\d+_\d{7}_\d{4}-\d\d-\d\d_\w{4}_", "PlanetScope is not supported", MISSIONS),
        (r"AST_\w{2,3}_\d{11}", "ASTER is not supported", MISSIONS),
        (r"(?:MOD|MYD)\w+\.A\d{7}\.\d{4}\.", "a MODIS swath is not supported: only tiles of its grid", MISSIONS),
        (r"V(?:NP|J1|J2)\w+\.A\d{7}\.", "VIIRS is not supported", MISSIONS),
        (r"W_\w\w-EUMETSAT|MSG\d-SEVI", "a EUMETSAT product is not supported", MISSIONS),
        (r"SPOT[_ -]?\d|PROBAV_|GF\d_|EO1[AH]\d", "a mission that is not supported", MISSIONS),
    )
)


def not_loaded(name: str) -> tuple[str, str] | None:
    """What a product, folder or file of this name is, if it is known and not loaded, and a hint; else None."""
    for pattern, what, hint in NOT_LOADED:
        if pattern.match(name):
            return what, hint
    return None
