// A canvas as an array of cells, and its edits. Each edit returns a new array; `from` and `to` are the first and the last position.
// A cell: id (null where the position is masked or noise), text, held, confidence (null where there is none), changed in this step.

export const MASK = { id: null, text: "", held: false, confidence: null, changed: false };

export function heldCells(tokens) {
  return tokens.map(({ id, text }) => (id === null ? MASK : { id, text, held: true, confidence: null, changed: false }));
}

export function padded(cells, length) {
  const missing = Math.max(0, length - cells.length);
  return [...cells, ...Array(missing).fill(MASK)];
}

function mapped(cells, from, to, edit) {
  return cells.map((cell, at) => (at >= from && at <= to ? edit(cell) : cell));
}

export function setHeld(cells, from, to, held) {
  return mapped(cells, from, to, (cell) => (cell.id === null ? cell : { ...cell, held }));
}

export function toNoise(cells, from, to) {
  return mapped(cells, from, to, () => MASK);
}

export function replaced(cells, from, to, added) {
  return [...cells.slice(0, from), ...added, ...cells.slice(to + 1)];
}

// The canvas of a request: what is not held becomes noise; with `keep`, only what is shown as masked.
export function requested(cells, keep) {
  return cells.map(({ id, held }) => (id !== null && (held || keep) ? { id, held: true } : { id: null, held: false }));
}

// The cells of a state of the sampler. canvas: the cells that it began from, with what is held; before: the state before it.
export function stateCells(state, canvas, before) {
  return state.ids.map((id, at) => ({
    id,
    text: id === null ? "" : state.texts[at],
    held: Boolean(canvas[at]?.held) && id !== null,
    confidence: state.confidence[at],
    changed: Boolean(before) && id !== null && before.ids[at] !== id,
  }));
}

// The class of a confidence; the legend of the page states the bounds.
export function confidenceClass(confidence) {
  return confidence < 0.3 ? "c0" : confidence < 0.6 ? "c1" : confidence < 0.9 ? "c2" : "c3";
}

export function textOf(cells) {
  return cells.map((cell) => (cell.id === null ? "\u00b7" : cell.text)).join("");
}
