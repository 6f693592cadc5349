"""The flight, frame by frame, and what stands between it and the camera."""

import io
import threading

import cv2
import msgspec
import numpy as np
import pytest

from link.codec import ENVELOPE_BYTES, encode
from link.messages import Detections, Query, Status
from models.engine import Engine
from models.errors import HadanetError, SourceError, TruthError
from models.network import HEAD_STEP
from onboard import daemon, status
from onboard.assembly import Assembly
from onboard.boot import Boot, make_folder
from onboard.budget import BESIDE_PICTURE_BYTES, SAVED_S
from onboard.config import Asking, Camera, Config, Link, ModelChoice, Recording
from onboard.daemon import Slot, capture
from onboard.exposure import Exposure, apply
from onboard.frame import Frame, Pose, Skipped
from onboard.grid import cut
from onboard.replay import default_letters, letters

ROWS, COLS = 3, 4
WAIT_S = 20.0


def a_frame(index, width=160, height=120):
    image = np.random.default_rng(index).integers(0, 256, (height, width, 3)).astype(np.uint8)
    pose = Pose(lat_deg=30.0, lon_deg=-97.0, alt_m=200.0, yaw_deg=90.0)
    return Frame(index=index, t_ns=index * 10**9, name=f"n{index}", image=cv2.blur(image, (9, 9)), pose=pose)


class Post:
    def __init__(self, base):
        self.messages = []

    def post(self, message):
        self.messages.append(message)

    def of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]


@pytest.fixture
def assemble(tmp_path):
    """A flight without a learner; its messages stay in `post`."""
    made = []

    def make(share=0.1, **fields):
        fields = {
            "camera": Camera(rows=ROWS, cols=COLS),
            "model": ModelChoice(classes=("a", "b", "c")),
            "ask": Asking(share=share),
        } | fields
        assembly = Assembly(Config(**fields), tmp_path / f"state{len(made)}", Post)
        assembly.__enter__()
        made.append(assembly)
        return assembly

    yield make
    for assembly in made:
        assembly.__exit__(None, None, None)


def with_head(model, seed):
    random = np.random.default_rng(seed)
    weight = random.integers(-300, 300, (3, model.spec.feature_count)).astype(np.int16)
    return model.with_tensors({"head.weight": weight, "head.bias": np.zeros(3, np.int16)})


