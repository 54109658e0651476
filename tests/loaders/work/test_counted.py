"""What a generator yields, and what it returns at its end."""

from collections import Counter
from collections.abc import Generator

from pgearth.loaders.work.counted import Counted


def even(numbers: range) -> Generator[int, None, Counter[str]]:
    left_out = 0
    for number in numbers:
        if number % 2:
            left_out += 1
        else:
            yield number
    return Counter(odd=left_out)


def test_counts_are_there_at_the_end() -> None:
    numbers = Counted(even(range(5)))
    stream = iter(numbers)
    assert next(stream) == 0
    assert numbers.counts == Counter()
    assert list(stream) == [2, 4]
    assert numbers.counts == Counter(odd=2)
