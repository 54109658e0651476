"""Rows that pass one by one, and what was counted while they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Counted(Generic[Item]):
    """What a generator yields, to be taken once; `counts` is what it returned, empty until it has ended.

    For rows that go to a writer as they come, while their maker counts what it left out.
    """

    def __init__(self, generator: Generator[Item, None, Counter[str]]) -> None:
        self.generator = generator
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Item]:
        self.counts = yield from self.generator
