"""Files that say more than they hold, and how much memory it takes to read them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHORT, LONG, ASCII, DOUBLE = 3, 4, 2, 12

MEASURE = """
import json, resource, sys
import imagecodecs, numpy, psutil, tifffile
{imports}
numpy.zeros(8 << 20, numpy.uint8).sum()
arguments = json.loads(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {call}
    outcome = "done"
except Exception as error:
    outcome = f"{{type(error).__name__}}: {{error}}"
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([outcome, (after - before) / 1024]))
"""


def measured(imports: str, call: str, *arguments: str) -> tuple[str, float]:
    """What a call does, in a process of its own, and by how many MiB its memory grew; `arguments` are what it names."""
    program = MEASURE.format(imports=imports, call=call)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    outcome, grown = json.loads(done.stdout.splitlines()[-1])
    return outcome, grown


def read_measured(file: Path) -> tuple[str, float]:
    """Read an image; what came of it, and by how many MiB memory grew."""
    return measured(
        "from pathlib import Path\nfrom pgearth.pyfuncs.pixels.uploads import read_image",
        "read_image(Path(arguments[0]).read_bytes(), ['B02'])",
        str(file),
    )


def tiff(pages: Sequence[Mapping[int, Any]], data: bytes = b"", loop: bool = False) -> bytes:
    """A little-endian TIFF: `data` at byte 8, then pages of tags, (type, count, value bytes) or an integer (LONG).

    A page that has no place of strips has one strip, `data`. With `loop` the last page is followed by the first.
    """
    body = bytearray(b"II*\0" + struct.pack("<I", 0) + data)
    places = []
    for page in pages:
        tags = {273: 8, 279: len(data), **page}
        entries = []
        for code, tag in sorted(tags.items()):
            kind, count, value = (LONG, 1, struct.pack("<I", tag)) if isinstance(tag, int) else tag
            if len(value) > 4:
                body += b"\0" * (len(body) % 2)
                place = len(body)
                body += value
                value = struct.pack("<I", place)
            entries.append(struct.pack("<HHI", code, kind, count) + value.ljust(4, b"\0"))
        body += b"\0" * (len(body) % 2)
        places.append(len(body))
        body += struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    ends = [*places[1:], places[0] if loop else 0]
    body[4:8] = struct.pack("<I", places[0])
    for place, following in zip(places, ends, strict=True):
        count = struct.unpack_from("<H", body, place)[0]
        struct.pack_into("<I", body, place + 2 + 12 * count, following)
    return bytes(body)


def grey(width: int, height: int, bits: int = 16, compression: int = 8, **_: Any) -> dict[int, Any]:
    """Tags of an image of one band."""
    return {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1, 278: height}


def zeros(count: int) -> bytes:
    """So many zeros, deflated."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])
