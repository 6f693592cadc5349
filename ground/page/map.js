// The map: the track in metres around its first point, where the drone asked, and the drone itself. North is up.

const METRES_PER_DEGREE = 111320;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A length that reads well (1, 2 or 5 times a power of ten), at most `metres`. */
export function niceLength(metres) {
  const power = 10 ** Math.floor(Math.log10(metres));
  return [5, 2, 1].find((step) => step * power <= metres) * power;
}

/** The way it last moved in degrees, for a drone that does not know its heading; null before it moved. */
function course(track) {
  const [[x0, y0], [x1, y1]] = [track.at(-2) ?? track[0], track.at(-1)];
  return x0 === x1 && y0 === y1 ? null : (Math.atan2(x1 - x0, y1 - y0) * 180) / Math.PI;
}

export class FlightMap {
  constructor(canvas, onView) {
    this.canvas = canvas;
    this.onView = onView;
    this.view = null; // null: everything fits; else {x, y, scale} chosen by hand, metres and pixels per metre
    this.data = { track: [], asked: [], yaw: null, current: null, classColour: () => "--soft" };
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("wheel", (event) => this.zoom(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.drag(event));
    canvas.addEventListener("dblclick", () => this.fit());
  }

  show(data) {
    Object.assign(this.data, data);
    this.draw();
  }

  fit() {
    this.view = null;
    this.draw();
  }

  metres([lat, lon]) {
    const [lat0, lon0] = this.origin;
    return [(lon - lon0) * METRES_PER_DEGREE * Math.cos((lat0 * Math.PI) / 180), (lat - lat0) * METRES_PER_DEGREE];
  }

  fitted(points, width, height) {
    const xs = points.map((p) => p[0]);
    const ys = points.map((p) => p[1]);
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const room = 44;
    const scale = Math.min((width - 2 * room) / Math.max(x1 - x0, 20), (height - 2 * room) / Math.max(y1 - y0, 20));
    return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, scale: Math.max(scale, 1e-6) };
  }

  zoom(event) {
    event.preventDefault();
    if (!this.shown) return;
    const factor = Math.exp(-event.deltaY / 400);
    const { x, y, scale } = this.shown;
    const dx = event.offsetX - this.canvas.clientWidth / 2;
    const dy = this.canvas.clientHeight / 2 - event.offsetY;
    const to = Math.min(Math.max(scale * factor, 1e-4), 200);
    this.view = { x: x + dx / scale - dx / to, y: y + dy / scale - dy / to, scale: to };
    this.draw();
  }

