"""The metadata files of a Sentinel-2 product, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from pgearth.loaders.products.folder import Folder
from pgearth.loaders.products.formats.sentinel2.earth_engine import from_earth_engine
from pgearth.loaders.products.formats.sentinel2.files import Files
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata
from pgearth.loaders.products.formats.sentinel2.safe import from_safe
from pgearth.loaders.products.formats.sentinel2.stac_item import from_stac_item
from pgearth.loaders.products.formats.sentinel2.tile_info import from_tile_info
from pgearth.loaders.work.explain import reason_of
from pgearth.pyfuncs.documents import parse_json
from pgearth.pyfuncs.errors import PgearthError

METADATA_KINDS: tuple[Callable[[dict[str, Any]], Metadata | None], ...] = (
    from_stac_item,  # the most telling first
    from_tile_info,
    from_earth_engine,
)


def read_documents(folder: Folder, files: Files) -> list[Metadata]:
    """What the metadata files say, the most telling first: SAFE's XML, a STAC item, tileInfo.json, Earth Engine's.

    Raises PgearthError for a damaged file.
    """
    safe = [from_safe(folder, file, files.granule_metadata) for file in files.product_metadata[:1]]
    in_json = [ranked for file in files.json for ranked in read_json(folder, file)]
    return safe + [metadata for _, metadata in sorted(in_json, key=lambda ranked: ranked[0])]


def read_json(folder: Folder, file: str) -> list[tuple[int, Metadata]]:
    """What a JSON file says, and how telling it is: the number of its kind. Nothing for a file of another kind."""
    content = folder.read(file)
    try:
        document = parse_json(content, parse_constant=refuse)
        said = [understand(document) for understand in METADATA_KINDS] if isinstance(document, dict) else []
    except (LookupError, TypeError, ValueError, AttributeError, ShapelyError, ProjError) as error:
        raise PgearthError(
            f"{folder.label(file)}: not valid metadata: {reason_of(error)}",
            "Replace the file, or remove it and give --name, --time and --platform.",
        ) from error
    return [(rank, replace(metadata, source=file)) for rank, metadata in enumerate(said) if metadata]


def refuse(constant: str) -> None:
    """For NaN and the like, which are not JSON, and which jsonb cannot hold."""
    raise ValueError(f"{constant} is not JSON")
