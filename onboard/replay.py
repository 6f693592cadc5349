"""A recorded or simulated flight through the code that flies, with a simulated operator, in lockstep with the learner.

Learning is tied to frames, not to the clock: at the end of each frame the replay waits for the learner, so the same
flight, labels and seed give the same model at any speed.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import cv2
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from link.codec import decode, encode
from link.messages import Delta, Label, Message, Query, Undo
from link.mirror import Mirror
from link.wire import wire_bytes
from models.errors import ConfigError, HadanetError, SourceError, TruthError
from models.model import Model
from onboard.ahead import ahead
from onboard.asflown import AsFlown, AsFlownReport, can_learn, obstacle
from onboard.assembly import Assembly
from onboard.boot import learner_process
from onboard.config import Config
from onboard.flight import Flight, Look
from onboard.frame import Frame, Skipped, Source
from onboard.operator import Operator, straight, through_station
from onboard.report import Report, Timeline, percentiles
from onboard.scores import MAX_FRAMES, Scorer
from onboard.sim.source import SimSource
from onboard.sources import open_source
from onboard.sources.recording import RecordingSource
from onboard.sources.window import Window
from onboard.supervisor import Supervisor
from onboard.thinned import Thinned
from onboard.truth import Truth

_log = logging.getLogger(__name__)

LEARNER_TIMEOUT_S = 60.0
LOOK_S = 1.0
"""How often to look whether there is a learner to wait for."""
ANSWER_TIMEOUT_S = 20.0
MIRROR_TIMEOUT_S = 20.0
RECORDER_TIMEOUT_S = 60.0
"""How long a replay waits for a slow disk before the recorder drops frames, as it would in flight."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. `page`: a station's page, which then carries the answers. `speed` 0: no pacing.

    `classes` is empty where none were asked for. given: the settings of the command line that go before those of a
    recording: seed, classes, label_rate, no_learning, config. start_s, end_s, loops: which part of the flight, and how
    often.
    """

    source: str
    classes: tuple[str, ...] = ()
    truth: Path | None = None
    letters: dict[str, str] = {}
    given: frozenset[str] = frozenset()
    label_delay: int = 5
    speed: float = 0.0
    state: Path | None = None
    page: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    loops: int = 1


class Loopback:
    """The link of a replay without a station: every message is encoded, counted, decoded, and mirrored."""

    def __init__(self, base: Model) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self.mirror = Mirror(base)

    def post(self, message: Message) -> None:
        """What a station would receive. Called by the flight's thread and by the desk's."""
        data = encode(message)
        self.bytes_up += wire_bytes(len(data))
        if isinstance(received := decode(data), Delta):
            self.mirror.apply(received)

    def down(self, message: Label | Undo) -> Message:
        """What a station would have sent."""
        data = encode(message)
        self.bytes_down += wire_bytes(len(data))
        return decode(data)


def run(config: Config, options: Options, progress: Progress | None = None) -> Report:
    """Replay one flight. Raises HadanetError for everything that a user can mend."""
    if options.page and not config.link.keys:
        raise ConfigError(f"--page {options.page}: answers go through a station only with the drone's --keys for it")
    cv2.setNumThreads(1)  # the stages of a replay share the cores already; OpenCV's threads spin for each other's turn
    with ExitStack() as stack:
        source = open_source(options.source)
        stack.callback(source.close)
        for problem in getattr(source, "problems", ()) if hasattr(source, "alignment") else ():
            _log.warning("%s", problem)  # of a log; frames that are missing are told one by one
        recording = source if isinstance(source, RecordingSource) else None
        if recording:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hadanet-recorded-")))
            config = _recorded(config, options.given, recording, folder)
        config, truth = _with_truth(config, options, source)
        if (options.start_s, options.end_s, options.loops) != (0.0, None, 1):
            source = window = Window(source, options.start_s, options.end_s, options.loops)
            truth = truth and window.truth(truth)
        state = options.state
        if state is None:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hadanet-replay-")))
        assembly = Assembly(config, state, None if config.link.keys else Loopback)
        stack.enter_context(assembly)
        if recording and (truth or options.loops > 1 or not isinstance(assembly.post, Loopback)):
            recording = None  # other labels than the recorded ones
        elif recording and (why := obstacle(config, assembly.base, recording)):
            _log.warning("%s: flown as a new flight, without its recorded labels: %s", source.uri, why)
            recording = None
        return _Replay(config, options, source, truth, recording, assembly, stack).fly(progress or _progress(stack))


def _progress(stack: ExitStack) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return stack.enter_context(Progress(*columns))


def _recorded(config: Config, given: frozenset[str], recording: RecordingSource, folder: Path) -> Config:
    """The configuration that a recording flew with, but for what was given; `folder` takes a model file out of it."""
    recorded = recording.config
    if recorded is None or "config" in given:
        return config
    replace = msgspec.structs.replace
    model = replace(recorded.model, threads=config.model.threads)
    if model.artifact and (data := recording.artifact()) is not None:
        path = folder / "artifact.safetensors"
        path.write_bytes(data)
        model = replace(model, artifact=str(path))
    if "classes" in given:
        model = replace(model, classes=config.model.classes)
    return replace(
        config,
        seed=config.seed if "seed" in given else recorded.seed,
        camera=replace(config.camera, rows=recorded.camera.rows, cols=recorded.camera.cols),
        model=model,
        learn=config.learn if "no_learning" in given else recorded.learn,
        ask=config.ask if "label_rate" in given else recorded.ask,
    )


def _with_truth(config: Config, options: Options, source: Source) -> tuple[Config, Truth | None]:
    """The truth of this flight, and the configuration with the truth's grid and, from a simulation, its classes."""
    replace = msgspec.structs.replace
    truth: Truth | None = None
    if options.truth is not None:
        classes = config.model.classes
        truth = Truth.from_csv(options.truth, options.letters or default_letters(classes), classes)
    elif isinstance(source, SimSource):
        truth = source.truth
        if options.classes and set(options.classes) != set(truth.classes):
            raise ConfigError(
                f"--classes {','.join(options.classes)}: the simulated flight has {','.join(truth.classes)}; "
                "leave --classes out, or give a --truth file"
            )
        config = replace(config, model=replace(config.model, classes=truth.classes))
    if truth is not None:
        config = replace(config, camera=replace(config.camera, rows=truth.rows, cols=truth.cols))
    return config, truth