  drag(event) {
    if (!this.shown) return;
    const from = { ...this.shown, px: event.clientX, py: event.clientY };
    const move = (e) => {
      this.view = { x: from.x - (e.clientX - from.px) / from.scale, y: from.y + (e.clientY - from.py) / from.scale, scale: from.scale };
      this.draw();
    };
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.addEventListener("pointermove", move);
    const end = () => this.canvas.removeEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end, { once: true });
    this.canvas.addEventListener("pointercancel", end, { once: true });
  }

  draw() {
    const { canvas, data } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const ctx = canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    this.onView?.(this.view !== null);
    this.shown = null;
    const first = data.track[0] ?? data.asked[0];
    if (!first) return;
    this.origin = first;
    const track = data.track.map((p) => this.metres(p));
    const asked = data.asked.map((p) => this.metres(p));
    this.shown = this.view ?? this.fitted([...track, ...asked], width, height);
    const { x: cx, y: cy, scale } = this.shown;
    const at = ([x, y]) => [width / 2 + (x - cx) * scale, height / 2 - (y - cy) * scale];
    const length = niceLength(120 / scale);

    this.lines(ctx, width, height, length);
    if (track.length) {
      ctx.beginPath();
      for (const point of track) ctx.lineTo(...at(point));
      ctx.strokeStyle = colour("--soft");
      ctx.lineWidth = 2.5;
      ctx.lineJoin = "round";
      ctx.stroke();
    }
    data.asked.forEach(([, , answer, id], i) => this.dot(ctx, at(asked[i]), answer, id === data.current));
    if (track.length) this.drone(ctx, at(track.at(-1)), data.yaw ?? course(track));
    this.scaleBar(ctx, height, length, length * scale);
    this.north(ctx, width);
  }

  lines(ctx, width, height, length) {
    const { x: cx, y: cy, scale } = this.shown;
    ctx.strokeStyle = colour("--faint");
    ctx.lineWidth = 1;
    ctx.beginPath();
    for (let x = Math.ceil((cx - width / 2 / scale) / length) * length; x < cx + width / 2 / scale; x += length) {
      const px = Math.round(width / 2 + (x - cx) * scale) + 0.5;
      ctx.moveTo(px, 0);
      ctx.lineTo(px, height);
    }
    for (let y = Math.ceil((cy - height / 2 / scale) / length) * length; y < cy + height / 2 / scale; y += length) {
      const py = Math.round(height / 2 - (y - cy) * scale) + 0.5;
      ctx.moveTo(0, py);
      ctx.lineTo(width, py);
    }
    ctx.stroke();
  }

  dot(ctx, [x, y], answer, current) {
    ctx.beginPath();
    ctx.arc(x, y, 5, 0, 7);
    ctx.lineWidth = 2;
    ctx.fillStyle = answer === null ? colour("--panel") : colour(answer === "" ? "--soft" : this.data.classColour(answer));
    ctx.strokeStyle = answer === null ? colour("--open") : colour("--panel");
    ctx.fill();
    ctx.stroke();
    if (!current) return;
    ctx.beginPath();
    ctx.arc(x, y, 11, 0, 7);
    ctx.strokeStyle = colour("--accent");
    ctx.lineWidth = 3;
    ctx.stroke();
  }

  drone(ctx, [x, y], yaw) {
    ctx.save();
    ctx.translate(x, y);
    ctx.beginPath();
    if (yaw === null) {
      ctx.arc(0, 0, 8, 0, 7);
    } else {
      ctx.rotate((yaw * Math.PI) / 180);
      ctx.moveTo(0, -15);
      ctx.lineTo(10, 11);
      ctx.lineTo(0, 5);
      ctx.lineTo(-10, 11);
      ctx.closePath();
    }
    ctx.fillStyle = colour("--accent");
    ctx.strokeStyle = colour("--panel");
    ctx.lineWidth = 2;
    ctx.fill();
    ctx.stroke();
    ctx.restore();
  }

  scaleBar(ctx, height, length, pixels) {
    const y = height - 16;
    ctx.strokeStyle = ctx.fillStyle = colour("--text");
    ctx.lineWidth = 2;
    ctx.beginPath();
    ctx.moveTo(14, y - 5);
    ctx.lineTo(14, y);
    ctx.lineTo(14 + pixels, y);
    ctx.lineTo(14 + pixels, y - 5);
    ctx.stroke();
    ctx.font = "600 12px system-ui, sans-serif";
    ctx.textAlign = "left";
    ctx.fillText(length >= 1000 ? `${length / 1000} km` : `${length} m`, 16, y - 9);
  }

  north(ctx, width) {
    const x = width - 22;
    ctx.fillStyle = colour("--text");
    ctx.beginPath();
    ctx.moveTo(x, 14);
    ctx.lineTo(x + 6, 28);
    ctx.lineTo(x, 24);
    ctx.lineTo(x - 6, 28);
    ctx.closePath();
    ctx.fill();
    ctx.font = "600 12px system-ui, sans-serif";
    ctx.textAlign = "center";
    ctx.fillText("N", x, 42);
  }
}

/** The latest frame as a grid of coloured tiles with the first letter of the class; faint where it is unsure. */
export function drawGrid(canvas, seen, classes, classColour) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !seen) return;
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  const side = Math.min(width / seen.cols, height / seen.rows);
  const left = (width - side * seen.cols) / 2;
  ctx.font = `600 ${Math.round(side * 0.42)}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  seen.classes.forEach((number, i) => {
    const [x, y] = [left + (i % seen.cols) * side, Math.floor(i / seen.cols) * side];
    const name = classes[number] ?? "?";
    const alpha = 0.25 + 0.75 * seen.confidence[i];
    ctx.globalAlpha = alpha;
    ctx.fillStyle = colour(classColour(name));
    ctx.fillRect(x + 1, y + 1, side - 2, side - 2);
    ctx.globalAlpha = 1;
    if (side < 16) return;
    ctx.fillStyle = colour(alpha > 0.62 ? "--panel" : "--text");
    ctx.fillText(name[0].toUpperCase(), x + side / 2, y + side / 2);
  });
}
