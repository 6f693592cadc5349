"""A believable flight as messages: a drone mows a made-up landscape and asks about the tiles it is unsure of.

``python -m tests.ground_flight KEYS.toml MODELS`` flies it in real time against ``ground serve --models MODELS``.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from link.drone import DroneLink
from link.keys import DroneKeys
from link.messages import PROTOCOL, Delta, Detections, Hello, Message, Query, Status
from models import artifact, delta
from models.model import Model, head_shapes
from models.network import Block, NetworkSpec, Stem

CLASSES = ("object", "road", "trees", "ground")
ROWS, COLS, TILE = 4, 6, 48
METRES_PER_PIXEL = 0.5
HOME = (30.2672, -97.7431)


def landscape(seed: int, side: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """A picture (side, side, 3) uint8 BGR and the class number of each pixel."""
    rng = np.random.default_rng(seed)

    def noise(cell: int) -> np.ndarray:
        coarse = rng.random((side // cell + 2, side // cell + 2)).astype(np.float32)
        return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)

    truth = np.full((side, side), 3, np.uint8)
    truth[noise(90) + 0.3 * noise(12) > 0.85] = 2
    road = (np.cumsum(rng.normal(0, 1, 60)) * 14 + side / 2).clip(40, side - 40)
    points = np.stack([np.linspace(0, side, 60), road], axis=1).astype(np.int32)
    cv2.polylines(truth, [points], False, 1, 26)
    cv2.polylines(truth, [points[:, ::-1].copy()], False, 1, 18)
    for x, y in rng.integers(60, side - 90, (45, 2)):
        cv2.rectangle(truth, (int(x), int(y)), (int(x) + 34, int(y) + 24), 0, -1)
    colours = np.array([[205, 210, 215], [120, 122, 126], [38, 74, 44], [96, 138, 150]], np.float32)
    grain = 0.72 + 0.25 * noise(30) + 0.2 * rng.random((side, side), dtype=np.float32)
    image = cv2.GaussianBlur(colours[truth] * grain[..., None], (5, 5), 0)
    return image.clip(0, 255).astype(np.uint8), truth


SPEC = NetworkSpec(
    name="ground-test",
    input_size=8,
    mean=(0, 0, 0),
    stem=Stem(channels=4),
    blocks=(Block(channels=16),),
    taps=(0,),
)


def small_model(classes: tuple[str, ...] = CLASSES) -> Model:
    """A model that is small and the same every time."""
    rng = np.random.default_rng(1)
    tensors = {}
    for name, (dtype, shape) in (SPEC.shapes() | head_shapes(SPEC, len(classes))).items():
        values = rng.normal(size=shape) if dtype == "float32" else rng.integers(1, 100, shape)
        tensors[name] = values.astype(dtype)
    return Model(SPEC, tensors, classes)


def learned(model: Model, seed: int) -> Model:
    """`model` with a few weights of its head changed."""
    weight = model.tensors["head.weight"].copy()
    rng = np.random.default_rng(seed)
    weight.flat[rng.integers(0, weight.size, 16)] += rng.integers(1, 5, 16).astype(np.int16)
    return model.with_tensors({"head.weight": weight})


def step(old: Model, new: Model, frame: int, **fields: object) -> Delta:
    """The message that takes a mirror from `old` to `new`."""
    payload = delta.encode(old, new)
    return Delta(parent=bytes.fromhex(old.hash), result=bytes.fromhex(new.hash), frame=frame, payload=payload, **fields)


def hello(base: Model, model: Model) -> Hello:
    """What the drone says first."""
    return Hello(
        protocol=PROTOCOL,
        drone="kestrel",
        boot=7,
        base_hash=bytes.fromhex(base.hash),
        model_hash=bytes.fromhex(model.hash),
        classes=model.classes,
        rows=ROWS,
        cols=COLS,
        t_ns=0,
    )


def flight(frames: int, seed: int = 3, model_hash: bytes = b"", ask_every: int = 4) -> Iterator[list[Message]]:
    """The messages of each frame: a status, what it sees, and now and then a question."""
    image, truth = landscape(seed)
    rng = np.random.default_rng(seed)
    high, wide = ROWS * TILE, COLS * TILE
    lanes = 5
    for frame in range(frames):
        along = frame * lanes / frames
        lane = int(along)
        share = along - lane if lane % 2 == 0 else 1 - (along - lane)
        y = int(40 + share * (image.shape[0] - high - 80))
        x = int(20 + lane * (image.shape[1] - wide - 40) / (lanes - 1) + 12 * np.sin(along * 9))
        east, north = (x + wide / 2) * METRES_PER_PIXEL, -(y + high / 2) * METRES_PER_PIXEL
        lat = HOME[0] + north / 111320
        lon = HOME[1] + east / 111320 / np.cos(np.radians(HOME[0]))
        yield list(
            _frame(frame, image, truth, (x, y), (lat, lon), 180.0 if lane % 2 == 0 else 0.0, rng, model_hash, ask_every)
        )


def _frame(
    frame: int,
    image: np.ndarray,
    truth: np.ndarray,
    corner: tuple[int, int],
    place: tuple[float, float],
    yaw: float,
    rng: np.random.Generator,
    model_hash: bytes,
    ask_every: int,
) -> Iterator[Message]:
    x, y = corner
    lat, lon = float(place[0]), float(place[1])
    t_ns = 1_795_000_000_000_000_000 + frame * 200_000_000
    tiles = truth[y : y + ROWS * TILE, x : x + COLS * TILE].reshape(ROWS, TILE, COLS, TILE).swapaxes(1, 2)
    counts = np.stack([(tiles == c).mean(axis=(2, 3)) for c in range(4)], axis=-1)
    found, sure = counts.argmax(-1), counts.max(-1)
    yield Status(
        frame=frame,
        t_ns=t_ns,
        lat_deg=lat,
        lon_deg=lon,
        alt_m=212.0,
        yaw_deg=yaw,
        fps=4.9,
        latency_ms=61.3,
        labels=frame // 9,
        updates=frame // 40,
        learner="learning",
        recorder="recording",
        model_hash=model_hash,
    )
    yield Detections(
        frame=frame,
        t_ns=t_ns,
        rows=ROWS,
        cols=COLS,
        classes=found.astype(np.uint8).tobytes(),
        confidence=(255 * sure).astype(np.uint8).tobytes(),
    )
    if frame % ask_every == 0:
        row, col = divmod(int((sure + 0.2 * rng.random(sure.shape)).argmin()), COLS)
        px, py = x + col * TILE, y + row * TILE
        crop = image[max(0, py - TILE) : py + 2 * TILE, max(0, px - TILE) : px + 2 * TILE]
        yield Query(
            id=(7 << 32) + frame,
            frame=frame,
            frame_name=f"frame{frame:05d}.jpg",
            t_ns=t_ns,
            row=row,
            col=col,
            track=frame,
            guess=int(found[row, col]),
            confidence=float(sure[row, col]),
            jpeg=cv2.imencode(".jpg", crop)[1].tobytes(),
            lat_deg=lat,
            lon_deg=lon,
        )


def main() -> None:
    """Fly against a running station, in real time, until Ctrl-C; then until it has everything."""
    keys, models = DroneKeys.load(Path(sys.argv[1])), Path(sys.argv[2])
    base = small_model()
    artifact.save(base, models / "ground-test.safetensors")
    now = learned(base, 1)
    with tempfile.TemporaryDirectory() as folder:
        link = DroneLink(
            keys, Path(folder), lambda: hello(base, now), lambda message: print("from the ground:", message)
        )
        link.start()
        link.post(step(base, now, 0))
        with contextlib.suppress(KeyboardInterrupt):
            for messages in flight(600, model_hash=bytes.fromhex(now.hash)):
                for message in messages:
                    link.post(message)
                time.sleep(0.2)
        print("all arrived" if link.flush(30) else "the station did not take everything")
        link.close()


if __name__ == "__main__":
    main()
