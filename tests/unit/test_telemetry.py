"""Logs of every format: what they say, against what was written or another reader; cut off, and with bits turned."""

import contextlib
import math
import os
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from models.errors import SourceError
from onboard.sources import open_source
from onboard.telemetry.dataflash import read_dataflash
from onboard.telemetry.gpmf import Payload as GpmfPayload
from onboard.telemetry.gpmf import _Damage, _Reader, _streams, read_gpmf
from onboard.telemetry.read import beside, read
from onboard.telemetry.srt import read_srt
from onboard.telemetry.summary import summarise
from onboard.telemetry.table import Series, Telemetry, series
from onboard.telemetry.tlog import read_tlog
from onboard.telemetry.ulog import read_ulog
from tests import flightlogs

pytest.importorskip("pymavlink")

FLIGHTS = Path(os.environ.get("HADANET_DATA", "../shared/data")) / "flights"
needs_flights = pytest.mark.skipif(not FLIGHTS.is_dir(), reason=f"no recorded flights at {FLIGHTS}")
SLOWEST_S = 20.0


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def walked(lat, lon):
    """Metres along fixes, by the haversine formula, one step after another."""
    total = 0.0
    for (a, b), (c, d) in zip(zip(lat, lon, strict=True), list(zip(lat, lon, strict=True))[1:], strict=False):
        x, y = math.radians(c - a), math.radians(d - b)
        h = math.sin(x / 2) ** 2 + math.cos(math.radians(a)) * math.cos(math.radians(c)) * math.sin(y / 2) ** 2
        total += 2 * 6_371_008.8 * math.asin(math.sqrt(h))
    return total


LOGS = {"dataflash": (read_dataflash, "a.bin"), "tlog": (read_tlog, "a.tlog"), "ulog": (read_ulog, "a.ulg")}


@pytest.mark.parametrize("kind", LOGS)
def test_a_log_says_what_was_written_into_it(tmp_path, kind):
    reader, name = LOGS[kind]
    path = written(tmp_path, name, getattr(flightlogs, kind)())
    telemetry = reader(path)
    t, lat, lon, alt = flightlogs.track(400)
    first = 0 if kind == "tlog" else 5  # before them there is no fix
    assert telemetry.problems == ()
    np.testing.assert_allclose(telemetry.series["lat_deg"].values, lat[first:], atol=1e-7)
    np.testing.assert_allclose(telemetry.series["lon_deg"].values, lon[first:], atol=1e-7)
    np.testing.assert_allclose(telemetry.series["alt_m"].values, alt[first:], atol=0.01)
    times = telemetry.series["lat_deg"].t_ns
    np.testing.assert_allclose((times - times[0]) * 1e-9, t[first:] - t[first], atol=1e-3)
    yaw = telemetry.series["yaw_deg"].values
    np.testing.assert_allclose(yaw, {"dataflash": 90, "tlog": math.degrees(1.5), "ulog": 45}[kind], atol=0.01)
    assert len(telemetry.captures.t_ns) == 40
    assert telemetry.kind.lower() == kind
    assert read(path).series["lat_deg"].t_ns.tolist() == times.tolist(), "found by its content"
    if kind == "dataflash":
        assert telemetry.series["roll_deg"].values[0] == 2.5
        want = 315_964_800 + 2300 * 604_800 + 500 - 1 - 18  # the week began so long ago, at 1 s of the log
        assert telemetry.utc_ns * 1e-9 == pytest.approx(want, abs=1e-3)
        np.testing.assert_array_equal(telemetry.captures.t_ns[:2], [1_005_000_000, 3_005_000_000])
    if kind == "tlog":
        # the radio adds 0 to 18 ms, 9 ms by the median; the vehicle's own clock is not disturbed by it
        assert (telemetry.series["lat_deg"].t_ns[0] - 1_700_000_005 * 10**9) * 1e-6 == pytest.approx(9, abs=0.1)
        assert telemetry.residual_ms == pytest.approx(6, abs=1)
        assert telemetry.series["battery_share"].values[0] == 0.8
        assert str(telemetry.series["mode"].values[0]) == "GUIDED"
        np.testing.assert_allclose(telemetry.series["camera_pitch_deg"].values, -60, atol=1e-3)
        np.testing.assert_allclose(telemetry.series["camera_yaw_deg"].values, 0, atol=1e-3)
        np.testing.assert_allclose(telemetry.series["speed_ms"].values[:3], 5.0)
    if kind == "ulog":
        assert telemetry.utc_ns == 1_700_000_000 * 10**9


