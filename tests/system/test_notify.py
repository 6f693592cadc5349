"""What the daemon tells systemd, received by a socket like systemd's; a loop that hangs falls silent."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from onboard.notify import Notifier
from onboard.sim import SimSource
from tests.system.onboard_process import WAIT_S, Daemon, child, until

SOURCE = "sim://?seed=3&frames=4000&fps=8&live=1"
EVERY_S = 0.2


@pytest.fixture
def heard(tmp_path):
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "notify"))
    receiver.setblocking(False)
    yield receiver
    receiver.close()


def messages(receiver):
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


def test_the_daemon_is_ready_alive_and_says_what_it_does(tmp_path, heard, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(3 * EVERY_S * 1e6)))
    daemon = Daemon(tmp_path / "drone", SOURCE, classes=SimSource(SOURCE).classes)
    daemon.start()
    said = []

    def hears(text):
        def found():
            said.extend(messages(heard))
            return text in said

        return found

    try:
        until(hears("READY=1"), daemon.err.read_text)
        assert "WATCHDOG=1" not in said[: said.index("READY=1")]
        until(hears("STATUS=frames come"), daemon.err.read_text)
        until(lambda: hears("")() or said.count("WATCHDOG=1") >= 4, daemon.err.read_text)
        flight = child(daemon.process.pid, "onboard.daemon")
        os.kill(flight, signal.SIGSTOP)  # a loop that hangs, in a process that lives
        time.sleep(EVERY_S)
        messages(heard)
        time.sleep(5 * EVERY_S)
        assert messages(heard) == []
        os.kill(flight, signal.SIGCONT)
        said.clear()
        until(hears("WATCHDOG=1"), daemon.err.read_text)
        os.kill(flight, signal.SIGKILL)  # its successor is ready and alive again
        said.clear()
        until(hears("READY=1"), daemon.err.read_text)
        until(hears("WATCHDOG=1"), daemon.err.read_text)
    finally:
        daemon.kill()


def test_a_camera_that_is_lost_is_said_while_the_loop_lives(tmp_path, heard, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    daemon = Daemon(tmp_path / "drone", "v4l2:///dev/video99", classes=("a", "b"))
    daemon.start()
    said = []
    try:
        until(
            lambda: said.extend(messages(heard)) or any("video99" in text for text in said),
            daemon.err.read_text,
        )
        until(lambda: said.extend(messages(heard)) or said.count("WATCHDOG=1") > 2, daemon.err.read_text)
    finally:
        daemon.kill()
    assert any(text.startswith("STATUS=") and "video99" in text and "\n" not in text for text in said)


def test_outside_of_a_unit_nothing_is_sent():
    with Notifier({}) as notifier:
        notifier.ready()
        notifier.alive("frames come")


def test_nobody_listening_is_no_matter(tmp_path):
    with Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "100"}) as notifier:
        notifier.ready()
        notifier.alive("frames come")


def test_a_socket_of_the_abstract_kind():
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.settimeout(WAIT_S)
    receiver.bind("\0hadanet-test-notify")
    with Notifier({"NOTIFY_SOCKET": "@hadanet-test-notify"}) as notifier:
        notifier.alive("one\ntwo")
        assert receiver.recv(100) == b"STATUS=one two"
        notifier.alive("one\ntwo")
        notifier.ready()
        assert receiver.recv(100) == b"READY=1"  # the same status is not said twice
    receiver.close()


def test_the_unit_waits_for_what_the_daemon_says():
    unit = (Path(__file__).parents[2] / "deploy/systemd/hadanet-onboard.service").read_text().splitlines()
    for line in ("Type=notify", "NotifyAccess=all", "WatchdogSec=30", "Restart=always", "NoNewPrivileges=yes"):
        assert line in unit
