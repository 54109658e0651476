"""Names of products, patches and bands become names of files and folders when they are exported."""

from __future__ import annotations

import re

from pgearth.pyfuncs.errors import PgearthError

# The first of a name that Windows keeps for devices, whatever follows after a dot.
DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)
PLAIN_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*(?<![. ])")
LONGEST_NAME = 230  # bytes; file systems take 255, of which suffixes and temporary names need some
# What is stored, in bytes: a patch's name has its product's and a place in it, a file's the patch's and a band's.
LONGEST_PRODUCT, LONGEST_PATCH, LONGEST_BAND = 150, 180, 24


def is_plain_name(name: str) -> bool:
    """Whether a file or folder can have this name everywhere, and a temporary one made from it."""
    return (
        PLAIN_NAME.fullmatch(name) is not None
        and DEVICES.fullmatch(name) is None
        and len(name.encode(errors="replace")) <= LONGEST_NAME
    )


def check_name(what: str, name: str, longest: int) -> None:
    """Raise PgearthError for a name that cannot be one of a file, or has more bytes than `longest`; `what` has it."""
    if not is_plain_name(name) or len(name.encode(errors="replace")) > longest:
        raise PgearthError(
            f"{what} cannot be called {name[:300]!r}: that is no name for a file",
            f"Such names have up to {longest} bytes, no slashes and no control characters, no dot at the beginning or"
            " the end, no space at the end, and are not those of devices of Windows such as NUL.",
        )