def test_a_dataflash_log_that_tells_its_layouts_again_goes_on(tmp_path):
    data = flightlogs.dataflash()
    once = read_dataflash(written(tmp_path, "a.bin", data)).series["lat_deg"]
    twice = read_dataflash(written(tmp_path, "b.bin", data + data)).series["lat_deg"]
    assert len(twice.values) == 2 * len(once.values)


@pytest.mark.parametrize(
    ("text", "mode"), [("ArduPlane V4.5.7", "AUTO"), ("ArduCopter V4.5.7", "MODE_10"), ("ArduRover V4.5", "MODE_10")]
)
def test_modes_are_those_of_the_vehicle_and_batteries_those_of_the_first(tmp_path, text, mode):
    log = flightlogs.DataFlash({"MSG": ("QZ", "TimeUS,Message"), "MODE": ("QMB", "TimeUS,Mode,ModeNum")})
    log.add_format("BAT", "QBf", "TimeUS,Inst,Volt")
    data = log.record("MSG", 1, text.encode()) + log.record("MODE", 2_000_000, 10, 10)
    for i in range(5):
        data += log.record("BAT", i * 10**6 + 1, 0, 12.5) + log.record("BAT", i * 10**6 + 1, 1, 99.0)
    telemetry = read_dataflash(written(tmp_path, "a.bin", log.formats + data))
    assert telemetry.series["mode"].values.tolist() == [mode]
    assert telemetry.series["battery_v"].values.tolist() == [12.5] * 5


def test_a_vehicle_that_was_started_again_goes_on_where_the_station_says(tmp_path):
    """The second half counts from a new boot, 1000 s of the station's clock later."""
    data = flightlogs.tlog()
    later, at = b"", 0
    whole = read_tlog(written(tmp_path, "a.tlog", data))
    while at < len(data):
        length = data[at + 9] + (12 if data[at + 8] == 0xFD else 8)
        stamp = int.from_bytes(data[at : at + 8], "big") + 1_000_000_000
        later += stamp.to_bytes(8, "big") + data[at + 8 : at + 8 + length]
        at += 8 + length
    both = read_tlog(written(tmp_path, "b.tlog", data + later)).series["lat_deg"]
    times = whole.series["lat_deg"].t_ns
    np.testing.assert_array_equal(both.t_ns, np.concatenate([times, times + 1000 * 10**9]))


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("share", flightlogs.SHARES)
def test_a_log_that_is_cut_off_gives_all_before_and_says_so(tmp_path, kind, share):
    reader, name = LOGS[kind]
    data = getattr(flightlogs, kind)()
    whole = reader(written(tmp_path, f"whole{name}", data)).series["lat_deg"]
    cut = reader(written(tmp_path, name, data[: int(share * len(data)) + 5]))
    count = len(cut.series["lat_deg"].t_ns)
    assert any("truncated" in line for line in cut.problems), cut.problems
    assert share - 0.03 < count / len(whole.t_ns) <= share + 0.03
    if kind != "tlog":
        assert cut.series["lat_deg"].values.tolist() == whole.values[:count].tolist()


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("seed", range(4))
def test_turned_bits_cost_what_they_hit(tmp_path, kind, seed):
    """Nothing raises but our own error; what comes out was in the file, before the first turned bit or behind it."""
    reader, name = LOGS[kind]
    data = getattr(flightlogs, kind)()
    start = len(data) // 3
    damaged = data[:start] + flightlogs.flipped(data[start:], seed)
    whole = reader(written(tmp_path, f"whole{name}", data)).series["lat_deg"]
    before = time.monotonic()
    telemetry = reader(written(tmp_path, name, damaged))
    assert time.monotonic() - before < SLOWEST_S
    assert telemetry.problems
    assert len(telemetry.problems) <= 20
    known = set(np.round(whole.values, 7).tolist())
    kept = np.round(telemetry.series["lat_deg"].values, 7).tolist()
    assert sum(value in known for value in kept) >= 0.3 * len(whole.values)
    with contextlib.suppress(SourceError):
        reader(written(tmp_path, name, flightlogs.flipped(data, seed)))


