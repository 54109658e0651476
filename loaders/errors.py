"""The errors that every loader raises for bad input."""


class InputError(Exception):
    """Input that cannot be loaded: the message names the file, row or value; the hint says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, with the hint on a line of its own."""
        message = super().__str__()
        return f"{message}\nHint: {self.hint}" if self.hint else message


class BusyError(InputError):
    """Input that another session is working on: it can be tried again when that session has ended."""
