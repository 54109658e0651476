"""Errors of PL/Python functions, returned as values.

PL/Python puts the name of the exception before the message of an error that a body raises, and a traceback under it. So
no body raises: each of our PL/Python functions returns a row whose last column, `failure`, is null or the error as
JSON. The column's type is a domain that refuses every value, by raising the error that the value describes.
"""

from __future__ import annotations

import json
import traceback
from typing import Any

from pgearth.pyfuncs.errors import BUG, IO_ERROR, OBJECT_NOT_IN_PREREQUISITE_STATE, OUT_OF_MEMORY, PgearthError


class Failure:
    """An error as a row of any PL/Python function: `failure` describes it, the other columns are null."""

    def __init__(self, error: PgearthError) -> None:
        fields = {"sqlstate": error.sqlstate, "message": error.message, "hint": error.hint or None}
        text = json.dumps(fields, ensure_ascii=False).replace("\\u0000", "")  # PostgreSQL's text holds no NUL
        self.failure = text.encode(errors="replace").decode()

    def __getattr__(self, column: str) -> None:
        return None


def described(plpy: Any, error: BaseException) -> PgearthError:
    """What a user is told of an exception: the traceback of one that we did not expect goes to the server's log."""
    if isinstance(error, PgearthError):
        return error
    if isinstance(error, plpy.SPIError):
        sqlstate, detail, hint, *_ = getattr(error, "spidata", None) or (None, None, None)
        message = f"{error}: {detail}" if detail else str(error)
        return PgearthError(message, hint or "", sqlstate=unpacked(sqlstate) if sqlstate else BUG)
    if isinstance(error, MemoryError):
        return PgearthError(
            "the server has not enough memory for this", sqlstate=OUT_OF_MEMORY, hint="Ask for less at once."
        )
    if isinstance(error, ImportError):
        return PgearthError(
            f"the server's Python cannot import {error.name or 'a library'}: {error}",
            sqlstate=OBJECT_NOT_IN_PREREQUISITE_STATE,
            hint="Install pgearth with all it needs where the server's Python looks: select * from eo.runtime() tells.",
        )
    if isinstance(error, OSError):
        return PgearthError(
            f"{error.filename or 'the system'}: {error.strerror or error}",
            sqlstate=IO_ERROR,
            hint="The server could not read or write this: have its disk and permissions looked at.",
        )
    plpy.log("".join(traceback.format_exception(error)))
    return PgearthError(
        "this is a bug in pgearth",
        sqlstate=BUG,
        hint="Please report it, with what the server's log says: set client_min_messages = log shows it here, too.",
    )


def unpacked(sqlstate: int) -> str:
    """A SQLSTATE as text, of the number that the server makes of it: six bits a character, the first in the lowest."""
    return "".join(chr(ord("0") + (sqlstate >> shift & 0x3F)) for shift in range(0, 30, 6))
