// The tokens of a canvas on the page: one element for each, one tab stop for all, arrows between them.
// All text is inserted as text; a token never becomes markup.

import { confidenceClass } from "./cells.js";

export class TokenView {
  // onPick(from, to) opens the tokens of a selection; onPick(null) is a click on none.
  constructor(element, onPick) {
    this.element = element;
    this.onPick = onPick;
    this.cells = [];
    this.current = 0;
    this.anchor = null;
    this.to = null;
    element.addEventListener("click", (event) => this.clicked(event));
    element.addEventListener("keydown", (event) => this.pressed(event));
    // Shift and a click would select text of the page, too.
    element.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault());
  }

  show(cells) {
    while (this.element.children.length > cells.length) this.element.lastElementChild.remove();
    while (this.element.children.length < cells.length) this.element.append(tokenElement());
    this.cells = cells;
    this.current = Math.min(this.current, Math.max(0, cells.length - 1));
    cells.forEach((cell, at) => this.draw(at, cell));
  }

  draw(at, cell) {
    const element = this.element.children[at];
    const text = cell.id === null ? "\u00b7" : cell.text;
    if (element.textContent !== text) element.textContent = text;
    const selected = this.anchor !== null && at >= this.first && at <= this.last;
    const name = classOf(cell) + (selected ? " selected" : "");
    if (element.className !== name) element.className = name;
    const label = labelOf(cell, at);
    if (element.title !== label) {
      element.title = label;
      element.setAttribute("aria-label", label);
      element.dataset.confidence = cell.confidence === null || cell.held ? "" : Math.round(cell.confidence * 100);
    }
    element.setAttribute("aria-pressed", String(selected));
    element.tabIndex = at === this.current ? 0 : -1;
  }

  get first() {
    return Math.min(this.anchor, this.to);
  }

  get last() {
    return Math.max(this.anchor, this.to);
  }

  select(from, to) {
    this.anchor = from;
    this.to = to;
    this.cells.forEach((cell, at) => this.draw(at, cell));
  }

  focus(at = this.current) {
    this.current = Math.max(0, Math.min(at, this.cells.length - 1));
    this.cells.forEach((cell, i) => this.draw(i, cell));
    this.element.children[this.current]?.focus();
  }

  pick(at, extend) {
    this.current = at;
    this.select(extend && this.anchor !== null ? this.anchor : at, at);
    this.onPick(this.first, this.last);
  }

  clicked(event) {
    const element = event.target.closest(".token");
    if (element) this.pick([...this.element.children].indexOf(element), event.shiftKey);
  }

  pressed(event) {
    const moves = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      const at = Math.max(0, Math.min(this.current + moves[event.key], this.cells.length - 1));
      if (event.shiftKey) {
        if (this.anchor === null) this.anchor = this.current;
        this.to = at;
      }
      this.focus(at);
    } else if (event.key === "Enter" || event.key === " ") {
      const several = this.anchor !== null && this.to === this.current && this.anchor !== this.to;
      this.pick(this.current, several);
    } else {
      return;
    }
    event.preventDefault();
  }
}

function tokenElement() {
  const element = document.createElement("span");
  element.setAttribute("role", "button");
  return element;
}

function classOf(cell) {
  if (cell.id === null) return "token mask";
  if (cell.held) return "token held";
  const shade = cell.confidence === null ? "" : ` ${confidenceClass(cell.confidence)}`;
  return `token${shade}${cell.changed ? " new" : ""}`;
}

// For screen readers and as a tooltip: what the colours show.
function labelOf(cell, at) {
  const number = cell.confidence === null ? "" : `, confidence ${cell.confidence.toFixed(2)}`;
  if (cell.id === null) return `${at + 1}: masked${number}`;
  const name = cell.text === " " ? "space" : cell.text.trim() || "space";
  return `${at + 1}: ${name}${cell.held ? ", held" : number}${cell.changed ? ", changed in this step" : ""}`;
}