@pytest.mark.parametrize("kind", [*LOGS, "srt"])
@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\xa3\x95" * 4000, os.urandom(20_000)])
def test_what_is_no_log_is_refused_in_one_line(tmp_path, kind, content):
    reader, name = {**LOGS, "srt": (read_srt, "a.srt")}[kind]
    with pytest.raises(SourceError) as caught:
        reader(written(tmp_path, name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="cannot be read"):
        reader(tmp_path / "nothing.here")


# --- GoPro ------------------------------------------------------------------------------------------------------------


def gpmf_table(payloads):
    streams = [s for i, p in enumerate(payloads) for s in _streams(i, p.data)]
    reader = _Reader(payloads, streams)
    return reader.table(), reader


def test_gps5_is_spread_over_its_payload_and_scaled():
    _, lat, lon, alt = flightlogs.track(36)
    parts = [slice(0, 18), slice(18, 36)]
    payloads = [GpmfPayload(i * 1.001, 1.001, flightlogs.gps5(lat[p], lon[p], alt[p])) for i, p in enumerate(parts)]
    table, reader = gpmf_table(payloads)
    np.testing.assert_allclose(table["lat_deg"].values, lat, atol=1e-7)
    np.testing.assert_allclose(table["alt_m"].values, alt, atol=1e-3)
    np.testing.assert_allclose(table["speed_ms"].values, 3.5)
    np.testing.assert_allclose(table["lat_deg"].t_ns * 1e-9, np.arange(36) * 1.001 / 18, atol=1e-6)
    # both payloads claim the same second, so the median lies between them
    assert reader.utc_ns() == pytest.approx((1_700_049_600.5 - 0.5005) * 1e9, abs=1e3)
    unfixed, reader = gpmf_table([GpmfPayload(0, 1, flightlogs.gps5(lat, lon, alt, fix=0))])
    assert unfixed == {}
    assert reader.without_fix == ["GPS5: 36 of 36 positions without a fix are left out"]


def test_gravity_says_how_the_camera_is_tilted():
    """Upright; looking straight ahead and down by 30 degrees; rolled 20 degrees to its right; and zeros."""
    vectors = [
        (0, 1, 0),
        (0, math.cos(math.radians(30)), 0.5),
        (-math.sin(math.radians(20)), math.cos(math.radians(20)), 0),
    ]
    rows = b"".join(struct.pack(">3h", *(round(32767 * x) for x in vector)) for vector in [*vectors, (0, 0, 0)])
    scale = flightlogs.klv(b"SCAL", b"s", 2, 1, struct.pack(">h", 32767))
    table, _ = gpmf_table([GpmfPayload(0, 1, flightlogs.stream(scale, flightlogs.klv(b"GRAV", b"s", 6, 4, rows)))])
    np.testing.assert_allclose(table["camera_pitch_deg"].values, [0, -30, 0], atol=0.01)
    np.testing.assert_allclose(table["camera_roll_deg"].values, [0, 0, 20], atol=0.01)


def test_samples_of_mixed_types_are_read_field_by_field():
    """Letters and dates among the numbers, fixed point of both sizes, and a field that stands there twice."""
    kind = flightlogs.klv(b"TYPE", b"c", 1, 8, b"cUl[2]qQ")
    row = b"x" + b"230101000000.000" + struct.pack(">2iiq", 7, -8, 3 << 15, -5 << 31)
    payload = flightlogs.stream(kind, flightlogs.klv(b"ABCD", b"?", len(row), 2, row * 2))
    (found,) = list(_streams(0, payload))
    np.testing.assert_array_equal(found.samples, [[np.nan, np.nan, 7, -8, 1.5, -2.5]] * 2)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_payloads_raise_nothing_else(seed):
    _, lat, lon, alt = flightlogs.track(18)
    data = flightlogs.flipped(flightlogs.gps5(lat, lon, alt), seed, 0.02)
    for end in (len(data), len(data) // 2, 9):
        payload = GpmfPayload(0, 1, data[:end])
        with contextlib.suppress(_Damage):
            gpmf_table([payload])


def test_a_video_without_telemetry_or_without_its_index_says_so(tmp_path):
    import cv2

    path = tmp_path / "plain.mp4"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(10):
        out.write(np.zeros((48, 64, 3), np.uint8))
    out.release()
    with pytest.raises(SourceError, match="no telemetry of a GoPro or a DJI"):
        read_gpmf(path)
    lost = written(tmp_path, "lost.mp4", path.read_bytes()[:200])
    with pytest.raises(SourceError, match="lacks its index"):
        read_gpmf(lost)


# --- DJI --------------------------------------------------------------------------------------------------------------

CUES = {
    "[latitude: 41.5] [longitude: -2.25] [altitude: 117.0]": {"lat_deg": 41.5, "lon_deg": -2.25, "alt_m": 117.0},
    "[latitude: 41.5] [longtitude: 2.25] [rel_alt: 10.5 abs_alt: 52.1] [gb_yaw: -90.0 gb_pitch: -45.0 gb_roll: 0.0]": {
        **{"lat_deg": 41.5, "lon_deg": 2.25, "agl_m": 10.5, "alt_m": 52.1},
        **{"camera_yaw_deg": 270.0 - 360.0, "camera_pitch_deg": -45.0},
    },
    "HOME(8.1,47.1) 2017.07.03 10:15:03\nGPS(8.5,47.5,19) BAROMETER:20.1": {
        "lat_deg": 47.5,
        "lon_deg": 8.5,
        "agl_m": 20.1,
    },
    "GPS(8.5,47.5,16) Hb:-1.9 Hs:1.9": {"lat_deg": 47.5, "agl_m": -1.9},
    "F/2.8, SS 30, ISO 260, EV -1.7, GPS (-121.7, 48.1, 17), D 221.21m, H 200.70m, H.S n/a, V.S n/a": {
        **{"lat_deg": 48.1, "lon_deg": -121.7, "agl_m": 200.7},
    },
    "GPS (8.5, 47.5, 15), H 85.80m, H.S 2.50m/s, F.PRY (2.7°, -7.0°, 110.1°), G.PRY (-24.4°, 0.0°, -110.4°)": {
        **{"speed_ms": 2.5, "pitch_deg": 2.7, "roll_deg": -7.0, "yaw_deg": 110.1, "camera_pitch_deg": -24.4},
        **{"camera_yaw_deg": 249.6},
    },
    "2022.06.21 16:06:17\nGPS(36.6146,-6.1120,0.0M) BAROMETER:85.3M": {
        "lat_deg": 36.6146,
        "lon_deg": -6.112,
        "agl_m": 85.3,
    },
    "HOME(W: 109.3, N: 40.7) 2025-08-27 13:21:35\nGPS(W: 109.25, N: 40.75, 2371.76m) \nF.PRY (-1.0°, 1.0°, 100.1°)": {
        **{"lat_deg": 40.75, "lon_deg": -109.25, "alt_m": 2371.76, "yaw_deg": 100.1},
    },
    "GPS(E: 18.5, S: 33.75, 12.5m)": {"lat_deg": -33.75, "lon_deg": 18.5, "alt_m": 12.5},
    "<font>14:11:51GPS(8.5, 47.5)</font> [drone_yaw: 90.5 drone_pitch: -3.0] [gimbal_pitch: -89.9] [rel_alt: 3.5]": {
        **{"lat_deg": 47.5, "lon_deg": 8.5, "yaw_deg": 90.5, "pitch_deg": -3.0, "camera_pitch_deg": -89.9},
    },
}


def subtitles(words, count=20):
    return "".join(f"{i + 1}\n00:00:{i:02d},500 --> 00:00:{i + 1:02d},500\n{words}\n\n" for i in range(count))


@pytest.mark.parametrize("words", CUES)
def test_every_style_of_subtitles_is_understood(tmp_path, words):
    telemetry = read_srt(written(tmp_path, "a.SRT", subtitles(words).encode()))
    for name, value in CUES[words].items():
        assert telemetry.series[name].values.tolist() == pytest.approx([value] * 20), name
    assert telemetry.series["agl_m" if "agl_m" in telemetry.series else "alt_m"].t_ns[1] == 1_500_000_000
    assert telemetry.problems == ()


def test_subtitles_without_times_count_by_their_dates(tmp_path):
    words = "{}\n2017.08.05 14:11:{:02d},393,525\n[latitude : -20.25] [longtitude : 149.5] [iso : 100]\n\n"
    text = "".join(words.format(i + 1, 50 + i) for i in range(10))
    telemetry = read_srt(written(tmp_path, "a.SRT", text.encode()))
    np.testing.assert_array_equal(telemetry.series["lat_deg"].t_ns, np.arange(10) * 10**9)
    assert telemetry.problems == ()


def test_positions_in_radians_are_converted_and_told(tmp_path):
    words = f"[latitude: {math.radians(41.5):.6f}] [longitude: {math.radians(2.25):.6f}]"
    telemetry = read_srt(written(tmp_path, "a.SRT", subtitles(words).encode()))
    np.testing.assert_allclose(telemetry.series["lat_deg"].values, 41.5, atol=1e-4)
    np.testing.assert_allclose(telemetry.series["lon_deg"].values, 2.25, atol=1e-4)
    assert any("radians" in line for line in telemetry.problems)


def test_subtitles_in_utf_16_and_without_a_last_line_end(tmp_path):
    text = subtitles("GPS (8.5, 47.5, 15), H 85.80m, H.S 2.50m/s").rstrip()
    telemetry = read_srt(written(tmp_path, "a.SRT", text.encode("utf-16")))
    assert telemetry.series["speed_ms"].values.tolist() == [2.5] * 20
    assert telemetry.problems == ()
    cut = read_srt(written(tmp_path, "a.SRT", text[:-4].encode()))
    assert cut.problems == ("truncated: the last cue is cut off",)


@pytest.mark.parametrize("share", flightlogs.SHARES)
def test_subtitles_that_are_cut_off_say_so(tmp_path, share):
    data = subtitles(next(iter(CUES))).encode()
    telemetry = read_srt(written(tmp_path, "a.srt", data[: int(share * len(data)) - 9]))
    assert any("truncated" in line for line in telemetry.problems)
    assert len(telemetry.series["lat_deg"].t_ns) >= int(share * 20) - 1


@pytest.mark.parametrize("seed", range(4))
def test_subtitles_with_turned_bits_raise_nothing(tmp_path, seed):
    data = flightlogs.flipped(subtitles(next(iter(CUES)), 200).encode(), seed)
    telemetry = read_srt(written(tmp_path, "a.srt", data))
    assert len(telemetry.series["alt_m"].t_ns) > 20


ASS_HEADER = b"[Script Info]\n[V4+ Styles]\nFormat: Name\nStyle: Default\n[Events]\nFormat: Start, End, Text\n"


@pytest.mark.parametrize(("codec", "name"), [("mov_text", "a.mp4"), ("subrip", "a.mkv")])
def test_subtitles_inside_a_video(tmp_path, codec, name):
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        video, words = out.add_stream("libx264", rate=10), out.add_stream(codec)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        words.time_base = Fraction(1, 1000)
        words.codec_context.subtitle_header = ASS_HEADER
        for i in range(30):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8), format="bgr24")))
            if i % 10 == 0:
                text = f"GPS({8 + i * 1e-4:.4f},47.5,16) BAROMETER:{i}.5".encode()
                packet = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
                packet.stream, packet.time_base, packet.pts, packet.dts = words, Fraction(1, 1000), i * 100, i * 100
                packet.duration = 1000
                out.mux(packet)
        out.mux(video.encode())
    telemetry = read(path)
    np.testing.assert_allclose(telemetry.series["lon_deg"].values, [8, 8.001, 8.002])
    np.testing.assert_allclose(telemetry.series["agl_m"].values, [0.5, 10.5, 20.5])
    np.testing.assert_array_equal(telemetry.series["agl_m"].t_ns, [0, 10**9, 2 * 10**9])
    frames = list(open_source(str(path)).frames())
    assert frames[5].pose.lon_deg == pytest.approx(8.0005)


