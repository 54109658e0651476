"""What a user is told of an exception that ends a command: one message and a hint, never a traceback.

Where an error can be foreseen, the code that meets it raises a PgearthError, which names the file, row or value. Here
are errors that can come from anywhere: from the database, the file system, the libraries that read files.
"""

from __future__ import annotations

import errno
import struct
import traceback
from collections.abc import Iterator

import psycopg

from pgearth.pyfuncs.errors import PgearthError

TRACEBACK = "PGEARTH_TRACEBACK"
"""Environment variable that makes a command show the traceback, too."""

RUN_AGAIN = "What was committed stays. Run the same command again to go on."
FILE_HINTS = {
    errno.EACCES: "Give the user who runs the command the right to it, or name another place.",
    errno.EPERM: "Give the user who runs the command the right to it, or name another place.",
    errno.EROFS: "Name a place that can be written to.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "A part of the path is a file, where a folder is needed: name another place.",
    errno.EISDIR: "It is a folder, where a file is needed: name a file.",
    errno.EEXIST: "Something else has this name: name another place.",
    errno.ELOOP: "A link leads back to itself: remove it.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ENOSPC: f"Make room on this disk. {RUN_AGAIN}",
    errno.EDQUOT: f"Make room on this disk. {RUN_AGAIN}",
    errno.EFBIG: f"Name a place on a disk that takes larger files. {RUN_AGAIN}",
    errno.EMFILE: "Let a process open more files (ulimit -n), or use fewer --jobs.",
    errno.ENFILE: "Let the machine open more files, or use fewer --jobs.",
    errno.ENOMEM: f"Use fewer --jobs, or a machine with more memory. {RUN_AGAIN}",
}
DATABASE_HINTS = {
    "08": f"See whether the server runs, and what PGEARTH_DSN or libpq's variables name. {RUN_AGAIN}",
    "28": "Give the user and password in PGEARTH_DSN, or in libpq's PGUSER and PGPASSWORD or password file.",
    "3D": "Create the database and run: pgearth migrate. Or name another in PGEARTH_DSN.",
    "42501": "Connect as a user who has the role eo_writer or, to migrate, as a superuser.",
    "42883": "The schema is of another version than the command: run pgearth migrate.",
    "42P01": "The schema is of another version than the command: run pgearth migrate.",
    "42703": "The schema is of another version than the command: run pgearth migrate.",
    "22": "Check the value that the message is about.",
    "23": "See whether the archive has something else of this name or key, and whether what it names is there.",
    "40": RUN_AGAIN,
    "53": f"Make room on the server's disk, or let it have more memory or connections. {RUN_AGAIN}",
    "55P03": f"Another session holds a lock. {RUN_AGAIN}",
    "57": f"See whether the server runs, and its log. {RUN_AGAIN}",
    "58": "See the server's log: its disk may be full or damaged.",
    "": "If the message does not tell what to do, please report it, with what the command shows after: export"
    f" {TRACEBACK}=1",
}
"""By SQLSTATE, or the first characters of it."""
OF_INPUT = ("21", "22", "23", "54", "P0", "XX")
"""First characters of the SQLSTATEs of what an input causes; XX: PostGIS has no others."""
OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
READERS = {
    "rasterio": "raster",
    "pyogrio": "vector file",
    "shapely": "geometry",
    "pyproj": "coordinate reference system",
    "pyarrow": "Parquet file",
    "zipfile": "zip archive",
    "tarfile": "tar archive",
    "zlib": "archive",
    "lzma": "archive",
    "zstandard": "archive",
    "json": "JSON file",
    "xml": "XML document",
    "csv": "CSV file",
    "_csv": "CSV file",
    "safetensors": "safetensors file",
    "safetensors_rust": "safetensors file",
    "onnx": "ONNX model",
    "google": "ONNX model",
    "onnxruntime": "ONNX model",
    "tifffile": "TIFF",
    "PIL": "picture",
}
"""What the modules whose exceptions these are read."""


