"""How an export lies on disk: whole files only, in a folder, in zip or in tar.zst; the same bytes in every run.

Every file comes under its final name when all of it is on disk; until then it has a temporary name beside it, which the
next run overwrites. Archives hold no clock times, owners or anything else that differs between runs.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import zstandard

from pgearth.loaders.files.archives import CheckedTarInfo, open_zip, read_member, read_tar_member, tar_members
from pgearth.loaders.files.names import is_plain_name
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.limits import DOCUMENT_BYTES, PATCH_BYTES

File = tuple[str, bytes]
"""A file of an export: its path below the export's root (of one patch, or of one product) and its contents."""

SUFFIXES = {"zip": ".zip", "tar.zst": ".tar.zst"}
CHECKSUMS = "SHA256SUMS"
SHARD_CHECKSUMS = ".sha256"
CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
AGAIN = "Take this file from the export again; nothing of it is loaded."
ZSTD_LEVEL = 3
FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)

# What an archive adds to a file, at most: in zip two headers, a data descriptor and ZIP64 fields; in tar a header, a
# header and a block for a long name, and padding. The name itself, and the line of checksums, are counted apart.
ENTRY_BYTES = {"zip": 160, "tar.zst": 512 + 1024 + 1024 + 511}
ARCHIVE_BYTES = 32_768
ZSTD_GROWTH = 1 + 1 / 256


def checked_path(name: str, container: Path) -> PurePosixPath:
    """The path of a file in an export. Raises PgearthError for one that leaves its folder, or is none of it."""
    path = PurePosixPath(name)
    if len(path.parts) > 3 or str(path) != name or not all(is_plain_name(part) for part in path.parts):
        raise PgearthError(f"{container}: {name!r} is not the path of a file in an export", AGAIN)
    return path


# Writing


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the temporary name under which to write `path`; it is renamed when all is on disk, removed after an error.

    Errors of the file system become a PgearthError that names the file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def write_folder(folder: Path, files: Iterable[File]) -> None:
    """Write all files of a patch into `folder`, whole or not at all; what was there is replaced.

    Of each file's path its last part counts. Errors of the file system become a PgearthError that names the folder.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        remove_folder(partial)
        partial.mkdir(parents=True)
        for name, content in files:
            path = partial / PurePosixPath(name).name
            path.write_bytes(content)
            sync(path)
        sync(partial)
        remove_folder(folder)
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise unwritable(folder, error) from error
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder with all in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> PgearthError:
    """What to tell of an error of the file system."""
    return PgearthError(
        f"{path}: it cannot be written: {error.strerror or error}",
        "No half file is left under a final name. Make room, then run the same command again to go on.",
    )


def write_shard(path: Path, pack: str, files: Iterable[File], limit: int) -> None:
    """Write files into an archive of at most `limit` bytes, and after them the list of their checksums.

    Raises PgearthError, and leaves no archive, if it became larger.
    """
    lines: list[str] = []

    def with_checksums() -> Iterator[File]:
        for name, content in files:
            lines.append(checksum_line(hashlib.sha256(content).hexdigest(), name))
            yield name, content
        yield path.name.removesuffix(SUFFIXES[pack]) + SHARD_CHECKSUMS, "".join(lines).encode()

    with new_file(path) as partial:
        (write_zip if pack == "zip" else write_tar)(partial, with_checksums())
        if (size := partial.stat().st_size) > limit:
            raise PgearthError(
                f"{path}: it has {size:,} bytes, more than {limit:,}: its patches grew after they were listed",
                "Export into an empty folder.",
            )


def write_zip(path: Path, files: Iterable[File]) -> None:
    """Write a zip archive. Documents are compressed, pixels are so already."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name, FIRST_ZIP_DATE)
            entry.create_system = 3  # Unix, whose permissions follow
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content, zipfile.ZIP_STORED if name.endswith(".tif") else zipfile.ZIP_DEFLATED)


