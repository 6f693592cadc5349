"""A short flight as pictures and a table of what they show: the same input for different processors. What `sim://`
paints is not quite: a value in some ten thousand is a level off.
"""

import string

import cv2

from onboard.sim import SimSource
from onboard.truth import AMBIGUOUS_LETTER, UNKNOWN


def take(folder, source):
    """Draw the simulated flight into a new `folder`; a function from where it lies to `onboard replay`'s words."""
    folder.mkdir()
    sim, lines = SimSource(source), ["frame,row,labels"]
    letters = dict(zip(sim.classes, string.ascii_uppercase, strict=False))
    for frame in sim.frames():
        name = f"{frame.index:03}.png"
        assert cv2.imwrite(str(folder / name), frame.image)
        for row, numbers in enumerate(sim.truth.grid(frame)):
            told = (AMBIGUOUS_LETTER if n == UNKNOWN else letters[sim.classes[n]] for n in numbers)
            lines.append(f"{name},{row},{''.join(told)}")
    (folder / "truth.csv").write_text("\n".join([*lines, ""]))
    named = ",".join(f"{letter}={name}" for name, letter in letters.items())
    return lambda place: [
        place,
        "--truth",
        f"{place}/truth.csv",
        "--classes",
        ",".join(sim.classes),
        "--letters",
        named,
    ]
