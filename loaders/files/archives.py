"""Zip and tar archives from outside, listed and read with limits: what a member says of its size is not believed."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.limits import ARCHIVE_MEMBERS, TAR_HEADER_BYTES, ZIP_DIRECTORY_BYTES

ZIP_END, ZIP_END_BYTES, ZIP_COMMENT_BYTES = b"PK\5\6", 22, 0xFFFF
ENCRYPTED = 0x1
ZIP64_END, ZIP64_SIZE = b"PK\6\6", slice(40, 48)
UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of the ways to compress, those that unpack no more at a time than is asked for; GDAL knows no others either."""
LONG_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises BadZipFile for one that is damaged, or has too many members, PgearthError for one that is encrypted.
    """
    with path.open("rb") as file:
        size = directory_bytes(file)
    if size > ZIP_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"its directory of {size:,} bytes is too large (at most {ZIP_DIRECTORY_BYTES:,})")
    archive = zipfile.ZipFile(path)
    if (count := len(archive.infolist())) > ARCHIVE_MEMBERS:
        archive.close()
        raise zipfile.BadZipFile(f"it has {count:,} members, and the limit is {ARCHIVE_MEMBERS:,}")
    if locked := next((info.filename for info in archive.infolist() if info.flag_bits & ENCRYPTED), None):
        archive.close()
        raise PgearthError(f"{path}: {locked} is encrypted", "Unpack it with its password, and load what was in it.")
    return archive


def directory_bytes(file: IO[bytes]) -> int:
    """Bytes of a zip archive's directory, which zipfile would read whole: what the records at its end say."""
    size = file.seek(0, 2)
    file.seek(max(size - ZIP_END_BYTES - ZIP_COMMENT_BYTES - 76, 0))
    tail = file.read()
    end = tail.rfind(ZIP_END)
    if end < 0:
        return 0  # no archive: zipfile says so
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    if (zip64 := tail.rfind(ZIP64_END, 0, end)) >= 0:
        directory = max(directory % 0xFFFFFFFF, int.from_bytes(tail[zip64:][ZIP64_SIZE], "little"))
    return min(directory, size)


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Contents of a member. Raises BadZipFile for one of more bytes than the limit, whatever it says of itself."""
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise zipfile.BadZipFile(f"{name} has {info.file_size:,} bytes, and the limit is {limit:,}")
    if info.compress_type not in UNPACKED:
        raise zipfile.BadZipFile(f"{name} is compressed by method {info.compress_type}, not stored or deflated")
    with archive.open(info) as member:
        return member.read(info.file_size + 1)


class CheckedTarInfo(tarfile.TarInfo):
    """A member of a tar archive, whose long name and extended headers, which tarfile reads whole, are not too long."""

    @classmethod
    def frombuf(cls, *arguments: Any) -> CheckedTarInfo:
        """Read the header of a member, or of what belongs to the next."""
        member: CheckedTarInfo = super().frombuf(*arguments)
        if member.type in LONG_HEADERS and member.size > TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes, and the limit is {TAR_HEADER_BYTES:,}")
        return member


def open_tar(path: Path) -> tarfile.TarFile:
    """Open a tar archive that is not compressed."""
    return tarfile.open(path, "r:", tarinfo=CheckedTarInfo)


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members of a tar archive, of which tarfile does not keep a list. Raises ReadError for too many."""
    count = 0
    while (member := archive.next()) is not None:
        count += 1
        if count > ARCHIVE_MEMBERS:
            raise tarfile.ReadError(f"more than {ARCHIVE_MEMBERS:,} members")
        yield member
        archive.members = []  # type: ignore[attr-defined]


def read_tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | None:
    """Contents of a plain file; None for any other member. Raises ReadError for more bytes than the limit."""
    if not member.isreg() or member.issparse():
        return None
    if member.size > limit:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, and the limit is {limit:,}")
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
