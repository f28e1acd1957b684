"""Canvas, samplers and traces: from a trained denoiser to text."""

from dlmjax.sampling.canvas import Canvas, blank_canvas, build_canvas, never_sampled
from dlmjax.sampling.html import render_html, write_html
from dlmjax.sampling.sampler import ORDERS, Sampler, Samples, SampleSettings, State, sample, sample_steps
from dlmjax.sampling.terminal import TerminalView
from dlmjax.sampling.trace import Trace, first_difference, record, replay

__all__ = [
    "ORDERS",
    "Canvas",
    "SampleSettings",
    "Sampler",
    "Samples",
    "State",
    "TerminalView",
    "Trace",
    "blank_canvas",
    "build_canvas",
    "first_difference",
    "never_sampled",
    "record",
    "render_html",
    "replay",
    "sample",
    "sample_steps",
    "write_html",
]
