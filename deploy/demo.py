"""`make demo`: a simulated flight through the daemon and a real ground station, on this machine, in a minute or two.

Everything is the real thing: a `ground serve` process, keys from `ground enroll`, CURVE over TCP, a learner process,
an operator whose answers go through the station's page. With KEEP=1 the station stays up to be looked at.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from rich.console import Console

FOLDER = Path("demo")
FLIGHT = "sim://?seed=4"
DRONE = "kestrel"
LABEL_DELAY = 5
READY_S = 60


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(module: str, *args: str) -> list[str]:
    """The command line of one of our programs in this Python."""
    return [sys.executable, "-m", module, *args]


def start(folder: Path) -> tuple[subprocess.Popen[str], str, Path]:
    """Enroll a drone and start `ground serve`: its process, the address of its page, and the drone's keys."""
    port, keys, data = free_port(), folder / f"{DRONE}.toml", folder / "station"
    enroll = command("ground.cli", "enroll", DRONE, "--data", str(data), "--out", str(keys))
    subprocess.run([*enroll, "--address", f"tcp://127.0.0.1:{port}"], check=True, stdout=subprocess.DEVNULL)
    serve = command("ground.cli", "serve", "--data", str(data), "--bind", f"tcp://127.0.0.1:{port}")
    serve += ["--http", f"127.0.0.1:{os.environ.get('PAGE_PORT', '0')}"]
    station = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    assert station.stdout is not None
    line = station.stdout.readline()
    if not line.startswith("ground: page "):
        raise SystemExit(f"demo: the ground station did not start (status {station.wait(READY_S)})")
    return station, line.split()[2], keys


def replay(folder: Path, keys: Path, page: str, *options: str) -> list[str]:
    """The command that flies the simulated flight with that station."""
    args = [FLIGHT, "--keys", str(keys), "--page", page, "--record", str(folder / "recordings"), *options]
    args += ["--label-rate", "0.03", "--label-delay", str(LABEL_DELAY)]
    args += ["--report", str(folder / "report.json"), "--picture", str(folder / "report.png")]
    return command("onboard.cli", "replay", *args)


def main() -> int:
    """Fly the demo; returns the exit status of the flight."""
    console = Console()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    station, page, keys = start(FOLDER)
    try:
        console.print(f"ground station: [bold]{page}[/] (open it to watch)")
        status = subprocess.run(replay(FOLDER, keys, page), check=False).returncode
        if status == 0:
            console.print(f"picture: {FOLDER / 'report.png'}   report: {FOLDER / 'report.json'}")
            console.print(f"recording for Foxglove: {FOLDER / 'recordings'}")
            if os.environ.get("KEEP"):
                console.print(f"the station stays up at [bold]{page}[/]; Ctrl-C ends it")
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the station gets it too, and ends
                station.wait()
            else:
                console.print("KEEP=1 make demo leaves the station up to look at")
        return status
    finally:
        if station.poll() is None:
            station.terminate()
            station.wait(READY_S)


if __name__ == "__main__":
    sys.exit(main())
