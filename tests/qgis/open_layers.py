"""Opens layers in QGIS and draws maps, without a window. Runs under Debian's Python, which has QGIS's bindings.

Reads a JSON object from standard input and writes one to standard output:

    {"connection": {"host", "port", "database", "user"},
     "vectors": {table: key}, "rasters": [table],
     "maps": [{"file", "layers": [table, ...] (the first on top), "filters": {table: SQL}, "crs", "extent", "size"}]}

What comes back describes each layer as QGIS sees it, its default style from the database applied. Libpq's PGOPTIONS
reaches the server, so a role can be set there.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsDataSourceUri,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsRectangle,
    QgsRenderContext,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor


def source(connection: dict[str, str], schema: str, table: str, column: str, key: str, condition: str = "") -> str:
    uri = QgsDataSourceUri()
    uri.setConnection(connection["host"], connection["port"], connection["database"], connection["user"], "")
    uri.setDataSource(schema, table, column, condition, key)
    return str(uri.uri(False))


def open_vector(connection: dict[str, str], table: str, key: str, condition: str = "") -> tuple[Any, bool]:
    layer = QgsVectorLayer(source(connection, "eo", table, "geom", key, condition), table, "postgres")
    _, styled = layer.loadDefaultStyle()
    return layer, styled


def open_raster(connection: dict[str, str], table: str) -> Any:
    return QgsRasterLayer(source(connection, "eo_layers", table, "rast", "rid"), table, "postgresraster")


def describe_vector(layer: Any, styled: bool) -> dict[str, Any]:
    if not layer.isValid():
        return {"valid": False, "error": layer.error().message()}
    renderer = layer.renderer()
    colors = {}
    if renderer.type() == "categorizedSymbol":
        colors = {str(entry.value()): entry.symbol().color().name() for entry in renderer.categories()}
    return {
        "valid": True,
        "geometry": QgsWkbTypes.displayString(layer.wkbType()),
        "crs": layer.crs().authid(),
        "key": [layer.fields()[number].name() for number in layer.primaryKeyAttributes()],
        "features": layer.featureCount(),
        "read": sum(1 for _ in layer.getFeatures()),
        "styled": styled,
        "renderer": renderer.type(),
        "colors": colors,
        "symbols": len(renderer.symbols(QgsRenderContext())),
    }


def describe_raster(layer: Any) -> dict[str, Any]:
    if not layer.isValid():
        return {"valid": False, "error": layer.error().message()}
    box = layer.extent()
    return {
        "valid": True,
        "crs": layer.crs().authid(),
        "extent": [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()],
        "size": [layer.width(), layer.height()],
        "bands": layer.bandCount(),
        "renderer": layer.renderer().type(),
    }


def draw(request: dict[str, Any], drawing: dict[str, Any]) -> None:
    layers = []
    for table in drawing["layers"]:
        if table in request["vectors"]:
            condition = drawing.get("filters", {}).get(table, "")
            layers.append(open_vector(request["connection"], table, request["vectors"][table], condition)[0])
        else:
            layers.append(open_raster(request["connection"], table))
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(QgsCoordinateReferenceSystem(drawing["crs"]))
    settings.setExtent(QgsRectangle(*drawing["extent"]))
    settings.setOutputSize(QSize(*drawing["size"]))
    settings.setBackgroundColor(QColor("white"))
    # Colours are compared: no blending along edges.
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    if job.errors():
        sys.exit(f"{drawing['file']}: {[error.message for error in job.errors()]}")
    job.renderedImage().save(drawing["file"], "PNG")


def main() -> None:
    request = json.load(sys.stdin)
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    answer = {
        "vectors": {
            table: describe_vector(*open_vector(request["connection"], table, key))
            for table, key in request["vectors"].items()
        },
        "rasters": {table: describe_raster(open_raster(request["connection"], table)) for table in request["rasters"]},
    }
    for drawing in request["maps"]:
        draw(request, drawing)
    application.exitQgis()
    json.dump(answer, sys.stdout)


main()
