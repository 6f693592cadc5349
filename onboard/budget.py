"""How many bytes questions may cost: a token bucket that the time of frames fills."""

BESIDE_PICTURE_BYTES = 192
"""Of a question: its other fields and what the link puts around them, at most."""
SAVED_S = 30.0
"""So many seconds' worth may be saved up while nothing is asked."""


class Budget:
    """A token bucket of `bytes_per_s`, 0 for no bound; full at first.

    It knows the time from its frames and never asks a clock, so that a replay asks what the flight asked. Over any
    stretch of time, what is spent is at most what came in, SAVED_S worth of savings, and one question.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._left = bytes_per_s * SAVED_S
        self._last_ns: int | None = None
        self._largest = 0

    def affords(self, t_ns: int, most: int) -> int:
        """How many questions, `most` at most, may be asked at the frame of this time, nanoseconds.

        The size of a question is known only when it has been made: the first may bring debt, and more than one is
        afforded only where as many of the largest so far are. A time that goes back brings nothing in.
        """
        if not self._rate:
            return most
        since_s = 0.0 if self._last_ns is None else max(0, t_ns - self._last_ns) / 1e9
        self._last_ns = t_ns
        self._left = min(self._left + since_s * self._rate, self._rate * SAVED_S)
        if self._left <= 0:
            return 0
        return min(most, max(1, int(self._left / self._largest))) if self._largest else min(most, 1)

    def spend(self, size: int) -> None:
        """A question of `size` bytes was asked."""
        self._left -= size
        self._largest = max(self._largest, size)
