"""The JSON file of a patch of BigEarthNet v1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rasterio.errors import RasterioError

from pgearth.loaders.datasets.bigearthnet.rasters import epsg_code
from pgearth.loaders.work.explain import reason_of
from pgearth.pyfuncs.documents import parse_json, read_document
from pgearth.pyfuncs.errors import PgearthError

TILE_SOURCE = re.compile(r"S2[AB]_MSIL1C_\d{8}T\d{5,6}_N\d{4}_R\d{3}_T(\d{2}[C-X][A-Z]{2})_\d{8}T\d{5,6}")
SCENE_SOURCE = re.compile(r"S1[AB]_IW_GRDH_1S[DS][VH](_\d{8}T\d{6}){2}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}")


@dataclass(frozen=True)
class Description:
    """What the JSON file of a v1 patch says; `faults` are the archive's known slips, repaired here.

    `bounds` are west, south, east, north; `tile` is None for Sentinel-1, `pair_name` for Sentinel-2.
    """

    product: str
    tile: str | None
    sensing_time: datetime
    srid: int
    bounds: tuple[float, float, float, float]
    labels: list[str]
    pair_name: str | None
    faults: tuple[str, ...]


def read_description(folder: Path) -> Description:
    """Read the JSON file of a v1 patch. Raises PgearthError if there is none, or not one as BigEarthNet writes it."""
    path = folder / f"{folder.name}_labels_metadata.json"
    try:
        record = parse_json(read_document(path))
        corners = record["coordinates"]
        faults = []
        if "lry" not in corners:
            faults.append("lly for lry")
        if "acquisition_date" not in record:
            faults.append("acquisition_time for acquisition_date")
        time = datetime.fromisoformat(record.get("acquisition_date") or record["acquisition_time"])
        west, north, east = float(corners["ulx"]), float(corners["uly"]), float(corners["lrx"])
        south = float(corners.get("lry") or corners["lly"])
        if "tile_source" in record:
            match = TILE_SOURCE.fullmatch(record["tile_source"].removesuffix(".SAFE"))
        else:
            match = SCENE_SOURCE.fullmatch(record["scene_source"])
        if match is None:
            raise ValueError("tile_source or scene_source is not a product's name")
        return Description(
            product=match[0].replace("MSIL1C", "MSIL2A"),
            tile=match[1] if "tile_source" in record else None,
            sensing_time=time.replace(tzinfo=UTC),
            srid=epsg_code(record["projection"]),
            bounds=(west, south, east, north),
            labels=[str(label) for label in record["labels"]],
            pair_name=record.get("corresponding_s2_patch"),
            faults=tuple(faults),
        )
    except FileNotFoundError as error:
        raise PgearthError(
            f"{path}: the labels of the patch are missing",
            "Each patch of v1 has this file; patches of v2 lie in a folder of their product's name.",
        ) from error
    except KeyError as error:
        raise PgearthError(f"{path}: it has no {error}", "Take this file from the archive again.") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RasterioError) as error:
        raise PgearthError(
            f"{path}: it cannot be read: {reason_of(error)}", "Take this file from the archive again."
        ) from error
