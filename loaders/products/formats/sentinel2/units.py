"""What the pixels of a Sentinel-2 product mean: reflectance = scale * pixel + offset.

As ESA delivers them, pixels since baseline 04.00 are 1,000 higher; services that publish them again have taken that
back, or not, and some write reflectance itself. One rule (units_of_file) finds what a file's pixels mean, whatever
tells it: the caller, the tags of the file, metadata, or the baseline in a name. Where that leaves it open, the bands
cannot be loaded; where two tell different things, it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite

from rasterio.errors import RasterioError

from pgearth.loaders.products.files import BandFile, Given
from pgearth.loaders.products.folder import Folder
from pgearth.loaders.products.formats.sentinel2.bands import QUANTIFICATION, SCL, is_jpeg_2000
from pgearth.loaders.products.formats.sentinel2.baselines import OFFSET, delivered_offset
from pgearth.loaders.products.formats.sentinel2.identity import Identity
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata, Units
from pgearth.pyfuncs.errors import PgearthError


def find_units(folder: Folder, files: dict[str, list[str]], identity: Identity, given: Given) -> dict[str, list[Units]]:
    """What the pixels of each file of each band mean; scene classes have no units.

    A file is "" where none is there, for what is true of any file of the band. Raises PgearthError for bands that are
    not Sentinel-2's, and as units_of_file.
    """
    tags = {
        file: read_tags(folder.gdal_path(file))
        for band_files in files.values()
        for file in band_files
        if file and not is_jpeg_2000(file)
    }
    check_resolutions(folder, files, tags)
    return {
        band: [units_of_file(folder, band, file, identity, given, tags.get(file)) for file in band_files]
        for band, band_files in files.items()
        if band != SCL
    }


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


def units_of_file(folder: Folder, band: str, file: str, identity: Identity, given: Given, tags: Tags | None) -> Units:
    """What the pixels of a band's file mean; of it, or of any file of the band where `file` is "".

    The caller knows best, then the file's tags, the metadata (which speak of whole numbers unless they say otherwise)
    and the baseline. Where that leaves something open, it is None, and `source` says why. Raises PgearthError where
    tags and metadata, or two metadata files, say different things and the caller does not decide.
    """
    path, sources, metadata = folder.label(file), identity.sources, identity.metadata
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
    """The scale or offset given, else the one that all statements have.

    Raises PgearthError where they differ, and for numbers that can be none.
    """
    if given is not None:
        return given
    said = [(getattr(units, fact), units.source) for units in statements if getattr(units, fact) is not None]
    for number, source in said:
        if not isfinite(number) or (fact == "scale" and number <= 0):
            raise PgearthError(
                f"{folder.path}: {source} say {fact} {number:g}, which it cannot be",
                f"Say what it is: --{fact} (reflectance = scale * pixel + offset).",
            )
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
