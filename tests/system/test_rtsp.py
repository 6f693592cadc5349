"""A camera in the network: a real RTSP server (GStreamer's, in the system's Python), which dies and comes back."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import textwrap

import pytest

from models.errors import SourceError
from onboard.sources import open_source, rtsp
from tests.system.onboard_process import Daemon

PYTHON = "/usr/bin/python3"
NEEDS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
if not os.path.exists(PYTHON) or subprocess.run([PYTHON, "-c", NEEDS], capture_output=True, timeout=60).returncode:
    pytest.skip("no RTSP server: apt install python3-gi gir1.2-gst-rtsp-server-1.0", allow_module_level=True)
if shutil.which("gst-inspect-1.0") is None or subprocess.run(["gst-inspect-1.0", "--exists", "rtpjpegpay"]).returncode:
    pytest.skip("no RTP in GStreamer: apt install gstreamer1.0-plugins-good", allow_module_level=True)

SERVER = textwrap.dedent("""
    import sys
    import gi
    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch("( videotestsrc is-live=true pattern=ball"
                       " ! video/x-raw,format=I420,width=320,height=240,framerate=10/1"
                       " ! jpegenc ! rtpjpegpay name=pay0 )")
    factory.set_shared(True)
    if len(sys.argv) > 2:
        auth, role = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
        role.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic("pilot", sys.argv[2]), role)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/stream", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()
""")


class Server:
    def __init__(self, password=""):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.password = [password] if password else []
        login = f"pilot:{password}@" if password else ""
        self.uri = f"rtsp://{login}127.0.0.1:{self.port}/stream"
        self.process = None

    def start(self):
        command = [PYTHON, "-c", SERVER, str(self.port), *self.password]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def server(request):
    made = Server(getattr(request, "param", ""))
    made.start()
    yield made
    made.stop()


def test_frames_come_and_the_end_is_told(server):
    source = open_source(server.uri)
    frames = source.frames()
    seen = [next(frames) for _ in range(8)]
    assert source.live
    assert {frame.image.shape for frame in seen} == {(240, 320, 3)}
    assert [frame.index for frame in seen] == list(range(8))
    assert all(a.t_ns < b.t_ns for a, b in itertools.pairwise(seen))
    assert any((a.image != b.image).any() for a, b in itertools.pairwise(seen))  # the ball moves
    server.process.kill()
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:\d+/stream: the (camera ended the stream|stream broke off)"):
        list(frames)
    source.close()
    with pytest.raises(SourceError, match=r"cannot be opened: .*; is the camera there\?"):
        open_source(server.uri)


def test_silence_ends_it(server, monkeypatch):
    monkeypatch.setattr(rtsp, "STALL_S", 1.0)
    source = open_source(server.uri)
    frames = source.frames()
    next(frames)
    os.kill(server.process.pid, signal.SIGSTOP)
    with pytest.raises(SourceError, match=r"the (camera ended the stream|stream broke off)"):
        list(frames)
    source.close()


@pytest.mark.parametrize("server", ["geheim1"], indirect=True)
def test_a_password_is_used_and_never_shown(server, tmp_path):
    wrong = server.uri.replace("geheim1", "geheim2")
    with pytest.raises(SourceError) as error:
        open_source(wrong)
    assert f"rtsp://...@127.0.0.1:{server.port}/stream: cannot be opened" in str(error.value)
    assert "geheim" not in str(error.value)
    daemon = Daemon(tmp_path / "drone", server.uri, learn={"enabled": False}, record={"folder": str(tmp_path / "rec")})
    daemon.start()
    try:
        before = daemon.until(lambda s: s["camera"] == "frames come" and s["frame"] > 5)
        pid = daemon.pid("onboard.daemon")
        with open(f"/proc/{pid}/cmdline") as file:
            assert "geheim" not in file.read()
        server.stop()
        lost = daemon.until(lambda s: "camera" in s["problems"])
        server.start()
        after = daemon.until(lambda s: s["frame"] > lost["frame"] + 5 and not s["problems"])
        assert after["pid"] == before["pid"]
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    assert "geheim" not in daemon.err.read_text() + str(lost)
    (recording,) = (tmp_path / "rec").glob("*.mcap")
    assert b"geheim" not in recording.read_bytes()
