"""What an export writes of a patch and of a product: documents (JSON) and pixels (GeoTIFF, COG), and reads back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from types import GenericAlias, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import shapely
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from shapely.geometry import mapping, shape

from pgearth.loaders.archive.write import Patch, PatchRaster, Product, patch_raster
from pgearth.loaders.files.gdal_files import RASTER_FORMATS, open_raster_bytes
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.limits import PATCH_BYTES
from pgearth.pyfuncs.pixels.rasters import Raster, from_wkb

PIXEL_FORMATS = ("bigearthnet", "cog")
COG_BLOCK = 512
TIFF_TILE = 16  # sides of a TIFF's tiles are multiples of it
Record = TypeVar("Record", Patch, Product)
PRODUCT_TIMES = ("sensing_time", "end_time", "processed_at")

# Upper bounds, for shards that stay below a size: a GeoTIFF besides its pixels, and how much deflate may add to those.
TIFF_BYTES = 1_536
DEFLATE_GROWTH = 1.001
BAND_BYTES = 128  # a band's name in a file, and what the document says of it


@dataclass(frozen=True)
class StoredRaster:
    """A raster of a patch as the archive has it, resolution in metres, pixels as PostGIS raster WKB."""

    resolution: int
    bands: tuple[str, ...]
    wkb: bytes


# Names


def document_name(patch: str) -> str:
    """Name of a patch's document: BigEarthNet's."""
    return f"{patch}_labels_metadata.json"


def product_document_name(product: str) -> str:
    """Name of a product's document."""
    return f"{product}_metadata.json"


# Documents


