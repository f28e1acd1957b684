// One side of the page: a choice of run and rule, and the states of its last sample.

import { stateCells } from "./cells.js";
import { TokenView } from "./tokens.js";

export class Pane {
  constructor(letter, onPick) {
    this.letter = letter;
    this.choice = fromTemplate("choice-template");
    this.element = fromTemplate("pane-template");
    this.choice.querySelector("legend").textContent = letter;
    const find = (selector) => this.element.querySelector(selector);
    [this.heading, this.progress, this.stepText] = [find("h2"), find("progress"), find(".step")];
    [this.run, this.way, this.typed] = [".run", ".way", ".typed"].map((name) => this.choice.querySelector(name));
    find(".tokens").setAttribute("aria-label", `Tokens of ${letter}`);
    this.progress.setAttribute("aria-label", `Progress of ${letter}`);
    this.view = new TokenView(find(".tokens"), (from, to) => onPick(this, from, to));
    this.run.addEventListener("change", () => this.setWays());
    this.way.addEventListener("change", () => (this.typed.value = this.way.value));
    this.clear();
  }

  // canvas: the cells that the next states begin from; they are shown until the first of them comes.
  clear(canvas = []) {
    this.canvas = canvas;
    this.states = [];
    this.trace = this.job = this.end = this.first = this.left = null;
    this.label = "";
  }

  // Begins a sample from a canvas. The states before it come back where it ends without one.
  begin(canvas) {
    const { canvas: before, states, trace, end, label } = this;
    this.before = { canvas: before, states, trace, end, label };
    this.clear(canvas);
    this.label = this.title;
  }

  finish(restored) {
    if (restored) Object.assign(this, this.before);
    this.before = null;
    this.end ??= {};
  }

  setRuns(runs) {
    this.runs = runs;
    this.run.replaceChildren(...runs.map((run) => new Option(`${run.name} (${run.process})`, run.name)));
    this.setWays();
  }

  get chosen() {
    return this.runs.find((run) => run.name === this.run.value);
  }

  setWays() {
    const groups = [["Rules", this.chosen.rules], ["Methods", this.chosen.methods]].filter(([, ways]) => ways.length);
    const before = this.typed.value;
    this.way.replaceChildren(new Option("default", ""), ...groups.map(([name, ways]) => group(name, ways)));
    this.way.value = [...this.way.options].some((option) => option.value === before) ? before : "";
    this.typed.value = this.way.value;
  }

  // The setting that the typed rule or method is; a name that the run does not list is refused by the server in its words.
  get waySetting() {
    const typed = this.typed.value.trim();
    if (!typed) return {};
    const name = (call) => call.split("(")[0];
    return this.chosen.methods.some((method) => name(method) === name(typed)) ? { method: typed } : { rule: typed };
  }

  get title() {
    return `${this.letter}: ${this.run.value}, ${this.typed.value.trim() || "default"}`;
  }

  // Samples once, state by state; onState is called after each. Throws where the server refuses or ends with an error.
  async sample(api, body, signal, onState) {
    await api.lines("/api/sample", { run: this.run.value, ...body }, signal, (line) => {
      if (line.type === "start") {
        this.job = line.job;
        this.start = startState(line);
      } else if (line.type === "state") {
        if (!this.states.length) this.states.push(this.start);
        this.states.push(line);
        this.first ??= { step: line.step, time: performance.now() };
        this.left = secondsLeft(line, this.first);
        onState();
      } else if (line.type === "end") {
        this.trace = line.trace;
        this.end = line;
      } else if (line.type === "error") {
        throw new Error(line.message);
      }
    });
    if (!this.end) throw new Error("the server ended before the sample did; start it again with: dlmjax play RUN");
  }

  open(record) {
    this.clear(record.tokens);
    this.states = record.states;
    this.end = {};
    this.label = `${this.letter}: opened trace`;
  }

  cellsAt(index) {
    if (!this.states.length) return this.canvas;
    const at = Math.min(index, this.states.length - 1);
    return stateCells(this.states[at], this.canvas, this.states[at - 1]);
  }

  // Shows a state, or these cells where they are edited.
  show(index, edited) {
    this.heading.textContent = this.label || this.title;
    const state = edited ? undefined : this.states[Math.min(index, this.states.length - 1)];
    this.progress.value = state && state.steps ? state.step / state.steps : 0;
    this.stepText.textContent = state ? this.stepLine(state) : "";
    this.view.show(edited ?? this.cellsAt(index));
  }

  stepLine(state) {
    const line = `step ${state.step} of ${state.steps}, t = ${state.time.toFixed(3)}`;
    if (!this.end) return this.left === null ? line : `${line}, ${this.left.toFixed(1)} s left`;
    return this.end.calls === undefined ? line : `${line}, ${this.end.calls} calls, ${this.end.seconds.toFixed(1)} s`;
  }
}

// From the mean time of the steps since the first state, before which the sampler may have been compiled.
function secondsLeft(state, first) {
  const steps = state.step - first.step;
  return steps ? ((performance.now() - first.time) / 1000 / steps) * (state.steps - state.step) : null;
}

// The canvas before the first step; there is no confidence yet where it is noise.
function startState({ tokens, steps }) {
  const [ids, texts] = [tokens.map((token) => token.id), tokens.map((token) => token.text)];
  return { step: 0, steps, time: 1, ids, texts, confidence: ids.map((id) => (id === null ? null : 1)) };
}

function group(name, ways) {
  const element = document.createElement("optgroup");
  element.label = name;
  element.append(...ways.map((way) => new Option(way, way)));
  return element;
}

function fromTemplate(id) {
  return document.getElementById(id).content.cloneNode(true).firstElementChild;
}
