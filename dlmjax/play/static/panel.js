// The panel of the selected tokens: hold, noise, alternatives, insertion, removal, text.

import { MASK, replaced, setHeld, textOf, toNoise } from "./cells.js";

const byId = (id) => document.getElementById(id);

export class Panel {
  // actions: change(pane, edit, from, to), alternatives(pane, position), encode(text), close().
  constructor(actions) {
    this.actions = actions;
    this.element = byId("panel");
  }

  connect(guarded) {
    const { change } = this.actions;
    const edit = (action) => guarded(() => action(this.pane, this.from, this.to));
    const on = (id, action) => byId(id).addEventListener("click", edit(action));
    on("hold", (pane, from, to) => change(pane, (cells) => setHeld(cells, from, to, !this.allHeld), from, to));
    on("noise", (pane, from, to) => change(pane, (cells) => toNoise(cells, from, to), from, to));
    on("remove", (pane, from, to) => {
      change(pane, (cells) => replaced(cells, from, to, []), null);
      this.hide(true);
    });
    on("insert-before", (pane, from, to) => change(pane, (cells) => replaced(cells, from, from - 1, [MASK]), from + 1, to + 1));
    on("insert-after", (pane, from, to) => change(pane, (cells) => replaced(cells, to + 1, to, [MASK]), from, to));
    on("wider-left", (pane, from, to) => this.widen(Math.max(0, from - 1), to));
    on("wider-right", (pane, from, to) => this.widen(from, Math.min(this.cells.length - 1, to + 1)));
    on("alternatives", () => this.listAlternatives());
    byId("panel-close").addEventListener("click", () => this.hide(true));
    byId("write-form").addEventListener("submit", edit((...selection) => this.write(...selection)));
  }

  open(pane, cells, from, to) {
    Object.assign(this, { pane, cells, from, to });
    const selected = cells.slice(from, to + 1);
    const known = selected.filter((cell) => cell.id !== null);
    this.allHeld = known.length > 0 && known.every((cell) => cell.held);
    const range = from === to ? `Token ${from + 1}` : `Tokens ${from + 1} to ${to + 1}`;
    const text = textOf(selected).slice(0, 60);
    byId("panel-title").textContent = `${range}: ${text.trim() ? text : text.replaceAll(" ", "\u2423")}`;
    byId("hold").textContent = this.allHeld ? "Release" : "Hold";
    byId("hold").disabled = !known.length;
    byId("noise").disabled = !known.length;
    byId("alternatives-part").hidden = from !== to;
    byId("alternative-list").replaceChildren();
    const opened = this.element.hidden;
    this.element.hidden = false;
    if (opened) byId(known.length ? "hold" : "alternatives").focus();
    // A button that is disabled while it has the focus would take the keys with it.
    if (document.activeElement?.disabled) byId("panel-close").focus();
    keepInView(pane.view.element.children[to], this.element);
  }

  hide(focus = false) {
    if (this.element.hidden) return;
    this.element.hidden = true;
    if (focus) this.pane.view.focus(this.from);
    this.actions.close();
  }

  widen(from, to) {
    this.pane.view.select(from, to);
    this.open(this.pane, this.cells, from, to);
  }

  async write(pane, from, to) {
    const text = byId("write").value;
    if (text === "") throw new Error("there is no text to put here; type it first");
    const cells = await this.actions.encode(text);
    byId("write").value = "";
    this.actions.change(pane, (before) => replaced(before, from, to, cells), from, from + cells.length - 1);
  }

  async listAlternatives() {
    const { pane, from: position } = this;
    const found = await this.actions.alternatives(pane, position);
    if (this.element.hidden || this.from !== position || this.to !== position) return;
    byId("alternative-list").replaceChildren(...found.map((entry) => this.alternative(pane, position, entry)));
    byId("alternative-list").querySelector("button")?.focus();
    keepInView(pane.view.element.children[position], this.element);
  }

  alternative(pane, position, { id, text, p }) {
    const [item, button, word, number] = ["li", "button", "span", "span"].map((name) => document.createElement(name));
    word.textContent = text === " " ? "\u2423" : text;
    number.textContent = p.toFixed(3);
    button.type = "button";
    button.setAttribute("aria-label", `${text === " " ? "space" : text}, probability ${p.toFixed(3)}`);
    button.append(word, number);
    const cell = { id, text, held: true, confidence: p, changed: false };
    button.addEventListener("click", () => this.actions.change(pane, (cells) => replaced(cells, position, position, [cell]), position, position));
    item.append(button);
    return item;
  }
}

// In a narrow window the panel covers the lower part: the token stays above it.
function keepInView(token, panel) {
  if (!token) return;
  const [inner, outer] = [token.getBoundingClientRect(), panel.getBoundingClientRect()];
  if (inner.bottom > outer.top && inner.left < outer.right) window.scrollBy(0, inner.bottom - outer.top + 16);
}
