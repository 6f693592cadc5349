// The operator's page: shows how a drone is and where, asks its questions one by one, and sends the answers.
// One key answers and the next question is there at once; the answer travels in the background.

import { listFacts } from "./facts.js";
import { FlightMap, drawGrid } from "./map.js";

const SILENCE_MS = 12000; // the station says something every 5 s
const COLOURS = 10;
const MAX_LINES = 5; // classes that a small screen has room for below each other
const MAX_TRACK = 4000; // points
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};

const state = {
  drones: new Map(), // name -> what the station says about it
  name: null, // of the drone on screen
  queue: [], // its open questions, oldest first
  open: 0, // how many there are in all
  pending: new Set(), // questions answered here, the station may still list them as open
  given: [], // answers given here: {query, label: Promise}, the latest last
  lost: false,
};

const drone = () => state.drones.get(state.name);
/** What can be answered: what the drone knows, then the new classes that it has not confirmed. */
const classes = () => [...(drone()?.classes ?? []), ...(drone()?.pending ?? [])];
const classColour = (name) => {
  const index = classes().indexOf(name);
  return index < 0 ? "--soft" : `--c${index % COLOURS}`;
};
const flightMap = new FlightMap($("map"), (moved) => ($("fit").hidden = !moved));

// --- talking to the station ---------------------------------------------------------------------------------------

async function call(path, method = "GET", body = undefined) {
  const response = await fetch(path, {
    method,
    body: body && JSON.stringify(body),
    headers: body && { "content-type": "application/json" },
    signal: AbortSignal.timeout(10000),
  });
  const data = await response.json();
  if (!response.ok) throw Object.assign(new Error(data.error), { status: response.status });
  return data;
}

async function loadState() {
  const { drones } = await call("/api/state");
  state.drones = new Map(drones.map((d) => [d.name, d]));
  if (!state.drones.has(state.name)) {
    const asked = decodeURIComponent(location.hash.slice(1));
    choose(state.drones.has(asked) ? asked : (drones.find((d) => d.connected) ?? drones[0])?.name ?? null);
  }
  show();
}

async function loadQueue() {
  const name = state.name;
  if (name === null) return;
  const { open, queries } = await call(`/api/queries?drone=${encodeURIComponent(name)}`);
  if (name !== state.name) return;
  const listed = new Set(queries.map((q) => q.id));
  for (const id of state.pending) if (!listed.has(id)) state.pending.delete(id);
  state.queue = queries.filter((q) => !state.pending.has(q.id));
  state.open = open - state.pending.size;
  showQuestion();
}

/** Run `load` soon and once for many calls; what fails is tried again at the next event. */
function soon(load, ms) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      load().catch((error) => console.warn(error));
    }, ms);
  };
}
const stateSoon = soon(loadState, 250);
const queueSoon = soon(loadQueue, 100);

function listen() {
  const events = new EventSource("/api/events");
  let heard = Date.now();
  const on = (kind, act) =>
    events.addEventListener(kind, (event) => {
      heard = Date.now();
      setLost(false);
      act(JSON.parse(event.data));
    });
  const update = (data) => {
    const known = state.drones.get(data.name);
    if (!known) return stateSoon();
    const { lat_deg: lat, lon_deg: lon } = data.status;
    const last = known.track.at(-1);
    if (lat !== null && lon !== null && (last?.[0] !== lat || last?.[1] !== lon)) known.track.push([lat, lon]);
    if (known.track.length > MAX_TRACK) stateSoon(); // the station's own track is thinned
    Object.assign(known, data);
    show();
  };
  on("alive", () => {});
  on("reload", () => (stateSoon(), queueSoon()));
  on("drone", update);
  on("query", (data) => (update(data), stateSoon(), queueSoon()));
  on("label", (data) => (update(data), stateSoon(), queueSoon()));
  on("seen", ({ name, seen }) => {
    const known = state.drones.get(name);
    if (!known) return;
    known.seen = seen;
    if (name === state.name) showSeen(known);
  });
  events.onerror = () => setLost(true);
  setInterval(() => {
    if (Date.now() - heard > SILENCE_MS) setLost(true);
    showFacts();
  }, 1000);
}

// --- answering -----------------------------------------------------------------------------------------------------

/** Send an answer to the question on screen: {answer: class or ""}, {answer, new: true} or {verdict}. */
function answer(body) {
  const query = state.queue[0];
  if (!query || state.lost) return;
  state.queue.shift();
  state.open -= 1;
  state.pending.add(query.id);
  const label = call("/api/labels", "POST", { drone: query.drone, query: query.id, ...body }).then((r) => r.label);
  const given = { query, label };
  state.given.push(given);
  label.catch((error) => {
    state.given = state.given.filter((g) => g !== given);
    state.pending.delete(query.id);
    toast(error.status === 409 ? "Somebody else has answered this one." : `The answer was not stored: ${error.message}`);
    stateSoon();
    queueSoon();
  });
  showQuestion();
  if (state.queue.length < 5) queueSoon();
}

function judge(verdict) {
  if (state.queue[0]?.guess) answer({ verdict });
}