class _Replay:
    def __init__(
        self,
        config: Config,
        options: Options,
        source: Source,
        truth: Truth | None,
        recording: RecordingSource | None,
        assembly: Assembly,
        stack: ExitStack,
    ) -> None:
        self.config, self.options, self.source, self.assembly = config, options, source, assembly
        self.frames = Thinned[tuple[int, int]](MAX_FRAMES)  # number, bytes sent: as many as there are scores of
        self.arrived = Thinned[int](MAX_FRAMES)
        self.skipped: list[Skipped] = []
        self.started = 0.0
        self.first_ns: int | None = None
        self.operator: Operator | None = None
        self.scorer: Scorer | None = None
        self.labels = 0
        self.answers = assembly.desk.answers
        if truth is not None:
            rows, cols = config.camera.rows, config.camera.cols
            self.scorer = Scorer(truth, rows, cols, config.learn.ridge, config.seed)
            self.operator = Operator(truth, options.label_delay, self._deliverer())
        self.as_flown: AsFlown | None = None
        if recording:
            self.as_flown = AsFlown(recording, assembly.desk, assembly.base, self._receive)
        self.learner: Supervisor | None = None
        if config.learn.enabled and (recording is None or can_learn(recording)):
            hurried = msgspec.structs.replace(config.learn, cpu_share=1.0)  # frames wait for it: it need not rest,
            process = learner_process(msgspec.structs.replace(config, learn=hurried), assembly.state)
            self.learner = Supervisor([msgspec.structs.replace(process, needed=True, nice=0)])  # nor stand back
            self.learner.start()
            stack.callback(self.learner.close)

    def _deliverer(self) -> Callable[[Query, str], None]:
        post = self.assembly.post
        if self.options.page:
            name = self.assembly.name
            deliver = through_station(self.options.page, name)
        elif isinstance(post, Loopback):
            deliver = straight(self._receive)
        else:
            raise ConfigError("a station is configured: give its page with --page, so that answers can go through it")

        def counted(query: Query, answer: str) -> None:
            deliver(query, answer)
            self.answers += 1
            self.labels += bool(answer)
            self.arrived.add(query.frame + self.options.label_delay)

        return counted

    def _receive(self, message: Label | Undo) -> None:
        """Take a label as if a station had sent it."""
        post = self.assembly.post
        assert isinstance(post, Loopback)
        self.assembly.desk.receive(post.down(message))

    def fly(self, progress: Progress) -> Report:
        flight, desk = self.assembly.flight, self.assembly.desk
        task = progress.add_task("flying", total=self.source.length)
        self.started = time.monotonic()
        with closing(_looks(self.source, flight)) as looks:
            for seen in looks:
                if isinstance(seen, Skipped):
                    self.skipped.append(seen)
                else:
                    self._decide(seen)
                right = f", {self.scorer.recently():.0%} right" if self.scorer and flight.frames else ""
                progress.update(task, advance=1, description=f"{self.labels} labels, {desk.updates} updates{right}")
        if flight.frames == 0:
            reasons = "; ".join(f"{s.name}: {s.reason}" for s in self.skipped[:3])
            raise HadanetError(f"{self.source.uri}: no frame could be read ({reasons or 'it holds none'})")
        as_flown = self.as_flown.finish() if self.as_flown else None
        return self._report(time.monotonic() - self.started, as_flown)

    def _decide(self, look: Look) -> None:
        """Fly one frame that was looked at, and wait for the learner."""
        desk, frame = self.assembly.desk, look.frame
        self._pace(frame)
        if self.operator:
            self.operator.answer(frame.index)
            if not desk.wait_answers(self.answers, ANSWER_TIMEOUT_S):
                raise HadanetError(f"frame {frame.name}: an answer given to the station did not come back up the link")
        if self.as_flown:
            self._count(self.as_flown.before(frame), frame)
        step = self.assembly.flight.decide(look)
        if self.as_flown:
            self.as_flown.after(step)
        if self.operator and self.scorer:
            self.operator.ask(step.asked, frame)
            self.scorer.see(frame, step)
        if self.learner:
            self._await(self.learner, frame)
        if self.assembly.recorder:
            self.assembly.recorder.wait(RECORDER_TIMEOUT_S)
        self.frames.add((frame.index, self._bytes()[0]))

    def _count(self, labels: tuple[Label | Undo, ...], frame: Frame) -> None:
        """Count recorded labels that were given at a frame."""
        for label in labels:
            self.labels += isinstance(label, Label) and bool(label.answer)
            self.arrived.add(frame.index)

    def _await(self, learner: Supervisor, frame: Frame) -> None:
        """Wait until the learner is done with a frame; one that was killed is started again meanwhile."""
        desk, deadline = self.assembly.desk, time.monotonic() + LEARNER_TIMEOUT_S
        status = learner.wait(lambda: desk.wait(frame.index, LOOK_S) or time.monotonic() > deadline)
        if not desk.wait(frame.index, 0.0):
            if time.monotonic() > deadline:
                raise HadanetError(f"frame {frame.name}: the learner gave no sign for {LEARNER_TIMEOUT_S:.0f} s")
            raise HadanetError(f"frame {frame.name}: the learner ended with status {status}; its own words stand above")

    def _pace(self, frame: Frame) -> None:
        self.first_ns = frame.t_ns if self.first_ns is None else self.first_ns
        if self.options.speed > 0:
            due = self.started + (frame.t_ns - self.first_ns) * 1e-9 / self.options.speed
            time.sleep(max(0.0, due - time.monotonic()))

    def _bytes(self) -> tuple[int, int]:
        post = self.assembly.post
        if isinstance(post, Loopback):
            return post.bytes_up, post.bytes_down
        if self.assembly.link:
            return self.assembly.link.stats.bytes_up, self.assembly.link.stats.bytes_down
        return 0, 0

    def _mirror_hash(self) -> str:
        post, desk = self.assembly.post, self.assembly.desk
        if isinstance(post, Loopback):
            return post.mirror.model.hash
        assert self.assembly.link is not None
        self.assembly.link.flush(MIRROR_TIMEOUT_S)
        desk.wait_mirror(MIRROR_TIMEOUT_S)
        return desk.mirror_hash

    def _report(self, elapsed_s: float, as_flown: AsFlownReport | None) -> Report:
        flight, desk, config = self.assembly.flight, self.assembly.desk, self.config
        tiles = flight.frames * config.camera.rows * config.camera.cols
        scores = self.scorer.scores(desk.model, self.labels, self.options.label_delay) if self.scorer else None
        mirror_hash = self._mirror_hash()
        up, down = self._bytes()
        return Report(
            source=self.source.uri,
            frames=flight.frames,
            frames_dropped=flight.dropped,
            frames_skipped=[f"{s.name}: {s.reason}" for s in self.skipped],
            tiles=tiles,
            classes=list(desk.model.classes),
            labels_used=self.labels,
            label_rate=self.labels / tiles,
            questions=flight.questions,
            accuracy=scores.accuracy if scores else None,
            macro_f1=scores.macro_f1 if scores else None,
            windows=scores.windows if scores else None,
            updates=desk.updates,
            rollbacks=desk.rollbacks,
            learner_restarts=self.learner.restarts if self.learner else 0,
            latency_ms=percentiles(flight.whole_ms) | percentiles(flight.inference_ms, "inference_"),
            fps=flight.frames / elapsed_s,
            bytes_up=up,
            bytes_down=down,
            delta_bytes=list(desk.deltas),
            model_hash=desk.model.hash,
            base_hash=self.assembly.base.hash,
            mirror_hash=mirror_hash,
            seed=config.seed,
            as_flown=as_flown,
            timeline=Timeline(
                frames=[number for number, _ in self.frames.items],
                labels=self.arrived.items,
                bytes_up=[sent for _, sent in self.frames.items],
                hits=scores.hits if scores else {},
            ),
        )


