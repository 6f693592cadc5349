"""The streams on which learning in flight is judged, and a flight over a recorded one in this process alone.

What a stream shows does not depend on what is learned, so it is looked at once; then a flight of any learner, with any
questions, delay or share of wrong answers, takes a second. Without processes and sockets it is the same flight: the
benchmark compares the hash of its model with the replay's.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import mosaic
from link.messages import Label
from models import artifact
from models.engine import Engine, Features
from models.errors import RecipeError
from models.training import datasets
from onboard import replay
from onboard.config import Learning
from onboard.exposure import Exposure, apply
from onboard.flight import softmax
from onboard.grid import cut
from onboard.head import head_logits
from onboard.learner import HISTORY_FRAMES, GivenLabel, Learner, Observation
from onboard.queries import Asker
from onboard.registration import Registration
from onboard.scores import macro_f1
from onboard.smoothing import Smoother
from onboard.sources import open_source
from onboard.tracks import Path
from onboard.truth import UNKNOWN, Truth
from onboard.turned import Turned
from onboard.worker import initial_model

CALITERRA_CLASSES = ("object", "road", "trees", "ground")
WINDOWS = 10


class Stream(NamedTuple):
    """How to replay a stream: options (with its truth, where that is a file) and classes."""

    name: str
    options: replay.Options
    classes: tuple[str, ...]


@contextmanager
def streams() -> Iterator[list[Stream]]:
    """`sim://` with a new terrain half-way; Caliterra and UC Merced's test photos, where the data is."""
    found = [
        Stream("sim", replay.Options(source="sim://?seed=4", label_delay=5), ()),
        Stream("sim-novel", replay.Options(source="sim://?seed=4&novel=1&frames=240", label_delay=20), ()),
    ]
    flights = datasets.data_folder() / "flights"
    if (flights / "caliterra_labels.csv").exists():
        options = replay.Options(
            source=str(flights / "caliterra"),
            truth=flights / "caliterra_labels.csv",
            letters=replay.default_letters(CALITERRA_CLASSES),
            label_delay=5,
        )
        found.append(Stream("caliterra", options, CALITERRA_CLASSES))
    with tempfile.TemporaryDirectory(prefix="hadanet-mosaic-") as folder:
        try:
            data = datasets.load("ucmerced")
        except RecipeError:
            pass  # no such data here
        else:
            place = File(folder) / "photos"
            place.mkdir()
            truth, classes = mosaic.write(data, place), mosaic.classes(data)
            options = replay.Options(source=str(place), truth=truth, letters=mosaic.letters(classes), label_delay=20)
            found.append(Stream("ucmerced", options, classes))
        yield found