def by_hand(model, frame, light):
    """Probabilities of the head on a frame, from the formula; `light` has seen the frames before."""
    size = model.spec.input_size
    tiles = cut(frame.image, ROWS, COLS, size, np.zeros((ROWS * COLS, size, size, 3), np.uint8))
    apply(light.step(tiles), tiles)
    logits = Engine(model).features(tiles).values() @ model.tensors["head.weight"].astype(np.float64).T * HEAD_STEP
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_step_flies_the_model_in_force_and_tells_of_it(assemble):
    assembly = assemble()
    flight, desk, post = assembly.flight, assembly.desk, assembly.post
    light = Exposure(assembly.base.spec.mean[::-1])
    for index in range(2):  # the second with another model, taken between two frames
        desk.model = with_head(assembly.base, seed=index)
        frame = a_frame(index)
        step = flight.step(frame)
        np.testing.assert_allclose(step.head, by_hand(desk.model, frame, light), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(step.out.sum(axis=1), 1, rtol=1e-5)
        assert (step.result.classes == step.out.argmax(axis=1)).all()
        seen = post.of(Detections)[-1]
        assert (seen.frame, seen.rows, seen.cols) == (index, ROWS, COLS)
        assert seen.classes == step.result.classes.tobytes()
        expected = np.round(step.out.max(axis=1) * 255)
        assert np.abs(np.frombuffer(seen.confidence, np.uint8) - expected).max() == 0
    assert step.motion is None  # two pictures of noise have no ground in common
    assert (step.out == step.head).all()
    assert (flight.frames, len(flight.whole_ms), len(flight.inference_ms)) == (2, 2, 2)


def test_questions_stay_below_their_share_and_show_their_tile(assemble):
    assembly = assemble(share=0.05)
    asked = [query for index in range(20) for query in assembly.flight.step(a_frame(index)).asked]
    assert 0 < len(asked) <= 0.05 * 20 * ROWS * COLS
    assert assembly.flight.questions == len(asked) == len({query.id for query in asked})
    for query in asked:
        assert len(encode(query)) + ENVELOPE_BYTES <= len(query.jpeg) + BESIDE_PICTURE_BYTES
        assert query.id >> 32 == assembly.desk.log.boot
        assert (query.frame_name, query.t_ns, query.lat_deg) == (f"n{query.frame}", query.frame * 10**9, 30.0)
        picture = cv2.imdecode(np.frombuffer(query.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (160, 160, 3)
        frame = a_frame(query.frame).image
        tile = frame[query.row * 40 : query.row * 40 + 40, query.col * 40 : query.col * 40 + 40]
        middle = cv2.resize(picture[42:118, 42:118], (38, 38), interpolation=cv2.INTER_AREA)
        assert np.abs(middle.astype(int) - tile[1:39, 1:39]).mean() < 8
    assembly.desk.close()
    assert [query.id for query in assembly.post.of(Query)] == [query.id for query in asked]


def test_questions_keep_to_their_bytes_and_what_is_withheld_is_not_lost(assemble):
    rate = 100
    free = assemble(share=0.1).flight
    bound = assemble(ask=Asking(share=0.1, bytes_per_s=rate)).flight
    frames = [a_frame(index) for index in range(90)]  # one each second
    many, few = ([q for frame in frames for q in flight.step(frame).asked] for flight in (free, bound))
    assert sum(len(encode(query)) for query in many) > 3 * rate * (90 + SAVED_S)
    largest = max(len(encode(query)) for query in few)
    assert rate * 60 < sum(len(encode(query)) for query in few) <= rate * (90 + SAVED_S) + largest
    assert bound.questions == len(few)


def test_the_same_frames_and_seed_ask_the_same(assemble):
    places = []  # the first questions of a flight go to typical tiles, whatever the seed
    for seed in (0, 0, 1):
        flight = assemble(seed=seed).flight
        places.append([(q.frame, q.row, q.col) for i in range(40) for q in flight.step(a_frame(i)).asked])
    assert places[0] == places[1] != places[2]


def test_the_status(assemble):
    assembly = assemble()
    assembly.flight.dropped = 3
    assembly.flight.step(a_frame(0))
    (status,) = assembly.post.of(Status)  # at most one a second
    assert (status.frame, status.dropped, status.recorder, status.learner) == (0, 3, "off", "away")
    assert (status.lat_deg, status.yaw_deg, status.model_hash.hex()) == (30.0, 90.0, assembly.base.hash)


def test_a_frame_that_is_too_small_leaves_the_flight_whole(assemble):
    assembly = assemble()
    with pytest.raises(SourceError, match="too small for 4 x 3 tiles"):
        assembly.flight.step(a_frame(0, width=3))
    assert (assembly.flight.frames, assembly.post.messages) == (0, [])
    assert assembly.flight.step(a_frame(1)).result.frame.index == 1


def test_a_recording_that_cannot_be(assemble, tmp_path, caplog):
    (tmp_path / "file").touch()
    assembly = assemble(record=Recording(folder=str(tmp_path / "file")))
    assembly.flight.step(a_frame(0))
    assert assembly.recorder is None
    assert [r.getMessage() for r in caplog.records] == [
        f"no recording: cannot record to {tmp_path / 'file'}: File exists; choose another folder"
    ]


def test_a_recording_that_is_told_in_the_status(assemble, tmp_path):
    assembly = assemble(record=Recording(folder=str(tmp_path / "recordings"), min_free_mb=0))
    assembly.flight.step(a_frame(0))
    assert assembly.post.of(Status)[0].recorder == "recording"


def test_keys_that_are_none(tmp_path):
    config = Config(link=Link(keys=str(tmp_path / "no.toml")))
    with pytest.raises(HadanetError, match=r"no\.toml: no such file: make one with  ground enroll NAME"):
        Assembly(config, tmp_path / "state")


def test_state_folders(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(HadanetError, match="no state can be kept there: Not a directory; set `state`"):
        make_folder(tmp_path / "file" / "state")
    with pytest.raises(HadanetError, match="the path is too long for a socket"):
        make_folder(tmp_path / ("x" * 107))


# --- between camera and flight -------------------------------------------------------------------------------------


def test_a_slot_keeps_the_newest_frame_and_counts_the_others():
    slot, stop = Slot(), threading.Event()
    for index in range(5):
        slot.put(a_frame(index), wait=False, stop=stop)
    slot.end()
    assert [frame.index for frame in slot.take(stop)] == [4]
    assert slot.replaced == 4


def test_a_slot_that_waits_loses_nothing():
    slot, stop = Slot(), threading.Event()

    def fill():
        for index in range(20):
            slot.put(a_frame(index, 16, 16), wait=True, stop=stop)
        slot.end()

    thread = threading.Thread(target=fill)
    thread.start()
    assert [frame.index for frame in slot.take(stop)] == list(range(20))
    thread.join(WAIT_S)
    assert slot.replaced == 0


def test_a_slot_ends_when_it_is_told_to_stop():
    slot, stop = Slot(), threading.Event()
    stop.set()
    assert list(slot.take(stop)) == []
    slot.put(a_frame(0), wait=True, stop=stop)
    slot.put(a_frame(1), wait=True, stop=stop)  # does not wait any more


class Script:
    """A source that does what its script says: a number gives a frame, an error is raised."""

    def __init__(self, script, live=True):
        self.script, self.live, self.closed = script, live, False
        self.first_ns, self.skipped = 0, []

    def frames(self, start_s=0.0):
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, str):
                self.skipped.append(Skipped(name=item, reason="torn"))
            else:
                yield a_frame(item, 16, 16)

    def close(self):
        self.closed = True


@pytest.fixture
def run_capture(monkeypatch):
    """Capture from these sources, one after another; the frames' numbers and the sources."""
    monkeypatch.setattr(daemon, "RETRY_S", 0.01)

    def run(*sources):
        rest = iter(sources)
        monkeypatch.setattr(daemon, "open_source", lambda uri: next(rest))
        slot, stop = Slot(), threading.Event()
        monkeypatch.setattr(slot, "put", lambda frame, wait, stop, put=slot.put: put(frame, True, stop))
        thread = threading.Thread(target=capture, args=("cam", slot, stop))
        thread.start()
        frames = [(frame.index, frame.name) for frame in slot.take(stop)]
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert all(source.closed for source in sources)
        return frames

    return run


def test_a_camera_that_fails_is_opened_again(run_capture, caplog):
    lost = SourceError("the cable is out")
    frames = run_capture(Script([0, lost]), Script([lost]), Script([lost]), Script([0, 1]), Script([7], False))
    assert frames == [(0, "n0"), (1, "n0"), (2, "n1"), (3, "n7")]
    assert [r.getMessage() for r in caplog.records] == [
        "the cable is out (trying again every 0.01 s)",
        "cam: the camera ended (trying again every 0.01 s)",
    ]


def test_a_fault_in_a_source_does_not_end_the_flight(run_capture, caplog):
    frames = run_capture(Script([0, ZeroDivisionError("oh")]), Script([5], False))
    assert frames == [(0, "n0"), (1, "n5")]
    (record,) = caplog.records
    assert "cam: a fault of this program: ZeroDivisionError('oh')" in record.getMessage()


def test_frames_that_cannot_be_read_are_told(run_capture, caplog):
    assert run_capture(Script(["a", 0, "b", "c"], live=False)) == [(0, "n0")]
    assert [r.getMessage() for r in caplog.records] == [f"frame {n} cannot be read: torn" for n in "abc"]


def test_the_process_ends_as_the_supervisor_expects(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(daemon.signal, "signal", lambda *_: None)
    config = Config(state=str(tmp_path), link=Link(keys=str(tmp_path / "no.toml")))
    boot = msgspec.json.encode(Boot(config=config, state=str(tmp_path), problems={}))

    def fly():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(boot)))
        return daemon.main([])

    assert fly() == 1
    err = capsys.readouterr().err
    assert (err.count("\n"), "no.toml: no such file" in err) == (1, True)
    assert "no.toml: no such file" in status.last_words(tmp_path / status.STATUS_FILE)
    monkeypatch.setattr(daemon, "fly", lambda *_: 1 / 0)
    assert fly() not in (0, 1)  # which would be taken for an end
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(daemon, "fly", lambda *_: None)
    assert fly() == 0


def test_letters():
    assert letters("O=object,R=dirt road") == {"O": "object", "R": "dirt road"}
    assert default_letters(("road", "trees")) == {"R": "road", "T": "trees"}
    for wrong in ("", "O", "OO=object", "=object", "O="):
        with pytest.raises(TruthError, match="write one letter, an equals sign and a class"):
            letters(wrong)
    with pytest.raises(TruthError, match="begin with the same letter"):
        default_letters(("road", "Rubble"))
