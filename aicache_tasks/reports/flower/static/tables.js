// Tables: columns that know their rows, a caption for who cannot see the heading, rows in an order that people choose.

import { h, svg, replace } from "./dom.js";

const CROWDED = 10;

// columns: {head, text(row), value(row)?, left?, wide?, spare?, title?}; wide ones go where there is little room, spare
// ones go too where there are many.
export function table(columns, rows, { caption, empty = "Nothing in this span.", order = null, onorder = null } = {}) {
  const shown = sorted(columns, rows, order);
  const head = h("tr", null, columns.map((column, at) => header(column, at, order, onorder)));
  const body = shown.length
    ? shown.map((row) => h("tr", { class: row.chosen ? "aic-chosen" : null }, columns.map((column, at) => cell(column, at, row))))
    : [h("tr", null, h("td", { class: "aic-empty", colspan: columns.length }, empty))];
  return h("div", { class: `aic-scroll ${columns.length > CROWDED ? "aic-crowded" : ""}`, tabindex: "0", role: "region", "aria-label": `Table: ${caption.toLowerCase()}`, "data-key": `scroll ${caption}` },
    h("table", { class: "aic-table" }, h("caption", { class: "visually-hidden" }, caption), h("thead", null, head), h("tbody", null, body)));
}

function sorted(columns, rows, order) {
  if (!order) return rows;
  const value = columns[order.at].value, sign = order.down ? -1 : 1;
  const rank = (row) => value(row) ?? -Infinity;
  return [...rows].sort((a, b) => (rank(a) < rank(b) ? -sign : rank(a) > rank(b) ? sign : 0));
}

const classes = (column) => [column.left ? "aic-left" : null, column.wide ? "aic-wide" : null, column.spare ? "aic-spare" : null].filter(Boolean).join(" ") || null;

function header(column, at, order, onorder) {
  const given = { scope: "col", class: classes(column), title: column.title };
  if (!onorder || !column.value) return h("th", given, column.head);
  const chosen = order && order.at === at;
  const turn = () => onorder({ at, down: chosen ? !order.down : true });
  const mark = h("span", { class: "aic-order", "aria-hidden": "true" }, chosen ? (order.down ? "▾" : "▴") : "");
  const button = h("button", { type: "button", onclick: turn, "data-key": `order ${column.head}` }, column.head, mark);
  return h("th", { ...given, "aria-sort": chosen ? (order.down ? "descending" : "ascending") : null }, button);
}

function cell(column, at, row) {
  const text = column.text(row);
  return at === 0 ? h("th", { scope: "row", class: classes(column) }, ...[text].flat()) : h("td", { class: classes(column) }, ...[text].flat());
}

export function panel(element, id, title, { about = "", links = [] } = {}, ...content) {
  replace(element,
    h("header", { class: "aic-panel-head" }, h("h2", { id: `${id}-title` }, title), about ? h("p", null, about) : null,
      links.length ? h("div", { class: "aic-links" }, links) : null),
    ...content);
}

// A share as a bar; its figure stands beside it.
export function bar(share) {
  const width = Math.round(100 * Math.min(Math.max(share ?? 0, 0), 1));
  return svg("svg", { class: "aic-bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "aic-bar-all", width: 100, height: 8, rx: 2 }), svg("rect", { class: "aic-bar-part", width, height: 8, rx: 2 }));
}

export function spark(values) {
  const most = Math.max(...values, 1), step = 120 / values.length;
  const bars = values.map((value, at) => {
    const height = value ? Math.max(1.5, (20 * value) / most) : 0;
    return svg("rect", { x: at * step, y: 22 - height, width: Math.max(step - 0.4, 0.6), height });
  });
  return svg("svg", { class: "aic-spark", viewBox: "0 0 120 22", "aria-hidden": "true" }, bars);
}
