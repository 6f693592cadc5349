"""Takes the pictures of the README from a flight that is flown for them: `python -m docs.screenshots`.

Needs Chromium and the extra `dev`. The flight is the demo's at its own pace; the page is pictured in its middle.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from deploy import demo

IMAGES = Path(__file__).parent / "images"
PICTURED_AT_FRAME = 90
TIMEOUT_S = 120


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
