// The report: shows the document that the page carries. Asks for nothing.

import { byId } from "./dom.js";
import { Charts } from "./charts.js";
import * as figures from "./figures.js";
import { notes } from "./notes.js";

const shown = JSON.parse(byId("aic-document").textContent);
const charts = new Charts(byId("aic-plots"));
let order = { at: 1, down: true };

function draw() {
  const actions = { order, csv: () => "", focus: () => {}, invalidate: () => {}, reorder: (wanted) => { order = wanted; draw(); } };
  figures.cards(byId("aic-cards"), shown);
  figures.operations(byId("aic-operations"), shown, actions);
  charts.update(shown, actions.csv);
  figures.steps(byId("aic-steps"), shown, actions);
  figures.ranking(byId("aic-top"), shown);
  figures.workers(byId("aic-workers"), shown, actions);
  figures.store(byId("aic-store"), shown);
  settle();
}

// What asks Flower for more is text here.
function settle() {
  for (const button of document.querySelectorAll(".aic-focus")) button.replaceWith(...button.childNodes);
  for (const links of document.querySelectorAll(".aic-links, .aic-plot-links")) links.remove();
  byId("aic-store").querySelector(".aic-panel-head p")?.remove();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => { document.documentElement.dataset.bsTheme = dark.matches ? "dark" : "light"; };
dark.addEventListener("change", theme);
theme();
notes(byId("aic-notes"), shown);
draw();
