"""Noise processes for text as pure functions: corrupt, loss in nats, prior, reverse step; schedules, times and the objective.

Ground floor of dlmjax: knows no network library, no files, no mesh. docs/api.md lists what is exported, with shapes.
"""

from dlmjax.diffusion.autoregressive import Autoregressive
from dlmjax.diffusion.duo import Duo
from dlmjax.diffusion.flow_matching import FlowMatching
from dlmjax.diffusion.hybrid import Hybrid, Mixed
from dlmjax.diffusion.jump_weighting import ClippedJumps, Contrastive, Denoising, Dynamic
from dlmjax.diffusion.masked import Llada, Masked, MaskedCount
from dlmjax.diffusion.objective import Denoiser, Objective, nats_at, reconstruction_nats
from dlmjax.diffusion.process import Process, cross_entropy, draw_tokens, row_keys
from dlmjax.diffusion.registry import make_process, make_schedule, make_times, make_weighting
from dlmjax.diffusion.schedules import Clipped, Cosine, Geometric, Linear, Polynomial, Schedule, llada, log_linear, symmetric
from dlmjax.diffusion.score import ScoreEntropy
from dlmjax.diffusion.times import Flat, Law, Mixture, PerRow, Piecewise, Power, Times, over_length
from dlmjax.diffusion.uniform import Uniform
from dlmjax.diffusion.weighting import Bound, Capped, CrossEntropy, InverseRate, Weighting

__all__ = [
    "Autoregressive",
    "Bound",
    "Capped",
    "Clipped",
    "ClippedJumps",
    "Contrastive",
    "Cosine",
    "CrossEntropy",
    "Denoiser",
    "Denoising",
    "Duo",
    "Dynamic",
    "Flat",
    "FlowMatching",
    "Geometric",
    "Hybrid",
    "InverseRate",
    "Law",
    "Linear",
    "Llada",
    "Masked",
    "MaskedCount",
    "Mixed",
    "Mixture",
    "Objective",
    "PerRow",
    "Piecewise",
    "Polynomial",
    "Power",
    "Process",
    "Schedule",
    "ScoreEntropy",
    "Times",
    "Uniform",
    "Weighting",
    "cross_entropy",
    "draw_tokens",
    "llada",
    "log_linear",
    "make_process",
    "make_schedule",
    "make_times",
    "make_weighting",
    "nats_at",
    "over_length",
    "reconstruction_nats",
    "row_keys",
    "symmetric",
]
