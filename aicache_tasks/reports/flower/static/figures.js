// The page's panels: cards, operations, steps, rankings, workers, server.

import { h, name, replace } from "./dom.js";
import { bar, panel, spark, table } from "./tables.js";
import { duration, milliseconds, money, NOTHING, number, percent, seconds, size } from "./format.js";

export const STEPS = ["key", "get", "decode", "compute", "compress", "set"];
const STEP_NAMES = { key: "key", get: "look-up", decode: "decode", compute: "compute", compress: "compress", set: "store" };
export const stepName = (step) => STEP_NAMES[step] || step;

const lookups = (figures) => figures.hits + figures.misses;
const sum = (counts) => Object.values(counts).reduce((all, count) => all + count, 0);
const took = (figures, step, rank) => figures.steps[step]?.[`${rank}_ns`] ?? null;
const called = (figures, status) => Object.values(figures.counts.get?.[status] ?? {}).reduce((sum, count) => sum + count, 0);
const errors = (figures) => called(figures, "error");
const paid = (cost, currency) => (cost ? money(cost, currency) : NOTHING); // without a price there is no cost, rather than one of 0
const disabled = (figures) => called(figures, "disabled");

export function cards(element, shown) {
  const { total, all_time: ever } = shown, all = shown.span.name === "all";
  const since = (text) => (all ? "" : `all time ${text}`), amount = (cost) => paid(cost, shown.currency);
  const versions = Object.keys({ ...total.saved.cost_by_prices, ...total.spent.cost_by_prices }).filter(Boolean).sort(), unpriced = sum(total.spent.unpriced);
  const card = (label, value, lines, kind = "") => h("article", { class: `metric-card ${kind}` },
    h("h2", { class: "metric-label" }, label), h("p", { class: "metric-value" }, value),
    lines.filter(Boolean).map((line) => h("p", { class: "aic-card-line" }, line)));
  replace(element,
    card("Hit rate", percent(total.hit_rate), [`${number(total.hits)} hits, ${number(total.misses)} misses`, since(percent(ever.hit_rate))], "metric-card-success"),
    card("Look-ups", number(lookups(total)), [errors(total) ? `${number(errors(total))} more failed` : "none failed", since(number(lookups(ever)))], "metric-card-active"),
    card("Time saved", seconds(total.saved.seconds), [`${seconds(total.spent.seconds)} spent`, since(seconds(ever.saved.seconds))], "metric-card-success"),
    ever.tokens.saved || ever.tokens.spent
      ? card("Tokens saved", number(total.tokens.saved), [`${number(total.tokens.spent)} spent`, since(number(ever.tokens.saved))], "metric-card-success") : null,
    ever.saved.cost || ever.spent.cost || unpriced
      ? card("Money saved", amount(total.saved.cost), [`${amount(total.spent.cost)} spent`, since(amount(ever.saved.cost)), versions.length ? `by prices ${versions.join(", ")}` : "",
        unpriced ? `${number(unpriced)} bodies have no price` : ""], "metric-card-success") : null,
    card("Look-up, p95", duration(took(total, "get", "p95")), [`p50 ${duration(took(total, "get", "p50"))}, p99 ${duration(took(total, "get", "p99"))}`,
      since(duration(took(ever, "get", "p95")))], "metric-card-active"),
    card("Bytes served", size(total.bytes.served), [`${size(total.bytes.raw)} of new answers, ${size(total.bytes.stored)} as stored`, since(size(ever.bytes.served))]));
}

export function operations(element, shown, actions) {
  const rows = shown.operations.filter((row) => row.operation || row.counts.get).map((row) => ({ ...row, chosen: row.operation === shown.operation }));
  const costs = rows.some((row) => row.saved.cost || row.spent.cost), failed = rows.some(errors), counted = rows.some((row) => row.tokens.saved);
  const focus = (row) => h("button", { type: "button", class: "aic-focus", "data-key": `focus ${row.operation}`, "aria-pressed": row.chosen ? "true" : "false",
    onclick: () => actions.focus(row.chosen ? "" : row.operation) }, name(row.label));
  const remove = (row, place) => h("button", { type: "button", class: `aic-button aic-small ${place}`, "data-key": `invalidate ${place} ${row.operation}`,
    "aria-label": `Invalidate ${row.label}`, onclick: () => actions.invalidate(row) }, "Invalidate…");
  const named = (row) => (row.operation ? [focus(row), shown.may_invalidate ? remove(row, "aic-narrow") : null] : name(row.label));
  const columns = [
    { head: "Operation", left: true, text: named, value: (row) => row.label },
    { head: "Look-ups", text: (row) => number(lookups(row)), value: lookups },
    { head: "Hit rate", text: (row) => [h("span", { class: "aic-rate" }, percent(row.hit_rate)), bar(row.hit_rate)], value: (row) => row.hit_rate },
    failed ? { head: "Errors", wide: true, text: (row) => (errors(row) ? h("span", { class: "aic-bad" }, number(errors(row))) : NOTHING), value: errors, title: "Calls that the server did not answer" } : null,
    rows.some(disabled) ? { head: "Switched off", wide: true, text: (row) => (disabled(row) ? number(disabled(row)) : NOTHING), value: disabled, title: "Calls while the cache was switched off" } : null,
    { head: "Time saved", text: (row) => seconds(row.saved.seconds), value: (row) => row.saved.seconds },
    counted ? { head: "Tokens saved", wide: true, text: (row) => number(row.tokens.saved), value: (row) => row.tokens.saved } : null,
    costs ? { head: "Money saved", wide: true, text: (row) => paid(row.saved.cost, shown.currency), value: (row) => row.saved.cost } : null,
    costs ? { head: "Money spent", wide: true, spare: true, text: (row) => paid(row.spent.cost, shown.currency), value: (row) => row.spent.cost } : null,
    { head: "Look-up p95", wide: true, text: (row) => duration(took(row, "get", "p95")), value: (row) => took(row, "get", "p95") },
    { head: "Compute p50", wide: true, spare: true, text: (row) => duration(took(row, "compute", "p50")), value: (row) => took(row, "compute", "p50") },
    { head: "Compute p95", wide: true, text: (row) => duration(took(row, "compute", "p95")), value: (row) => took(row, "compute", "p95") },
    { head: "Stored", wide: true, spare: true, text: (row) => size(row.bytes.stored), value: (row) => row.bytes.stored },
    shown.may_invalidate ? { head: "Answers", wide: true, text: (row) => (row.operation ? remove(row, "aic-broad") : "") } : null,
  ].filter(Boolean);
  const more = shown.operations_in_all - shown.operations.length;
  panel(element, "aic-operations", "Operations",
    { about: more > 0 ? `the busiest ${number(shown.operations.length)} of ${number(shown.operations_in_all)}` : "", links: [actions.csv("operations")] },
    table(columns, rows, { caption: "Operations", order: actions.order, onorder: actions.reorder }));
}

