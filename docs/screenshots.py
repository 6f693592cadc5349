"""Takes the pictures of the README and of docs/ from flights that are flown for them: `python -m docs.screenshots`.

Needs Chromium and the extra `dev`. The flight is the demo's at its own pace; the page is pictured in its middle. The
drone's own page is that of a daemon which is hot and far from its station.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Error, sync_playwright

from deploy import demo
from link.keys import enroll
from onboard.governor import EVERY_S
from onboard.sim import SimSource

IMAGES = Path(__file__).parent / "images"
PICTURED_AT_FRAME = 90
TIMEOUT_S = 120


ADDRESS = "127.0.0.1:8398"
SENSORS = {
    "class/thermal/thermal_zone0/temp": "81200",
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "devices/platform/soc/soc:firmware/get_throttled": "50005",
}


def status(folder: Path, browser: Browser) -> None:
    """Picture the drone's own page."""
    for name, text in SENSORS.items():
        path = folder / "sensors" / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    enroll(folder / "station", "kestrel", "tcp://192.0.2.10:5750", folder / "kestrel.toml")
    source = "sim://?fps=8&live=1&frames=4000"
    config = folder / "onboard.toml"
    sections = {
        "camera": f'source = "{source}"',
        "model": f"classes = {list(SimSource(source).classes)}",
        "governor": f'sensors = "{folder}/sensors"',
        "link": f'keys = "{folder}/kestrel.toml"',
        "page": f'address = "{ADDRESS}"',
    }
    lines = [f"[{name}]\n{line}\n" for name, line in sections.items()]
    config.write_text("".join([f'state = "{folder}/state"\n', *lines]))
    daemon = subprocess.Popen([sys.executable, "-m", "onboard.cli", "run", "--config", str(config)])
    try:
        page = browser.new_page(viewport={"width": 1000, "height": 620})
        for _ in range(TIMEOUT_S):
            time.sleep(2 * EVERY_S)
            text = ""
            with contextlib.suppress(Error):  # not there yet
                page.goto(f"http://{ADDRESS}/", timeout=2000)
                text = page.content()
            if (
                all(words in text for words in ("frames come", "cannot be reached", "resting"))
                and "0.0 fps" not in text
            ):
                break
        page.screenshot(path=IMAGES / "status.png")
    finally:
        daemon.terminate()
        daemon.wait(TIMEOUT_S)


def main() -> int:
    """Fly, and picture the page and the report."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("screenshots need chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        station, page_address, keys = demo.start(Path(folder))
        replay = demo.replay(Path(folder), keys, page_address, "--speed", "1")
        flight = subprocess.Popen(replay)
        try:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            page.goto(page_address)
            deadline = time.monotonic() + TIMEOUT_S
            state: dict[str, list[dict[str, dict[str, int]]]] = {"drones": []}
            while time.monotonic() < deadline:
                state = page.evaluate("fetch('/api/state').then(r => r.json())")
                if state["drones"] and (state["drones"][0].get("status") or {}).get("frame", 0) >= PICTURED_AT_FRAME:
                    break
                page.wait_for_timeout(200)
            page.screenshot(path=IMAGES / "page.png")
            status(Path(folder) / "drone", browser)
            browser.close()
            if flight.wait(TIMEOUT_S):
                return 1
            shutil.copy(Path(folder) / "report.png", IMAGES / "report.png")
        finally:
            flight.kill()
            station.terminate()
            station.wait(TIMEOUT_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
