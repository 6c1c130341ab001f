// The page: asks for the document, shows it, asks again. Nothing is asked while the page is hidden or paused.

import { byId, h, name, prose, replace } from "./dom.js";
import { Charts } from "./charts.js";
import { Dialog } from "./dialog.js";
import * as figures from "./figures.js";
import { clock, measured, number, percent, seconds } from "./format.js";

const EVERY_MS = 5000, PATIENCE_MS = 12000, SAID_MS = 20000, MOST_REASONS = 4;
const root = byId("aic");
const view = { span: root.dataset.defaultSpan, operation: "", order: { at: 1, down: true } };
let shown = null, received = 0, paused = false, timer = 0, request = null, lastState = "", chosen = "", unsaid = 0;
const charts = new Charts(byId("aic-plots"));
const dialog = new Dialog(root.dataset.invalidate, (label) => { announce(`${label} is invalidated: its next calls compute again.`, true); load(); });

// Asking.

function query() {
  const asked = new URLSearchParams({ span: view.span });
  if (view.operation) asked.set("operation", view.operation);
  return asked;
}

async function load(why = "") {
  clearTimeout(timer);
  chosen = why || chosen; // said when its figures are there, whichever request brings them
  request?.abort();
  const mine = (request = new AbortController());
  root.setAttribute("aria-busy", "true");
  try {
    const reply = await fetch(`${root.dataset.data}?${query()}`, { credentials: "same-origin", cache: "no-store",
      signal: AbortSignal.any([mine.signal, AbortSignal.timeout(PATIENCE_MS)]) });
    if (!reply.ok) throw new Error(reply.status === 401 || reply.status === 403 ? "Flower wants you to log in again" : `Flower answered ${reply.status}`);
    if (!reply.headers.get("Content-Type")?.includes("json")) throw new Error("Flower wants you to log in again"); // its login page
    const document_ = await reply.json();
    if (mine !== request) return;
    shown = document_;
    received = Date.now();
    show(chosen);
    chosen = "";
  } catch (error) {
    if (mine !== request) return;
    unanswered(error);
  }
  root.removeAttribute("aria-busy");
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(() => load(), EVERY_MS);
}

// Showing.

function show(why) {
  byId("aic-place").replaceChildren(...(shown.place ? [h("bdi", null, shown.place.url), " · namespace ", h("bdi", null, shown.place.namespace)] : []));
  advise(shown.advice, shown.state);
  notes();
  const known = "total" in shown;
  byId("aic-figures").hidden = !known || shown.state === "empty";
  byId("aic-toolbar").hidden = byId("aic-figures").hidden;
  if (known) { choices(); draw(); }
  status();
  if (why || shown.state !== lastState) announce(spoken(why));
  lastState = shown.state;
}

function draw() {
  const actions = { order: view.order, csv, focus: choose, reorder: (order) => { view.order = order; draw(); },
    invalidate: (row) => dialog.open(row, row.operation === shown.operation ? shown.all_time : ever(row), shown.currency) };
  figures.cards(byId("aic-cards"), shown);
  figures.operations(byId("aic-operations"), shown, actions);
  charts.update(shown, csv);
  figures.steps(byId("aic-steps"), shown, actions);
  figures.ranking(byId("aic-top"), shown);
  figures.workers(byId("aic-workers"), shown, actions);
  figures.store(byId("aic-store"), shown);
  byId("aic-json").href = `${root.dataset.data}?${query()}&download=1`;
}

const ever = (row) => shown.ever?.find((one) => one.operation === row.operation);
const csv = (table) => h("a", { class: "aic-link", href: `${root.dataset.csv}${table}.csv?${query()}`, download: true, "data-key": `csv ${table}`,
  "aria-label": `CSV of ${table}` }, "CSV");

function advise(advice, state) {
  const section = byId("aic-advice");
  section.hidden = !advice;
  if (!advice) return;
  section.className = `aic-notice ${{ empty: "aic-info", waiting: "aic-info", stale: "aic-warning" }[state] || "aic-problem"}`;
  byId("aic-advice-title").textContent = advice.title;
  byId("aic-advice-text").replaceChildren(...prose(advice.text + (shown.total && fault(state) ? ` The figures below are from ${clock(shown.at_s)} UTC.` : "")));
  byId("aic-advice-todo").replaceChildren(...advice.todo.map((line) => h("li", null, prose(line))));
}

const fault = (state) => ["down", "slow", "busy", "newer", "misconfigured", "absent"].includes(state);