def _frames(source: Source) -> Iterator[Frame | Skipped]:
    """Frames, and between them what was skipped: with the reader ahead, `source.skipped` is ahead as well."""
    told = 0
    for frame in source.frames():
        yield from source.skipped[told:]
        told = len(source.skipped)
        yield frame
    yield from source.skipped[told:]


def _looks(source: Source, flight: Flight) -> Generator[Look | Skipped, None, None]:
    """Frames as the flight sees them. Two frames ahead are decoded and looked at in threads; a camera waits for us."""

    def look(frame: Frame | Skipped) -> Look | Skipped:
        if isinstance(frame, Skipped):
            return frame
        try:
            return flight.look(frame)
        except SourceError as error:  # one frame that is too small must not end a flight
            return Skipped(name=frame.name, reason=str(error))

    if source.live:
        yield from map(look, _frames(source))
        return
    with ahead(lambda: _frames(source)) as frames, ahead(lambda: map(look, frames)) as looks:
        yield from looks


def letters(text: str) -> dict[str, str]:
    """`O=object,R=road` as a dictionary. Raises TruthError.

    >>> letters("O=object,R=road")
    {'O': 'object', 'R': 'road'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not pairs or any(len(letter) != 1 or not name for letter, _, name in pairs):
        raise TruthError(f"letters {text!r}: write one letter, an equals sign and a class, as in O=object,R=road")
    return {letter: name for letter, _, name in pairs}


def default_letters(classes: tuple[str, ...]) -> dict[str, str]:
    """The first letter of each class, in upper case. Raises TruthError where two classes share it."""
    table = {name[0].upper(): name for name in classes}
    if len(table) != len(classes):
        raise TruthError("two classes begin with the same letter: say which is which with --letters")
    return table
