"""Canvas, samplers and traces: from a trained denoiser to text."""

from dlmjax.sampling.canvas import Canvas, blank_canvas, build_canvas, never_sampled
from dlmjax.sampling.sampler import ORDERS, Sampler, Samples, SampleSettings, State, sample, sample_steps

__all__ = [
    "ORDERS",
    "Canvas",
    "SampleSettings",
    "Sampler",
    "Samples",
    "State",
    "blank_canvas",
    "build_canvas",
    "never_sampled",
    "sample",
    "sample_steps",
]
