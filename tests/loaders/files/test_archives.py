"""Archives that unpack to more than they say, or to too much, are refused before memory is taken."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pgearth.loaders.datasets.bigearthnet.catalogue import SCHEMA, read_batches
from pgearth.loaders.export import packs
from pgearth.loaders.files import archives
from pgearth.loaders.products.folder import open_folder
from pgearth.pyfuncs.errors import PgearthError
from tests.hostile import measured

SPACES = 400_000_000
BLOCK = b" " * (1 << 20)


def read_measured(path: Path) -> tuple[str, float]:
    """Read all of a shard; what came of it, and by how many MiB memory grew."""
    return measured(
        "from pathlib import Path\nfrom pgearth.loaders.export.packs import read_shard",
        "for _ in read_shard(Path(arguments[0])): pass",
        str(path),
    )


class Blank(io.RawIOBase):
    """So many spaces."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self.left, len(BLOCK))
        buffer[:size] = BLOCK[:size]
        self.left -= size
        return size


def tar_zst(path: Path, members: Iterable[tuple[tarfile.TarInfo, io.IOBase | None]]) -> Path:
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        for member, content in members:
            archive.addfile(member, content)  # type: ignore[arg-type]
    return path


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def long_header(path: Path, kind: bytes) -> Path:
    """A tar archive whose first header is as long as the document of the others."""
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as stream,
    ):
        stream.write(member("././@LongLink", SPACES, kind).tobuf(tarfile.USTAR_FORMAT))
        for _ in range(SPACES // len(BLOCK)):
            stream.write(BLOCK)
    return path


def large_zip(path: Path, method: int = zipfile.ZIP_DEFLATED, said: int | None = None) -> Path:
    """A zip archive with one large document, of which its directory may say another size."""
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("p/p.json", "w", force_zip64=True) as document:
        for _ in range(SPACES // len(BLOCK)):
            document.write(BLOCK)
    if said is not None:
        content = bytearray(path.read_bytes())
        entry = content.rfind(b"PK\1\2")
        struct.pack_into("<I", content, entry + 24, said)
        path.write_bytes(content)
    return path


SHARDS: dict[str, Callable[[Path], Path]] = {
    "document in tar": lambda folder: tar_zst(folder / "a.tar.zst", [(member("p/p.json", SPACES), Blank(SPACES))]),  # type: ignore[list-item]
    "pixels in tar": lambda folder: tar_zst(folder / "a.tar.zst", [(member("p/q/q.tif", SPACES), Blank(SPACES))]),  # type: ignore[list-item]
    "long name": lambda folder: long_header(folder / "a.tar.zst", tarfile.GNUTYPE_LONGNAME),
    "extended header": lambda folder: long_header(folder / "a.tar.zst", tarfile.XHDTYPE),
    "document in zip": lambda folder: large_zip(folder / "a.zip"),
    "document of another size": lambda folder: large_zip(folder / "a.zip", said=1000),
    "bzip2": lambda folder: large_zip(folder / "a.zip", zipfile.ZIP_BZIP2, said=1000),
    "LZMA": lambda folder: large_zip(folder / "a.zip", zipfile.ZIP_LZMA, said=1000),
}


@pytest.mark.parametrize("fault", ["document in tar", "long name", "extended header", "document of another size"])
def test_shards_that_unpack_to_too_much(fault: str, tmp_path: Path) -> None:
    path = SHARDS[fault](tmp_path)
    assert path.stat().st_size < 5_000_000
    outcome, grown = read_measured(path)
    assert outcome.startswith(f"PgearthError: {path}: it cannot be read"), outcome
    assert grown < 60


@pytest.mark.parametrize(("fault", "reason"), [
    ("pixels in tar", "the limit is 268,435,456"),
    ("document in zip", "the limit is 67,108,864"),
    ("bzip2", "method 12"),
    ("LZMA", "method 14"),
])  # fmt: skip
def test_members_beyond_the_limit_are_named(
    fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SPACES", 300_000_000)
    with pytest.raises(PgearthError, match=reason):
        list(packs.read_shard(SHARDS[fault](tmp_path)))


def test_the_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_zst(tmp_path / "a.tar.zst", [(member("p/p.json", 1000), Blank(1000))])  # type: ignore[list-item]
    assert next(packs.read_tar(path)) == ("p/p.json", b" " * 1000)
    monkeypatch.setenv("PGEARTH_MAX_DOCUMENT_BYTES", "999")
    with pytest.raises(PgearthError, match=r"p/p\.json has 1,000 bytes, and the limit is 999"):
        next(packs.read_tar(path))


def test_sparse_members_and_links_are_no_files(tmp_path: Path) -> None:
    link = member("p/p.json", 0, tarfile.SYMTYPE)
    link.linkname = "/etc/passwd"
    with pytest.raises(PgearthError, match="no plain file"):
        list(packs.read_shard(tar_zst(tmp_path / "a.tar.zst", [(link, None)])))


@pytest.mark.parametrize("suffix", [".zip", ".tar.zst"])
def test_too_many_members(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ARCHIVE_MEMBERS", 10)
    path = tmp_path / f"a{suffix}"
    packs.write_shard(path, suffix[1:], [(f"p/q{n}/q.json", b"{}") for n in range(9)], 1 << 20)
    list(packs.read_shard(path))
    packs.write_shard(path, suffix[1:], [(f"p/q{n}/q.json", b"{}") for n in range(10)], 1 << 20)
    with pytest.raises(PgearthError, match="members"):
        list(packs.read_shard(path))


@pytest.mark.parametrize("large", [False, True])
def test_a_directory_that_is_too_long(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "S2A_x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000 if large else 20):  # beyond 65,535 the directory's records are those of ZIP64
            archive.writestr(f"{number}.txt", b"")
    size = archives.directory_bytes(path.open("rb"))
    assert size == sum(46 + len(f"{number}.txt") for number in range(70_000 if large else 20))
    monkeypatch.setattr(archives, "ZIP_DIRECTORY_BYTES", size - 1)
    with pytest.raises(PgearthError, match=r"its directory of .* bytes is too large"):
        open_folder(path)


def test_products_are_read_with_the_same_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SPACES", 100_000_000)
    folder = open_folder(large_zip(tmp_path / "a.zip", said=1000))
    assert folder is not None
    with pytest.raises(PgearthError, match="cannot be read"):
        folder.read("p.json")
    folder = open_folder(large_zip(tmp_path / "a.zip"))
    assert folder is not None
    with pytest.raises(PgearthError, match="too many for metadata"):
        folder.read("p.json")


def test_files_of_a_patch_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgearth.loaders.export.load import read_patches

    monkeypatch.setenv("PGEARTH_MAX_PATCH_BYTES", "1000")
    files = [("p/q/q.json", b"{}"), *((f"p/q/{n}.tif", bytes(400)) for n in range(3))]
    with pytest.raises(PgearthError, match="more than 1,000 bytes"):
        list(read_patches(tmp_path, iter(files), {}))


def test_a_table_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metadata.parquet"
    row = {"patch_id": "a" * 3_000_000, "labels": ["b"] * 3, "contains_seasonal_snow": True}
    table = pa.Table.from_pydict({field.name: [row.get(field.name)] for field in SCHEMA}, SCHEMA)
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 20_000
    with pytest.raises(PgearthError, match="a text of 3,000,000 bytes in column patch_id"):
        list(read_batches(path))
    monkeypatch.setenv("PGEARTH_MAX_PARQUET_BYTES", "2000000")
    with pytest.raises(PgearthError, match=r"row group 1 unpacks to 3,.* bytes"):
        list(read_batches(path))
    monkeypatch.setattr("pgearth.loaders.datasets.bigearthnet.catalogue.PARQUET_VALUES", 2)
    with pytest.raises(PgearthError, match="and 3 values in a column"):
        list(read_batches(path))


def test_a_text_that_is_in_every_row(tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({field.name: texts for field in SCHEMA}), path, compression="zstd")
    assert path.stat().st_size < 50_000
    outcome, grown = measured(
        "from pathlib import Path\nfrom pgearth.loaders.datasets.bigearthnet.catalogue import read_batches",
        "list(read_batches(Path(arguments[0])))",
        str(path),
    )
    assert outcome.startswith(f"PgearthError: {path}: a text of 1,000,000 bytes"), outcome
    assert grown < 150


def encrypted(path: Path, names: Iterable[str], method: int | None = None) -> Path:
    """A zip archive that says that its last member is encrypted, as it would be if it were: by flag, or AES's method."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    content = bytearray(path.read_bytes())
    for header, flags in ((content.rfind(b"PK\3\4"), 6), (content.rfind(b"PK\1\2"), 8)):
        content[header + flags] |= 1
        if method is not None:
            struct.pack_into("<H", content, header + flags + 2, method)
    path.write_bytes(content)
    return path


SAFE = "S2A_MSIL2A_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE"


@pytest.mark.parametrize("method", [None, 99], ids=["ZipCrypto", "AES"])
def test_encrypted_products(tmp_path: Path, method: int | None) -> None:
    path = encrypted(tmp_path / "S2A.zip", [f"{SAFE}/MTD_MSIL2A.xml", f"{SAFE}/IMG_DATA/T33UUP_B02_10m.jp2"], method)
    with pytest.raises(PgearthError, match=r"S2A.zip: .*B02_10m.jp2 is encrypted\nHint: Unpack it with its password"):
        open_folder(path)


def test_encrypted_shards(tmp_path: Path) -> None:
    path = encrypted(tmp_path / "shard-00000.zip", ["p/p.json", "shard-00000.sha256"])
    with pytest.raises(PgearthError, match=r"shard-00000.zip: shard-00000.sha256 is encrypted\nHint: Unpack it with"):
        list(packs.read_shard(path))


@pytest.mark.parametrize(
    "arguments", [("product",), ("export",), ("bigearthnet",), ("nuts", "--edition", "2021"), ("corine",)]
)
def test_encrypted_archives_given_to_a_command(
    archive, run_pgearth, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Where a loader reads no archives, it says what it reads."""
    path = encrypted(tmp_path / "a.zip", ["a/a.json"])
    loader, *options = arguments
    result = run_pgearth(archive, "load", loader, path, *options)
    assert isinstance(result.exception, PgearthError), result
    assert str(path) in result.exception.message
    assert "npack" in result.exception.hint, result.exception