def dump(document: Mapping[str, Any]) -> bytes:
    """A document as it is written: one line of UTF-8, as BigEarthNet's."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def patch_document(row: Mapping[str, Any], projection: str, rasters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The document of a patch: first what BigEarthNet v1 has in its own, then all else the archive knows of the patch.

    `row` is one of the manifest (see export.py), `projection` the WKT of its srid; `rasters` say of each
    resolution which bands there are, and the file of each.
    """
    west, south, east, north = (row[edge] for edge in ("west", "south", "east", "north"))
    time = row["sensing_time"].astimezone(UTC)
    document: dict[str, Any] = {
        "labels": row["labels"] or [],
        "coordinates": {
            corner: int(value) if value.is_integer() else value
            for corner, value in (("ulx", west), ("uly", north), ("lrx", east), ("lry", south))
        },
        "projection": projection,
    }
    if row["platform"].startswith("sentinel-1"):
        document |= {
            "corresponding_s2_patch": row["pair_name"],
            "scene_source": row["product"],
            "acquisition_time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
    else:
        document |= {
            "tile_source": f"{row['derived_from'] or row['product']}.SAFE",
            "acquisition_date": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
    metadata = row["metadata"]
    return document | {
        "name": row["name"],
        "source": row["source"],
        "product": row["product"],
        "platform": row["platform"],
        "sensing_time": time.isoformat(),
        "srid": row["srid"],
        "bounds": [west, south, east, north],
        "tile_column": row["tile_column"],
        "tile_row": row["tile_row"],
        "label_codes": row["label_codes"],
        "label_fraction": shortest(row["label_fraction"]),
        "scene_classes": row["scene_classes"],
        "scene_class_codes": row["scene_class_codes"],
        "scene_class_fraction": shortest(row["scene_class_fraction"]),
        "source_country": row["source_country"],
        "country_codes": row["country_codes"],
        "nuts_ids": row["nuts_ids"],
        "split": row["split"],
        "seasonal_snow": row["seasonal_snow"],
        "cloud_or_shadow": row["cloud_or_shadow"],
        "pair_name": row["pair_name"],
        "metadata": None if metadata is None else json.loads(metadata),
        "rasters": list(rasters),
    }


def shortest(values: Iterable[float] | None) -> list[float] | None:
    """Numbers of PostgreSQL's type real as it prints them: 0.1 for what is 0.10000000149 as a double."""
    return None if values is None else [float(str(np.float32(value))) for value in values]


def patch_of_document(document: Mapping[str, Any], files: Mapping[str, bytes], ids: Mapping[str, int]) -> Patch:
    """The patch that a document describes, with its pixels; the inverse of patch_document and raster_files.

    `files` are the patch's, by name, `ids` the numbers of labels by scheme:code. Raises PgearthError for a label that
    is not known, for a value of another kind, and for missing or unreadable files; KeyError, TypeError or ValueError
    for what is no such document.
    """
    west, south, east, north = document["bounds"]
    patch = Patch(
        name=document["name"],
        product=document["product"],
        platform=document["platform"],
        sensing_time=datetime.fromisoformat(document["sensing_time"]),
        srid=document["srid"],
        west=west,
        south=south,
        east=east,
        north=north,
        tile_column=document["tile_column"],
        tile_row=document["tile_row"],
        label_ids=label_ids(document["label_codes"], ids),
        label_fraction=document["label_fraction"],
        scene_class_ids=label_ids(document["scene_class_codes"], ids),
        scene_class_fraction=document["scene_class_fraction"],
        country=document["source_country"],
        country_codes=document["country_codes"],
        nuts_ids=document["nuts_ids"],
        split=document["split"],
        seasonal_snow=document["seasonal_snow"],
        cloud_or_shadow=document["cloud_or_shadow"],
        pair_name=document["pair_name"],
        metadata=document["metadata"],
        rasters=read_rasters(document["rasters"], int(document["srid"]), files),
    )
    return checked(patch)


def checked(record: Record) -> Record:
    """The record of a document, if its values are of the kinds that its class names; else raises PgearthError."""
    # Without the class's own names: one of its fields is called bytes.
    for name, kind in get_type_hints(type(record), localns={}).items():
        if not is_of(value := getattr(record, name), kind):
            raise PgearthError(
                f"its {name} cannot be {str(value)[:100]!r}", "Take this file from the export again, or mend it."
            )
    return record


def is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a kind, as annotations name it: true is no number, and a whole number is a number, too."""
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(is_of(value, one) for one in get_args(kind))
    if isinstance(kind, GenericAlias):
        container, of_items = get_origin(kind), get_args(kind)[-1]
        if not isinstance(value, list | dict) or not isinstance(value, container):
            return False
        return all(is_of(item, of_items) for item in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def read_rasters(descriptions: Sequence[Mapping[str, Any]], srid: int, files: Mapping[str, bytes]) -> list[PatchRaster]:
    """The rasters that a patch's document describes. Raises PgearthError where they are larger than a patch may be."""
    rasters = []
    room = PATCH_BYTES.of_environment()
    for description in descriptions:
        raster = read_raster(description, srid, files, room)
        rasters.append(raster)
        room -= len(raster.wkb)
    return rasters


def label_ids(codes: Sequence[str] | None, ids: Mapping[str, int]) -> list[int] | None:
    """Numbers of labels, in their order. Raises PgearthError for one that is not known."""
    for code in codes or ():
        if code not in ids:
            raise PgearthError(f"the archive has no label {code!r}", "Run: pgearth load nomenclature")
    return None if codes is None else [ids[code] for code in codes]


def product_document(product: Product, derived_from: Mapping[str, Any] | None) -> dict[str, Any]:
    """The document of a product, with that of the product it is derived from inside."""
    document = {name: getattr(product, name) for name in Product.__dataclass_fields__}
    for name in PRODUCT_TIMES:
        time = document[name]
        document[name] = None if time is None else time.astimezone(UTC).isoformat()
    footprint = product.footprint
    document["footprint"] = None if footprint is None else mapping(shapely.from_wkb(footprint))
    return document | {"derived_from": derived_from}


def products_of_document(document: Mapping[str, Any]) -> list[Product]:
    """The product that a document describes, after those it is derived from; the inverse of product_document.

    Raises PgearthError for a value of another kind; KeyError, TypeError or ValueError for what is no such document.
    """
    values = {name: document[name] for name in Product.__dataclass_fields__}
    for name in PRODUCT_TIMES:
        values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
    if values["footprint"] is not None:
        values["footprint"] = shapely.to_wkb(shape(values["footprint"]))
    parent = values["derived_from"]
    if parent is None:
        return [checked(Product(**values))]
    return [*products_of_document(parent), checked(Product(**values | {"derived_from": parent["name"]}))]


# Pixels


def raster_files(
    patch: str, rasters: Iterable[StoredRaster], pixel_format: str, crs: CRS
) -> tuple[list[tuple[str, bytes]], list[dict[str, Any]]]:
    """The GeoTIFFs of a patch by name, and what its document says of them: bands of each resolution, file of each band.

    `bigearthnet`: one file per band. `cog`: one per resolution, or more where its bands differ in pixel type or nodata,
    since a file has one of each. `crs` is the patch's reference system.
    """
    files: list[tuple[str, bytes]] = []
    described = []
    for stored in rasters:
        raster = from_wkb(stored.wkb)
        name_of_band: list[str] = [""] * len(stored.bands)
        for number, group in enumerate(band_groups(raster, pixel_format), start=1):
            if pixel_format == "cog":
                name = f"{patch}_{stored.resolution}m" + (f"_{number}" if number > 1 else "")
            else:
                name = f"{patch}_{stored.bands[group[0]]}"
                if f"{name}.tif" in dict(files):
                    name += f"_{stored.resolution}m"
            content = geotiff(raster, group, [stored.bands[index] for index in group], pixel_format, crs)
            files.append((f"{name}.tif", content))
            for index in group:
                name_of_band[index] = f"{name}.tif"
        described.append({"resolution": stored.resolution, "bands": list(stored.bands), "files": name_of_band})
    return files, described


def band_groups(raster: Raster, pixel_format: str) -> list[list[int]]:
    """Which bands (from 0) go into a file together."""
    indices = range(len(raster.bands))
    if pixel_format == "bigearthnet":
        return [[index] for index in indices]

    def kind(index: int) -> tuple[str, str]:
        return str(raster.bands[index].dtype), repr(raster.nodata[index])

    return sorted(list(group) for _, group in groupby(sorted(indices, key=kind), key=kind))


def geotiff(raster: Raster, indices: Sequence[int], names: Sequence[str], pixel_format: str, crs: CRS) -> bytes:
    """Bands of a raster as a GeoTIFF in which every pixel, nodata and the georeference are exactly the raster's."""
    bands = [raster.bands[index] for index in indices]
    height, width = bands[0].shape
    scale_x, scale_y, west, north, skew_x, skew_y = raster.transform
    options: dict[str, Any] = {"driver": "GTiff", "predictor": 3 if bands[0].dtype.kind == "f" else 2}
    if pixel_format == "cog":
        options = {
            "driver": "COG",
            "predictor": "YES",
            "blocksize": cog_block(width, height),
            "overview_resampling": "nearest",
        }
    with MemoryFile() as file:
        with file.open(
            width=width,
            height=height,
            count=len(bands),
            dtype=bands[0].dtype.name,
            nodata=raster.nodata[indices[0]],
            crs=crs,
            transform=Affine(scale_x, skew_x, west, skew_y, scale_y, north),
            compress="DEFLATE",
            **options,
        ) as dataset:
            dataset.write(np.stack(bands))
            dataset.descriptions = tuple(names)
        return bytes(file.getbuffer())


def cog_block(width: int, height: int) -> int:
    """Side of a COG's tiles: 512 pixels, or for a smaller image the least that holds it."""
    return min(COG_BLOCK, math.ceil(max(width, height) / TIFF_TILE) * TIFF_TILE)


def raster_bytes(pixel_format: str, width: int, height: int, bands: int, stored: int) -> int:
    """The most that the GeoTIFFs of a raster of so many pixels, bands and stored bytes can take."""
    pixels = stored
    if pixel_format == "cog":
        block = cog_block(width, height)
        padded, factor = 0, 1
        while True:  # the image and its overviews, whole tiles each
            tiles = math.ceil(width / factor / block) * math.ceil(height / factor / block)
            padded += tiles * block**2
            if tiles == 1:
                break
            factor *= 2
        pixels = math.ceil(stored / (width * height) * padded)
    return math.ceil(pixels * DEFLATE_GROWTH) + bands * (TIFF_BYTES + BAND_BYTES)


def read_raster(description: Mapping[str, Any], srid: int, files: Mapping[str, bytes], room: int) -> PatchRaster:
    """A raster that a patch's document describes, from its files; the inverse of raster_files for one resolution.

    Raises PgearthError for one of more than `room` bytes.
    """
    names: list[str] = list(description["files"])
    contents: dict[str, tuple[np.ndarray, float | None, tuple[float, ...]]] = {}
    for name in dict.fromkeys(names):
        if name not in files:
            raise PgearthError(f"the file {name} is missing", "Take the patch from the export again.")
        contents[name] = read_geotiff(name, files[name], room)
        room -= contents[name][0].nbytes
    bands, nodata, transforms = [], [], set()
    for position, name in enumerate(names):
        pixels, value, transform = contents[name]
        bands.append(pixels[names[:position].count(name)])
        nodata.append(value)
        transforms.add(transform)
    if len(transforms) != 1:
        raise PgearthError(
            f"bands of {description['resolution']} m lie at different places: {', '.join(contents)}",
            "Take the patch from the export again.",
        )
    a, b, c, d, e, f = transforms.pop()
    try:
        raster = Raster(tuple(bands), (a, e, c, f, b, d), srid, tuple(nodata))
        return patch_raster(int(description["resolution"]), description["bands"], raster)
    except PgearthError as error:
        raise error.of(", ".join(contents)) from error


def read_geotiff(name: str, content: bytes, room: int) -> tuple[np.ndarray, float | None, tuple[float, ...]]:
    """Pixels (band, row, column), nodata and the six numbers of the affine transformation of a GeoTIFF.

    Raises PgearthError for one that cannot be read, or whose pixels take more than `room` bytes.
    """
    try:
        with open_raster_bytes(content) as dataset:
            pixels = dataset.count * dataset.height * dataset.width
            size = pixels * max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
            if size > room:
                raise PgearthError(
                    f"{name}: its pixels take {size:,} bytes, of which a patch has {room:,} left",
                    f"{PATCH_BYTES.variable} sets another limit.",
                )
            return dataset.read(), dataset.nodata, tuple(dataset.transform)[:6]
    except RasterioError as error:
        raise PgearthError(
            f"{name}: it cannot be read: {error}", f"{RASTER_FORMATS}. Take this file from the export again."
        ) from error
