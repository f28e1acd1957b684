// The page of `dlmjax play`: form, canvas, panes and the player of steps.
// What is shown is what is sent: each action begins from the cells on the page, also from those of a step before the last.

import { Api } from "./api.js";
import { heldCells, padded, requested } from "./cells.js";
import { Pane } from "./pane.js";
import { Panel } from "./panel.js";
import { Player } from "./player.js";

const byId = (id) => document.getElementById(id);
const api = new Api(new URLSearchParams(location.search).get("token") ?? "");
const panel = new Panel({ change, alternatives, encode, close: () => panes.forEach((pane) => pane.view.select(null, null)) });
const panes = [new Pane("A", picked), new Pane("B", picked)];
const player = new Player(show);

// edited: the cells of a canvas that no sample began from yet, null while the states of the last sample are shown.
// placed: the text and length that the canvas was set from.  tokenizer: of its ids.  running: ends the requests of a sample.
// before: what was shown when it began.  drawing: whether the next frame shows new states.
let edited = null;
let before = null;
let drawing = false;
let placed = null;
let tokenizer = null;
let running = null;
let limits = {};

function comparing() {
  return byId("compare").checked;
}

function shownPanes() {
  return comparing() ? panes : panes.slice(0, 1);
}

function cells(pane = panes[0]) {
  if (edited && player.atEdited) return edited;
  return pane.cellsAt(player.index);
}

function show() {
  const still = player.atEdited ? edited : null;
  shownPanes().forEach((pane) => pane.show(player.index, still));
  byId("fill").disabled = Boolean(running) || !cells().some((cell) => cell.id === null);
  byId("save").disabled = Boolean(running) || !shownPanes().some((pane) => pane.trace);
}

function refreshPlayer(follow) {
  player.setRange(Math.max(0, ...shownPanes().map((pane) => pane.states.length)), edited !== null, follow);
  show();
}

function setEdited(cellsOfCanvas) {
  edited = cellsOfCanvas;
  refreshPlayer("last");
}

// Errors are one line at the top of the page; the next action removes it.
function report(error, prefix = "") {
  if (error.name === "AbortError" || !byId("error").hidden) return;
  byId("error").textContent = prefix + error.message;
  byId("error").hidden = false;
  byId("error").scrollIntoView({ block: "nearest" });
}

function guarded(action) {
  return async (event) => {
    event?.preventDefault();
    byId("error").hidden = true;
    byId("error").textContent = "";
    try {
      await action(event);
    } catch (error) {
      report(error);
    }
  };
}

// A number field: what the browser cannot read as a number is refused here, the rest by the server.
function number(id, name) {
  const value = byId(id).value.trim();
  if (value === "" || !Number.isFinite(Number(value))) throw new Error(`${name} is not a number; type one`);
  return Number(value);
}

async function encode(text) {
  return text === "" ? [] : heldCells((await api.json("/api/encode", { run: panes[0].run.value, text })).tokens);
}

function source() {
  return JSON.stringify([byId("text").value, byId("length").value, panes[0].chosen.tokenizer]);
}

// The canvas of the text: a template has the masks that it marks, a prompt masks up to the length.
async function setCanvas() {
  if (running) throw new Error("a sample is not finished; cancel it first");
  const length = number("length", "the length");
  if (length > limits.length) throw new Error(`the length is above ${limits.length} tokens; choose a smaller one`);
  const from = source();
  const tokens = await encode(byId("text").value);
  panes.forEach((pane) => pane.clear());
  placed = from;
  tokenizer = panes[0].chosen.tokenizer;
  panel.hide();
  setEdited(tokens.some((cell) => cell.id === null) ? tokens : padded(tokens, length));
}

// The ids of a canvas are those of one tokenizer.
function checkTokenizer(pane) {
  if (tokenizer !== null && pane.chosen.tokenizer !== tokenizer) {
    throw new Error(`run ${pane.run.value} conflicts with the tokens that are shown: its tokenizer is another; choose another run, or set the canvas`);
  }
}

function settings(pane) {
  const stop = byId("stop").value.trim();
  const values = { steps: number("steps", "the number of steps"), temperature: number("temperature", "the temperature"), ...pane.waySetting };
  const topP = number("top-p", "the nucleus");
  return { ...values, ...(topP < 1 || topP > 1 ? { top_p: topP } : {}), ...(stop ? { stop } : {}) };
}

async function sample(keep) {
  if (running) return;
  if (!keep && placed !== source()) await setCanvas();
  const sides = shownPanes();
  sides.forEach(checkTokenizer);
  const canvas = requested(cells(), keep);
  if (!canvas.length) throw new Error("the canvas is empty; type a prompt or a length");
  const bodies = sides.map((pane) => ({ canvas, seed: number("seed", "the seed"), settings: settings(pane) }));
  panel.hide();
  begin(sides);
  const samples = sides.map((pane, i) => pane.sample(api, bodies[i], running.signal, progressed));
  const failed = (error, i) => report(error, sides.length > 1 ? `${sides[i].letter}: ` : "");
  const done = await Promise.all(samples.map((each, i) => each.then(() => true, (error) => failed(error, i))));
  finish(sides, done.every(Boolean));
}

