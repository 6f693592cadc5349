"""The page in a real Chromium: a drone calls, asks, is answered with one key, and hears it."""

import shutil
import signal

import msgspec
import pytest

from link.messages import Control, Label, Problems, Query, Undo
from tests.ground_flight import flight, step
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


def test_right_and_wrong_are_one_key_each(ground, drone, page):
    drone.fly(17)
    guesses = [q["guess"] for q in ground.get("/api/queries?drone=kestrel")["queries"]]
    assert len([guess for guess in guesses if guess]) == 5
    page.goto(ground.url)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    for key in ("Enter", "x", "Backspace"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Wrong").click()
    page.keyboard.press("Enter")  # the button that was pressed with the mouse does not take it
    given = [drone.take(Label) for _ in range(5)]
    assert [(m.query - FIRST, m.wrong, m.new) for m in given] == [
        (0, False, False),
        (4, True, False),
        (8, True, False),
        (12, True, False),
        (16, False, False),
    ]
    assert [m.answer for m in given] == guesses
    words = [f"{'not ' if wrong else ''}{guess}" for wrong, guess in zip((0, 1, 1, 1, 0), guesses, strict=True)]
    expect(page.locator("#recent li")).to_have_text(words[::-1])
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert [drone.take(Undo).label for _ in range(2)] == [given[4].id, given[3].id]
    expect(page.locator("#count")).to_have_text("2 open")
    expect(page.locator("#recent li")).to_have_text(words[2::-1])
    assert page.problems == []


def test_without_a_guess_there_is_no_right_or_wrong(ground, drone, page):
    drone.fly(1)
    question = next(m for messages in flight(1) for m in messages if isinstance(m, Query))
    drone.link.post(msgspec.structs.replace(question, id=FIRST + 1, guess=-1))
    page.goto(ground.url)
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#count")).to_have_text("2 open")
    page.keyboard.press("Enter")
    expect(page.locator("#guess")).to_contain_text("no idea")
    expect(page.locator("#verdict")).to_be_hidden()
    page.keyboard.press("Enter")
    page.keyboard.press("x")
    page.keyboard.press("2")
    assert [drone.take(Label).query for _ in range(2)] == [FIRST, FIRST + 1]
    assert ground.drone()["recent"][0]["answer"] == "road"


def test_a_new_class_in_flight(ground, drone, page):
    drone.fly(25)
    page.goto(ground.url)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    answers = page.get_by_role("group", name="Answers")
    page.keyboard.press("n")
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type("x1 0n")  # none of these letters is an answer here
    expect(page.locator("#name")).to_have_value("x1 0n")
    page.keyboard.press("Escape")
    expect(page.locator("#naming")).to_be_hidden()
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    page.keyboard.press("n")
    page.keyboard.press("Enter")  # no name, no class
    page.keyboard.type(" rock ")
    page.keyboard.press("Enter")
    page.keyboard.press("5")  # at once, while the drone does not know of it
    assert [(m.query, m.answer, m.new) for m in (drone.take(Label), drone.take(Label))] == [
        (FIRST, "rock", True),
        (SECOND, "rock", True),
    ]
    expect(page.locator("#tile")).to_have_attribute("data-id", str(THIRD))
    expect(answers.get_by_role("button", name="rock new 5")).to_be_visible()
    expect(page.locator("#legend")).to_contain_text("rock")
    page.reload()
    expect(answers.get_by_role("button", name="rock new 5")).to_be_visible()

    answers.get_by_role("button", name="New class").click()
    page.keyboard.type("Rock")  # it is there
    page.get_by_role("button", name="Add").click()
    assert (drone.take(Label).answer, ground.drone()["pending"]) == ("rock", ["rock"])
    before, drone.model = drone.model, drone.model.with_classes((*drone.model.classes, "rock"))
    drone.link.post(step(before, drone.model, 9, reason="classes"))
    expect(answers.get_by_role("button", name="rock 5")).to_be_visible()
    page.keyboard.press("5")
    confirmed = drone.take(Label)
    assert (confirmed.answer, confirmed.new) == ("rock", False)

    page.keyboard.press("n")
    page.keyboard.type("mud")
    assert ground.send("POST", "/api/labels", drone="kestrel", query=str(FIRST + 16), answer="road")[0] == 201
    expect(page.locator("#naming")).to_be_hidden()  # somebody else answered: the name was meant for that tile
    page.keyboard.press("n")
    page.keyboard.type("mud")
    page.keyboard.press("Enter")
    expect(answers.get_by_role("button", name="mud new 6")).to_be_visible()
    page.keyboard.press("u")
    expect(answers.get_by_role("button", name="mud new 6")).to_be_hidden()
    assert page.problems == []


def test_many_classes_leave_the_other_answers_in_sight(ground, drone, page):
    drone.fly(1)
    page.goto(ground.url)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    for count in (6, 12, 32):
        before, drone.model = drone.model, drone.model.with_classes(tuple(f"class {i}" for i in range(count)))
        drone.link.post(step(before, drone.model, count, reason="classes"))
        expect(page.locator("#classes button")).to_have_count(count)
        for name in ("Right", "Wrong", "New class", "Don’t know"):
            # what lies at the middle of the button is the button: neither hidden nor covered
            assert page.get_by_role("button", name=name).evaluate(
                "b => { const r = b.getBoundingClientRect();"
                " return b.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)); }"
            ), (name, count)


def test_a_new_class_that_the_station_refuses_is_told(ground, drone, page):
    drone.fly(1)
    before, drone.model = drone.model, drone.model.with_classes(tuple(f"class {i}" for i in range(32)))
    drone.link.post(step(before, drone.model, 9, reason="classes"))
    page.goto(ground.url)
    expect(page.locator("#classes button")).to_have_count(32)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    page.keyboard.press("n")
    page.keyboard.type("mud")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_contain_text("has 32 classes and no more than 32 can be told apart")
    expect(page.locator("#classes button")).to_have_count(32)
    expect(page.locator("#tile")).to_have_attribute("data-id", str(FIRST))
    expect(page.locator("#count")).to_have_text("1 open")
    assert ground.drone()["labels"] == 0


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
        page.keyboard.press("n")
        side = page.locator(".side").bounding_box()
        for part in page.locator(".side button:visible, .side input:visible").all():
            box = part.bounding_box()
            assert side["x"] <= box["x"] < box["x"] + box["width"] <= side["x"] + side["width"]
            assert box["height"] >= 44  # a thumb
        page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Answers").get_by_role("button")).to_have_count(6)
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
