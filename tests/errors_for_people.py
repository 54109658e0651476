"""What no message may show a user: anything of Python's."""

from __future__ import annotations

import builtins
import re

import psycopg

EXCEPTIONS = [
    name for name, thing in vars(builtins).items() if isinstance(thing, type) and issubclass(thing, BaseException)
]
# The names of exceptions that users have met, of libraries and of ours; MemoryError and the like are among Python's own.
OF_PYTHON = re.compile(
    r"plpy|spiexceptions|Traceback|File \"|\.py\", line|<class|object at 0x|PanicException|SafetensorError|PgearthError"
    r"|NoneType|\b(" + "|".join(EXCEPTIONS) + r")\b"
)


def assert_for_people(error: psycopg.Error) -> None:
    """Fail where an error shows anything of Python, or has no SQLSTATE."""
    shown = "\n".join(
        filter(
            None, [error.diag.message_primary, error.diag.message_detail, error.diag.message_hint, error.diag.context]
        )
    )
    assert error.diag.message_primary, shown
    assert error.sqlstate, shown
    assert not (found := OF_PYTHON.search(shown)), f"{found}: {shown}"
