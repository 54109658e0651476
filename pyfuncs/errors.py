"""The one exception that the package raises on bad input: the SQL border and the command turn it into what they say."""

from typing import Self

# SQLSTATE codes, named as in PostgreSQL's appendix A
BUG = "XX000"  # internal_error
DATA_CORRUPTED = "XX001"
FEATURE_NOT_SUPPORTED = "0A000"
INVALID_BINARY_REPRESENTATION = "22P03"
INSUFFICIENT_RESOURCES = "53000"
INVALID_PARAMETER_VALUE = "22023"
IO_ERROR = "58030"
NULL_VALUE_NOT_ALLOWED = "22004"
NUMERIC_VALUE_OUT_OF_RANGE = "22003"
OBJECT_NOT_IN_PREREQUISITE_STATE = "55000"
OUT_OF_MEMORY = "53200"
PROGRAM_LIMIT_EXCEEDED = "54000"
PROTOCOL_VIOLATION = "08P01"
SYSTEM_ERROR = "58000"
UNDEFINED_OBJECT = "42704"


class PgearthError(Exception):
    """Bad input: the message names the file, row or value, `hint` says what to do, `sqlstate` its kind in SQL."""

    def __init__(self, message: str, hint: str = "", *, sqlstate: str = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        """Return the message, with the hint on a line of its own."""
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message

    def of(self, what: str) -> Self:
        """Return the same error, of this file, row or patch, whose name goes before the message."""
        return type(self)(f"{what}: {self.message}", self.hint, sqlstate=self.sqlstate)


class BusyError(PgearthError):
    """Input that another session is working on: it can be tried again when that session has ended."""


class DeviceFailedError(PgearthError):
    """The GPU has failed, and for this process it stays so: only a new one can use it again."""