/** Show or hide the line for the name of a new class. */
function naming(on) {
  const open = on && Boolean(state.queue[0]) && !state.lost;
  $("naming").hidden = !open;
  $("rest").hidden = open;
  $("name").value = "";
  if (open) $("name").focus();
  else $("name").blur(); // at once, so that the next key is an answer
}

function addClass() {
  const typed = $("name").value.trim();
  if (!typed || !state.queue[0] || state.lost) return;
  const name = classes().find((c) => c.toLowerCase() === typed.toLowerCase()) ?? typed;
  if (!classes().includes(name)) {
    drone().pending.push(name); // at once, for the next tile; the station says what became of it
    showAnswers();
  }
  naming(false);
  answer({ answer: name, new: true });
}

async function undo() {
  const known = drone();
  const mine = state.given.findLast((g) => g.query.drone === state.name);
  const last = mine ?? known?.recent[0] ?? null;
  if (!last || state.lost) return;
  try {
    const label = await last.label;
    if (mine) state.given = state.given.filter((g) => g !== mine);
    else known.recent.shift();
    await call(`/api/labels/${label}`, "DELETE");
    state.pending.delete((mine?.query ?? last).id);
    if (last.query) state.queue.unshift(last.query);
    if (last.query) state.open += 1;
    showQuestion();
  } catch (error) {
    toast(`It was not taken back: ${error.message}`);
  }
  stateSoon();
  queueSoon();
}

addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || state.name === null) return;
  const key = event.key.toLowerCase();
  if (key === "escape") {
    $("commands").open = false;
    naming(false);
  }
  if (event.target === $("name")) return; // letters are letters there
  const onControl = document.activeElement?.closest("button, summary, a");
  if ((key === " " || key === "enter") && onControl) return; // there, they press what has the focus
  if (key === "enter") judge("right");
  else if (key === "x" || key === "backspace") judge("wrong");
  else if (key === "n") naming(true);
  else if (key === "0" || key === " ") answer({ answer: "" });
  else if (key === "u") undo();
  else if (/^[1-9]$/.test(key) && classes()[key - 1]) answer({ answer: classes()[key - 1] });
  else return;
  event.preventDefault();
});
addEventListener("click", (event) => {
  const pressed = document.activeElement;
  if (event.detail && pressed?.matches("button")) pressed.blur(); // with the mouse: keys are answers again
});

// --- showing -------------------------------------------------------------------------------------------------------

function choose(name) {
  state.name = name;
  state.queue = [];
  state.open = 0;
  flightMap.view = null;
  if (name !== null) history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  showAnswers();
  showQuestion();
  show();
  queueSoon();
}

function setLost(lost) {
  state.lost = lost;
  const line = $("station");
  const text = lost ? "Connection to the station is lost. Trying again…" : "Station connected";
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("lost", lost);
  for (const button of document.querySelectorAll(".side button")) button.disabled = lost;
}

function show() {
  const known = drone();
  $("none").hidden = state.drones.size > 0;
  $("one").hidden = !known;
  showDrones();
  if (!known) return;
  document.title = known.open ? `(${known.open}) ${known.name}` : known.name;
  showFacts();
  showMap(known);
  showSeen(known);
  showRecent(known);
  if ($("classes").dataset.shown !== answerable()) showAnswers();
  if (!state.queue.length) showQuestion();
}

function showDrones() {
  const buttons = [...state.drones.values()].map((d) => {
    const mark = make("span", { className: d.connected ? "dot on" : "dot" });
    const button = make("button", { type: "button", onclick: () => choose(d.name) }, mark, d.name);
    button.setAttribute("aria-pressed", String(d.name === state.name));
    button.setAttribute("aria-label", `${d.name}, ${d.connected ? "connected" : "not connected"}, ${d.open} open questions`);
    if (d.open) button.append(make("span", { className: "badge", textContent: d.open }));
    return button;
  });
  const old = $("drones");
  const had = old.contains(document.activeElement) ? [...old.children].indexOf(document.activeElement) : -1;
  old.replaceChildren(...buttons);
  buttons[had]?.focus();
}

function showFacts() {
  const d = drone();
  if (!d) return;
  const nodes = listFacts(d).map(([name, value, kind = "", title = ""]) =>
    make("div", { className: kind },
      make("dt", { textContent: name }),
      make("dd", { textContent: value, title })),
  );
  $("facts").replaceChildren(...nodes);
  const last = d.notices.at(-1);
  const recent = last && Date.now() / 1000 - last.t_s < 30 ? `${d.name}: ${last.text}` : "";
  const notice = d.link.problem || d.no_mirror || (d.problem ? `${d.name} says: ${d.problem}` : recent);
  if ($("notice").textContent !== notice) $("notice").textContent = notice;
}

function showMap(d) {
  flightMap.show({ track: d.track, asked: d.asked, yaw: d.status.yaw_deg, current: state.queue[0]?.id, classColour });
  $("nowhere").hidden = d.track.length + d.asked.length > 0;
}

function showSeen(d) {
  $("sees").hidden = !d.seen;
  if (!d.seen) return;
  $("seenframe").textContent = `frame ${d.seen.frame.toLocaleString("en")}`;
  drawGrid($("grid"), d.seen, d.classes, classColour);
}