function begin(sides) {
  const canvas = cells().map((cell) => ({ ...cell, changed: false }));
  running = new AbortController();
  before = { edited, index: player.index };
  edited = null;
  sides.forEach((pane) => pane.begin(canvas));
  byId("sample").disabled = true;
  byId("cancel").disabled = false;
  byId("compare").disabled = byId("open").disabled = true;
  byId("status").textContent = "waiting for the first step";
  refreshPlayer("last");
  byId("panes").scrollIntoView({ block: "nearest" });
}

function progressed() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (!running) return;
    if (byId("status").textContent !== "sampling") byId("status").textContent = "sampling";
    refreshPlayer();
  });
}

function finish(sides, complete) {
  byId("status").textContent = running.signal.aborted ? "cancelled" : complete ? "finished" : "failed";
  running = null;
  byId("sample").disabled = false;
  byId("cancel").disabled = true;
  byId("compare").disabled = byId("open").disabled = false;
  const restored = sides.every((pane) => !pane.states.length);
  sides.forEach((pane) => pane.finish(restored));
  if (restored) edited = before.edited;
  refreshPlayer(restored ? before.index : undefined);
}

async function cancel() {
  const jobs = shownPanes().map((pane) => pane.job).filter((job) => job !== null);
  running?.abort();
  await Promise.all(jobs.map((job) => api.post("/api/cancel", { job }).catch(() => {})));
}

function picked(pane, from, to) {
  panes.filter((other) => other !== pane).forEach((other) => other.view.select(null, null));
  if (running) return;
  panel.open(pane, cells(pane), from, to, player.atEdited);
}

// An edit of the panel: the cells of that pane become the canvas, with the edit; the panel stays open at the selection.
function change(pane, edit, from, to) {
  setEdited(edit(cells(pane)).map((cell) => ({ ...cell, changed: false })));
  if (from === null) return;
  pane.view.select(from, to);
  panel.open(pane, cells(pane), from, to, true);
}

async function alternatives(pane, position) {
  checkTokenizer(pane);
  const canvas = cells(pane).map(({ id, held }) => ({ id, held: held && id !== null }));
  const temperature = number("temperature", "the temperature");
  const body = { run: pane.run.value, canvas, position, ...(temperature > 0 ? { temperature } : {}) };
  return (await api.json("/api/alternatives", body)).alternatives;
}

async function save() {
  for (const pane of shownPanes().filter((each) => each.trace)) {
    const page = await (await api.get(`/api/trace/${encodeURIComponent(pane.trace)}`)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(page);
    link.download = `trace-${pane.trace}.html`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

async function open() {
  const [file] = byId("open").files;
  byId("open").value = "";
  if (!file) return;
  if (file.size > limits.trace_bytes) throw new Error(`${file.name} is above ${limits.trace_bytes} bytes; open a smaller trace`);
  const record = await api.json("/api/open", await file.text());
  panel.hide();
  byId("compare").checked = false;
  compareChanged();
  panes.forEach((pane) => pane.clear());
  panes[0].open(record);
  edited = null;
  placed = source();
  tokenizer = panes[0].chosen.tokenizer;
  byId("status").textContent = `opened ${file.name}`;
  refreshPlayer(0);
}

function insertMasks() {
  const count = number("mask-count", "the number of masks");
  const area = byId("text");
  area.setRangeText(`[MASK*${count}]`, area.selectionStart, area.selectionEnd, "end");
  area.focus();
}

function compareChanged() {
  const two = comparing();
  byId("panes").classList.toggle("two", two);
  panes[1].element.hidden = panes[1].choice.hidden = !two;
  panes[0].choice.classList.toggle("single", !two);
  if (!panes[1].states.length) panes[1].clear(cells());
  refreshPlayer();
}

// Keys of the page; a field for text keeps its characters.
function key(event) {
  if (event.key === "Escape") panel.hide(true);
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input:not([type=range]):not([type=checkbox]), textarea, select")) return;
  if (event.key === ",") player.move(-1);
  if (event.key === ".") player.move(1);
}

function connect() {
  byId("form").addEventListener("submit", guarded(() => sample(false)));
  byId("fill").addEventListener("click", guarded(() => sample(true)));
  byId("cancel").addEventListener("click", guarded(cancel));
  byId("set-canvas").addEventListener("click", guarded(setCanvas));
  byId("insert-masks").addEventListener("click", guarded(insertMasks));
  byId("save").addEventListener("click", guarded(save));
  byId("open").addEventListener("change", guarded(open));
  byId("compare").addEventListener("change", guarded(compareChanged));
  byId("numbers").addEventListener("change", () => byId("panes").classList.toggle("numbers", byId("numbers").checked));
  document.addEventListener("keydown", key);
  panel.connect(guarded);
}

async function start() {
  byId("choices").append(...panes.map((pane) => pane.choice));
  byId("panes").append(...panes.map((pane) => pane.element));
  connect();
  const answer = await api.json("/api/runs");
  limits = answer.limits;
  panes.forEach((pane) => pane.setRuns(answer.runs));
  if (answer.runs.length > 1) panes[1].run.value = answer.runs[1].name;
  panes[1].setWays();
  const stops = new Set(answer.runs.flatMap((run) => run.stops));
  byId("stops").append(...[...stops].map((stop) => new Option(stop, stop)));
  byId("length").value = Math.min(answer.runs[0].length, limits.length, 128);
  byId("length").max = limits.length;
  byId("steps").max = limits.steps;
  byId("status").textContent = "ready";
  compareChanged();
}

guarded(start)();
