"""Tells systemd how the flight is: ready, alive, and in a line what it does (sd_notify's datagrams, no library).

The frame loop itself says that it is alive, so a watchdog sees a loop that hangs, not only a process that ended.
Outside of a unit of `Type=notify`, nothing is sent.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Self

PINGS = 3
"""Signs of life in the time after which systemd would start the unit again."""


class Notifier:
    """The way to systemd that the environment names; sending never waits, and a lost datagram is no matter."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        limit = environment.get("WATCHDOG_USEC", "")
        # WATCHDOG_PID is the supervisor's, and not looked at: this is its child, the unit has NotifyAccess=all
        self._every = int(limit) * 1e-6 / PINGS if limit.isdecimal() else 0.0
        self._last, self._status = 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket:
            self._socket.close()

    def ready(self) -> None:
        """Kernels are compiled, and frames are taken from now on."""
        self._send("READY=1")

    def alive(self, status: str) -> None:
        """The loop goes round; sent as often as the watchdog needs it, and where the status, one line, is another."""
        now = time.monotonic()
        if self._every and now - self._last >= self._every:
            self._last = now
            self._send("WATCHDOG=1")
        if status != self._status:
            self._status = status
            self._send("STATUS=" + status.replace("\n", " "))

    def _send(self, text: str) -> None:
        if self._socket:
            with contextlib.suppress(OSError):  # systemd's queue is full, or it is just being started again
                self._socket.sendto(text.encode(), self._address)
