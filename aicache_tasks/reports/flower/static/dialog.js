// The confirmation before an operation is invalidated: it names it, and says what it saved.

import { ask } from "./ask.js";
import { byId, focusOn, h, name, replace } from "./dom.js";
import { duration, money, number, seconds } from "./format.js";

const cookie = (wanted) => document.cookie.split("; ").find((one) => one.startsWith(`${wanted}=`))?.slice(wanted.length + 1) ?? "";

export class Dialog {
  constructor(url, done) {
    this.url = url;
    this.done = done;
    this.element = byId("aic-dialog");
    this.confirm = byId("aic-dialog-confirm");
    this.error = byId("aic-dialog-error");
    this.confirm.addEventListener("click", () => this.send());
    this.element.addEventListener("close", () => { this.operation = null; focusOn(document, this.opener); }); // a refresh may have put another in its place
  }

  // row: of the operation; ever: its figures of all time, if they are known.
  open(row, ever, currency) {
    this.operation = row.operation;
    this.label = row.label;
    this.opener = document.activeElement?.dataset.key;
    this.confirm.disabled = false;
    this.error.textContent = "";
    byId("aic-dialog-title").replaceChildren("Invalidate ", name(row.label), "?");
    replace(byId("aic-dialog-text"),
      h("p", null, "Every stored answer of ", h("strong", null, name(row.label)), " is taken out of force at once, for all workers. Its next calls compute again. This cannot be undone."),
      h("p", null, worth(ever ?? row, ever ? "So far" : "In the span that is shown", currency)));
    this.confirm.replaceChildren("Invalidate ", name(row.label));
    this.element.showModal();
  }

  async send() {
    const operation = this.operation, label = this.label;
    this.confirm.disabled = true;
    this.error.textContent = "";
    try {
      await ask(this.url, { method: "POST", signal: AbortSignal.timeout(15000),
        headers: { "Content-Type": "application/json", "X-XSRFToken": cookie("_xsrf") }, body: JSON.stringify({ operation }) });
      this.element.close();
      this.done(label);
    } catch (error) {
      this.error.textContent = `${error.name === "TimeoutError" ? "Flower did not answer in time" : error.message}. You can try again.`;
      this.confirm.disabled = false;
    }
  }
}

function worth(figures, when, currency) {
  const saved = [seconds(figures.saved.seconds) + " of computing", figures.tokens.saved ? `${number(figures.tokens.saved)} tokens` : null, figures.saved.cost ? `${money(figures.saved.cost, currency)} in money` : null];
  const median = figures.steps.compute?.p50_ns;
  return `${when} its stored answers served ${number(figures.hits)} calls and saved ${saved.filter(Boolean).join(", ")}.` + (median ? ` Computing one takes ${duration(median)} (median).` : "");
}