def explained(error: BaseException) -> PgearthError:
    """What to tell a user of an exception. One that is not known is told as a fault of pgearth, to be reported."""
    return known(error) or PgearthError(
        f"pgearth did not expect this: {one_line(traceback.format_exception_only(error)[-1])}",
        f"Please report it, with what the command shows after: export {TRACEBACK}=1",
    )


def known(error: BaseException) -> PgearthError | None:
    """What to tell of an exception of a kind that can come from anywhere; None for any other."""
    if isinstance(error, PgearthError):
        return error
    if isinstance(error, psycopg.Error):
        return of_database(error)
    if isinstance(error, BrokenPipeError | ConnectionError | TimeoutError):
        return PgearthError(f"A connection was lost: {one_line(error)}", RUN_AGAIN)
    module = type(error).__module__.partition(".")[0]
    if module == "sqlalchemy":
        cause = getattr(error, "orig", None)
        return known(cause) if cause else PgearthError(one_line(error), "Check PGEARTH_DSN.")
    if module == "alembic":
        return PgearthError(one_line(error), "See: pgearth migrate --help")
    if module in READERS:
        return PgearthError(f"A {READERS[module]} cannot be read: {one_line(error)}", "Replace it by an intact copy.")
    if isinstance(error, UnicodeError):
        return PgearthError(f"A text is not UTF-8: {one_line(error)}", "Write the file, or the name, in UTF-8.")
    if isinstance(error, OSError):
        what = ": ".join(filter(None, [" to ".join(files_of(error)), error.strerror or one_line(error)]))
        return PgearthError(what, FILE_HINTS.get(error.errno or 0, "See whether the disk and the path are in order."))
    if isinstance(error, ImportError):
        return PgearthError(one_line(error), "Install pgearth with all it needs: pip install pgearth")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return PgearthError("There is not enough memory for this.", FILE_HINTS[errno.ENOMEM])
    if type(error).__name__ == "BrokenProcessPool":
        return PgearthError("A process of the command was ended from outside.", FILE_HINTS[errno.ENOMEM])
    return None


def interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt began it: what it stopped in the middle may fail once more while it is cleaned up."""
    seen = []  # an error may be, by way of others, its own context
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def meets_others(error: Exception) -> bool:
    """Whether what ended a piece of work would end the next, too: it is of the server or the machine, not the input."""
    if interrupted(error):
        return True
    if isinstance(error, psycopg.Error):
        # Without SQLSTATE, a DataError is of a value that could not be sent, all else of the connection.
        of_input = error.sqlstate.startswith(OF_INPUT) if error.sqlstate else isinstance(error, psycopg.DataError)
        return not of_input
    if isinstance(error, OSError):
        return isinstance(error, ConnectionError | TimeoutError) or error.errno in OF_MACHINE
    return isinstance(error, MemoryError | ImportError)


def reason_of(error: Exception) -> str:
    """Why a document cannot be read, from what its reading raised, in a user's words."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, TypeError | AttributeError | IndexError | ArithmeticError | struct.error):
        return "a value in it is of another kind, or size, than expected"
    if isinstance(error, UnicodeError):
        return "it is not in UTF-8"
    return one_line(error)


def of_database(error: psycopg.Error) -> PgearthError:
    """What to tell of an error of the database: not which line of which function raised it."""
    details = filter(None, [error.diag.message_primary or str(error), error.diag.message_detail])
    message = "Error from the database: " + "\n".join(one_line(detail) for detail in details)
    hint = error.diag.message_hint
    if not hint:
        # No SQLSTATE: not from the server.
        sqlstate = error.sqlstate or ("" if isinstance(error, psycopg.DataError) else "08")
        hint = next((text for code, text in DATABASE_HINTS.items() if sqlstate.startswith(code)), "")
    return PgearthError(message, hint)


def files_of(error: OSError) -> Iterator[str]:
    """Names of the one or two files of an error."""
    for name in (error.filename, error.filename2):
        if name is not None:
            yield name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def one_line(text: object) -> str:
    """A text in one line, and not too long a one."""
    line = " ".join(str(text).split())
    return line if len(line) <= 500 else line[:500] + " ..."
