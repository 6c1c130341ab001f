// What is plotted: windows of the document as series.

import { h } from "./dom.js";
import { Plot } from "./plots.js";
import { STEPS, stepName } from "./figures.js";
import { milliseconds, number, percent, seconds, size } from "./format.js";

const STATUSES = ["hit", "stale", "joined", "miss", "refresh", "bypass", "error", "disabled"];
const ALWAYS = new Set(["hit", "miss"]);
const SPANS = { "1h": "the last hour", "24h": "the last 24 hours", "30d": "the last 30 days", all: "the last 30 days" };
const add = (values) => values.reduce((sum, value) => sum + (value || 0), 0);

export class Charts {
  constructor(element) {
    this.plots = {};
    for (const id of ["rate", "lookups", "p95", "saved", "bytes"]) {
      this.plots[id] = new Plot(`aic-plot-${id}`);
      element.append(this.plots[id].element);
    }
    this.links = h("div", { class: "aic-plot-links" });
    element.append(this.links);
  }

  update(shown, csv) {
    const { each, length_s: length, resolution } = shown.windows, starts = each.map((one) => one.start_s);
    const about = `${SPANS[shown.span.name] ?? shown.span.text}, by ${resolution}`;
    const common = { starts, length, about };
    const of = (pick) => each.map(pick);
    // A window that has only just begun, and is empty, is no fall to 0.
    const known = (figure) => (one, at) => (at === each.length - 1 && !one[figure] ? null : one[figure]);
    // The first window begins before the span does: sums are the span's own, as in the cards.
    const { total } = shown, sum = (text) => (shown.span.name === "all" ? "" : text);
    this.plots.rate.update({ ...common, title: "Hit rate", kind: "line", top: 1, format: percent,
      series: [{ name: "hit rate", className: "aic-c-hit", area: true, values: of((one) => one.hit_rate), sum: sum(percent(total.hit_rate)) }] });
    this.plots.lookups.update({ ...common, title: "Look-ups by status", kind: "stack", format: number, series: statuses(of, (status) => sum(number(add(Object.values(total.counts.get?.[status] ?? {}))))) });
    this.plots.p95.update({ ...common, title: "p95 by step", kind: "line", log: true, format: milliseconds, series: steps(of) });
    this.plots.saved.update({ ...common, title: "Computing time", kind: "stack", time: true, format: seconds,
      series: [{ name: "saved by hits", className: "aic-c-hit", values: of((one) => one.saved_s), sum: sum(seconds(total.saved.seconds)) },
        { name: "spent", className: "aic-c-miss", values: of((one) => one.spent_s), sum: sum(seconds(total.spent.seconds)) }] });
    this.plots.bytes.update({ ...common, title: "Bytes", kind: "line", format: size,
      series: [{ name: "served", className: "aic-c-get", values: of(known("served_bytes")), sum: sum(size(total.bytes.served)) },
        { name: "stored", className: "aic-c-compute aic-dash-1", values: of(known("stored_bytes")), sum: sum(size(total.bytes.stored)) }] });
    this.links.replaceChildren("Windows of all plots ", csv("windows"));
  }
}

function statuses(of, sum) {
  return STATUSES.map((status) => ({ name: status, className: `aic-c-${status}`, values: of((one) => one.lookups[status] || 0), sum: sum(status) }))
    .filter((one) => ALWAYS.has(one.name) || add(one.values));
}

function steps(of) {
  return STEPS.map((step, at) => ({ name: stepName(step), className: `aic-c-${step} aic-dash-${at}`, values: of((one) => one.p95_ms[step] ?? null) }))
    .filter((one) => one.values.some((value) => value !== null));
}