export function steps(element, shown, actions) {
  const rows = STEPS.filter((step) => shown.total.steps[step]).map((step) => ({ step, ...shown.total.steps[step] }));
  const ranks = ["p50", "p95", "p99", "max"].map((rank) => ({ head: rank, text: (row) => duration(row[`${rank}_ns`]) }));
  panel(element, "aic-steps", "Steps", { about: "how long each took", links: [actions.csv("steps")] },
    table([{ head: "Step", left: true, text: (row) => stepName(row.step) }, { head: "Count", text: (row) => number(row.count) },
      ...ranks, { head: "In all", wide: true, text: (row) => duration(row.sum_ns) }], rows, { caption: "Durations of the steps" }));
}

const TOPS = { saved: ["Most time saved", seconds], cost: ["Most money saved", money], slow: ["Slowest look-ups, p95", milliseconds], compute: ["Slowest to compute, p95", milliseconds] };

export function ranking(element, shown) {
  const lists = Object.entries(TOPS).filter(([by]) => shown.top[by]?.length || by !== "cost").map(([by, [title, format]]) => {
    const most = Math.max(...shown.top[by].map((row) => row.value), 0) || 1;
    return h("div", { class: `aic-top aic-top-${by}` }, h("h3", null, title), shown.top[by].length
      ? h("ol", null, shown.top[by].map((row) => h("li", null, name(row.label), h("span", { class: "aic-top-value" }, format(row.value, shown.currency)), bar(row.value / most))))
      : h("p", { class: "aic-empty" }, "Nothing in this span."));
  });
  panel(element, "aic-top", "Rankings", {}, h("div", { class: "aic-tops" }, lists));
}

export function workers(element, shown, actions) {
  const columns = [
    { head: "Worker or producer", left: true, text: (row) => name(row.label) },
    { head: "Look-ups", text: (row) => number(lookups(row)) },
    { head: "Hit rate", text: (row) => percent(row.hit_rate) },
    { head: "Look-up p95", wide: true, text: (row) => duration(took(row, "get", "p95")) },
    { head: "Computed", wide: true, text: (row) => number(row.steps.compute?.count ?? 0) },
    { head: "Errors", text: (row) => h("span", { class: errors(row) ? "aic-bad" : null }, number(errors(row))), title: "Look-ups that the server did not answer" },
    { head: "Last hour", left: true, text: (row) => spark(row.trend) },
  ];
  const more = shown.workers_in_all - shown.workers.length;
  panel(element, "aic-workers", "Workers", { about: `the last hour${more > 0 ? `, the busiest ${shown.workers.length} of ${shown.workers_in_all}` : ""}`,
    links: [actions.csv("workers")] },
    table(columns, shown.workers, { caption: "Workers and producers in the last hour", empty: "No worker sent timings in the last hour." }));
}

const BREAKERS = { closed: ["good", "asked normally"], open: ["bad", "stopped after a fault"], "half-open": ["fair", "being tried again"] };

export function store(element, shown) {
  const { store: server, rollup, breakers } = shown, entries = [];
  const add = (term, ...what) => entries.push(h("div", null, h("dt", null, term), h("dd", null, ...what)));
  add("Server", server ? `version ${server.version}` : "does not say how it is");
  if (server) {
    add("Holds", `${number(server.keys)} keys, ${size(server.memory_used_bytes)}`);
    add("Eviction", server.eviction_policy || NOTHING);
    add("Clients", number(server.connected_clients));
  }
  for (const kind of ["reads", "writes"]) {
    const [level, text] = BREAKERS[breakers[kind]] || ["fair", ""];
    add(`Breaker, ${kind}`, h("span", { class: `aic-state aic-${level}` }, breakers[kind]), ` ${text}`);
  }
  const waiting = rollup.batches ? `${number(rollup.samples)} timings wait in ${number(rollup.batches)} ${rollup.batches === 1 ? "batch" : "batches"}, ${size(rollup.bytes)}` : "nothing waits";
  add("Roll-up", rollup.batches && rollup.age_s ? `${waiting}, the oldest for ${seconds(rollup.age_s)}` : waiting);
  add("Last asked for", rollup.asked_s_ago === null ? "never" : `${seconds(rollup.asked_s_ago)} ago`);
  if (shown.total.lost_samples) add("Lost timings", `${number(shown.total.lost_samples)} in this span`);
  if (shown.total.damaged_records) add("Damaged records", `${number(shown.total.damaged_records)} in this span`);
  panel(element, "aic-store", "Server and roll-up", { about: "breakers are Flower's own" }, h("dl", { class: "aic-facts" }, entries));
}