# --- the recorded flights, by other readers ---------------------------------------------------------------------------


def about_equal(telemetry, points, seconds, metres, span):
    track = summarise(telemetry).position
    assert track.points == pytest.approx(points, rel=0.01)
    assert track.duration_s == pytest.approx(seconds, rel=0.01)
    assert track.distance_m == pytest.approx(metres, rel=0.01)
    assert track.span_m == pytest.approx(span, rel=0.01)


@needs_flights
def test_the_fixed_wing_flight():
    path, lat, lon, alt, times = FLIGHTS / "cuav" / "flight.tlog", [], [], [], []
    data = path.read_bytes()
    for at in range(len(data) - 40):  # GLOBAL_POSITION_INT, number 33, of MAVLink 1 and 2
        first = data[at] == 0xFE and data[at + 1] == 28 and data[at + 4 : at + 6] == b"\1\x21"
        second = data[at] == 0xFD and 20 < data[at + 1] <= 28 and data[at + 6 : at + 10] == b"\1\x21\0\0"
        if first or second:
            boot, a, o, h = struct.unpack_from("<Iiii", data, at + (6 if first else 10))
            if abs(a) < 9e8 and boot < 10**8:
                lat, lon, alt, times = [*lat, a * 1e-7], [*lon, o * 1e-7], [*alt, h * 1e-3], [*times, boot * 1e-3]
    about_equal(read(path), len(lat), times[-1] - times[0], walked(lat, lon), max(alt) - min(alt))


