"""Canvas, samplers and traces: from a trained denoiser to text."""

from dlmjax.sampling import analysis
from dlmjax.sampling.blocks import BlockSampler, StrideSampler, sampler_for
from dlmjax.sampling.cached import CachedSampler
from dlmjax.sampling.canvas import Canvas, blank_canvas, build_canvas, suppressed_ids
from dlmjax.sampling.drafting import DraftingSampler
from dlmjax.sampling.drafts import DRAFTS, make_draft
from dlmjax.sampling.grids import GRIDS, make_grid
from dlmjax.sampling.html import render_html, write_html
from dlmjax.sampling.methods import METHODS, make_method
from dlmjax.sampling.reuse import REUSES, make_reuse, reuse_text
from dlmjax.sampling.rule_names import RULES, make_rule
from dlmjax.sampling.sampler import Sampler, sample, sample_steps
from dlmjax.sampling.samples import Samples, State
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.terminal import TerminalView
from dlmjax.sampling.trace import Trace, first_difference, record, replay

__all__ = [
    "DRAFTS",
    "GRIDS",
    "METHODS",
    "REUSES",
    "RULES",
    "BlockSampler",
    "CachedSampler",
    "Canvas",
    "DraftingSampler",
    "SampleSettings",
    "Sampler",
    "Samples",
    "State",
    "StrideSampler",
    "TerminalView",
    "Trace",
    "analysis",
    "blank_canvas",
    "build_canvas",
    "first_difference",
    "make_draft",
    "make_grid",
    "make_method",
    "make_reuse",
    "make_rule",
    "suppressed_ids",
    "record",
    "render_html",
    "replay",
    "reuse_text",
    "sample",
    "sample_steps",
    "sampler_for",
    "write_html",
]
