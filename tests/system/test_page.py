"""The page in a real Chromium: a drone calls, asks, is answered with one key, and hears it."""

import shutil
import signal

import pytest

from link.messages import Control, Label, Problems, Undo
from tests.system.ground_process import WAIT_S, Drone

chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if chromium is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
FIRST, SECOND, THIRD = ((7 << 32) + frame for frame in (0, 4, 8))
COUNT_COLOURS = """canvas => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const found = {};
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] === 255) {
      const key = [data[i], data[i + 1], data[i + 2]].join();
      found[key] = (found[key] ?? 0) + 1;
    }
  return found;
}"""
TREES, ROAD, ACCENT, TRACK = "21,128,61", "180,83,9", "11,87,208", "74,83,98"  # of the light style sheet


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1366, "height": 768}, color_scheme="light")
    context.set_default_timeout(WAIT_S * 1000)
    page = context.new_page()
    page.problems = []
    page.asked = set()
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: page.asked.add(request.url.split("/")[2]))
    yield page
    context.close()


def expect(locator):
    return sync_api.expect(locator)


def test_a_drone_calls_asks_and_is_answered(ground, page):
    page.goto(ground.url)
    expect(page.locator("#none")).to_contain_text("ground enroll NAME")
    expect(page.locator("#one")).to_be_hidden()
    drone = Drone(ground)
    try:
        drone.fly()
        expect(page.get_by_role("button", name="kestrel, connected, 3 open questions")).to_be_visible()
        expect(page.locator("#facts")).to_contain_text("✓ mirror equal")
        expect(page.locator("#facts")).to_contain_text(drone.model.hash[:8])
        expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
        expect(page.locator("#count")).to_have_text("3 open")
        page.wait_for_function("() => document.querySelector('#tile').naturalWidth > 0")
        ground.until(lambda state: len(state["track"]) == 9)
        page.wait_for_function(f"() => ({COUNT_COLOURS})(document.querySelector('#map'))['{TRACK}'] > 150")
        before = page.locator("#map").evaluate(COUNT_COLOURS)
        assert before[ACCENT] > 50  # the drone
        assert TREES not in before

        page.keyboard.press("3")  # one key, and the next question is there
        expect(page.locator("#tile")).to_have_attribute("data-id", str(SECOND))
        expect(page.locator("#count")).to_have_text("2 open")
        label = drone.take(Label)
        assert (label.query, label.answer) == (FIRST, "trees")
        expect(page.locator("#recent li")).to_have_text(["trees"])
        page.wait_for_function(f"() => ({COUNT_COLOURS})(document.querySelector('#map'))['{TREES}'] > 20")

        page.keyboard.press(" ")
        assert drone.take(Label).answer == ""
        page.get_by_role("button", name="road").click()
        assert drone.take(Label).answer == "road"
        expect(page.locator("#idle")).to_contain_text("No open questions")
        expect(page.locator("#recent li")).to_have_text(["road", "don’t know", "trees"])
    finally:
        drone.link.close()
    expect(page.get_by_role("button", name="kestrel, not connected")).to_be_visible()
    expect(page.locator("#idle")).to_contain_text("kestrel is not connected")
    assert page.problems == []
    assert page.asked == {ground.http}  # nothing from anywhere else


def test_undo_brings_the_question_back(ground, drone, page):
    drone.fly()
    page.goto(ground.url)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    page.keyboard.press("2")
    page.keyboard.press("u")  # at once: the answer may still be on its way
    label = drone.take(Label)
    assert drone.take(Undo).label == label.id
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    expect(page.locator("#count")).to_have_text("3 open")
    page.keyboard.press("3")
    assert (drone.take(Label).query, page.problems) == (FIRST, [])
    page.reload()  # an answer from before can be taken back too
    expect(page.locator("#recent li")).to_have_text(["trees"])
    page.get_by_role("button", name="Undo last").click()
    drone.take(Undo)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    expect(page.locator("#recent li")).to_have_text(["None yet."])


def test_an_answer_of_somebody_else_is_told(ground, drone, page):
    drone.fly()
    page.goto(ground.url)
    expect(page.locator("#count")).to_have_text("3 open")
    page.route("**/api/queries?*", lambda route: route.abort())  # from now on this page does not hear of it
    assert ground.send("POST", "/api/labels", drone="kestrel", query=str(SECOND), answer="road")[0] == 201
    page.keyboard.press("3")
    expect(page.locator("#tile")).to_have_attribute("data-id", str(SECOND))
    page.keyboard.press("3")
    expect(page.locator("#toast")).to_have_text("Somebody else has answered this one.")
    expect(page.locator("#tile")).to_have_attribute("data-id", str(THIRD))
    assert sorted(drone.take(Label).answer for _ in range(2)) == ["road", "trees"]


def test_what_a_drone_says_is_wrong_with_it_is_shown(ground, drone, page):
    drone.fly()
    page.goto(ground.url)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    drone.link.post(Problems(text="camera: it gave no picture <b>in 3 s</b>"))
    expect(page.locator("#notice")).to_have_text("kestrel says: camera: it gave no picture <b>in 3 s</b>")
    drone.link.post(Problems(text=""))
    expect(page.locator("#notice")).not_to_contain_text("kestrel says")


def test_a_lost_station_is_shown_and_found_again(ground, drone, page):
    drone.fly()
    page.goto(ground.url)
    expect(page.locator("#station")).to_have_text("Station connected")
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    ground.stop(signal.SIGKILL)
    expect(page.locator("#station")).to_contain_text("Connection to the station is lost")
    expect(page.get_by_role("button", name="road")).to_be_disabled()
    page.keyboard.press("1")
    ground.start()
    expect(page.locator("#station")).to_have_text("Station connected")
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    page.keyboard.press("2")
    label = drone.take(Label)
    assert (label.query, label.answer) == (FIRST, "road")


def test_commands(ground, drone, page):
    drone.fly(1)
    page.goto(ground.url)
    page.get_by_text("Commands").click()
    page.get_by_role("button", name="Freeze learning").click()
    assert drone.take(Control).action == "freeze"
    page.get_by_text("Commands").click()
    page.get_by_role("button", name="Back to the base model").click()
    page.get_by_role("button", name="Sure? Press again").click()
    assert drone.take(Control).action == "anchor"
    expect(page.locator("#notice")).to_contain_text("told to anchor")


def test_it_fits_the_screen_and_can_be_used_without_seeing_it(ground, drone, page):
    drone.fly()
    page.goto(ground.url)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    for width, height in ((1366, 768), (390, 844), (320, 640)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        if width > 900:
            assert page.evaluate("() => document.documentElement.scrollHeight") <= height
        unsure = page.get_by_role("button", name="Don’t know").bounding_box()
        assert unsure["y"] + unsure["height"] <= height or height < 700  # every answer without scrolling
    expect(page.get_by_role("group", name="Answers").get_by_role("button")).to_have_count(5)
    expect(page.get_by_role("img", name="Picture of row 3, column 1 in frame 0")).to_be_visible()
    expect(page.get_by_role("img", name="Track of the drone and where it asked")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineWidth") == "3px"

    for key in ("9", "a", "Control+1", "Alt+2"):
        page.keyboard.press(key)  # none of them is an answer
    page.keyboard.press("1")
    assert drone.take(Label).answer == "object"
    expect(page.locator("#tile")).to_have_attribute("data-id", str(SECOND))
    assert ground.drone()["labels"] == 1
