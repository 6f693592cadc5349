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


def start_station(data: Path, port: int, page: str) -> tuple[subprocess.Popen[str], str]:
    """`ground serve`, and the address of its page once it says that it is ready."""
    serve = command("ground.cli", "serve", "--data", str(data), "--bind", f"tcp://127.0.0.1:{port}", "--http", page)
    station = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    assert station.stdout is not None
    line = station.stdout.readline()
    if not line.startswith("ground: page "):
        raise SystemExit(f"demo: the ground station did not start (status {station.wait(READY_S)})")
    return station, line.split()[2]


def main() -> int:
    """Fly the demo; returns the exit status of the flight."""
    console = Console()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    port, keys = free_port(), FOLDER / f"{DRONE}.toml"
    data = FOLDER / "station"
    enroll = command("ground.cli", "enroll", DRONE, "--data", str(data), "--out", str(keys))
    subprocess.run([*enroll, "--address", f"tcp://127.0.0.1:{port}"], check=True, stdout=subprocess.DEVNULL)
    station, page = start_station(data, port, f"127.0.0.1:{os.environ.get('PAGE_PORT', '0')}")
    try:
        console.print(f"ground station: [bold]{page}[/] (open it to watch)")
        replay = command("onboard.cli", "replay", FLIGHT, "--keys", str(keys), "--page", page)
        replay += ["--label-rate", "0.03", "--label-delay", str(LABEL_DELAY), "--record", str(FOLDER / "recordings")]
        replay += ["--report", str(FOLDER / "report.json"), "--picture", str(FOLDER / "report.png")]
        status = subprocess.run(replay, check=False).returncode
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
