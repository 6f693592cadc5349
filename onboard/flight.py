"""One frame after another: tiles, packed inference, registration, smoothing, questions. Waits for nothing.

The same object flies in `onboard run` and in `onboard replay`. A step has two parts: `look` is what does not depend on
the head in force, and may be a frame or two ahead in another thread; `decide` is what does.
"""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from link.messages import Detections, Query, Status
from models import rangecoder
from models.engine import Engine, Features
from models.model import Model
from onboard import footprint, shrink
from onboard.budget import BESIDE_PICTURE_BYTES, Budget
from onboard.config import Config
from onboard.desk import Desk, Post
from onboard.detections import FrameResult
from onboard.exposure import Exposure, apply
from onboard.frame import Frame
from onboard.grid import crop, cut, jpeg, one
from onboard.head import head_logits
from onboard.learner import HISTORY_FRAMES, Observation
from onboard.queries import Asker
from onboard.recorder import Recorder
from onboard.registration import Registration
from onboard.smoothing import Smoother
from onboard.tracks import Path
from onboard.turned import Turned

LATENCIES_KEPT = 20_000
STATUS_EVERY_S = 1.0

Floats32 = NDArray[np.float32]
Bits = NDArray[np.uint8]
Scales = NDArray[np.float16]


class Look(msgspec.Struct, frozen=True):
    """What one frame shows, whatever was learned: features of its tiles, motion (3, 3) to the frame before or None.

    light: the table of `onboard.exposure` that its tiles went through. inference_ms, whole_ms: how long the features
    took, and all of it.
    """

    frame: Frame
    features: Features
    motion: NDArray[np.float64] | None
    light: NDArray[np.uint8]
    inference_ms: float
    whole_ms: float


class Step(msgspec.Struct, frozen=True):
    """What one frame led to. `head`: probabilities of the head alone, `out`: after smoothing, both (tiles, classes);
    around: whether the smoothing took in the neighbouring tiles."""

    result: FrameResult
    features: Features
    head: Floats32
    out: Floats32
    around: bool
    motion: NDArray[np.float64] | None
    asked: tuple[Query, ...]


