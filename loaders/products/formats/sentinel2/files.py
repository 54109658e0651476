"""The files of a Sentinel-2 product: which of a folder are of bands, and which hold metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgearth.loaders.products.folder import Folder
from pgearth.loaders.products.formats.sentinel2.bands import band_of
from pgearth.pyfuncs.errors import PgearthError

BAND_FOLDER = re.compile(r"(GRANULE/[^/]+/IMG_DATA)?/?(?:R\d+m)?")
OLD_FORMAT = re.compile(r"S2[AB]_(?:OPER|USER)_MTD_\w+\.xml", re.IGNORECASE)
PRODUCT_METADATA = re.compile(r"MTD_MSI(?:L1C|L2A)\.xml", re.IGNORECASE)
GRANULE_METADATA = re.compile(r"GRANULE/[^/]+/MTD_TL\.xml", re.IGNORECASE)


@dataclass(frozen=True)
class Files:
    """A product's files: of each band, by its name (B01 .. B12, B8A, SCL), and of metadata, by kind."""

    bands: dict[str, list[str]]
    product_metadata: list[str]
    granule_metadata: list[str]
    json: list[str]

    @property
    def all(self) -> list[str]:
        """All of them."""
        of_bands = [file for files in self.bands.values() for file in files]
        return [*of_bands, *self.product_metadata, *self.granule_metadata, *self.json]


def find_files(folder: Folder) -> Files:
    """Which files of a folder are the product's. Raises PgearthError as find_band_files, and for the old format."""
    files = sorted(folder.sizes)
    if old := [file for file in files if OLD_FORMAT.fullmatch(file)]:
        granules = {match[0] for file in files if (match := re.match(r"GRANULE/[^/]+", file))}
        raise PgearthError(
            f"{folder.label(old[0])}: a Sentinel-2 product in the format of before December 2016, of {len(granules)}"
            " granules: not supported",
            "Download the tiles in today's format (ESA has processed them again), or load the IMG_DATA folder of each"
            " granule by itself, with --name, --time, --platform and --offset 0.",
        )
    return Files(
        bands=find_band_files(folder),
        product_metadata=[file for file in files if PRODUCT_METADATA.fullmatch(file)],
        granule_metadata=[file for file in files if GRANULE_METADATA.fullmatch(file)],
        json=[file for file in files if "/" not in file and file.endswith(".json")],
    )


def find_band_files(folder: Folder) -> dict[str, list[str]]:
    """Files of each band, by its name.

    They lie in the folder itself or in its R10m, R20m, R60m; of a .SAFE folder, in GRANULE/*/IMG_DATA. Raises
    PgearthError when they belong to several granules.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(folder.sizes):
        parent, _, name = file.rpartition("/")
        place, band = BAND_FOLDER.fullmatch(parent), band_of(name)
        if place and band:
            found.setdefault(place[1] or "", {}).setdefault(band, []).append(file)
    if len(found) > 1:
        raise PgearthError(
            f"{folder.path}: the bands lie in several folders: {', '.join(map(folder.label, found))}",
            "Load each of these folders by itself; --name, --time and --platform tell what it is.",
        )
    return next(iter(found.values()), {})