@needs_flights
def test_the_copters_log_by_pymavlinks_reader():
    from pymavlink.DFReader import DFReader_binary

    path = FLIGHTS / "logs" / "arducopter_log171.bin"
    log = DFReader_binary(str(path))
    lat, lon, alt, times = [], [], [], []
    while (m := log.recv_match(type="GPS")) is not None:
        if m.Status >= 3 and (m.Lat or m.Lng):
            lat, lon, alt, times = [*lat, m.Lat], [*lon, m.Lng], [*alt, m.Alt], [*times, m.T * 1e-3]
    log.data_map.close()
    log.filehandle.close()
    about_equal(read(path), len(lat), times[-1] - times[0], walked(lat, lon), max(alt) - min(alt))


@needs_flights
def test_the_px4_log_by_pyulog():
    from pyulog import ULog

    path = FLIGHTS / "logs" / "px4_sample_small.ulg"
    gps = ULog(str(path)).get_dataset("vehicle_gps_position").data
    seconds = (gps["timestamp"][-1] - gps["timestamp"][0]) * 1e-6
    metres = walked((gps["lat"] * 1e-7).tolist(), (gps["lon"] * 1e-7).tolist())
    about_equal(read(path), len(gps["lat"]), seconds, metres, np.ptp(gps["alt"]) * 1e-3)


