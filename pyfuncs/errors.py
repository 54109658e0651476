"""The one exception that the package raises on bad input; the SQL border turns it into a PostgreSQL error."""

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
    """Bad input: the message names the offending value, `hint` says what to do, `sqlstate` is what SQL callers see."""

    def __init__(self, message: str, *, sqlstate: str = INVALID_PARAMETER_VALUE, hint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.hint = hint


class DeviceFailedError(PgearthError):
    """The GPU has failed, and for this process it stays so: only a new one can use it again."""
