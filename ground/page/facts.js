// How a drone is, in words and units.

const MIRROR = {
  equal: ["✓ mirror equal", "good"],
  behind: ["… catching up", "warn"],
  differs: ["✗ mirror differs", "bad"],
  none: ["✗ no mirror", "bad"],
};
const digits = (x) => x.toFixed(x < 10 ? 1 : 0);
const bytes = (n) => (n < 1e3 ? `${n} B` : n < 1e6 ? `${digits(n / 1e3)} kB` : `${digits(n / 1e6)} MB`);
const ago = (s) => (s < 90 ? `${Math.max(0, Math.round(s))} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`);

/** Rows of [name, value, style classes, title]. */
export function listFacts(d) {
  const s = d.status;
  const [mirror, mood] = MIRROR[d.mirror];
  const away = `away for ${ago(Date.now() / 1000 - d.seen_s)}`;
  return [
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
}
