// What is to be known of the figures before they are read: alerts, troubles, a switch that is off.

import { h, name, prose } from "./dom.js";
import { measured, number, seconds } from "./format.js";

const MOST_REASONS = 4;

export function notes(element, shown) {
  const lines = (shown.alerts || []).map((alert) => h("li", { class: alert.level === "critical" ? "aic-problem" : "aic-warning" },
    h("strong", null, alert.level), " ", alert.alert.replaceAll("_", " "), alert.operation ? [" of ", name(alert.label)] : "",
    `: ${measured(alert.value, alert.unit)}, threshold ${measured(alert.threshold, alert.unit)}, since ${alert.since.slice(0, 16).replace("T", " ")} UTC`));
  if (shown.total) lines.push(...nothing(shown), ...troubles(shown.total.counts), ...damaged(shown.total.damaged_records));
  if (shown.switched_off) lines.push(h("li", { class: "aic-warning" }, prose(shown.switched_off_by === "cache_mode"
    ? "The cache is switched off for all, and every call runs its body: `cache_mode off`. `celery -A app control cache_mode on` switches it on."
    : "The cache is switched off for this process: `aicache_disabled`.")));
  if (shown.samples === "off") lines.push(h("li", { class: "aic-warning" }, prose("Tasks add nothing to these figures: `aicache_samples` is off.")));
  if (shown.rollup?.late && shown.state === "ok") lines.push(h("li", { class: "aic-info" }, shown.rollup.asked_s_ago === null
    ? "Nobody has asked for a roll-up yet: is beat running?" : `The last roll-up was asked for ${seconds(shown.rollup.asked_s_ago)} ago: is beat running?`));
  element.hidden = !lines.length;
  element.replaceChildren(...lines);
}

function nothing({ operation, names, total, all_time: ever }) {
  if (!operation || Object.keys(total.counts).length || total.damaged_records) return [];
  const label = names.find((one) => one.operation === operation).label;
  return [h("li", { class: "aic-info" }, "Nothing was recorded of ", name(label), Object.keys(ever.counts).length || ever.damaged_records ? " in this span." : ".")];
}

// What the hit rate hides: calls that the server did not answer, and answers that it did not take.
function troubles(counts) {
  const kinds = [["get", "error", "look-up", "failed in this span, and the bodies ran:"], ["set", "failed", "answer", "could not be stored in this span:"]];
  return kinds.flatMap(([step, status, thing, text]) => {
    const reasons = Object.entries(counts[step]?.[status] ?? {}).sort((a, b) => b[1] - a[1]);
    if (!reasons.length) return [];
    const all = reasons.reduce((sum, [, times]) => sum + times, 0);
    const why = reasons.slice(0, MOST_REASONS).map(([reason, times]) => [" ", name(printable(reason)), ` ${number(times)}`]);
    return [h("li", { class: "aic-warning" }, `${number(all)} ${thing}${all === 1 ? "" : "s"} ${text}`, why, reasons.length > MOST_REASONS ? " …" : "")];
  });
}

const damaged = (records) => (!records ? [] : [h("li", { class: "aic-warning" },
  `${number(records)} record${records === 1 ? "" : "s"} could not be read: see Entries set aside in docs/operations.md`)]);

const printable = (text) => text.replace(/[^ -~]/g, "?").slice(0, 48);
