"""Which Sentinel-2 product it is, by all that metadata files and names say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pgearth.loaders.products.files import LONGEST_DATA_TAKE
from pgearth.loaders.products.folder import Folder
from pgearth.loaders.products.formats.sentinel2.metadata import Metadata, merge
from pgearth.loaders.products.formats.sentinel2.names import EARTH_ENGINE_NAME, from_name
from pgearth.pyfuncs.errors import PgearthError

SSL4EO_LEVELS = {"s2a": "L2A", "s2c": "L1C"}


@dataclass(frozen=True)
class Identity:
    """What product it is: `metadata`, which all `sources` say together."""

    sources: list[Metadata]
    metadata: Metadata


def identify(folder: Folder, documents: Sequence[Metadata], given_name: str | None, likely_level: str) -> Identity:
    """Bring together what metadata files, the name given and the folder's name say, in this order.

    `likely_level` is for where nothing tells the level. Raises PgearthError for sources that contradict each other.
    """
    names = {"the name given": given_name, "the folder's name": folder.name}
    sources = [with_its_name(folder, document) for document in documents]
    sources += [known for source, name in names.items() if name and (known := from_name(name, source))]
    check_agreement(folder, sources)
    return Identity(sources, complete(folder, merge(sources), likely_level))


def with_its_name(folder: Folder, document: Metadata) -> Metadata:
    """A document's metadata, with what its product's name tells that it has no word of its own for.

    Raises PgearthError where it contradicts that name.
    """
    known = from_name(document.name, document.source)
    if known is None:
        return document
    check_agreement(folder, [document, known])
    return replace(merge([document, known]), units=document.units, as_delivered=document.as_delivered)


def check_agreement(folder: Folder, sources: Sequence[Metadata]) -> None:
    """Raise PgearthError, which names both, where two sources say that they are of different products."""
    facts = {
        "platform": "platform",
        "level": "level",
        "baseline": "processing baseline",
        "relative_orbit": "relative orbit",
        "tile": "tile",
        "sensing_time": "sensing time",
    }
    for fact, words in facts.items():
        first: Metadata | None = None
        for source in sources:
            value = getattr(source, fact)
            if value is None:
                continue
            first = first or source
            expected = getattr(first, fact)
            differ = abs(value - expected) > LONGEST_DATA_TAKE if fact == "sensing_time" else value != expected
            if differ:
                raise PgearthError(
                    f"{folder.path}: {first.source} says {words} {expected}, {source.source} says {value}",
                    "Correct --name, or put each product with its own metadata into a folder of its own.",
                )


def complete(folder: Folder, metadata: Metadata, likely_level: str) -> Metadata:
    """Add the level, `likely_level` where nothing else tells it; Earth Engine's names are the same for both levels."""
    level = metadata.level
    if EARTH_ENGINE_NAME.fullmatch(metadata.name):
        parts = reversed(folder.path.parts)
        level = level or next((SSL4EO_LEVELS[part] for part in parts if part in SSL4EO_LEVELS), likely_level)
        metadata = replace(metadata, name=f"{metadata.name}_{level}")
    return replace(metadata, level=level or likely_level)
