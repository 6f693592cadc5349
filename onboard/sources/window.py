"""A part of a flight, or a flight over and over: from and to a time, and loops, around any recorded source.

Over the laps of a loop time keeps rising by the flight's own rhythm, and numbers and names stay unique: frame 3 of the
second lap over 100 frames is number 103, its name ends in `@2`. Truth is found for it by `Window.truth`.
"""

from collections.abc import Iterator

import msgspec

from models.errors import SourceError
from onboard.frame import Frame, Skipped, Source
from onboard.truth import Key, Truth

LAP_MARK = "@"


class Window:
    """The frames of `source` from `start_s` to before `end_s` (None: its end), `loops` times.

    Seconds count from the source's first frame, which need not be in the window.

    Raises
    ------
    SourceError
        The source is live, or the numbers leave nothing of a flight. While iterating: no frame lies in the window.
    """

    def __init__(self, source: Source, start_s: float = 0.0, end_s: float | None = None, loops: int = 1) -> None:
        if source.live:
            raise SourceError(f"{source.uri}: a live source has no part and no end; leave out --from, --to and --loop")
        if start_s < 0 or loops < 1 or (end_s is not None and end_s <= start_s):
            end = "its end" if end_s is None else f"{end_s:g} s"
            raise SourceError(f"{source.uri}: nothing of a flight lies from {start_s:g} s to {end}, {loops} times")
        self.uri = source.uri
        self.fps = source.fps
        self.first_ns = source.first_ns + round(start_s * 1e9)
        self.live = False
        self.skipped: list[Skipped] = source.skipped
        whole = start_s == 0 and end_s is None
        self.length: int | None = source.length * loops if whole and source.length is not None else None
        self._source = source
        self._start_ns = round(start_s * 1e9)
        self._end_ns = None if end_s is None else round(end_s * 1e9)
        self._loops = loops
        self._span = 0  # numbers that a lap takes; 0 while the first one flies
        self._closed = False

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Yield the window's frames, lap after lap; what is skipped is told for the first lap alone."""
        self._span = shift_ns = gap_ns = last_ns = 0
        for lap in range(self._loops):
            kept, first_ns, count, span = len(self.skipped), 0, 0, 0
            for frame in self._window():
                if not count:
                    first_ns = frame.t_ns
                    shift_ns = last_ns + gap_ns - first_ns if lap else 0
                if lap:
                    del self.skipped[kept:]
                    frame = _moved(frame, lap, self._span, shift_ns)
                yield frame
                if self._closed:
                    return
                count, span, last_ns = count + 1, frame.index + 1, frame.t_ns
            if not count:
                return
            if not lap:
                gap_ns = (last_ns - first_ns) // (count - 1) if count > 1 else round(1e9 / (self.fps or 1.0))
                self._span = span

    def _window(self) -> Iterator[Frame]:
        """The frames of one lap as the source gives them."""
        kept, since_ns, empty = len(self.skipped), None, True
        for frame in self._source.frames(self._start_ns * 1e-9):
            since_ns = frame.t_ns - self._source.first_ns
            if empty and self._start_ns:
                del self.skipped[kept:]  # what was damaged before the window does not matter
            if since_ns < self._start_ns:
                continue
            if self._end_ns is not None and since_ns >= self._end_ns:
                break
            empty = False
            yield frame
        if empty and (since_ns is not None or self._start_ns):
            end = "" if self._end_ns is None else f" and before {self._end_ns / 1e9:g} s"
            begin, length = f"{self._start_ns / 1e9:g}", self._length_s(since_ns)
            raise SourceError(f"{self.uri}: no frame lies from {begin} s on{end}{length}")

    def _length_s(self, since_ns: int | None) -> str:
        """How long the flight is, in words: by its last frame, or where none came, by their number and rate."""
        if since_ns is None and self._source.length and self._source.fps:
            since_ns = round((self._source.length - 1) / self._source.fps * 1e9)
        return "" if since_ns is None else f"; the flight has {since_ns / 1e9:.1f} s"

    def close(self) -> None:
        """End iterating at the next frame, and close the source."""
        self._closed = True
        self._source.close()

    def truth(self, truth: Truth) -> Truth:
        """The truth for the frames of all laps, from that of the source's own."""
        return truth if self._loops == 1 else truth.by(self._original)

    def _original(self, key: Key) -> Key:
        """The source's own name or number of a frame."""
        if isinstance(key, int):
            return key % self._span if self._span else key
        name, mark, lap = key.rpartition(LAP_MARK)
        return name if mark and lap.isdecimal() and 2 <= int(lap) <= self._loops else key


def _moved(frame: Frame, lap: int, span: int, shift_ns: int) -> Frame:
    return msgspec.structs.replace(
        frame, index=frame.index + lap * span, t_ns=frame.t_ns + shift_ns, name=f"{frame.name}{LAP_MARK}{lap + 1}"
    )
