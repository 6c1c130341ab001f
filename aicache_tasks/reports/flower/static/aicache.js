// The page: asks for the document, shows it, asks again. Nothing is asked while the page is hidden or paused.

import { ask } from "./ask.js";
import { byId, h, prose } from "./dom.js";
import { Charts } from "./charts.js";
import { Dialog } from "./dialog.js";
import * as figures from "./figures.js";
import { clock, number, percent } from "./format.js";
import { notes } from "./notes.js";

const EVERY_MS = 5000, PATIENCE_MS = 12000, SAID_MS = 20000;
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
    const document_ = await ask(`${root.dataset.data}?${query()}`, { cache: "no-store", signal: AbortSignal.any([mine.signal, AbortSignal.timeout(PATIENCE_MS)]) });
    if (mine !== request) return;
    take(document_);
  } catch (error) {
    if (mine !== request) return;
    unanswered(error);
  }
  root.removeAttribute("aria-busy");
  schedule();
}

function take(document_) {
  light(document_.state);
  if (shown && !chosen && selected()) { byId("aic-status").textContent = "Held while text is selected"; return; }
  shown = document_;
  received = Date.now();
  show(chosen);
  chosen = "";
}

const selected = () => !getSelection().isCollapsed && getSelection().containsNode(root, true);

function schedule() {
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(() => load(), EVERY_MS);
}

// Showing.

function show(why) {
  byId("aic-place").replaceChildren(...(shown.place ? [h("bdi", null, shown.place.url), " · namespace ", h("bdi", null, shown.place.namespace)] : []));
  advise(shown.advice, shown.state);
  notes(byId("aic-notes"), shown);
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
  light(shown.state);
  byId("aic-status").textContent = paused ? "Paused" : old ? `As of ${clock(shown.at_s)} UTC` : fault(shown.state) ? "No figures" : "Live";
  if (!paused && !fault(shown.state)) byId("aic-status").textContent = `Live, ${clock(shown.at_s)} UTC`;
}

function light(state) {
  byId("aic-dot").className = `status-dot ${fault(state) ? "status-dot-error" : paused ? "" : "status-dot-live"}`;
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
