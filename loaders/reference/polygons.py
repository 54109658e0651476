"""Polygons of vector files, made what the archive stores: valid MultiPolygons of one SRID."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan, pi
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError
from shapely import GeometryType

from pgearth.loaders.archive.footprint import footprint, longitude_steps
from pgearth.loaders.files.gdal_files import VECTOR_FORMATS, vector_formats_of
from pgearth.loaders.work.ledger import file_checksum
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError

FEATURES_AT_ONCE = 20_000


@dataclass(frozen=True)
class Attribute:
    """An attribute that a loader needs: what it means, its field's names (regular expression, any case), an example."""

    meaning: str
    names: str
    example: str


@dataclass(frozen=True)
class Polygon:
    """A feature: its id in the file, its attributes as text (None: null), its geometry as EWKB of a MultiPolygon.

    `ewkb` is None where the geometry is null, empty or without area, also once it was `repaired`, being invalid.
    """

    feature_id: int
    attributes: tuple[str | None, ...]
    ewkb: bytes | None
    repaired: bool


@dataclass(frozen=True)
class PolygonLayer:
    """A layer of polygons; `fields` are its field names for the attributes asked for, in their order."""

    path: Path
    name: str
    crs: CRS
    fields: tuple[str, ...]
    features: int

    @property
    def source(self) -> str:
        """File name and layer: what the ledger calls it."""
        return f"{self.path.name}:{self.name}"

    def checksum(self) -> str:
        """Fingerprint of the file, with the parts that a shapefile or a geodatabase folder consists of."""
        if self.path.is_dir():
            return file_checksum(*sorted(path for path in self.path.rglob("*") if path.is_file()))
        parts = [self.path]
        if self.path.suffix.lower() == ".shp":
            parts += [part for suffix in (".dbf", ".prj") if (part := self.path.with_suffix(suffix)).exists()]
        return file_checksum(*parts)

    def polygons(self, srid: int) -> Iterable[Polygon]:
        """Read all polygons, reprojected to EPSG:`srid`, showing progress.

        Invalid geometries are repaired. Curves come as OGR linearises them. In EPSG:4326 they are cut at the
        antimeridian, as all outlines are. Memory is bounded by FEATURES_AT_ONCE. Raises PgearthError for a feature that
        is no polygon, has no place on the globe, cannot be reprojected, or in another system crosses the antimeridian,
        and for a file that breaks off.
        """
        total = self.features if self.features >= 0 else None
        return progress(self.read(srid), self.source, "polygons", total)

    def read(self, srid: int) -> Iterator[Polygon]:
        """Read all polygons, as `polygons` says."""
        transformer = self.transformer(srid)
        read = 0
        while True:
            with readable(self.path):
                meta, ids, wkb, columns = pyogrio.raw.read(
                    self.path,
                    layer=self.name,
                    columns=list(self.fields),
                    force_2d=True,
                    skip_features=read,
                    max_features=FEATURES_AT_ONCE,
                    return_fids=True,
                )
            values = dict(zip(meta["fields"], columns, strict=True))
            outlines, closed = self.parse(ids, wkb)
            geometries = outlines
            self.check_places(ids, outlines)
            if transformer is not None:
                geometries = self.reproject(ids, outlines, transformer)
            if srid == 4326:
                geometries = cut_at_antimeridian(geometries)
            else:
                self.check_one_side(ids, outlines, geometries, CRS.from_epsg(srid))
            geometries, mended = repair(geometries)
            ewkb = shapely.to_wkb(shapely.set_srid(geometries, srid), include_srid=True)
            for row, repaired in enumerate((closed | mended).tolist()):
                attributes = tuple(as_text(values[field][row]) for field in self.fields)
                yield Polygon(int(ids[row]), attributes, ewkb[row], repaired)
            read += len(ids)
            if len(ids) < FEATURES_AT_ONCE:
                break

    def transformer(self, srid: int) -> Transformer | None:
        """Transformation of coordinates (x, y) to EPSG:`srid`, or None where there is nothing to do."""
        target = CRS.from_epsg(srid)
        if self.crs.equals(target, ignore_axis_order=True):
            return None
        try:
            return Transformer.from_crs(self.crs, target, always_xy=True)
        except ProjError as error:
            raise PgearthError(
                f"{self.path}: layer {self.name}: no way from its reference system ({self.crs.name}) to EPSG:{srid}",
                "Write a copy with the right one: ogr2ogr -a_srs EPSG:<code> COPY.gpkg FILE",
            ) from error

    def parse(self, ids: np.ndarray, wkb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Geometries of one chunk, None where null or empty, and whose unclosed rings were closed.

        Raises PgearthError for a geometry that is no polygon.
        """
        geometries = shapely.from_wkb(wkb, on_invalid="ignore")
        unread = shapely.is_missing(geometries) & (wkb != None)  # noqa: E711 (elementwise)
        geometries[unread] = shapely.from_wkb(wkb[unread], on_invalid="fix")
        closed = unread & ~shapely.is_empty(geometries)
        geometries[shapely.is_empty(geometries)] = None
        known = shapely.is_missing(geometries) | np.isin(
            shapely.get_type_id(geometries), [GeometryType.POLYGON, GeometryType.MULTIPOLYGON]
        )
        known &= ~(unread & shapely.is_missing(geometries))
        if not known.all():
            row = int(np.flatnonzero(~known)[0])
            kind = "of an unknown type" if geometries[row] is None else f"a {geometries[row].geom_type}"
            raise PgearthError(
                f"{self.path}: layer {self.name}, feature {ids[row]}: its geometry is {kind}",
                "Only polygons can be loaded; take the others out of the layer.",
            )
        return geometries, closed

    def reproject(self, ids: np.ndarray, geometries: np.ndarray, transformer: Transformer) -> np.ndarray:
        """Vertices moved by `transformer`. Raises PgearthError for a feature that it has no place for."""
        projected = shapely.transform(geometries, transformer.transform, interleaved=False)
        lost = ~np.isfinite(shapely.bounds(projected)).all(axis=1) & ~shapely.is_missing(projected)
        if lost.any():
            row = int(np.flatnonzero(lost)[0])
            raise self.misplaced(ids[row], geometries[row])
        return projected

    def check_places(self, ids: np.ndarray, geometries: np.ndarray) -> None:
        """Raise PgearthError for coordinates that are nowhere: not finite, or not longitudes and latitudes."""
        coordinates, rows = shapely.get_coordinates(geometries, return_index=True)
        nowhere = ~np.isfinite(coordinates).all(axis=1)
        if self.crs.is_geographic:
            half_turn = pi / self.crs.axis_info[0].unit_conversion_factor  # 180, but for the grads of some maps
            nowhere |= (np.abs(coordinates) > (1 + 1e-9) * half_turn * np.array((2, 0.5))).any(axis=1)
        if nowhere.any():
            row = int(rows[nowhere][0])
            raise self.misplaced(ids[row], geometries[row])

    def check_one_side(self, ids: np.ndarray, outlines: np.ndarray, geometries: np.ndarray, crs: CRS) -> None:
        """Raise PgearthError for an outline across the antimeridian or about a pole, where map layers tear it.

        Also where its longitudes do not tell which way round it goes. `geometries` are the outlines in `crs`; those
        within the area that it is for need no look.
        """
        assert crs.area_of_use is not None
        west, south, east, north = Transformer.from_crs(4326, crs, always_xy=True).transform_bounds(
            *crs.area_of_use.bounds
        )
        bounds = shapely.bounds(geometries)
        outside = (bounds[:, :2] < (west, south)).any(axis=1) | (bounds[:, 2:] > (east, north)).any(axis=1)
        degrees = Transformer.from_crs(crs, 4326, always_xy=True)
        for row in np.flatnonzero(outside):
            there = shapely.transform(geometries[row], degrees.transform, interleaved=False)
            if not np.isfinite(shapely.get_coordinates(there)).all():
                raise self.misplaced(ids[row], outlines[row])
            torn = (longitude_steps(there) > 180).any()
            if torn or (self.crs.is_geographic and (longitude_steps(outlines[row]) >= 180).any()):
                raise PgearthError(
                    f"{self.path}: layer {self.name}, feature {ids[row]}: its outline crosses the antimeridian or goes"
                    " about a pole",
                    f"Cut it at 180 degrees of longitude: {crs.name} is for {crs.area_of_use.name}",
                )

    def misplaced(self, feature_id: int, geometry: shapely.Geometry) -> PgearthError:
        """The error of a feature with coordinates that its reference system has no place for."""
        coordinates = shapely.get_coordinates(geometry)
        box = (*coordinates.min(axis=0).tolist(), *coordinates.max(axis=0).tolist())
        return PgearthError(
            f"{self.path}: layer {self.name}, feature {feature_id}: its coordinates"
            f" {tuple(round(value, 3) for value in box)} are not of {self.crs.name}",
            "If the file names the wrong reference system, write a copy with the right one: "
            "ogr2ogr -a_srs EPSG:<code> COPY.gpkg FILE",
        )


def cut_at_antimeridian(geometries: np.ndarray) -> np.ndarray:
    """Outlines in degrees, cut at 180 degrees of longitude, as the archive stores all (sql/0_base/2_areas.sql)."""
    cut = geometries.copy()
    west, _, east, _ = shapely.bounds(geometries).T
    for row in np.flatnonzero((west < -180) | (east > 180) | (east - west > 180)):
        outline = footprint(geometries[row])
        cut[row] = None if outline is None else shapely.from_wkb(outline)
    return cut


def find_polygon_layer(path: Path, attributes: list[Attribute], layer: str | None = None) -> PolygonLayer:
    """Find the layer of polygons that has all `attributes` (or look into the `layer` named).

    Raises PgearthError if `path` is no vector file, if no layer or more than one fits, or if the layer has no
    reference system.
    """
    with readable(path):
        kinds = dict(pyogrio.list_layers(path).tolist())
    if layer is not None and layer not in kinds:
        raise PgearthError(f"{path}: there is no layer {layer}", f"Its layers are: {', '.join(kinds)}.")
    candidates = [name for name, kind in kinds.items() if layer in (None, name) and may_hold_polygons(kind)]
    if not candidates:
        raise PgearthError(
            f"{path}: no layer of polygons",
            "Its layers are: " + ", ".join(f"{name} ({kind or 'no geometry'})" for name, kind in kinds.items()),
        )
    infos: dict[str, dict[str, Any]] = {}
    fields: dict[str, tuple[str, ...]] = {}
    refusals: list[PgearthError] = []
    for name in candidates:
        with readable(path):
            infos[name] = pyogrio.read_info(path, layer=name, force_feature_count=False)
        try:
            fields[name] = find_fields(path, name, [str(field) for field in infos[name]["fields"]], attributes)
        except PgearthError as refusal:
            refusals.append(refusal)
    if not fields:
        raise refusals[0]
    if len(fields) > 1:
        raise PgearthError(
            f"{path}: several layers could be meant: {', '.join(fields)}", "Name one of them with --layer."
        )
    [(name, names)] = fields.items()
    return PolygonLayer(path, name, reference_system(path, name, infos[name]["crs"]), names, infos[name]["features"])


def find_fields(path: Path, layer: str, fields: list[str], attributes: list[Attribute]) -> tuple[str, ...]:
    """Names of the fields with `attributes`. Raises PgearthError if one is missing or could be any of several."""
    found = []
    for attribute in attributes:
        matches = [field for field in fields if re.fullmatch(attribute.names, field, re.IGNORECASE)]
        if not matches:
            raise PgearthError(
                f"{path}: layer {layer} has no field with the {attribute.meaning}, such as {attribute.example}",
                f"Its fields are: {', '.join(fields) or 'none'}.",
            )
        if len(matches) > 1:
            raise PgearthError(
                f"{path}: layer {layer}: the {attribute.meaning} could be in any of the fields {', '.join(matches)}",
                "Name the right one, or write a copy of the file without the others.",
            )
        found += matches
    return tuple(found)


def may_hold_polygons(kind: str | None) -> bool:
    """Whether a layer of OGR's geometry type `kind` (None: a table without geometry) can hold polygons."""
    return kind is not None and re.search("Polygon|Surface|Unknown|Collection", kind) is not None


def reference_system(path: Path, layer: str, definition: str | None) -> CRS:
    """The layer's reference system. Raises PgearthError if it has none or one that PROJ does not know."""
    if not definition:
        raise PgearthError(
            f"{path}: layer {layer} has no reference system",
            "Write a copy that has it: ogr2ogr -a_srs EPSG:<code> COPY.gpkg FILE",
        )
    try:
        return CRS.from_user_input(definition)
    except CRSError as error:
        raise PgearthError(
            f"{path}: layer {layer}: its reference system is not known: {definition}",
            "Write a copy with the right one: ogr2ogr -a_srs EPSG:<code> COPY.gpkg FILE",
        ) from error


def repair(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Valid MultiPolygons with the area that the rings enclose (GEOS MakeValid, method structure); None for no area.

    Also tells which geometries were invalid.
    """
    invalid = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
    valid = geometries.copy()
    valid[invalid] = shapely.make_valid(geometries[invalid], method="structure", keep_collapsed=False)
    parts, rows = shapely.get_parts(valid, return_index=True)
    areal = (shapely.get_type_id(parts) == GeometryType.POLYGON) & ~shapely.is_empty(parts)
    rows_with_parts, index = np.unique(rows[areal], return_inverse=True)
    multipolygons = np.full(len(geometries), None, dtype=object)
    if len(rows_with_parts):
        multipolygons[rows_with_parts] = shapely.multipolygons(parts[areal], indices=index)
    return multipolygons, invalid


def as_text(value: Any) -> str | None:
    """An attribute as text, whatever the type of its field: 111, 111.0 and '111 ' are all '111'; null is None."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip(" ") or None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Let OGR open a file by the drivers that are allowed, and turn its errors into PgearthError."""
    try:
        with vector_formats_of(path):
            yield
    except (DataSourceError, DataLayerError) as error:
        raise PgearthError(
            f"{path}: cannot be read as a vector file: {error}",
            f"{VECTOR_FORMATS}; unpack archives, convert other files with ogr2ogr COPY.gpkg FILE",
        ) from error
    except UnboundLocalError as error:  # pyogrio, of a reference system whose names are not UTF-8
        raise PgearthError(
            f"{path}: its reference system cannot be read",
            "Write a copy with the right one: ogr2ogr -a_srs EPSG:<code> COPY.gpkg FILE",
        ) from error
