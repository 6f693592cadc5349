"""A row of bounded length out of one that is not: every item, later every second, then every fourth."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Thinned(Generic[T]):
    """`items` holds every `every`-th of the items that were added, the first among them, and at most `limit` (even).

    `join(a, b)`: what takes the place of b when the item a before it is left out; b by itself, if it is not given.

    >>> row = Thinned[int](4)
    >>> for n in range(9):
    ...     row.add(n)
    >>> row.items, row.every
    ([0, 4, 8], 4)
    """

    def __init__(self, limit: int, join: Callable[[T, T], T] = lambda a, b: b) -> None:
        if limit < 2 or limit % 2:
            raise ValueError(f"a row is thinned to an even number of items, not to {limit}")
        self.items: list[T] = []
        self.every = 1
        self._limit = limit
        self._join = join
        self._left_out: T | None = None
        self._place = 0

    def add(self, item: T) -> None:
        """Append an item."""
        if self._left_out is not None:
            item = self._join(self._left_out, item)
        if len(self.items) == self._limit and self._place == 0:
            item = self._join(self.items[-1], item)
            pairs = zip(self.items[1:-1:2], self.items[2::2], strict=True)
            self.items = [self.items[0], *(self._join(a, b) for a, b in pairs)]
            self.every *= 2
        if self._place == 0:
            self.items.append(item)
            self._left_out = None
        else:
            self._left_out = item
        self._place = (self._place + 1) % self.every
