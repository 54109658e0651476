"""Metadata in XML: parsed without document types or entities, and converted to JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

from pgearth.pyfuncs import documents
from pgearth.pyfuncs.errors import PgearthError


def parse_xml(content: bytes, file: str) -> Element:
    """Root element of a document. Raises PgearthError, which names the file, unless it is well-formed."""
    try:
        return documents.parse_xml(content)
    except ValueError as error:
        raise PgearthError(f"{file}: not valid XML: {error}", "Replace it by an intact copy.") from error


def local_name(name: str) -> str:
    """Name of an element or attribute without its namespace."""
    return name.rpartition("}")[2]


def elements(root: Element, name: str) -> Iterator[Element]:
    """Elements of a name in any namespace, in the document's order."""
    return (element for element in root.iter() if local_name(element.tag) == name)


def find(root: Element, *names: str) -> Element:
    """The first element of a name in any namespace, or of the next name if there is none. Raises LookupError if so."""
    for name in names:
        for element in elements(root, name):
            return element
    raise LookupError(f"no {' or '.join(names)}")


def find_text(root: Element, *names: str) -> str:
    """Text of the element that `find` finds. Raises LookupError if there is none."""
    text = (find(root, *names).text or "").strip()
    if not text:
        raise LookupError(f"no {' or '.join(names)}")
    return text


def to_json(element: Element, without: frozenset[str] = frozenset()) -> Any:
    """The element as JSON: an object of its children, or its text if it has nothing else.

    Attributes become members with @ before their name, text beside attributes or children the member #text, and
    children of one name an array. Namespaces are dropped, and so are descendants named in `without`.
    """
    members: dict[str, Any] = {f"@{local_name(name)}": value for name, value in element.attrib.items()}
    for child in element:
        name = local_name(child.tag)
        if name in without:
            continue
        value = to_json(child, without)
        if name not in members:
            members[name] = value
        elif isinstance(members[name], list):
            members[name].append(value)
        else:
            members[name] = [members[name], value]
    text = (element.text or "").strip()
    if not members:
        return text or None
    if text:
        members["#text"] = text
    return members
