"""A stage of a replay in a thread of its own: the next frame is decoded, or looked at, while this one flies.

Order is kept, so what comes of the frames is the same as without the thread.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import TypeVar

T = TypeVar("T")

DEPTH = 1
"""Items that wait between two stages: enough to keep both busy, and a frame may be as large as 60 MB."""


@contextmanager
def ahead(items: Callable[[], Iterable[T]], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """What `items()` gives, made in a thread that is at most `depth` items and the one in work ahead of the taker.

    What the thread raises is raised where its item would have been taken. At the end of the block the thread ends
    with the item that it is at; the rest is never made.
    """
    made: Queue[tuple[T, ...] | BaseException] = Queue(depth)
    stop = threading.Event()

    def make() -> None:
        last: tuple[T, ...] | BaseException = ()
        try:
            for item in items():
                made.put((item,))
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised in the taker's thread
            last = error
        made.put(last)

    def take() -> Iterator[T]:
        while got := made.get():
            if isinstance(got, BaseException):
                raise got
            yield got[0]

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        while thread.is_alive():  # it may wait for room in the queue, and puts once more before it sees the end
            while not made.empty():
                made.get_nowait()
            thread.join(0.05)
