// Plots drawn as SVG: columns that are stacked, or lines, over the windows of a span. Times are UTC.
//
// plot(): {title, kind: "stack" | "line", series: [{name, className, values}], starts, length, format, log?, top?}
// A pointer or the arrow keys move through the windows, and the legend says what each was. A table has all of it.

import { h, svg, replace } from "./dom.js";
import { clock, day, windowName, NOTHING } from "./format.js";

const HEIGHT = 168, LEFT = 58, RIGHT = 8, TOP = 10, BOTTOM = 24;

export class Plot {
  constructor(id) {
    this.at = null;
    this.heading = h("h3", { id: `${id}-title` });
    this.now = h("p", { class: "aic-plot-now" });
    this.canvas = svg("svg", { role: "img", height: HEIGHT, width: "100%" });
    this.legend = h("ul", { class: "aic-legend" });
    this.said = h("p", { class: "visually-hidden", "aria-live": "polite" });
    this.area = h("div", { class: "aic-plot-area", tabindex: "0", role: "group", "aria-labelledby": `${id}-title ${id}-keys` }, this.canvas);
    this.details = h("details", { ontoggle: () => this.fillTable() }, h("summary", null, "Table"), h("div"));
    const keys = h("span", { class: "visually-hidden", id: `${id}-keys` }, "Arrow keys move through the windows.");
    this.element = h("figure", { class: "aic-panel aic-plot" },
      h("figcaption", null, this.heading, this.now), this.area, this.legend, this.said, keys, this.details);
    this.area.addEventListener("pointermove", (event) => this.point(event));
    this.area.addEventListener("pointerdown", (event) => this.point(event));
    this.area.addEventListener("pointerleave", () => this.move(null));
    this.area.addEventListener("blur", () => this.move(null));
    this.area.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  update(given) {
    this.given = given;
    this.heading.textContent = given.title;
    this.details.firstChild.textContent = `Table of ${given.title.toLowerCase()}`;
    if (this.at !== null && this.at >= given.starts.length) this.at = null;
    this.draw();
    this.fillTable();
  }

  draw() {
    if (!this.given || !this.area.clientWidth) return;
    const { starts, series, title } = this.given, width = this.area.clientWidth;
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.x = (at) => LEFT + ((width - LEFT - RIGHT) * at) / Math.max(starts.length, 1);
    this.scale = scaleOf(this.given);
    const shown = series.filter((one) => one.values.some((value) => value));
    this.canvas.setAttribute("aria-label", `${title}: ${this.summary()}`);
    this.canvas.replaceChildren(...grid(this, width), ...times(this, width),
      ...(this.given.kind === "stack" ? columns(this, shown) : shown.flatMap((one) => line(this, one))),
      ...(shown.length ? [] : [svg("text", { x: LEFT + (width - LEFT) / 2, y: HEIGHT / 2, class: "aic-nothing" }, "nothing in this span")]));
    this.cross = svg("rect", { class: "aic-cross", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
    this.canvas.prepend(this.cross);
    this.mark();
  }

  summary() {
    const { series, format, starts } = this.given;
    const said = series.map((one) => {
      const known = one.values.filter((value) => value !== null && value !== undefined);
      return known.length ? `${one.name} from ${format(Math.min(...known))} to ${format(Math.max(...known))}` : null;
    }).filter(Boolean);
    return `${starts.length} windows. ${said.join(", ") || "Nothing in this span"}.`;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect(), { starts } = this.given;
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    this.move(share < 0 || share >= 1 ? null : Math.min(Math.floor(share * starts.length), starts.length - 1));
  }

  key(event) {
    const last = this.given.starts.length - 1, at = this.at ?? last + 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.move(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.move(Math.min(Math.max(to, 0), last));
    const { series, starts, length, format } = this.given;
    const said = series.map((one) => `${one.name} ${format(one.values[this.at])}`);
    this.said.textContent = `${windowName(starts[this.at], length)} UTC: ${said.join(", ")}`;
  }

  move(at) {
    if (at === this.at) return;
    this.at = at;
    this.mark();
  }

  mark() {
    const { series, starts, length, format, about } = this.given, at = this.at;
    if (this.cross) {
      this.cross.setAttribute("x", at === null ? 0 : this.x(at));
      this.cross.setAttribute("width", at === null ? 0 : this.x(at + 1) - this.x(at));
    }
    this.now.textContent = at === null ? about : `${windowName(starts[at], length)} UTC`;
    replace(this.legend, series.map((one) => h("li", { class: one.className },
      svg("svg", { class: "aic-key", viewBox: "0 0 18 10", "aria-hidden": "true" },
        this.given.kind === "stack" ? svg("rect", { width: 18, height: 10, rx: 2, class: "aic-fill" }) : svg("path", { d: "M0 5H18", class: "aic-line" })),
      `${one.name} `, h("b", null, at === null ? one.sum ?? "" : one.values[at] === null || one.values[at] === undefined ? NOTHING : format(one.values[at])))));
  }

  fillTable() {
    if (!this.details.open || !this.given) return;
    const { series, starts, length, format, title } = this.given;
    const rows = starts.map((start, at) => h("tr", null, h("th", { scope: "row" }, windowName(start, length)),
      series.map((one) => h("td", null, format(one.values[at])))));
    const head = h("tr", null, h("th", { scope: "col" }, "UTC"), series.map((one) => h("th", { scope: "col" }, one.name)));
    replace(this.details.lastChild, h("div", { class: "aic-scroll aic-tall", tabindex: "0", role: "region", "aria-label": `Table of ${title}`, "data-key": "scroll" },
      h("table", { class: "aic-table" }, h("thead", null, head), h("tbody", null, rows.reverse()))));
  }
}

// Scales.

function scaleOf({ series, kind, log, top, time, starts }) {
  const floor = HEIGHT - BOTTOM, room = floor - TOP;
  const sums = kind === "stack" ? starts.map((_, at) => series.reduce((sum, one) => sum + (one.values[at] || 0), 0))
    : series.flatMap((one) => one.values.filter((value) => value));
  const most = top ?? Math.max(...sums, 0);
  if (log) return logScale(sums, floor, room);
  const step = time ? timeStep(most || 1, 3) : niceStep(most || 1, top ? 4 : 3), end = top ?? Math.ceil((most || 1) / step - 1e-9) * step;
  const ticks = [];
  for (let value = 0; value <= end * 1.0001; value += step) ticks.push(value);
  return { y: (value) => floor - (room * value) / end, ticks };
}

function logScale(values, floor, room) {
  const low = Math.floor(Math.log10(Math.min(...values, 1e9) === 1e9 ? 0.01 : Math.min(...values)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...values, 0.1))), low + 1);
  const each = Math.ceil((high - low) / 4), ticks = [];
  for (let power = low; power <= high; power += each) ticks.push(10 ** power);
  return { y: (value) => floor - (room * (Math.log10(Math.max(value, 10 ** low)) - low)) / (high - low), ticks };
}

function niceStep(most, parts) {
  const rough = most / parts, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 2.5, 5, 10].find((times) => times * power >= rough * 0.999);
}

// The same for seconds, whose units are not tens.
function timeStep(most, parts) {
  const steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const rough = most / parts;
  if (rough <= 1) return niceStep(most, parts);
  return steps.find((step) => step >= rough) ?? Math.ceil(rough / 86400) * 86400;
}

// What is drawn.

function grid(plot, width) {
  return plot.scale.ticks.flatMap((value) => {
    const y = Math.round(plot.scale.y(value)) + 0.5;
    return [svg("path", { class: "aic-grid", d: `M${LEFT} ${y}H${width - RIGHT}` }),
      svg("text", { class: "aic-tick aic-tick-y", x: LEFT - 6, y: y + 3.5 }, plot.given.tick ? plot.given.tick(value) : plot.given.format(value))];
  });
}

function times(plot, width) {
  const { starts, length } = plot.given, room = Math.max(Math.floor((width - LEFT) / 76), 2);
  const rough = (starts.length * length) / 60 / room;
  const every = ([5, 10, 15, 30, 60, 180, 240, 360, 720, 1440].find((minutes) => minutes >= rough) ?? Math.ceil(rough / 1440) * 1440) * 60;
  return starts.flatMap((start, at) => {
    if (start % every) return [];
    const text = length >= 86400 || start % 86400 === 0 ? day(start) : clock(start), middle = plot.x(at) + (plot.x(1) - plot.x(0)) / 2;
    const x = Math.min(Math.max(middle, LEFT + 14), width - 20);
    return [svg("text", { class: "aic-tick aic-tick-x", x, y: HEIGHT - 7 }, text)];
  });
}

function columns(plot, series) {
  const { starts } = plot.given, wide = plot.x(1) - plot.x(0), gap = wide > 4 ? Math.min(wide * 0.18, 6) : 0.4;
  const heights = starts.map(() => 0);
  return series.map((one) => {
    const parts = starts.map((_, at) => {
      const value = one.values[at] || 0, from = plot.scale.y(heights[at]);
      heights[at] += value;
      const to = plot.scale.y(heights[at]);
      return value ? `M${(plot.x(at) + gap / 2).toFixed(1)} ${from.toFixed(1)}V${to.toFixed(1)}h${(wide - gap).toFixed(1)}V${from.toFixed(1)}z` : "";
    });
    return svg("path", { class: `aic-fill ${one.className}`, d: parts.join("") });
  });
}

function line(plot, one) {
  const half = (plot.x(1) - plot.x(0)) / 2, dots = [];
  let path = "", before = false;
  for (const [at, value] of one.values.entries()) {
    const known = value !== null && value !== undefined;
    if (known) {
      const x = (plot.x(at) + half).toFixed(1), y = plot.scale.y(value).toFixed(1), after = one.values[at + 1];
      path += `${before ? "L" : "M"}${x} ${y}`;
      if (!before && (after === null || after === undefined)) dots.push(svg("circle", { class: `aic-dot ${one.className}`, cx: x, cy: y, r: 2 }));
    }
    before = known;
  }
  return [...(one.area ? [area(plot, one)] : []), svg("path", { class: `aic-line ${one.className}`, d: path }), ...dots];
}

function area(plot, one) {
  const half = (plot.x(1) - plot.x(0)) / 2, floor = HEIGHT - BOTTOM;
  let path = "", from = null;
  for (const [at, value] of [...one.values, null].entries()) {
    const x = (plot.x(at) + half).toFixed(1), known = value !== null && value !== undefined;
    if (known) path += `${from === null ? `M${x} ${floor}` : ""}L${x} ${plot.scale.y(value).toFixed(1)}`;
    if (!known && from !== null) path += `L${(plot.x(at - 1) + half).toFixed(1)} ${floor}z`;
    from = known ? at : null;
  }
  return svg("path", { class: `aic-area ${one.className}`, d: path });
}
