"""The demo's pictures: a contact sheet, a map of results over borders, a label chart in the official colours."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont
from psycopg import Connection

from pgearth.pyfuncs.pixels.pictures import FONT_SIZE, GAP, TILE, wrapped

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

NEIGHBOURS = 9
TITLE_HEIGHT = 40  # pixels
SHEET_GAP = 60
SEASON_COLORS = {"winter": "#4575b4", "spring": "#66bd63", "summer": "#fdae61", "autumn": "#d73027"}


def query_by_example(connection: Connection, patch: str, hash_functions: Mapping[str, str], path: Path) -> Path:
    """Write a patch, and beside it those nearest to it by each hash function (title: name), by eo.contact_sheet."""
    row = connection.execute("select eo.rgb(%s)", (patch,)).fetchone()
    assert row is not None
    sheets = [("query", query_tile(row[0], patch))]
    for title, name in hash_functions.items():
        row = connection.execute(
            """
            select eo.contact_sheet(array_agg(patch_id order by rank), array_agg(distance order by rank), 3)
            from eo.similar(%s, max_results => %s, encoder => %s)
            """,
            (patch, NEIGHBOURS, name),
        ).fetchone()
        assert row is not None
        sheets.append((title, Image.open(io.BytesIO(row[0]))))
    width = sum(sheet.width for _, sheet in sheets) + SHEET_GAP * (len(sheets) - 1)
    picture = Image.new("RGB", (width, TITLE_HEIGHT + max(sheet.height for _, sheet in sheets)), "white")
    drawing = ImageDraw.Draw(picture)
    left = 0
    for title, sheet in sheets:
        drawing.text((left + sheet.width // 2, TITLE_HEIGHT // 2), title, "black", ImageFont.load_default(20), "mm")
        picture.paste(sheet, (left, TITLE_HEIGHT))
        left += sheet.width + SHEET_GAP
    picture.save(path)
    return path


def query_tile(png: bytes, name: str) -> Image.Image:
    """The picture of a patch above its name, of the size that patches have in a contact sheet."""
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    lines = list(wrapped(name, font))
    line_height = sum(font.getmetrics())
    tile = Image.new("RGB", (TILE + 2 * GAP, TILE + 2 * GAP + len(lines) * line_height), "white")
    tile.paste(Image.open(io.BytesIO(png)).resize((TILE, TILE), Image.Resampling.NEAREST), (GAP, GAP))
    for number, line in enumerate(lines):
        ImageDraw.Draw(tile).text((GAP, GAP + TILE + GAP // 3 + number * line_height), line, "black", font)
    return tile


def label_chart(statistics: list[tuple[Any, ...]], path: Path) -> Path:
    """Draw label statistics (name, patches, per cent, colour) as bars in the labels' official colours."""
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(statistics) + 1.2), layout="constrained")
    names = [shorten(name) for name, *_ in statistics]
    axes.barh(
        range(len(names)),
        [patches for _, patches, *_ in statistics],
        color=[color or "#888888" for *_, color in statistics],
        edgecolor="#444444",
        linewidth=0.5,
    )
    for position, (_, patches, percent, _) in enumerate(statistics):
        axes.text(patches, position, f" {patches:,} ({percent} %)", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel("patches")
    axes.set_title("eo.label_statistics: labels of the patches found", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def shorten(name: str) -> str:
    """Cut a long class name at a word."""
    return name if len(name) <= 48 else name[:48].rsplit(" ", 1)[0] + " …"


def result_map(connection: Connection, search: dict[str, Any], path: Path) -> Path:
    """Draw the patches that a label search finds, by season, over the borders of NUTS countries."""
    rows = connection.execute(
        """
        select ST_X(ST_Centroid(footprint)), ST_Y(ST_Centroid(footprint)), season
        from eo.search(eo.filter(labels => %(labels)s, label_match => 'at_least'), max_results => null)
        """,
        search,
    ).fetchall()
    figure, axes = plt.subplots(figsize=(9, 8), layout="constrained")
    draw_borders(connection, axes)
    points = np.array([row[:2] for row in rows], float).reshape(-1, 2)
    seasons = np.array([row[2] for row in rows])
    for season, color in SEASON_COLORS.items():
        chosen = points[seasons == season]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=1.5,
            color=color,
            label=f"{season}: {len(chosen):,}",
            linewidths=0,
            rasterized=True,
        )
    west, south, east, north = bounds(points)
    axes.set(xlim=(west, east), ylim=(south, north), xlabel="longitude", ylabel="latitude")
    axes.set_aspect(1 / np.cos(np.radians((south + north) / 2)))
    axes.set_title(f"Patches with at least: {', '.join(search['labels'])}", fontsize=10)
    axes.legend(markerscale=6, fontsize=9, loc="lower right")
    return save(figure, path)


def bounds(points: np.ndarray) -> tuple[float, float, float, float]:
    """Bounds of points (n, 2) with a margin of a tenth, at least half a degree."""
    if not len(points):
        return -25.0, 34.0, 45.0, 72.0
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum((high - low) / 10, 0.5)
    return low[0] - margin[0], low[1] - margin[1], high[0] + margin[0], high[1] + margin[1]


def draw_borders(connection: Connection, axes: Axes) -> None:
    """Draw the borders of NUTS countries, where they are loaded."""
    lines = [
        ring
        for (wkb,) in connection.execute("select ST_AsBinary(ST_Boundary(geom)) from eo.nuts where level = 0")
        for ring in map(shapely.get_coordinates, shapely.get_parts(shapely.from_wkb(wkb)))
    ]
    axes.add_collection(LineCollection(lines, colors="#777777", linewidths=0.6))


def save(figure: plt.Figure, path: Path) -> Path:
    """Write the figure and close it."""
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