def write_tar(path: Path, files: Iterable[File]) -> None:
    """Write a tar archive compressed with zstd."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    with (
        path.open("wb") as file,
        compressor.stream_writer(file, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in files:
            entry = tarfile.TarInfo(name)  # owner 0, time 0, permissions 644
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def checksum_line(checksum: str, name: str) -> str:
    """A line as `sha256sum` writes and checks it."""
    return f"{checksum}  {name}\n"


# Reading


def read_checksums(text: bytes, container: Path) -> dict[str, str]:
    """Checksums by path, from lines of `sha256sum`.

    Raises PgearthError for any other line, for none, for unsafe paths and for two checksums of one file.
    """
    checksums: dict[str, str] = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
        match = CHECKSUM_LINE.fullmatch(line)
        if match is None:
            raise PgearthError(f"{container}, line {number}: it is not a line of sha256sum: {line[:200]!r}", AGAIN)
        checked_path(match[2], container)
        if checksums.setdefault(match[2], match[1]) != match[1]:
            raise PgearthError(f"{container}, line {number}: {match[2]} is listed before, with another checksum", AGAIN)
    if not checksums:
        raise PgearthError(f"{container}: it lists no files", AGAIN)
    return checksums


def read_folder(root: Path, checksums: dict[str, str]) -> Iterator[File]:
    """The files that `checksums` names, in its order. Raises PgearthError for a missing or damaged one."""
    for name, checksum in checksums.items():
        path = path_in(root, name)
        try:
            if (size := path.stat().st_size) > (limit := largest_file(name)):
                raise damaged(path, f"has {size:,} bytes, and the limit is {limit:,}")
            content = path.read_bytes()
        except OSError as error:
            raise damaged(path, f"is listed with its checksum, but cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != checksum:
            raise damaged(path, "has another checksum than listed")
        yield name, content


def path_in(root: Path, name: str) -> Path:
    """Where a file of an export lies. Raises PgearthError for one outside the export's folder."""
    path = root.resolve() / checked_path(name, root)
    if not path.resolve().is_relative_to(root.resolve()):
        raise PgearthError(f"{path}: it is a link that leaves the folder", "Nothing of its product is loaded.")
    return path


def read_shard(path: Path) -> Iterator[File]:
    """The files of an archive; they are known to be whole and all there only when the last has been taken.

    Raises PgearthError for a damaged archive, for members that are missing, damaged, not listed, no plain files, or
    would lie outside a folder that the archive is unpacked in.
    """
    found: dict[str, str] = {}
    listed: dict[str, str] | None = None
    for name, content in (read_zip if path.name.endswith(SUFFIXES["zip"]) else read_tar)(path):
        if len(checked_path(name, path).parts) == 1 and name.endswith(SHARD_CHECKSUMS):
            listed = read_checksums(content, path / name)
        else:
            found[name] = hashlib.sha256(content).hexdigest()
            yield name, content
    if listed is None:
        raise damaged(path, "has no list of checksums at its end: it is cut off, or is no export")
    for name in listed.keys() | found.keys():
        if listed.get(name) != found.get(name):
            fault = "missing" if name not in found else "not listed" if name not in listed else "damaged"
            raise damaged(path, f"has a file that is {fault}: {name}")


def read_zip(path: Path) -> Iterator[File]:
    """The members of a zip archive, by product, the product's document before its patches."""
    try:
        with open_zip(path) as archive:
            for name in sorted(archive.namelist(), key=reading_order):
                checked_path(name, path)
                yield name, read_member(archive, name, largest_file(name))
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, f"cannot be read: {error}") from error


def reading_order(name: str) -> tuple[str, int, str]:
    """What to sort paths by: product, then the product's document before its patches; lists of checksums last."""
    parts = PurePosixPath(name).parts
    return ("\U0010ffff", 0, name) if len(parts) == 1 else (parts[0], len(parts), name)


def read_tar(path: Path) -> Iterator[File]:
    """The members of a tar archive compressed with zstd, in its order."""
    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=CheckedTarInfo) as archive,
        ):
            for member in tar_members(archive):
                checked_path(member.name, path)
                content = read_tar_member(archive, member, largest_file(member.name))
                if content is None:
                    raise damaged(path, f"has a member that is no plain file: {member.name}")
                yield member.name, content
    except (tarfile.TarError, zstandard.ZstdError, OSError, EOFError) as error:
        raise damaged(path, f"cannot be read: {error}") from error


def largest_file(name: str) -> int:
    """How many bytes a file of an export may have."""
    return (DOCUMENT_BYTES if name.endswith(".json") else PATCH_BYTES).of_environment()


def damaged(path: Path, fault: str) -> PgearthError:
    """What to tell of a file that is not as it was exported."""
    return PgearthError(f"{path}: it {fault}", AGAIN)