@needs_flights
def test_the_gopro_by_a_search_for_its_records():
    path = FLIGHTS / "karma" / "karma.mp4"
    data, lat, lon, alt, boot = path.read_bytes(), [], [], [], []
    at = data.find(b"GLPI?")
    while at >= 0:
        size, repeat = data[at + 5], int.from_bytes(data[at + 6 : at + 8], "big")
        for i in range(repeat):
            stamp, a, o, h = struct.unpack_from(">Iiii", data, at + 8 + i * size)
            lat, lon, alt, boot = [*lat, a * 1e-7], [*lon, o * 1e-7], [*alt, h * 1e-3], [*boot, stamp * 1e-3]
        at = data.find(b"GLPI?", at + 4)
    telemetry = read(path)
    about_equal(telemetry, len(lat), boot[-1] - boot[0], walked(lat, lon), max(alt) - min(alt))
    assert telemetry.residual_ms < 33


@needs_flights
@pytest.mark.parametrize("name", ["air2s.srt", "mavic_air2.srt", "mavic_mini.SRT", "mavic_pro.SRT", "old_format.SRT"])
def test_subtitles_of_each_model(name):
    path = FLIGHTS / "logs" / "srt" / name
    telemetry = read(path)
    assert len(telemetry.series["lat_deg"].t_ns) == path.read_text().count("-->")
    assert telemetry.problems == ()


