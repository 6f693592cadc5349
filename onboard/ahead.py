"""A stage of a replay in a thread of its own: the next frame is decoded, or looked at, while this one flies.

Order is kept, so what comes of the frames is the same as without the thread.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

DEPTH = 2
"""Items that a stage is ahead: one is what the next stage takes, the other is in work. With more, memory grows (a frame
may be as large as 60 MB) and nothing is faster."""


@contextmanager
def ahead(items: Callable[[], Iterable[T]], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """What `items()` gives, made in a thread that is at most `depth` items ahead, the one in work among them.

    What the thread raises is raised where its item would have been taken. At the end of the block the thread ends
    with the item that it is at; the rest is never made.
    """
    made: SimpleQueue[tuple[T, ...] | BaseException] = SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def make() -> None:
        last: tuple[T, ...] | BaseException = ()
        try:
            source = iter(items())
            while room.acquire() and not stop.is_set():
                made.put((next(source),))
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised in the taker's thread
            last = error
        made.put(last)

    def take() -> Iterator[T]:
        while got := made.get():
            room.release()
            if isinstance(got, BaseException):
                raise got
            yield got[0]

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        room.release()
        thread.join()
