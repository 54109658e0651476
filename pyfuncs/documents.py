"""Documents from outside, XML and JSON: parsed with limits to their size, depth and number of parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

import numpy as np

from pgearth.pyfuncs.limits import DOCUMENT_BYTES, DOCUMENT_DEPTH, DOCUMENT_VALUES

OPENING, CLOSING = b"[{", b"]}"
NO_BRACKETS = bytes(sorted(set(range(256)) - set(OPENING + CLOSING)))


class Builder(TreeBuilder):
    """Builds the tree of a document that is not too deep and has no document type.

    Entities, which expand without bound, need a document type.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, name: str, *_: object) -> None:
        """Called before any of the document type is read."""
        raise ValueError(f"a document type ({name}), which metadata have no use for")

    def start(self, tag: str, attributes: dict[str, str]) -> Element:
        """Called for each element and its attributes."""
        self._depth += 1
        check_depth(self._depth)
        return super().start(tag, attributes)

    def end(self, tag: str) -> Element:
        """Called at the end of each element."""
        self._depth -= 1
        return super().end(tag)


def parse_xml(content: bytes) -> Element:
    """Root element of an XML document. Raises ValueError unless it is well-formed and within the limits."""
    check_bytes(len(content))
    # Elements, and attributes; such characters in texts count, too, which does no harm.
    check_values(content.count(b"<") - content.count(b"</") + content.count(b"="))
    parser = XMLParser(target=Builder())
    try:
        parser.feed(content)
        root: Element = parser.close()
    except (ParseError, LookupError) as error:
        raise ValueError(str(error)) from error
    return root


def parse_json(content: bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse a JSON document. Raises ValueError unless it is valid and within the limits.

    `parse_constant` is called for NaN and infinities, as by json.loads.
    """
    check_bytes(len(content))
    check_values(sum(content.count(mark) for mark in (b"[", b"{", b",", b":")))
    brackets = np.frombuffer(content.translate(None, NO_BRACKETS), np.uint8)
    check_depth(int(np.cumsum(np.where(np.isin(brackets, list(OPENING)), 1, -1)).max(initial=0)))
    return json.loads(content, parse_constant=parse_constant)


def read_document(path: Path) -> bytes:
    """Contents of a document's file. Raises ValueError for one of too many bytes, and OSError."""
    check_bytes(path.stat().st_size)
    return path.read_bytes()


def check_bytes(size: int) -> None:
    """Raise ValueError for a document of too many bytes."""
    if size > (limit := DOCUMENT_BYTES.of_environment()):
        raise ValueError(f"it has {size:,} bytes, and the limit of a document is {limit:,} ({DOCUMENT_BYTES.variable})")


def check_values(count: int) -> None:
    """Raise ValueError for a document of too many parts."""
    if count > (limit := DOCUMENT_VALUES.of_environment()):
        raise ValueError(
            f"it has {count:,} values, and the limit of a document is {limit:,} ({DOCUMENT_VALUES.variable})"
        )


def check_depth(depth: int) -> None:
    """Raise ValueError for a document whose parts lie too deep in each other."""
    if depth > DOCUMENT_DEPTH:
        raise ValueError(f"its parts lie more than {DOCUMENT_DEPTH} deep in each other")
