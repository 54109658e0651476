"""Sentinel-2 products, L1C and L2A: what they say of themselves, and their bands.

A product is a .SAFE folder of any processing baseline or a zip of one, or a folder of single-band COG, GeoTIFF or JPEG
2000 files, as on AWS (with tileInfo.json), in STAC catalogues (with an item), of Earth Engine (with metadata.json, as
SSL4EO-S12 has it) or of Major TOM (with no more than the product's name).

The steps are modules beside this one, each taken once: the files are found (files.py), metadata files read
(documents.py), the product identified by these and by names (identity.py, names.py), and its pixels' units found
(units.py), from which they become what the archive stores: reflectance * 10,000.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgearth.loaders.archive.footprint import footprint
from pgearth.loaders.archive.write import Product
from pgearth.loaders.products.files import BandFile, Given, ProductFiles
from pgearth.loaders.products.folder import Folder, open_folder
from pgearth.loaders.products.formats.sentinel2.bands import (
    BANDS,
    EXPECTED,
    QUANTIFICATION,
    SCL,
    TEN_METRES,
    bands_of,
)
from pgearth.loaders.products.formats.sentinel2.documents import read_documents
from pgearth.loaders.products.formats.sentinel2.files import find_files
from pgearth.loaders.products.formats.sentinel2.identity import identify
from pgearth.loaders.products.formats.sentinel2.metadata import PLATFORM, Metadata, Units
from pgearth.loaders.products.formats.sentinel2.units import find_units
from pgearth.loaders.products.outlines import bounds_of
from pgearth.pyfuncs.errors import PgearthError

NODATA = 0


def open_product(path: Path, given: Given) -> ProductFiles | None:
    """Find a product's metadata and bands. None unless there is one of either.

    Raises PgearthError for damaged metadata, for sources that contradict each other, and where name, time or platform
    remain unknown.
    """
    folder = open_folder(path)
    if folder is None:
        return None
    files = find_files(folder)
    documents = read_documents(folder, files)
    if not files.bands and not documents:
        return None
    identity = identify(folder, documents, given.name, "L1C" if "B10" in files.bands else "L2A")
    metadata = identity.metadata
    units = find_units(folder, files.bands or {band: [""] for band in bands_of(metadata.level)}, identity, given)
    bands = tuple(
        make_band(folder, name, file, units[name][number] if name in units else None)
        for name in BANDS
        for number, file in enumerate(files.bands.get(name, ()))
    )
    return ProductFiles(
        product=make_product(folder, metadata, given, bands, {band: first for band, (first, *_) in units.items()}),
        bands=bands,
        expected=EXPECTED,
        # Without a tile, BigEarthNet's windows would be counted from a corner that may move from date to date.
        grid="bigearthnet" if metadata.tile else "aligned:120",
        classes=SCL if SCL in files.bands else None,
        sources=folder.sources(files.all),
    )


def make_band(folder: Folder, name: str, file: str, units: Units | None) -> BandFile:
    """A band, converted to reflectance * 10,000 on reading; scene classes, without units, stay as they are."""
    band = BandFile(name, folder.gdal_path(file), nodata=NODATA)
    if units is None:
        return band
    if units.scale is None or units.offset is None:
        return replace(band, unknown_units=units.source)
    return replace(band, factor=round(units.scale * QUANTIFICATION, 9), offset=round(units.offset * QUANTIFICATION, 5))


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
