"""What learning costs the frames, and how soon a new place is learned.

The whole flight with its learner's process, at a steady pace: the learner works in every other block of frames and
rests in those between, so that both sides see the same machine. Answers come all the time; what came while it rested,
it has to catch up with.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.streams import Recorded
from link.messages import Label
from models import artifact
from models.engine import Engine
from onboard.assembly import Assembly
from onboard.boot import learner_process
from onboard.config import Asking, Camera, Config, Learning, ModelChoice
from onboard.exposure import apply
from onboard.learner import GivenLabel, Learner, Observation
from onboard.sim import SimSource
from onboard.supervisor import Supervisor
from onboard.truth import UNKNOWN
from onboard.worker import initial_model

SOURCE = "sim://?seed=4&frames=240"
FPS = 10
BLOCK = 100
SHARE = 0.03
DELAY = 20
NEW = 100


def learners() -> Iterator[Path]:
    """The folders in /proc of the learner's processes that this one started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
            parent = (folder / "stat").read_text().rpartition(") ")[2].split()[1]
            if int(parent) == os.getpid() and b"onboard.worker" in (folder / "cmdline").read_bytes():
                yield folder


def learner_cpu_s() -> float:
    """Seconds of a processor that a learner's process of ours has had."""
    for folder in learners():
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def frames_beside(blocks: int, progress: Callable[[str], None]) -> dict[str, object]:
    """One row: how long frames take while the learner works and while it rests, over pairs of blocks."""
    source = SimSource(SOURCE)
    frames = list(source.frames())
    config = Config(
        camera=Camera(rows=source.truth.rows, cols=source.truth.cols),
        model=ModelChoice(classes=source.classes),
        ask=Asking(share=SHARE),
    )
    took: dict[bool, list[float]] = {True: [], False: []}
    due: list[tuple[int, Label]] = []
    cpu_s = 0.0
    with tempfile.TemporaryDirectory() as folder, Assembly(config, Path(folder)) as assembly:
        learner = Supervisor([learner_process(config, assembly.state)])
        learner.start()
        try:
            start = time.monotonic()
            for number in range(2 * blocks * BLOCK):
                block, works = number // BLOCK, bool(number // BLOCK % 2)
                if number % BLOCK == 0:
                    progress(f"frames beside the learner, {block + 1} of {2 * blocks} blocks")
                    assembly.desk.paused = (lambda: "") if works else (lambda: "benchmark")
                    before_s = learner_cpu_s()
                time.sleep(max(0.0, start + number / FPS - time.monotonic()))
                frame = frames[number % len(frames)]
                step = assembly.flight.step(msgspec.structs.replace(frame, index=number))
                took[works].append(assembly.flight.inference_ms[-1])
                for query in step.asked:
                    truth = source.truth.label((int(frame.name), ""), query.row, query.col)
                    answer = "" if truth is None else source.classes[truth]
                    due.append((number + DELAY, Label(id=query.id, query=query.id, answer=answer)))
                for label in [label for at, label in due if at <= number]:
                    assembly.desk.receive(label)
                due = [(at, label) for at, label in due if at > number]
                if works and number % BLOCK == BLOCK - 1:
                    cpu_s += learner_cpu_s() - before_s
            updates = assembly.desk.updates
        finally:
            learner.close()
    p99 = {works: float(np.quantile(ms, 0.99)) for works, ms in took.items()}
    return {
        "stream": f"sim, {FPS} frames a second",
        "variant": "frames beside the learner",
        "updates": updates,
        "p50_ms": round(float(np.median(took[True])), 2),
        "p50_resting_ms": round(float(np.median(took[False])), 2),
        "p99_ms": round(p99[True], 2),
        "p99_resting_ms": round(p99[False], 2),
        "p99_ratio": round(p99[True] / p99[False], 3),
        "learner_cpu_share": round(cpu_s / (blocks * BLOCK / FPS), 3),
    }


def new_place(seen: Recorded) -> dict[str, object]:
    """One row: seconds from the tiles of so many labelled frames to a head that has learned from one tile of each."""
    base = initial_model("", seen.classes)
    engine, learner = Engine(artifact.load(artifact.DEFAULT)), Learner(base, Learning(), seen.rows, seen.cols)
    engine.warm_up()
    start = time.perf_counter()
    for index in range(NEW):
        tiles = seen.tiles[index].copy()
        apply(seen.light[index], tiles)
        features = engine.features(tiles)
        bits, scales = features.bits, features.scales.astype(np.float16)
        motion = seen.motion[index]
        raw = None if motion is None else motion.tobytes()
        learner.observe(Observation(1, index, bits.tobytes(), scales.tobytes(), raw))
        known = np.flatnonzero(seen.truth[index] != UNKNOWN)
        tile = int(known[index % len(known)])
        answer = seen.classes[int(seen.truth[index, tile])]
        own = bits[tile].tobytes(), scales[tile].tobytes()
        learner.label(GivenLabel(index + 1, index + 1, index, tile, answer, *own))
    update = learner.step()
    seconds = time.perf_counter() - start
    assert update is not None
    assert update.labels == NEW
    return {"stream": "sim", "variant": f"{NEW} labelled frames at once", "seconds": round(seconds, 3)}