function notes() {
  const lines = (shown.alerts || []).map((alert) => h("li", { class: alert.level === "critical" ? "aic-problem" : "aic-warning" },
    h("strong", null, alert.level), " ", alert.alert.replaceAll("_", " "), alert.operation ? [" of ", name(alert.label)] : "",
    `: ${measured(alert.value, alert.unit)}, threshold ${measured(alert.threshold, alert.unit)}, since ${alert.since.slice(0, 16).replace("T", " ")} UTC`));
  if (shown.total) lines.push(...troubles(shown.total.counts));
  if (shown.switched_off) lines.push(h("li", { class: "aic-warning" }, prose(shown.switched_off_by === "cache_mode"
    ? "The cache is switched off for all, and every call runs its body: `cache_mode off`. `celery -A app control cache_mode on` switches it on."
    : "The cache is switched off for this process: `aicache_disabled`.")));
  if (shown.samples === "off") lines.push(h("li", { class: "aic-warning" }, prose("Tasks add nothing to these figures: `aicache_samples` is off.")));
  if (shown.rollup?.late && shown.state === "ok") lines.push(h("li", { class: "aic-info" }, shown.rollup.asked_s_ago === null
    ? "Nobody has asked for a roll-up yet: is beat running?" : `The last roll-up was asked for ${seconds(shown.rollup.asked_s_ago)} ago: is beat running?`));
  byId("aic-notes").hidden = !lines.length;
  byId("aic-notes").replaceChildren(...lines);
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

const printable = (text) => text.replace(/[^ -~]/g, "?").slice(0, 48);

function choices() {
  const select = byId("aic-operation");
  const wanted = ["", ...shown.names.map((one) => one.operation)];
  if (wanted.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(h("option", { value: "" }, "All operations"), ...shown.names.map((one) => h("option", { value: one.operation }, one.label)));
  }
  select.value = view.operation;
}

// What is said of the refresh.

function status() {
  const old = fault(shown.state) && "at_s" in shown;
  byId("aic-dot").className = `status-dot ${fault(shown.state) ? "status-dot-error" : paused ? "" : "status-dot-live"}`;
  byId("aic-status").textContent = paused ? "Paused" : old ? `As of ${clock(shown.at_s)} UTC` : fault(shown.state) ? "No figures" : "Live";
  if (!paused && !fault(shown.state)) byId("aic-status").textContent = `Live, ${clock(shown.at_s)} UTC`;
}

function unanswered(error) {
  const what = error.name === "TimeoutError" || error instanceof TypeError ? "Flower does not answer" : error.message;
  byId("aic-dot").className = "status-dot status-dot-error";
  byId("aic-status").textContent = shown ? `${what}; figures from ${clock(received / 1000)} UTC` : what;
  if (lastState !== "unanswered") announce(what);
  lastState = "unanswered";
}

function announce(text, seen = false) {
  clearTimeout(unsaid);
  if (seen) unsaid = setTimeout(() => announce(""), SAID_MS);
  byId("aic-announce").textContent = text;
  byId("aic-announce").classList.toggle("visually-hidden", !seen);
  byId("aic-announce").classList.toggle("aic-said", seen);
}

function spoken(why) {
  if (shown.advice) return shown.advice.title;
  return `${why || "Figures are live again"}: hit rate ${percent(shown.total.hit_rate)}, ${number(shown.total.hits + shown.total.misses)} look-ups.`;
}

// Choosing.

function choose(operation) {
  view.operation = operation;
  remember();
  load(operation ? shown.names.find((one) => one.operation === operation)?.label ?? "One operation" : "All operations");
}

function remember() {
  const asked = query();
  history.replaceState(null, "", `${location.pathname}?${asked}`);
}

function recall() {
  const asked = new URLSearchParams(location.search), radio = byId(`aic-span-${asked.get("span")}`);
  if (radio) { radio.checked = true; view.span = asked.get("span"); }
  view.operation = asked.get("operation") ?? "";
}

byId("aic-toolbar").addEventListener("submit", (event) => event.preventDefault());
byId("aic-toolbar").addEventListener("change", (event) => {
  if (event.target.name === "span") {
    view.span = event.target.value;
    remember();
    load(event.target.labels[0].textContent);
  } else choose(event.target.value);
});
byId("aic-pause").addEventListener("click", () => {
  paused = !paused;
  byId("aic-pause").setAttribute("aria-pressed", String(paused));
  byId("aic-pause").textContent = paused ? "Resume" : "Pause";
  if (paused) { clearTimeout(timer); if (shown) status(); } else load();
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : paused || load()));

recall();
load();
