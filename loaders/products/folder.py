"""The files of a product: in a folder, or in a zip or tar archive, which is not unpacked."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pgearth.loaders.files.archives import open_tar, open_zip, read_member, tar_members
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.limits import DOCUMENT_BYTES

MOST_FILES = 100_000  # far more than a product has: a folder of a whole archive was named
# Of macOS (also inside archives made there) and Windows.
LEFT_BY_DESKTOPS = re.compile(r"(?:^|/)(?:__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
FILE_OF_A_PRODUCT = re.compile(r"\.(?:xml|json|safe|tiff?|jp2|hdf)$|_MTL\.txt$", re.IGNORECASE)
FOLDER_OF_A_PRODUCT = re.compile(r"GRANULE|IMG_DATA|DATASTRIP|R\d+m|measurement|annotation|preview", re.IGNORECASE)
IN_ZIP = re.compile(r"/vsizip/\{(?P<archive>.+?)\}/(?P<member>[^:\"]+)")
BYTES_CHECKED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Folder:
    """The files of a product, in a folder or, without unpacking it, in a zip or tar archive.

    `sizes` are bytes by path relative to the product's own folder, `top` (see `innermost`), with / as GDAL writes it.
    `members` are an archive's own names of the paths that it writes in another way: with \\, or with ./ before them.
    """

    path: Path
    sizes: dict[str, int]
    archive: str | None = None  # GDAL's file system for it: vsizip or vsitar
    top: str = ""
    members: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder, without .SAFE."""
        name = PurePosixPath(self.top).name or (self.path.stem if self.archive else self.path.name)
        return name.removesuffix(".SAFE")

    def gdal_path(self, file: str) -> str:
        """How GDAL opens a file of the folder."""
        return f"/{self.archive}/{{{self.path}}}/{self.top}{file}" if self.archive else str(self.path / self.top / file)

    def label(self, file: str) -> str:
        """How messages call a file of the folder."""
        return str(self.path / f"{self.top}{file}")

    def sources(self, files: Iterable[str]) -> tuple[Path, ...]:
        """The files on disk that these files of the folder are in."""
        return (self.path,) if self.archive else tuple(self.path / self.top / file for file in sorted(files))

    def read(self, file: str) -> bytes:
        """Contents of a metadata file. Raises PgearthError if it cannot be read."""
        if self.sizes[file] > (limit := DOCUMENT_BYTES.of_environment()):
            raise PgearthError(
                f"{self.label(file)}: {self.sizes[file]:,} bytes are too many for metadata",
                f"The limit is {limit:,}; {DOCUMENT_BYTES.variable} sets another.",
            )
        name = self.members.get(self.top + file, self.top + file)
        try:
            if self.archive == "vsizip":
                with open_zip(self.path) as archive:
                    return read_member(archive, name, limit)
            if self.archive == "vsitar":
                with open_tar(self.path) as tar, tar.extractfile(name) as member:  # type: ignore[union-attr]
                    return member.read()
            return (self.path / name).read_bytes()
        # RuntimeError and NotImplementedError: encrypted, or compressed in a way that Python does not know.
        except (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
            raise PgearthError(
                f"{self.label(file)}: cannot be read: {error}", "Replace it by an intact copy."
            ) from error


def open_folder(path: Path) -> Folder | None:
    """List what is in a folder, zip (.zip) or tar archive (.tar); None for any other file.

    Raises PgearthError for a damaged archive and for a folder with too many files for a product.
    """
    path = path.resolve()
    if path.is_dir():
        return make_folder(path, dict(walk(path)))
    try:
        match path.suffix.lower():
            case ".zip":
                with open_zip(path) as archive:
                    files = [info for info in archive.infolist() if not info.is_dir()]
                    sizes = {info.filename: info.file_size for info in files}
                if len(sizes) < len(files):
                    [(twice, _)] = Counter(info.filename for info in files).most_common(1)
                    raise PgearthError(
                        f"{path}: it has two files {twice}", "Unpack it, keep the right one, and load the folder."
                    )
                system = "vsizip"
            case ".tar":
                with open_tar(path) as tar:
                    found = [member for member in tar_members(tar) if member.isfile()]
                if any("path" in member.pax_headers for member in found):
                    raise PgearthError(
                        f"{path}: a tar with long names in the POSIX format, which GDAL does not read",
                        "Unpack it and load the folder, or make the tar with --format=gnu.",
                    )
                sizes = {member.name: member.size for member in found}
                system = "vsitar"
            case _:
                return None
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise PgearthError(f"{path}: a damaged archive: {error}", "Download it again.") from error
    members = {posix_path(name): name for name in sizes if not name.endswith("\\")}
    folder = make_folder(path, {name: sizes[member] for name, member in members.items()})
    return replace(folder, archive=system, members={name: own for name, own in members.items() if name != own})


def check_archived(paths: Iterable[str]) -> None:
    """Raise PgearthError unless the files, as GDAL opens them, are intact where they lie in zip archives.

    GDAL does not look at the checksums of the archive, and a GeoTIFF has none of its own: damage would be pixels.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        if found := IN_ZIP.search(path):
            wanted[found["archive"]].add(found["member"])
    for archive_path, members in wanted.items():
        with open_zip(Path(archive_path)) as archive:
            for info in archive.infolist():
                if posix_path(info.filename) not in members:
                    continue
                try:
                    with archive.open(info) as member:
                        while member.read(BYTES_CHECKED_AT_ONCE):
                            pass
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                    raise PgearthError(
                        f"{archive_path}: {info.filename} is damaged: {error}", "Download the archive again."
                    ) from error


def posix_path(name: str) -> str:
    """An archive member's name as GDAL has it: with / where it was made on Windows, and without ./ before it."""
    return name.replace("\\", "/").removeprefix("./")


def make_folder(path: Path, sizes: dict[str, int]) -> Folder:
    """The product's own folder among the files under a path, without what desktops leave among them."""
    sizes = {name: size for name, size in sizes.items() if not LEFT_BY_DESKTOPS.search(name)}
    top = innermost(sizes)
    return Folder(path, {name.removeprefix(top): size for name, size in sizes.items() if name.startswith(top)}, top=top)


def innermost(names: Iterable[str]) -> str:
    """The folder that a product lies in, "" or ending in /: unpacking often puts it into one folder too many.

    That is a folder with no other folder beside it and no file of a product, whatever else (checksums, pictures).
    """
    top = ""
    while True:
        below = [name.removeprefix(top) for name in names if name.startswith(top)]
        heads = {name.partition("/")[0] for name in below if "/" in name}
        if len(heads) != 1 or any("/" not in name and FILE_OF_A_PRODUCT.search(name) for name in below):
            return top
        head = heads.pop()
        if FOLDER_OF_A_PRODUCT.fullmatch(head):
            return top
        top = f"{top}{head}/"


def walk(path: Path) -> Iterable[tuple[str, int]]:
    """Relative path and size of every file under a folder."""
    count = 0
    for folder, _, names in os.walk(path, onerror=refuse_unread):
        for name in names:
            count += 1
            if count > MOST_FILES:
                raise PgearthError(
                    f"{path}: more than {MOST_FILES:,} files", "Name the folders of products themselves."
                )
            file = Path(folder, name)
            if file.is_symlink() and not file.resolve().is_relative_to(path):
                raise PgearthError(f"{file}: it is a link that leaves the folder", "Put the file itself there.")
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.stat().st_size


def refuse_unread(error: OSError) -> None:
    """Raise PgearthError for a folder that cannot be listed: what is in it would be missed without a word."""
    raise PgearthError(
        f"{error.filename}: the folder cannot be read: {error.strerror}",
        "Give the user who runs the command the right to it, or take it out of the product.",
    )