class Recorded(NamedTuple):
    """A stream as the flight sees it: per frame its tiles as they were cut, the table of light, packed features, the
    motion to the frame before, and the class of each tile, UNKNOWN where nobody can say."""

    classes: tuple[str, ...]
    rows: int
    cols: int
    tiles: list[NDArray[np.uint8]]
    light: list[NDArray[np.uint8]]
    features: list[Features]
    motion: list[NDArray[np.float64] | None]
    truth: NDArray[np.intp]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Tiles (frames, rows * cols) with truth behind the first tenth; the delay is the caller's."""
        known: NDArray[np.bool_] = self.truth != UNKNOWN
        known[: -(-len(known) // WINDOWS)] = False
        return known


def record(stream: Stream, even_light: bool = True) -> Recorded:
    """Look at a stream once. even_light: as `onboard.exposure` does; the ablation leaves it out."""
    source = open_source(stream.options.source)
    sim = getattr(source, "truth", None)
    truth: Truth = sim or Truth.from_csv(stream.options.truth or File(), stream.options.letters, stream.classes)
    base = artifact.load(artifact.DEFAULT)
    engine, registration, exposure = Engine(base), Registration(truth.rows, truth.cols), Exposure(base.spec.mean[::-1])
    out = Recorded(
        truth.classes, truth.rows, truth.cols, [], [], [], [], np.zeros((0, truth.rows * truth.cols), np.intp)
    )
    size, grids = base.spec.input_size, []
    for frame in source.frames():
        tiles = np.zeros((truth.rows * truth.cols, size, size, 3), np.uint8)
        cut(frame.image, truth.rows, truth.cols, size, tiles)
        identity = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        light = exposure.step(tiles) if even_light else identity
        out.tiles.append(tiles.copy())
        apply(light, tiles)
        out.light.append(light)
        out.features.append(engine.features(tiles))
        out.motion.append(registration.step(frame.image))
        grid = truth.grid(frame)
        grids.append(np.full(len(tiles), UNKNOWN) if grid is None else grid.ravel())
    source.close()
    return out._replace(truth=np.stack(grids).astype(np.intp))


class Flown(NamedTuple):
    """What came of a flight: macro F1 and accuracy of all scored tiles, accuracy of each tenth, labels, how long each
    tick with labels took, what was said (frames, tiles) and what the head of frame `frozen_at` would have said, the
    learner as it was at the end, and the backbone."""

    macro_f1: float
    accuracy: float
    windows: list[float]
    labels: int
    ticks_ms: list[float]
    said: NDArray[np.intp]
    frozen: NDArray[np.intp]
    learner: Learner
    backbone: "Backbone"


class Backbone:
    """What a flight's features come from: here the base model, as it was recorded; others may learn meanwhile."""

    def __init__(self, seen: Recorded, seed: int) -> None:
        self.seen, self.model = seen, initial_model("", seen.classes)
        self._turned = Turned(self.model)

    def lit(self, index: int) -> NDArray[np.uint8]:
        """The tiles of a frame in even light."""
        tiles = self.seen.tiles[index].copy()
        apply(self.seen.light[index], tiles)
        return tiles

    def features(self, index: int) -> Features:
        """Those of a frame's tiles."""
        return self.seen.features[index]

    def samples(self, index: int, tile: int, bits: bytes, scales: bytes) -> tuple[bytes, bytes]:
        """`bits` and `scales` of a tile, and behind them those of its turns."""
        return self._turned.samples(bits, scales, self.seen.tiles[index][tile], self.seen.light[index])

    def learn(self, learner: Learner, index: int, arrived: list[GivenLabel]) -> Learner:
        """Called after each tick with the labels that it had; the learner to go on with."""
        return learner


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """How a flight is flown; the defaults are those that fly. answers: of the operator, from the true class, the class
    that was said and a random generator: (answer, whether it is denied)."""

    settings: Learning = Learning(cpu_share=1.0)
    learner: type[Learner] = Learner
    backbone: type[Backbone] = Backbone
    asker: type[Asker] = Asker
    delay: int = 20
    share: float = 0.03
    turned: bool = True
    smoothed: bool = True
    even_light: bool = True
    frozen_at: int = 0
    answers: Callable[[int, int, int, np.random.Generator], tuple[int, bool]] = lambda truth, said, classes, random: (
        truth,
        False,
    )


def wrong(share: float) -> Callable[[int, int, int, np.random.Generator], tuple[int, bool]]:
    """An operator who answers another class in this share of the answers."""

    def answers(truth: int, said: int, classes: int, random: np.random.Generator) -> tuple[int, bool]:
        other = (truth + 1 + int(random.integers(max(1, classes - 1)))) % classes
        return (other if random.random() < share else truth), False

    return answers


def fly(seen: Recorded, seed: int, how: Conditions) -> Flown:
    """Fly over a recorded stream as a replay does, with `seed`."""
    backbone = how.backbone(seen, seed)
    model = backbone.model
    learner = how.learner(model, how.settings, seen.rows, seen.cols)
    asker, smoother = how.asker(how.share, seen.rows, seen.cols, seed), Smoother(seen.rows, seen.cols)
    path, random = Path(HISTORY_FRAMES), np.random.default_rng((seed, 1))
    under_way: list[tuple[int, GivenLabel]] = []
    said, frozen, ticks, asked, labels, kept = [], [], [], 0, 0, model
    arrived: list[GivenLabel] = []
    for index in range(len(seen.features)):
        features = backbone.features(index)
        path.add(index, seen.motion[index])
        values, motion = features.values(), seen.motion[index]
        head = softmax(head_logits(learner.model, values))
        for given in arrived:  # with the frame before this one
            smoother.answered(Label(id=given.id, query=given.id, answer=given.answer, wrong=given.wrong))
        out = smoother.step(head, motion) if how.smoothed else head
        said.append(out.argmax(axis=1))
        kept = learner.model if index <= how.frozen_at else kept
        frozen.append(head_logits(kept, values).argmax(axis=1))
        arrived = [given for due, given in under_way if due <= index]
        under_way = [(due, given) for due, given in under_way if due > index]
        scales = features.scales.astype(np.float16)
        for tile in asker.choose(index, path, values, out.max(axis=1)):
            asked += 1
            smoother.asked(asked, tile, learner.model.classes)
            own = features.bits[tile].tobytes(), scales[tile].tobytes()
            if how.turned:
                own = backbone.samples(index, tile, *own)
            truth = int(seen.truth[index, tile])
            answer, denied = how.answers(truth, int(said[-1][tile]), len(seen.classes), random)
            name = "" if truth == UNKNOWN else seen.classes[answer]
            under_way.append((index + how.delay, GivenLabel(asked, asked, index, tile, name, *own, wrong=denied)))
        raw = None if motion is None else motion.tobytes()
        learner.observe(Observation(1, index, features.bits.tobytes(), scales.tobytes(), raw))
        start = time.perf_counter()
        for given in arrived:
            learner.label(given)
            labels += given.answer != ""
        learner.step()
        if arrived:
            ticks.append((time.perf_counter() - start) * 1e3)
            learner = backbone.learn(learner, index, arrived)
    everything = np.stack(said).astype(np.intp)
    scored = seen.scored
    scored[: -(-len(scored) // WINDOWS) + how.delay] = False
    right = everything == seen.truth
    parts = np.array_split(np.arange(len(scored)), WINDOWS)
    return Flown(
        macro_f1(seen.truth[scored], everything[scored], len(seen.classes)),
        float(right[scored].mean()),
        [float(right[p][scored[p]].mean()) for p in parts if scored[p].any()],
        labels,
        ticks,
        everything,
        np.stack(frozen).astype(np.intp),
        learner,
        backbone,
    )
