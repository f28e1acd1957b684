"""A trace as a self-contained HTML page with a slider and a play button; the page loads nothing.

The page contains the whole trace as JSON (`<script id="trace">`), which `trace.replay` can check.
"""

import html
import json
import os

from dlmjax.files import write_atomically
from dlmjax.sampling.trace import Trace

_PAGE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } table { border-collapse: collapse; font-size: .85rem; }
td, th { border: 1px solid #8884; padding: .15rem .6rem; text-align: left; }
"""
_STYLE = """
:root { --line: #8884; --dim: #888; }
#text { font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; min-height: 6rem; }
#text span { border-radius: .15rem; } #text .masked { color: var(--dim); } #text .frozen { font-weight: 600; }
#text .new { outline: 2px solid currentColor; } .bar { display: flex; gap: .7rem; align-items: center; margin: 1rem 0; flex-wrap: wrap; }
#slider { flex: 1; min-width: 12rem; } #where { font-variant-numeric: tabular-nums; min-width: 14rem; }
.key { display: inline-block; width: 8rem; height: .7rem; border-radius: .2rem; vertical-align: middle; }
"""

# Colours: hue 0 (red) to 120 (green) for confidence; 260 (violet, early) to 20 (orange, late) for the step that revealed a token.
_SCRIPT = """
"use strict";
const trace = JSON.parse(document.getElementById("trace").textContent);
const byId = id => document.getElementById(id);
const states = [trace.first];
for (const step of trace.changes) {
  const next = states[states.length - 1].map(row => row.slice());
  step.forEach((changes, row) => changes.forEach(([at, id]) => { next[row][at] = id; }));
  states.push(next);
}
function fixedAt(row, at, now) {
  let step = now;
  while (step > 0 && states[step - 1][row][at] === states[now][row][at]) step--;
  return step;
}
function colour(row, at, now) {
  if (byId("colour").value === "fixed") {
    return `hsl(${260 - 240 * fixedAt(row, at, now) / Math.max(states.length - 1, 1)} 70% 50% / .35)`;
  }
  return `hsl(${120 * trace.confidence[now][row][at] / 10000} 80% 45% / .35)`;
}
function draw() {
  const now = Number(byId("slider").value), row = Number(byId("row").value), text = byId("text");
  text.replaceChildren();
  let masked = 0;
  states[now][row].forEach((id, at) => {
    const cell = document.createElement("span"), sure = trace.confidence[now][row][at] / 10000;
    if (id < 0) {
      masked++;
      cell.className = "masked";
      cell.textContent = "\\u00b7";
      cell.title = `position ${at}: masked, largest probability ${sure.toFixed(4)}`;
    } else {
      cell.textContent = trace.pieces[id];
      const frozen = trace.canvas.frozen[row][at], step = fixedAt(row, at, now);
      cell.title = frozen ? `token ${at}: part of the canvas`
        : `token ${at}: id ${id}, revealed at step ${step} with probability ${sure.toFixed(4)}`;
      if (frozen) cell.className = "frozen";
      else { cell.style.background = colour(row, at, now); if (now && step === now) cell.className = "new"; }
    }
    text.append(cell);
  });
  byId("where").textContent = `step ${now} of ${states.length - 1}, t = ${trace.times[now].toFixed(3)}, masked ${masked}`;
  byId("low").textContent = byId("colour").value === "fixed" ? "early" : "low";
  byId("high").textContent = byId("colour").value === "fixed" ? "late" : "high";
  const hues = byId("colour").value === "fixed" ? [260, 140, 20] : [0, 60, 120];
  byId("key").style.background = `linear-gradient(to right, ${hues.map(h => `hsl(${h} 75% 48% / .6)`).join(", ")})`;
}
let timer = null;
function stop() { clearInterval(timer); timer = null; byId("play").textContent = "Play"; }
function play() {
  if (timer !== null) { stop(); return; }
  if (Number(byId("slider").value) >= states.length - 1) byId("slider").value = 0;
  byId("play").textContent = "Pause";
  timer = setInterval(() => {
    byId("slider").value = Number(byId("slider").value) + 1;
    draw();
    if (Number(byId("slider").value) >= states.length - 1) stop();
  }, Math.max(40, Math.min(400, 8000 / states.length)));
}
states[0].forEach((_, row) => byId("row").append(new Option(`sample ${row}`, row)));
byId("slider").max = states.length - 1;
byId("slider").value = 0;
byId("play").onclick = play;
byId("slider").oninput = () => { stop(); draw(); };
byId("row").onchange = draw;
byId("colour").onchange = draw;
draw();
"""


def section(trace: Trace) -> str:
    """A part of a page: the slider, the text, the settings, with style and script.  All text of the model and of the user is escaped.

    A page can contain one.
    """
    record = trace.to_json()
    # Only "<" can end a <script> element or open a comment in it; JSON allows an escape for it anywhere.
    data = (
        json.dumps(record, allow_nan=False, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
    facts = {"process": trace.process, "seed": trace.seed, "steps taken": trace.steps, "states": trace.states, **record["settings"]}
    table = "".join(f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
    texts = "".join(f"<pre>{html.escape(text)}</pre>" for text in trace.texts)
    return f"""<style>{_STYLE}</style>
<div class="bar">
<button id="play" type="button">Play</button>
<input id="slider" type="range" min="0" value="0" step="1" aria-label="step">
<span id="where"></span>
</div>
<div id="text" aria-live="off"></div>
<div class="bar">
<label>sample <select id="row"></select></label>
<label>colour by <select id="colour"><option value="confidence">confidence</option>
<option value="fixed">step of reveal</option></select></label>
<span id="low"></span> <span id="key" class="key"></span> <span id="high"></span>
</div>
<details><summary>Settings</summary><table>{table}</table></details>
<details><summary>Final text</summary>{texts}</details>
<noscript><p>The slider requires JavaScript. The final text is above; the states are in the source of this page.</p></noscript>
<script type="application/json" id="trace">{data}</script>
<script>{_SCRIPT}</script>
"""


def render_html(trace: Trace, title: str = "Denoising trace") -> str:
    """The page of a trace."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<style>{_PAGE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{section(trace)}</body>
</html>
"""


def write_html(trace: Trace, path: str | os.PathLike, title: str = "Denoising trace") -> None:
    """Writes the page to `path` atomically.  Raises InputError where the path is not writable."""
    write_atomically(path, render_html(trace, title))
