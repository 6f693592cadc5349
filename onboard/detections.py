"""What a frame led to: per tile a class and how sure the flight is of it."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.frame import Frame


class FrameResult(msgspec.Struct, frozen=True, kw_only=True):
    """The detections of one frame, row by row over the grid; arrays are not written to after it is made.

    classes: uint8 (rows * cols,), an index into `class_names`. confidence: float32 (rows * cols,), its probability.
    """

    frame: Frame
    rows: int
    cols: int
    classes: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    class_names: tuple[str, ...]