def softmax(logits: Floats32) -> Floats32:
    """Probabilities along the last axis."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Floats32 = e / e.sum(axis=1, keepdims=True)
    return out


class Flight:
    """The flight: give it frames. Everything that may wait is handed to the desk, the link and the recorder."""

    def __init__(self, config: Config, base: Model, desk: Desk, post: Post, recorder: Recorder | None) -> None:
        rows, cols = config.camera.rows, config.camera.cols
        self.frames = 0
        self.dropped = 0
        self.inference_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self.whole_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._config = config
        self._desk = desk
        self._post = post
        self._recorder = recorder
        self._engine = Engine(base, threads=config.model.threads)
        self._engine.warm_up()
        shrink.warm_up()
        rangecoder.warm_up()  # else the first model that is learned would wait for a compiler, and frames with it
        self._tiles = np.zeros((rows * cols, base.spec.input_size, base.spec.input_size, 3), np.uint8)
        self._exposure = Exposure(base.spec.mean[::-1])
        self._turned = Turned(base)
        self._registration = Registration(rows, cols)
        self._beside = ThreadPoolExecutor(1, "registration")
        self._path = Path(HISTORY_FRAMES)
        self._smoother = Smoother(rows, cols)
        self._position = 0
        self._asker = Asker(config.ask.share, rows, cols, config.seed)
        self._budget = Budget(config.ask.bytes_per_s)
        self.questions = 0
        self._last_status_s = 0.0
        self._started_s = time.monotonic()

    def step(self, frame: Frame) -> Step:
        """Fly one frame. Raises SourceError for one that is too small for the grid."""
        return self.decide(self.look(frame))

    def look(self, frame: Frame) -> Look:
        """The first part of `step`, for each frame in turn. Raises SourceError as `step` does."""
        start = time.perf_counter()
        camera = self._config.camera
        cut(frame.image, camera.rows, camera.cols, self._tiles.shape[1], self._tiles)
        motion = self._beside.submit(self._registration.step, frame.image)
        light = self._exposure.step(self._tiles)
        apply(light, self._tiles)
        features = self._engine.features(self._tiles)
        inferred = time.perf_counter()
        whole = motion.result()
        return Look(frame, features, whole, light, (inferred - start) * 1e3, (time.perf_counter() - start) * 1e3)

    def decide(self, look: Look) -> Step:
        """The second part of `step`, for each look in turn."""
        start = time.perf_counter()
        rows, cols = self._config.camera.rows, self._config.camera.cols
        frame, features, motion = look.frame, look.features, look.motion
        model = self._desk.model  # one immutable model for the whole frame
        values = features.values()
        head = softmax(head_logits(model, values))
        decided = time.perf_counter()
        self._path.add(frame.index, motion)
        for answer in self._desk.answered(self._position):
            self._smoother.answered(answer)
        out = self._smoother.step(head, motion)
        classes = out.argmax(axis=1).astype(np.uint8)
        result = FrameResult(
            frame=frame,
            rows=rows,
            cols=cols,
            classes=classes,
            confidence=out[np.arange(len(out)), classes],
            class_names=model.classes,
        )
        bits, scales = features.bits, features.scales.astype(np.float16)  # as label log and learner keep them
        asked = self._ask(result, look.light, bits, scales, values)
        self._hand_over(result, model, bits, scales, motion)
        self.inference_ms.append(look.inference_ms + (decided - start) * 1e3)
        self.whole_ms.append(look.whole_ms + (time.perf_counter() - start) * 1e3)
        self.frames += 1
        return Step(result, features, head, out, self._smoother.around, motion, asked)

    def _ask(self, result: FrameResult, light: Bits, bits: Bits, scales: Scales, values: Floats32) -> tuple[Query, ...]:
        frame, ask = result.frame, self._config.ask
        queries = []
        most = self._budget.affords(frame.t_ns, len(values))
        for tile in self._asker.choose(frame.index, self._path, values, result.confidence, most):
            self.questions += 1
            row, col = divmod(tile, result.cols)
            lat, lon = self._place(frame, row, col)
            query = Query(
                id=self._desk.log.boot << 32 | self.questions,
                frame=frame.index,
                frame_name=frame.name,
                t_ns=frame.t_ns,
                row=row,
                col=col,
                track=self.questions,
                guess=int(result.classes[tile]),
                confidence=round(float(result.confidence[tile]), 3),
                jpeg=jpeg(crop(frame.image, result.rows, result.cols, tile, ask.crop_px), ask.jpeg_quality),
                lat_deg=lat,
                lon_deg=lon,
            )
            self._budget.spend(len(query.jpeg) + BESIDE_PICTURE_BYTES)
            own = bits[tile].tobytes(), scales[tile].tobytes()
            seen = one(frame.image, result.rows, result.cols, tile, self._tiles.shape[1])
            self._desk.ask(query, partial(self._turned.samples, *own, seen, light))
            self._smoother.asked(query.id, tile, result.class_names)
            queries.append(query)
        return tuple(queries)

    def _place(self, frame: Frame, row: int, col: int) -> tuple[float | None, float | None]:
        """Where a tile's centre lies on the ground; the camera's own position where its pose does not tell."""
        camera, (height, width) = self._config.camera, frame.image.shape[:2]
        ground = footprint.tiles(frame.pose, camera.fov_deg, width, height, camera.rows, camera.cols)
        if ground is None or np.isnan(ground[row, col]).any():
            return frame.pose.lat_deg, frame.pose.lon_deg
        return float(ground[row, col, 0]), float(ground[row, col, 1])

    def _hand_over(
        self, result: FrameResult, model: Model, bits: Bits, scales: Scales, motion: NDArray[np.float64] | None
    ) -> None:
        frame = result.frame
        self._position = self._desk.frame(
            Observation(
                self._desk.log.boot,
                frame.index,
                bits.tobytes(),
                scales.tobytes(),
                None if motion is None else motion.tobytes(),
            )
        )
        self._post.post(
            Detections(
                frame=frame.index,
                t_ns=frame.t_ns,
                rows=result.rows,
                cols=result.cols,
                classes=result.classes.tobytes(),
                confidence=np.round(result.confidence * 255).astype(np.uint8).tobytes(),
            )
        )
        if (now := time.monotonic()) - self._last_status_s >= STATUS_EVERY_S:
            self._last_status_s = now
            status = self.status(frame)
            self._post.post(status)
            self._desk.tell(status)
        if self._recorder:
            self._recorder.frame(result, model, self._position)

    def status(self, frame: Frame) -> Status:
        """How the drone is, as of this frame."""
        pose, desk = frame.pose, self._desk
        recent = list(self.whole_ms)[-20:]
        return Status(
            frame=frame.index,
            t_ns=frame.t_ns,
            lat_deg=pose.lat_deg,
            lon_deg=pose.lon_deg,
            alt_m=pose.alt_m,
            yaw_deg=pose.yaw_deg,
            fps=round(self.frames / max(1e-9, time.monotonic() - self._started_s), 2),
            latency_ms=round(sum(recent) / len(recent), 2) if recent else 0.0,
            dropped=self.dropped,
            labels=desk.answers,
            updates=desk.updates,
            rollbacks=desk.rollbacks,
            learner=desk.learner,
            recorder="off" if self._recorder is None else self._recorder.stats.problem or "recording",
            model_hash=bytes.fromhex(desk.model.hash),
        )
