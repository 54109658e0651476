"""All formats that `pgearth load product` knows."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from pgearth.loaders.products.files import Given, ProductFiles
from pgearth.loaders.products.folder import open_folder
from pgearth.loaders.products.formats import landsat, modis, sentinel1
from pgearth.loaders.products.formats.sentinel2 import product as sentinel2
from pgearth.loaders.products.not_loaded import not_loaded
from pgearth.pyfuncs.errors import PgearthError

# The most liberal last: Sentinel-2 takes any folder with files like B02.tif.
FORMATS = (sentinel1, landsat, modis, sentinel2)
INSIDE = re.compile(r"(.+)/(?:MTD_MSI(?:L1C|L2A)\.xml|manifest\.safe|L\w+_MTL\.(?:json|xml|txt))", re.IGNORECASE)


def open_product(path: Path, given: Given) -> ProductFiles:
    """Find out what product a path is. Raises PgearthError if no format knows it, and for damaged metadata."""
    for product_format in FORMATS:
        if product_format is sentinel2:
            refuse_others(path, given)
        if found := product_format.open_product(path, given):
            if product_format is not sentinel2 and (given.scale, given.offset) != (None, None):
                raise PgearthError(
                    f"{path}: --scale and --offset are for Sentinel-2",
                    f"What pixels of {found.product.platform} mean, its metadata tell.",
                )
            return found
    inside = products_inside(path)
    if inside:
        raise PgearthError(
            f"{path}: no product itself, but {len(inside)} in folders inside it, such as {inside[0]}",
            "Name each of them, or move it into a folder of its own.",
        )
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar")):
        raise PgearthError(f"{path}: a compressed archive, in which nothing can be read by itself", "Unpack it first.")
    raise PgearthError(
        f"{path}: no product of a known format",
        "A product is a .SAFE folder, a zip of one, or a folder with metadata and files of single bands: Sentinel-2"
        " (MTD_MSIL1C.xml, MTD_MSIL2A.xml, a STAC item, tileInfo.json, or B02.tif and the like), Sentinel-1 GRD"
        " (manifest.safe), Landsat 8 and 9 (_MTL.json; or the tar), MODIS (files such as"
        " MCD43A4.A2017006.h21v11.006.2017018074804_B01.TIF).",
    )


def refuse_others(path: Path, given: Given) -> None:
    """Raise PgearthError where the name given, or that of the path or of a file in it, is of a product not loaded."""
    folder = open_folder(path)
    files = sorted(PurePosixPath(file).name for file in folder.sizes) if folder else []
    for name in (given.name, path.name, folder.name if folder else None, *files):
        if name and (known := not_loaded(name)):
            raise PgearthError(f"{path}: {known[0]}: {name}", known[1])


def products_inside(path: Path) -> list[str]:
    """Folders somewhere inside a folder or archive that have a product's main metadata file."""
    folder = open_folder(path)
    files = folder.sizes if folder else {}
    return sorted({f"{folder.top}{place[1]}" for file in files if folder and (place := INSIDE.fullmatch(file))})