const answerable = () => JSON.stringify([drone()?.classes, drone()?.pending]);

function showAnswers() {
  const known = drone()?.classes ?? [];
  const buttons = classes().map((name, i) => {
    const text = make("span", { className: "name", textContent: name });
    const node = make("button", { type: "button", disabled: state.lost, onclick: () => answer({ answer: name }) }, text);
    if (!known.includes(name)) {
      node.className = "pending";
      text.append(" ", make("span", { className: "tag", textContent: "new", title: "not confirmed by the drone yet" }));
    }
    if (i < 9) node.append(make("kbd", { textContent: i + 1 }));
    node.style.setProperty("--class", `var(${classColour(name)})`);
    return node;
  });
  $("classes").replaceChildren(...buttons);
  $("classes").classList.toggle("many", buttons.length > MAX_LINES);
  $("classes").dataset.shown = answerable();
  const entry = (text, variable) => {
    const mark = make("i");
    if (variable) mark.style.setProperty("--class", `var(${variable})`);
    return make("li", {}, mark, text);
  };
  const entries = classes().map((name) => entry(name, classColour(name)));
  $("legend").replaceChildren(...entries, entry("no class", "--soft"), entry("open"));
}

function showQuestion() {
  const d = drone();
  if (!d) return;
  const query = state.queue[0];
  $("asking").hidden = !query;
  $("idle").hidden = Boolean(query);
  $("count").textContent = state.open > 0 ? `${state.open} open` : "";
  $("undo").disabled = !state.given.length && !d.recent.length;
  flightMap.show({ current: query?.id });
  if ($("naming").dataset.id !== query?.id) naming(false); // a name is for the tile that it was begun at
  $("naming").dataset.id = query?.id;
  if (!query) {
    $("why").textContent = d.connected
      ? "The drone asks when it is not sure. Its next question appears here by itself."
      : `${d.name} is not connected. Its questions appear here when it calls again.`;
    return;
  }
  if ($("tile").dataset.id !== query.id) {
    $("tile").dataset.id = query.id;
    $("tile").src = query.url;
    $("tile").alt = `Picture of row ${query.row + 1}, column ${query.col + 1} in frame ${query.frame}`;
    $("caption").textContent = `${query.frame_name || `frame ${query.frame}`} · row ${query.row + 1}, column ${query.col + 1}`;
    showGuess(query);
  }
  for (const next of state.queue.slice(1, 4)) new Image().src = next.url; // there before it is asked
}

function showGuess(query) {
  const percent = Math.round(query.confidence * 100);
  const line = make("p", {}, make("strong", { textContent: query.guess || "no idea" }), ` ${query.guess ? `${percent} %` : ""}`);
  const bar = make("div", { className: "bar" }, make("i"));
  bar.style.setProperty("--share", `${percent}%`);
  bar.style.setProperty("--class", `var(${classColour(query.guess)})`);
  $("guess").replaceChildren(make("p", { className: "label", textContent: "The drone’s guess" }), line, bar);
  $("verdict").hidden = !query.guess;
}

function showRecent(d) {
  const items = d.recent.map((q) => {
    const text = q.wrong ? `not ${q.answer}` : q.answer || "don’t know";
    const guessed = q.guess === q.answer && !q.wrong ? "as guessed" : `guessed ${q.guess || "nothing"}`;
    const item = make("li", {}, make("img", { src: q.url, alt: "", loading: "lazy" }),
      make("span", { textContent: text, title: `${text}, ${guessed}` }));
    if (q.answer && !q.wrong) item.style.setProperty("--class", `var(${classColour(q.answer)})`);
    return item;
  });
  $("recent").replaceChildren(...(items.length ? items : [make("li", { className: "none", textContent: "None yet." })]));
  $("undo").disabled = !state.given.length && !d.recent.length;
}

let toastTimer;
function toast(text) {
  $("toast").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").textContent = ""), 6000);
}

$("undo").onclick = undo;
$("add").onclick = () => naming(true);
$("leave").onclick = () => naming(false);
$("unsure").onclick = () => answer({ answer: "" });
for (const button of $("verdict").children) button.onclick = () => judge(button.dataset.verdict);
$("naming").onsubmit = (event) => {
  event.preventDefault();
  addClass();
};
$("fit").onclick = () => flightMap.fit();
addEventListener("resize", () => drone() && showSeen(drone()));
for (const button of document.querySelectorAll("[data-action]")) {
  const text = button.textContent;
  button.onclick = async () => {
    if (button.classList.contains("grave") && !button.dataset.sure) {
      button.dataset.sure = "yes"; // what it learned is lost: ask for a second press
      button.textContent = "Sure? Press again";
      setTimeout(() => (delete button.dataset.sure, (button.textContent = text)), 4000);
      return;
    }
    $("commands").open = false;
    try {
      await call("/api/control", "POST", { drone: state.name, action: button.dataset.action });
    } catch (error) {
      toast(`The command was not sent: ${error.message}`);
    }
  };
}
listen();
