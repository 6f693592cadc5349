// The operator's page: shows how a drone is and where, asks its questions one by one, and sends the answers.
// One key answers and the next question is there at once; the answer travels in the background.

import { FlightMap, drawGrid } from "./map.js";

const SILENCE_MS = 12000; // the station says something every 5 s
const COLOURS = 10;
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
  given: [], // answers given here: {query, answer, label: Promise}, the latest last
  lost: false,
};

const drone = () => state.drones.get(state.name);
const classColour = (name) => {
  const index = drone()?.classes.indexOf(name) ?? -1;
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

function answer(text) {
  const query = state.queue[0];
  if (!query || state.lost) return;
  state.queue.shift();
  state.open -= 1;
  state.pending.add(query.id);
  const label = call("/api/labels", "POST", { drone: query.drone, query: query.id, answer: text }).then((r) => r.label);
  const given = { query, answer: text, label };
  state.given.push(given);
  label.catch((error) => {
    state.given = state.given.filter((g) => g !== given);
    state.pending.delete(query.id);
    toast(error.status === 409 ? "Somebody else has answered this one." : `The answer was not stored: ${error.message}`);
    queueSoon();
  });
  showQuestion();
  if (state.queue.length < 5) queueSoon();
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
  if (event.key === "Escape") $("commands").open = false;
  const onControl = document.activeElement?.closest("button, summary, a");
  if (event.key === " " && onControl) return; // there, space presses what has the focus
  if (event.key === "0" || event.key === " ") answer("");
  else if (event.key.toLowerCase() === "u") undo();
  else if (/^[1-9]$/.test(event.key) && drone().classes[event.key - 1]) answer(drone().classes[event.key - 1]);
  else return;
  event.preventDefault();
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
  for (const button of $("answers").children) button.disabled = lost;
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
  if ($("answers").dataset.classes !== JSON.stringify(known.classes)) showAnswers();
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

const MIRROR = {
  equal: ["✓ mirror equal", "good"],
  behind: ["… catching up", "warn"],
  differs: ["✗ mirror differs", "bad"],
  none: ["✗ no mirror", "bad"],
};
const digits = (x) => x.toFixed(x < 10 ? 1 : 0);
const bytes = (n) => (n < 1e3 ? `${n} B` : n < 1e6 ? `${digits(n / 1e3)} kB` : `${digits(n / 1e6)} MB`);
const ago = (s) => (s < 90 ? `${Math.max(0, Math.round(s))} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`);

function showFacts() {
  const d = drone();
  if (!d) return;
  const s = d.status;
  const [mirror, mood] = MIRROR[d.mirror];
  const away = `away for ${ago(Date.now() / 1000 - d.seen_s)}`;
  const facts = [
    ["Link", d.connected ? "connected" : away, d.connected ? "good" : "bad"],
    [`Model ${d.model_hash.slice(0, 8)}`, mirror, `${mood} wide`, d.model_hash],
    ["Frame", s.frame.toLocaleString("en")],
    ["Rate", `${s.fps.toFixed(1)} fps`],
    ["Latency", `${s.latency_ms.toFixed(0)} ms`, "minor"],
    ["Dropped", s.dropped, s.dropped ? "warn" : ""],
    ["Learner", s.learner],
    ["Labels", s.labels === d.labels ? d.labels : `${s.labels} of ${d.labels}`, "", "used by the drone, of all answers"],
    ["Updates", s.updates, "minor"],
    ["Rolled back", s.rollbacks, s.rollbacks ? "warn minor" : "minor"],
    ["Up / down", `${bytes(d.link.up)} / ${bytes(d.link.down)}`],
    ["Recorder", s.recorder, "minor rare"],
  ];
  const nodes = facts.map(([name, value, kind = "", title = ""]) =>
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

function showAnswers() {
  const classes = drone()?.classes ?? [];
  const button = (name, text, key, kind) => {
    const node = make("button", { type: "button", className: kind, disabled: state.lost },
      make("span", { className: "name", textContent: name }), ...(key ? [make("kbd", { textContent: key })] : []));
    if (text) node.style.setProperty("--class", `var(${classColour(text)})`);
    node.onclick = (event) => {
      if (event.detail) node.blur(); // pressed with the mouse: space means "don't know" again
      answer(text);
    };
    return node;
  };
  const buttons = classes.map((name, i) => button(name, name, i < 9 ? i + 1 : "", ""));
  $("answers").replaceChildren(...buttons, button("Don’t know", "", "0", "unsure"));
  $("answers").dataset.classes = JSON.stringify(classes);
  const entry = (text, variable) => {
    const mark = make("i");
    if (variable) mark.style.setProperty("--class", `var(${variable})`);
    return make("li", {}, mark, text);
  };
  const entries = classes.map((name) => entry(name, classColour(name)));
  $("legend").replaceChildren(...entries, entry("don’t know", "--soft"), entry("open"));
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
}

function showRecent(d) {
  const items = d.recent.map((q) => {
    const item = make("li", {}, make("img", { src: q.url, alt: "", loading: "lazy" }),
      make("span", { textContent: q.answer || "don’t know", title: q.guess === q.answer ? "as guessed" : `guessed ${q.guess || "nothing"}` }));
    if (q.answer) item.style.setProperty("--class", `var(${classColour(q.answer)})`);
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
