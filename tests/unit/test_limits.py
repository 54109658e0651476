"""Small files that say they are large are refused before memory is taken."""

from __future__ import annotations

import hashlib
import lzma
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from pgearth.pyfuncs import limits
from pgearth.pyfuncs.documents import parse_json, parse_xml
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models import weights
from pgearth.pyfuncs.pixels.uploads import read_image
from tests.conftest import CHECKOUT
from tests.hostile import ASCII, LONG, grey, measured, read_measured, tiff, zeros

FAR = 0x7FFFFFFF
BILLION_LAUGHS = (
    b'<!DOCTYPE a [<!ENTITY b0 "ha">'
    + b"".join(b'<!ENTITY b%d "%s">' % (n, b"&b%d;" % (n - 1) * 10) for n in range(1, 10))
    + b"]><a>&b9;</a>"
)


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def small(**_: object) -> bytes:
    return zlib.compress(bytes(32 * 32 * 2))


HOSTILE = {
    "image depth": lambda: tiff([{**grey(4000, 4000), 32997: 150}], zeros(4 << 20)),
    "samples": lambda: tiff([{**grey(2000, 2000), 277: 60_000}], small()),
    "separate planes": lambda: tiff([{**grey(2000, 2000), 277: 60_000, 284: 2}], small()),
    "width": lambda: tiff([grey(FAR, 1)], small()),
    "64 bits": lambda: tiff([grey(40_000, 40_000, bits=64)], small()),
    "tiles beyond the image": lambda: tiff(
        [{**grey(16, 16), 322: 1 << 17, 323: 1 << 17, 324: 8, 325: 40}], small()
    ),
    "deep tiles": lambda: tiff([{**grey(64, 64), 322: 64, 323: 64, 32998: 1 << 24, 324: 8, 325: 40}], small()),
    "a tag of many values": lambda: tiff([{**grey(32, 32), 65000: (LONG, FAR // 4, words(8, 8))}], small()),
    "many pages": lambda: tiff([grey(32, 32)] * 500, small()),
    "pages without end": lambda: tiff([grey(32, 32)], small(), loop=True),
    "many tags": lambda: tiff([{**grey(32, 32), **{50_000 + n: 1 for n in range(2_000)}}], small()),
    "tags that lie upon each other": lambda: overlapping_tags(),
    "many strips": lambda: tiff(
        [{**grey(1, 200_000, bits=8), 278: 1, 273: (LONG, 200_000, bytes(800_000)), 279: (LONG, 200_000, bytes(800_000))}],
    ),
    "strips that lie upon each other": lambda: tiff(
        [{**grey(1, 20_000, bits=8), 278: 1, 273: (LONG, 20_000, words(8) * 20_000), 279: (LONG, 20_000, words(1_000_000) * 20_000)}],
        bytes(1_000_000),
    ),
    "JPEG of another size": lambda: tiff(
        [grey(32, 32, bits=8, compression=7)], imagecodecs.jpeg_encode(np.zeros((20_000, 20_000), np.uint8))
    ),
    "entities in metadata": lambda: tiff([{**grey(32, 32), 42112: (ASCII, len(BILLION_LAUGHS), BILLION_LAUGHS)}], small()),
    "mask": lambda: tiff([grey(32, 32), {**grey(60_000, 60_000, bits=1), 254: 4}], small()),
}  # fmt: skip


def overlapping_tags() -> bytes:
    """Two hundred texts of a megabyte that are one and the same."""
    text = (ASCII, 900_000, b"a" * 900_000)
    image = bytearray(
        tiff([{**grey(32, 32), **{60_000 + n: (ASCII, 900_000, words(8)) for n in range(200)}, 59_999: text}], small())
    )
    return bytes(image)


@pytest.mark.parametrize("fault", HOSTILE)
def test_images_that_say_they_are_large(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    file.write_bytes(HOSTILE[fault]())
    outcome, grown = read_measured(file)
    assert outcome.startswith("PgearthError: "), outcome
    assert grown < 60, f"{grown:.0f} MiB more for {file.stat().st_size:,} bytes"


@pytest.mark.parametrize(
    ("compression", "data"),
    [
        (8, zeros(1 << 28)),
        (34925, lzma.compress(bytes(1 << 28))),
        (50000, imagecodecs.zstd_encode(bytes(1 << 28))),
        (5, imagecodecs.lzw_encode(bytes(1 << 28))),
        (32773, b"\x81\0" * 2_000_000),
    ],
    ids=["deflate", "LZMA", "zstd", "LZW", "PackBits"],
)
def test_strips_that_unpack_to_more_than_they_say(compression: int, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    file.write_bytes(tiff([grey(32, 32, compression=compression)], data))
    _, grown = read_measured(file)
    assert grown < 60


def test_the_largest_image_allowed_takes_little_more_than_itself(tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    file.write_bytes(tiff([grey(4000, 4000)], zeros(2 * 4000 * 4000)))
    outcome, grown = read_measured(file)
    assert outcome == "done"
    assert grown < 200  # the image takes 31 MiB


def test_a_setting_raises_the_limit_as_far_as_memory_goes() -> None:
    image = tiff([grey(4001, 4000)], zeros(2 * 4001 * 4000))
    with pytest.raises(PgearthError, match="is too large: 16,004,000 pixels") as refused:
        read_image(image, ["B02"])
    assert refused.value.sqlstate == "54000"
    assert "pgearth.max_image_pixels" in str(refused.value.hint)
    assert read_image(image, ["B02"], limits.IMAGE_PIXELS.value("20000000")).bands["B02"].shape == (4000, 4001)
    assert limits.IMAGE_PIXELS.value("1000") == 1000
    assert limits.IMAGE_PIXELS.value(None) == limits.IMAGE_PIXELS.value("") == limits.IMAGE_PIXELS.default
    endless = limits.IMAGE_PIXELS.value(str(10**18))
    assert limits.IMAGE_PIXELS.default <= endless < 10**11
    for text in ("many", "0", "-5", "1e9"):
        with pytest.raises(PgearthError, match="max_image_pixels is"):
            limits.IMAGE_PIXELS.value(text)


@pytest.mark.parametrize(
    ("parse", "document", "reason"),
    [
        (parse_xml, BILLION_LAUGHS, "a document type"),
        (parse_xml, b"<a>" * 5_000, "100 deep"),
        (parse_xml, b"<r>" + b"<a/>" * 3_000_000 + b"</r>", "3,000,001 values"),
        (parse_xml, b"<r " + b" ".join(b'a%d=""' % n for n in range(2_100_000)) + b"/>", "values"),
        (parse_json, b"[" * 100_000, "100 deep"),
        (parse_json, b'{"a":' * 900 + b"1" + b"}" * 900, "100 deep"),
        (parse_json, b"[" + b"{}," * 3_000_000 + b"0]", "values"),
        (parse_json, b" " * (65 << 20) + b"1", "68,157,441 bytes"),
    ],
    ids=["entities", "deep XML", "elements", "attributes", "deep array", "deep object", "values", "bytes"],
)
def test_documents_beyond_the_limits(parse: object, document: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(document)  # type: ignore[operator]


def test_limits_of_documents_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_json(b"[1, 2, 3]") == [1, 2, 3]
    monkeypatch.setenv("PGEARTH_MAX_DOCUMENT_VALUES", "2")
    with pytest.raises(ValueError, match="PGEARTH_MAX_DOCUMENT_VALUES"):
        parse_json(b"[1, 2, 3]")
    monkeypatch.setenv("PGEARTH_MAX_DOCUMENT_BYTES", "5")
    with pytest.raises(ValueError, match="PGEARTH_MAX_DOCUMENT_BYTES"):
        parse_json(b"[1, 2, 3]")


def test_documents_within_the_limits_take_little_memory() -> None:
    for call in ("parse_json(b'[' + b'[],' * 900_000 + b'0]')", "parse_xml(b'<r>' + b'<a/>' * 1_900_000 + b'</r>')"):
        outcome, grown = measured("from pgearth.pyfuncs.documents import parse_json, parse_xml", call)
        assert outcome == "done"
        assert grown < 400


def test_weights_whose_header_is_too_long() -> None:
    header = b'{"__metadata__":{' + b",".join(b'"k%d":""' % n for n in range(200_000)) + b"}}"
    content = len(header).to_bytes(8, "little") + header
    with pytest.raises(PgearthError, match="header"):
        weights.load(content, hashlib.sha256(content).hexdigest())


def test_every_setting_is_documented() -> None:
    text = (CHECKOUT / "docs" / "limits.md").read_text()
    settings = [value for value in vars(limits).values() if isinstance(value, limits.Setting)]
    assert len(settings) == 5
    for setting in settings:
        shown = f"pgearth.{setting.name}" if setting is limits.IMAGE_PIXELS else setting.variable
        assert f"| `{shown}` | {setting.default:,} |" in text
