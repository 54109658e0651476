"""Pictures of patches, and the tiles of map layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgearth.pyfuncs.border.session import Session, answer


@answer
def rgb_png(session: Session, bands: Sequence[str], rasters: Sequence[bytes]) -> bytes:
    """PNG of a patch given as raster WKB, each with its comma-joined bands."""
    from pgearth.pyfuncs.pixels.pictures import patch_png
    from pgearth.pyfuncs.pixels.rasters import bands_from_wkb

    patch: dict[str, Any] = {}
    for names, wkb in zip(bands, rasters, strict=True):
        patch.update(bands_from_wkb(wkb, names.split(",")))
    return session.interruptibly(lambda _: patch_png(patch))


@answer
def stretch_limits(session: Session, rasters: Sequence[bytes]) -> list[list[float]]:
    """For a map layer: the values of each band, over all rasters (WKB), to be drawn darkest, and those brightest."""
    from pgearth.pyfuncs.convert import to_vector
    from pgearth.pyfuncs.pixels.pictures import layer_limits
    from pgearth.pyfuncs.pixels.rasters import from_wkb

    limits = session.interruptibly(lambda _: layer_limits([from_wkb(wkb) for wkb in rasters]))
    return [to_vector(limit) for limit in limits]


@answer
def stretched(session: Session, raster: bytes, limits: Sequence[Sequence[float]]) -> bytes:
    """A tile of a map layer, WKB in and out, stretched between what stretch_limits gave."""
    import numpy as np

    from pgearth.pyfuncs.pixels.pictures import layer_tile
    from pgearth.pyfuncs.pixels.rasters import from_wkb, to_wkb

    return to_wkb(layer_tile(from_wkb(raster), *np.asarray(limits)))


@answer
def overview_tile(session: Session, rasters: Sequence[bytes], left: float, top: float) -> bytes:
    """A tile of a map layer's overview from the up to four tiles below it, WKB in and out."""
    from pgearth.pyfuncs.pixels.pictures import overview_tile as halve
    from pgearth.pyfuncs.pixels.rasters import from_wkb, to_wkb

    return to_wkb(halve([from_wkb(wkb) for wkb in rasters], left, top))


@answer
def contact_sheet(
    session: Session,
    captions: Sequence[str],
    numbers: Sequence[int],
    bands: Sequence[str],
    rasters: Sequence[bytes],
    columns: int,
) -> bytes:
    """PNG of patches with captions; rasters are WKB, each with its patch's number from 1 and its comma-joined bands."""
    from pgearth.pyfuncs.pixels.pictures import Tile
    from pgearth.pyfuncs.pixels.pictures import contact_sheet as draw
    from pgearth.pyfuncs.pixels.rasters import bands_from_wkb

    patches: list[dict[str, Any]] = [{} for _ in captions]
    for number, names, wkb in zip(numbers, bands, rasters, strict=True):
        patches[number - 1].update(bands_from_wkb(wkb, names.split(",")))
    tiles = [Tile(caption.splitlines(), patch) for caption, patch in zip(captions, patches, strict=True)]
    return session.interruptibly(lambda _: draw(tiles, columns))
