"""Pictures for people: PNG quicklooks of patches, contact sheets of search results, tiles of map layers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import NODATA, Raster

TILE = 240
"""Side of a contact sheet's tile in pixels: a patch of 120 pixels is drawn at twice its size."""
GAP = 12
FONT_SIZE = 13
NO_PICTURE = (200, 200, 200)


@dataclass(frozen=True)
class Tile:
    """A patch on a contact sheet: its caption, a line for each entry, and its bands by name (none: no pixels)."""

    caption: Sequence[str]
    bands: Mapping[str, np.ndarray]


def stretch_limits(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2nd and the 98th percentile of each band of pixels (count, bands)."""
    low, high = np.percentile(pixels, [2, 98], axis=0)
    return low, high


def stretched(pixels: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Map pixels (count, bands) to 0 at `low` and 1 at `high`, cut off beyond."""
    return ((pixels - low) / np.where(high > low, high - low, 1.0)).clip(0, 1)


def rgb_picture(red: np.ndarray, green: np.ndarray, blue: np.ndarray, nodata: float | None = NODATA) -> np.ndarray:
    """Draw three bands (height, width) as an 8-bit RGB picture (height, width, 3).

    Each band is stretched from the 2nd to the 98th percentile of its valid pixels. Pixels that equal `nodata` or are
    not finite in any band are black. Raises PgearthError when the bands differ in shape.
    """
    if not red.shape == green.shape == blue.shape:
        raise PgearthError(
            f"bands of one picture differ in shape: {red.shape}, {green.shape}, {blue.shape}",
            hint="Choose bands of one resolution, or resample them first.",
        )
    bands = np.stack([red, green, blue], axis=-1).astype(np.float64)
    valid = (np.isfinite(bands) & (bands != nodata)).all(axis=-1)
    picture = np.zeros(bands.shape, np.uint8)
    if valid.any():
        picture[valid] = np.rint(255 * stretched(bands[valid], *stretch_limits(bands[valid])))
    return picture


def patch_picture(bands: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw a patch: B04, B03, B02 of Sentinel-2; VV, VH and VV - VH (a ratio, in decibels) of Sentinel-1.

    Raises PgearthError when the patch has neither.
    """
    if {"B04", "B03", "B02"} <= bands.keys():
        return rgb_picture(bands["B04"], bands["B03"], bands["B02"])
    if {"VV", "VH"} <= bands.keys():
        return rgb_picture(bands["VV"], bands["VH"], bands["VV"] - bands["VH"], nodata=None)
    raise PgearthError(
        f"a patch of the bands {', '.join(bands)} cannot be drawn in colour",
        hint="It takes B04, B03 and B02 (Sentinel-2) or VV and VH (Sentinel-1).",
    )


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def patch_png(bands: Mapping[str, np.ndarray]) -> bytes:
    """Encode `patch_picture` as PNG."""
    return png(Image.fromarray(patch_picture(bands)))


def contact_sheet(tiles: Sequence[Tile], columns: int) -> bytes:
    """Draw patches side by side, in rows of `columns`, each above its caption, as a PNG.

    Captions are wrapped to a tile's width, and a row is as high as its longest. A patch that has no pixels, or none
    that can be drawn in colour, is a grey tile that says so.
    """
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    line_height = sum(font.getmetrics())
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    captions = [[[part for line in tile.caption for part in wrapped(line, font)] for tile in row] for row in rows]
    heights = [TILE + line_height * max(map(len, row)) + 2 * GAP for row in captions]
    sheet = Image.new("RGB", (min(columns, len(tiles)) * (TILE + GAP) + GAP, sum(heights)), "white")
    drawing = ImageDraw.Draw(sheet)
    top = 0
    for row, row_captions, height in zip(rows, captions, heights, strict=True):
        for column, (tile, caption) in enumerate(zip(row, row_captions, strict=True)):
            left = GAP + column * (TILE + GAP)
            draw_tile(sheet, drawing, font, tile, (left, top + GAP))
            for number, line in enumerate(caption):
                drawing.text((left, top + GAP + TILE + GAP // 3 + number * line_height), line, fill="black", font=font)
        top += height
    return png(sheet)


def draw_tile(
    sheet: Image.Image, drawing: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, tile: Tile, corner: tuple[int, int]
) -> None:
    """Put a patch's picture, fitted into a tile, at a corner of the sheet; grey with a note where there is none."""
    left, top = corner
    note = None if tile.bands else "no pixels"
    try:
        if note is None:
            picture = Image.fromarray(patch_picture(tile.bands))
    except PgearthError:
        note = "no bands for a colour picture"
    if note is None:
        scale = TILE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), corner)
    else:
        drawing.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=NO_PICTURE)
        drawing.text((left + TILE // 2, top + TILE // 2), note, fill="black", font=font, anchor="mm")


def wrapped(text: str, font: ImageFont.FreeTypeFont) -> Iterator[str]:
    """Break a text into lines no wider than a tile: between words, and within a word that is wider alone."""
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= TILE:
            line = f"{line} {word}"
            continue
        if line:
            yield line
        line = word
        while font.getlength(line) > TILE:
            fitting = next(end for end in range(len(line) - 1, 0, -1) if font.getlength(line[:end]) <= TILE)
            yield line[:fitting]
            line = line[fitting:]
    if line:
        yield line


def valid_pixels(raster: Raster) -> tuple[np.ndarray, np.ndarray]:
    """Return a raster's bands as float64 (height, width, bands), and where all of them have data."""
    filled = raster.filled()
    valid = np.all(
        [np.isfinite(band) if np.issubdtype(band.dtype, np.floating) else band != NODATA for band in filled], axis=0
    )
    return np.stack(filled, axis=-1).astype(np.float64), valid


def layer_limits(rasters: Sequence[Raster]) -> tuple[np.ndarray, np.ndarray]:
    """Return `stretch_limits` of all valid pixels of rasters that have the same bands; raises PgearthError for none."""
    pixels = np.concatenate([bands[valid] for bands, valid in map(valid_pixels, rasters)])
    if not len(pixels):
        raise PgearthError("the rasters hold no data", hint="Choose patches, or bands, with valid pixels.")
    return stretch_limits(pixels)


def layer_tile(raster: Raster, low: np.ndarray, high: np.ndarray) -> Raster:
    """Stretch a raster for display: 8-bit bands from 1 at `low` to 255 at `high`, with 0 as nodata."""
    bands, valid = valid_pixels(raster)
    picture = np.zeros(bands.shape, np.uint8)
    picture[valid] = 1 + np.rint(254 * stretched(bands[valid], low, high))
    return replace(raster, bands=tuple(np.moveaxis(picture, -1, 0)), nodata=(NODATA,) * len(raster.bands))


def overview_tile(rasters: Sequence[Raster], left: float, top: float) -> Raster:
    """Put tiles of equal size together, two by two from an upper left corner, at half their resolution.

    A pixel is the mean of those of the four below it that have data; where none has, and where a tile is missing, it is
    nodata (0 in a band without a nodata value).
    """
    first = rasters[0]
    scale_x, scale_y = first.transform[:2]
    height, width = first.bands[0].shape
    bands = []
    for number, (like, nodata) in enumerate(zip(first.bands, first.nodata, strict=True)):
        values = np.full((2 * height, 2 * width), np.nan)
        for raster in rasters:
            column = round((raster.transform[2] - left) / scale_x)
            row = round((raster.transform[3] - top) / scale_y)
            band = raster.bands[number].astype(np.float64)
            values[row : row + height, column : column + width] = np.where(band == nodata, np.nan, band)
        blocks = values.reshape(height, 2, width, 2)
        valid = np.isfinite(blocks)
        counts = valid.sum(axis=(1, 3))
        means = np.where(valid, blocks, 0).sum(axis=(1, 3)) / np.maximum(counts, 1)
        if np.issubdtype(like.dtype, np.integer):
            means = np.rint(means)
        bands.append(np.where(counts > 0, means, nodata or 0).astype(like.dtype))
    return replace(first, bands=tuple(bands), transform=(2 * scale_x, 2 * scale_y, left, top, *first.transform[4:]))
