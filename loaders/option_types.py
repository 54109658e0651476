"""Types of the command's options: what is no number, or no list, is refused as an error of its option."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click


class Number(click.FloatRange):
    """A number within limits: not NaN, which no limit stops, and not infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it, or fail with what was expected."""
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


class Numbers(click.ParamType):
    """Finite numbers, comma-separated."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Parse them, or fail with what was expected."""
        if isinstance(value, list):
            return value
        return [Number().convert(number, param, ctx) for number in value.split(",")]


class Names(click.ParamType):
    """Names, comma-separated, none of them empty; each once, unless they `repeat`."""

    name = "names"

    def __init__(self, repeat: bool = False) -> None:
        self.repeat = repeat

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Parse them, or fail with what was expected."""
        if isinstance(value, list):
            return value
        names = [name.strip() for name in value.split(",")]
        if not all(names):
            self.fail(f"{value!r} has an empty name: give names separated by single commas.", param, ctx)
        if not self.repeat and (twice := next((name for name in names if names.count(name) > 1), None)):
            self.fail(f"{value!r} has {twice} twice.", param, ctx)
        return names


# What columns of the database take.
KEY = click.IntRange(1, 2**63 - 1)
LEVEL = click.IntRange(0, 2**15 - 1)