@needs_flights
def test_subtitles_broken_on_purpose():
    folder = FLIGHTS / "logs" / "srt"
    with pytest.raises(SourceError, match="it is empty"):
        read(folder / "broken_empty.SRT")
    telemetry = read(folder / "broken_incomplete.SRT")
    assert len(telemetry.series["lat_deg"].t_ns) == 19
    assert "truncated: the last cue is cut off" in telemetry.problems


@needs_flights
@pytest.mark.parametrize("share", flightlogs.SHARES)
@pytest.mark.parametrize("name", ["logs/arducopter_log171.bin", "logs/px4_sample_small.ulg", "cuav/flight.tlog"])
def test_the_recorded_logs_cut_off_and_with_turned_bits(tmp_path, name, share):
    data = (FLIGHTS / name).read_bytes()
    whole = len(read(FLIGHTS / name).series["lat_deg"].t_ns)
    cut = read(written(tmp_path, Path(name).name, data[: int(share * len(data)) - 1]))
    assert len(cut.series["lat_deg"].t_ns) >= 0.5 * share * whole
    assert any("truncated" in line for line in cut.problems)
    with contextlib.suppress(SourceError):
        assert read(written(tmp_path, Path(name).name, flightlogs.flipped(data, int(share * 100)))).problems


# --- the table, and which log belongs to what -------------------------------------------------------------------------


def test_poses_between_two_entries_and_beyond_them():
    t = np.array([0, 1_000_000_000])
    columns = {
        "lat_deg": Series(source="x", t_ns=t, values=np.array([10.0, 11.0])),
        "lon_deg": Series(source="x", t_ns=t, values=np.array([20.0, 22.0])),
        "yaw_deg": Series(source="x", t_ns=t, values=np.array([350.0, 10.0])),
        "pitch_deg": Series(source="x", t_ns=t, values=np.array([0.0, 4.0])),
    }
    telemetry = Telemetry(uri="x", kind="x", series=columns)
    pose = telemetry.pose(500_000_000)
    assert (pose.lat_deg, pose.lon_deg, pose.yaw_deg, pose.pitch_deg) == (10.5, 21.0, 0.0, -88.0)
    assert telemetry.pose(2_500_000_000).lat_deg == 11.0
    assert telemetry.pose(3_500_000_000).lat_deg is None
    assert telemetry.pose(0).alt_m is None


def test_series_are_ordered_and_finite():
    made = series("x", [3, 1, 2], [1.0, np.nan, 5.0])
    assert made.t_ns.tolist() == [2, 3]
    assert made.values.tolist() == [5.0, 1.0]
    assert series("x", [1], [np.inf]) is None


def test_the_log_beside_a_flight(tmp_path):
    video = tmp_path / "dji_1.mp4"
    for name in ("dji_1.mp4", "DJI_1.SRT", "other.ulg"):
        (tmp_path / name).touch()
    assert beside(video) == tmp_path / "DJI_1.SRT"
    (tmp_path / "DJI_1.SRT").unlink()
    assert beside(video) == tmp_path / "other.ulg"
    (tmp_path / "dji_2.mp4").touch()
    assert beside(video) is None, "it may be the other video's"
    folder = tmp_path / "photos"
    folder.mkdir()
    assert beside(folder) is None
    for name in ("a.jpg", "flight.tlog"):
        (folder / name).touch()
    assert beside(folder) == folder / "flight.tlog"
