// Elements. Text is only ever set as text, so that no label can be markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

const keyed = (element, key) => [...element.querySelectorAll("[data-key]")].find((child) => child.dataset.key === key);
export const focusOn = (element, key) => key !== undefined && keyed(element, key)?.focus({ preventScroll: true });

// Put children into an element; what had the focus or was scrolled still is, if it is there under the same data-key.
export function replace(element, ...children) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = [...element.querySelectorAll(".aic-scroll")].map((box) => [box.dataset.key, box.scrollLeft, box.scrollTop]).filter(([, left, top]) => left || top);
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  for (const [of, left, top] of scrolled) keyed(element, of)?.scrollTo(left, top);
  focusOn(element, key);
}

// A label from Redis: isolated, so that its direction is nobody else's.
export const name = (label) => h("bdi", { class: "aic-name" }, label);

// Text with commands between backquotes.
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? h("code", null, part) : part));
}
