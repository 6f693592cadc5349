"""Everything that crosses the link, as tagged msgspec structs in MessagePack arrays.

Evolution rule: new fields go at the end and have defaults; types and tags never change. A test keeps recorded bytes
of every message and reads them back.

`Reliable` messages are numbered, kept on disk until acknowledged, delivered in order and applied once (`channel.py`).
`Casual` ones (status, summaries) may be lost: the next one says more.
"""

from typing import Literal

import msgspec

PROTOCOL = 1
MAX_MESSAGE_BYTES = 256 * 1024
"""Bound on one frame on the wire, both ways; the sockets enforce it."""
HASH_BYTES = 32
"""Model hashes are SHA-256."""
MAX_ANSWERS = 32
"""Classes of one drone that an operator can answer, new ones included (a model may have more)."""
MAX_CLASS_CHARS = 40
"""Bound on the name of such a class, which is printable and without spaces at its ends."""


class _Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=False):
    pass


# --- up: drone to ground -------------------------------------------------------------------------------------------


class Hello(_Message, tag=1, frozen=True):
    """First message after every connect: who this is and which model flies (casual, answered by Welcome).

    `classes` are those of the base model: deltas since may have added some.
    """

    protocol: int
    drone: str
    boot: int
    base_hash: bytes
    model_hash: bytes
    classes: tuple[str, ...]
    rows: int
    cols: int
    t_ns: int


class Status(_Message, tag=2, frozen=True):
    """How the drone is. Casual; one a second on Wi-Fi, fewer on a thin link."""

    frame: int
    t_ns: int
    lat_deg: float | None = None
    lon_deg: float | None = None
    alt_m: float | None = None
    yaw_deg: float | None = None
    fps: float = 0.0
    latency_ms: float = 0.0
    dropped: int = 0
    labels: int = 0
    updates: int = 0
    rollbacks: int = 0
    learner: str = "off"
    recorder: str = "off"
    model_hash: bytes = b""


class Detections(_Message, tag=3, frozen=True):
    """The summary of one frame (casual): per tile, row by row, the class number and its probability in 1/255."""

    frame: int
    t_ns: int
    rows: int
    cols: int
    classes: bytes
    confidence: bytes


class Query(_Message, tag=4, frozen=True):
    """A tile that the drone asks the operator about (reliable). `jpeg` shows it with some surroundings."""

    id: int
    frame: int
    frame_name: str
    t_ns: int
    row: int
    col: int
    track: int
    guess: int
    confidence: float
    jpeg: bytes
    lat_deg: float | None = None
    lon_deg: float | None = None


class Delta(_Message, tag=5, frozen=True):
    """A change of the model in force (reliable): applies to the state `parent`, leads to the state `result`."""

    parent: bytes
    result: bytes
    frame: int
    payload: bytes
    labels: int = 0
    reason: Literal["learned", "rollback", "anchor", "resync", "classes"] = "learned"


class Problems(_Message, tag=7, frozen=True):
    """What is wrong on the drone, in words, "" for nothing. Casual: when it changed, and every half minute."""

    text: str


# --- down: ground to drone -----------------------------------------------------------------------------------------


class Welcome(_Message, tag=16, frozen=True):
    """Answer to Hello (casual): the station's protocol, its clock, and the model it has for this drone."""

    protocol: int
    t_ns: int
    mirror_hash: bytes


class Label(_Message, tag=17, frozen=True):
    """An operator's answer to a query (reliable). `answer` is a class name, or "" for "don't know".

    wrong: the tile is not of the class `answer`. new: `answer` may be a class that the drone does not know yet, and is
    added then. An operator who finds the drone's guess right sends its class, as if it had been chosen.
    """

    id: int
    query: int
    answer: str
    wrong: bool = False
    new: bool = False


class Undo(_Message, tag=18, frozen=True):
    """Takes the label `label` back (reliable)."""

    label: int


class Control(_Message, tag=19, frozen=True):
    """A command (reliable).

    freeze, resume: stop and restart learning. anchor: go back to the signed base model. resync: send the whole
    difference to the base as one delta, because the mirror lost the thread.
    """

    action: Literal["freeze", "resume", "anchor", "resync"]


class Mirror(_Message, tag=20, frozen=True):
    """The station applied a delta (casual): the hash of its mirror now, for the drone to compare."""

    model_hash: bytes
    deltas: int


Casual = Hello | Status | Detections | Problems | Welcome | Mirror
Reliable = Query | Delta | Label | Undo | Control
Message = Casual | Reliable
