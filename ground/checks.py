"""What a drone sends is somebody else's data: bounds on every value before it is stored or shown."""

import math

import msgspec

from link.messages import HASH_BYTES, Detections, Hello, Message, Problems, Query, Status
from models.errors import LinkError
from models.model import MAX_CLASSES

MAX_JPEG_BYTES = 200 * 1024
MAX_NAME_CHARS = 256
MAX_SIDE = 255
"""Rows or columns of a grid."""


def check_integers(message: Message) -> None:
    """Integers must fit a database column of 64 bits; the numbers of questions and boots have checks of their own."""
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, int) and name not in ("id", "boot") and not -(2**63) <= value < 2**63:
            raise LinkError(f"its {name} {value} does not fit 64 bits")


def check_hello(hello: Hello) -> None:
    """Raise LinkError where a drone cannot be as it says."""
    check_integers(hello)
    if len(hello.base_hash) != HASH_BYTES or len(hello.model_hash) != HASH_BYTES:
        raise LinkError(f"a model hash has {HASH_BYTES} bytes")
    if not 1 <= len(hello.classes) <= MAX_CLASSES or not all(
        0 < len(name) <= MAX_NAME_CHARS and name.isprintable() for name in hello.classes
    ):
        raise LinkError(
            f"a drone has 1 to {MAX_CLASSES} classes with printable names of 1 to {MAX_NAME_CHARS} characters"
        )
    if not (0 < hello.rows <= MAX_SIDE and 0 < hello.cols <= MAX_SIDE and 0 <= hello.boot < 2**64):
        raise LinkError(f"a grid of {hello.rows} x {hello.cols} tiles or the boot number {hello.boot} cannot be")


def check_query(query: Query, rows: int, cols: int) -> Query:
    """A question about a tile of a grid of `rows` x `cols`; a place that is not on Earth is left out of the result."""
    check_integers(query)
    if not 0 <= query.id < 2**64:
        raise LinkError(f"{query.id} is not a question's number")
    if not (0 <= query.row < rows and 0 <= query.col < cols):
        raise LinkError(f"row {query.row}, column {query.col} lies outside the grid of {rows} x {cols}")
    if not query.jpeg.startswith(b"\xff\xd8") or len(query.jpeg) > MAX_JPEG_BYTES:
        raise LinkError(f"its picture is not a JPEG of at most {MAX_JPEG_BYTES >> 10} KiB")
    if not 0 <= query.confidence <= 1:
        raise LinkError(f"its confidence {query.confidence} is not within 0 and 1")
    lat, lon = _place(query.lat_deg, query.lon_deg)
    return msgspec.structs.replace(query, frame_name=_text(query.frame_name), lat_deg=lat, lon_deg=lon)


def check_status(status: Status) -> Status:
    """A status in which every number is finite and every text short."""
    check_integers(status)
    lat, lon = _place(status.lat_deg, status.lon_deg)
    return msgspec.structs.replace(
        status,
        lat_deg=lat,
        lon_deg=lon,
        alt_m=_finite(status.alt_m),
        yaw_deg=_finite(status.yaw_deg),
        fps=_finite(status.fps) or 0.0,
        latency_ms=_finite(status.latency_ms) or 0.0,
        learner=_text(status.learner),
        recorder=_text(status.recorder),
    )


def check_problems(problems: Problems) -> str:
    """What a drone says is wrong, as far as it can be shown."""
    return _text(problems.text)


def check_detections(seen: Detections) -> None:
    """Raise LinkError where classes and confidences do not fill the grid."""
    check_integers(seen)
    tiles = seen.rows * seen.cols
    if not (0 < seen.rows <= MAX_SIDE and 0 < seen.cols <= MAX_SIDE):
        raise LinkError(f"a grid of {seen.rows} x {seen.cols} tiles cannot be")
    if not len(seen.classes) == len(seen.confidence) == tiles:
        raise LinkError(f"{len(seen.classes)} classes do not fill a grid of {seen.rows} x {seen.cols} tiles")


def _text(text: str) -> str:
    """What of a text can be shown, and be stored in every database: PostgreSQL takes no NUL."""
    return "".join(c for c in text[:MAX_NAME_CHARS] if c.isprintable())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _place(lat_deg: float | None, lon_deg: float | None) -> tuple[float | None, float | None]:
    if lat_deg is None or lon_deg is None or not (-90 <= lat_deg <= 90 and -180 <= lon_deg <= 180):
        return None, None
    return lat_deg, lon_deg
