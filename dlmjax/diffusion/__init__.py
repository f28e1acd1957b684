"""Noise processes for text as pure functions: corrupt, loss in nats, prior, reverse step; schedules, times and the objective.

Ground floor of dlmjax: knows no network library, no files, no mesh. docs/api.md lists what is exported, with shapes.
"""

from dlmjax.diffusion.declarations import Attention, Boundary, Capabilities, Ends, Parameter, Phases
from dlmjax.diffusion.gaussian import Anchor, DiffusionLm, EmbeddingFlow, EndToEnd, GaussianEmbedding, Plaid, Sed, Simple
from dlmjax.diffusion.hyperschedule import ByPosition, Hyperschedule, PerBlock, choose_interval
from dlmjax.diffusion.objective import Denoiser, Objective, hint_of, nats_at, reconstruction_nats
from dlmjax.diffusion.process import (
    Output,
    Process,
    States,
    bind_process,
    cross_entropy,
    draw_tokens,
    exclude,
    init_params,
    is_tight,
    row_keys,
    split_rows,
    uniform_rows,
)
from dlmjax.diffusion.processes.any_order import any_order_nats
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.d3pm import D3pm, StepMasked, make_d3pm
from dlmjax.diffusion.processes.duo import Duo
from dlmjax.diffusion.processes.flow_matching import FlowMatching
from dlmjax.diffusion.processes.frequency import FrequencyMasked, Spindle
from dlmjax.diffusion.processes.hybrid import Hybrid, Mixed
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount, MaskedLambda
from dlmjax.diffusion.processes.score import ScoreEntropy
from dlmjax.diffusion.processes.state_dependent import GenMd4, StateDependent
from dlmjax.diffusion.processes.table import Table
from dlmjax.diffusion.processes.text_dependent import LoMdm, TextDependent
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.diffusion.progressive import Progressive
from dlmjax.diffusion.registry import PROCESSES, make_masks, make_process, make_schedule, make_times, make_weighting
from dlmjax.diffusion.schedules import Clipped, Cosine, Geometric, Linear, Polynomial, Schedule, llada, log_linear, symmetric
from dlmjax.diffusion.time_domain import TimeDomain
from dlmjax.diffusion.times import (
    Beta,
    Mixture,
    PerRow,
    Piecewise,
    Power,
    TimeDistribution,
    Times,
    TwoMode,
    UniformTimes,
    importance_heights,
    over_length,
)
from dlmjax.diffusion.weightings.base import Anchored, Annealed, Bound, Capped, CrossEntropy, InverseRate, Weighting
from dlmjax.diffusion.weightings.jumps import ClippedJumps, Contrastive, Denoising, Dynamic
from dlmjax.diffusion.weightings.tokens import HybridLambda, Routed, TokenAdaptive

__all__ = [
    "PROCESSES",
    "Anchor",
    "Anchored",
    "Attention",
    "Annealed",
    "Autoregressive",
    "Beta",
    "Blockwise",
    "Bound",
    "Boundary",
    "Capabilities",
    "ByPosition",
    "Capped",
    "Clipped",
    "ClippedJumps",
    "Contrastive",
    "Cosine",
    "CrossEntropy",
    "D3pm",
    "Denoiser",
    "Denoising",
    "DiffusionLm",
    "Duo",
    "Dynamic",
    "EmbeddingFlow",
    "EndToEnd",
    "Ends",
    "FlowMatching",
    "FrequencyMasked",
    "GaussianEmbedding",
    "GenMd4",
    "Geometric",
    "Hybrid",
    "HybridLambda",
    "Hyperschedule",
    "InverseRate",
    "Linear",
    "Llada",
    "LoMdm",
    "Masked",
    "MaskedCount",
    "MaskedLambda",
    "Mixed",
    "Mixture",
    "Objective",
    "Output",
    "Parameter",
    "PerBlock",
    "PerRow",
    "Phases",
    "Piecewise",
    "Plaid",
    "Polynomial",
    "Power",
    "Process",
    "Progressive",
    "Routed",
    "Schedule",
    "ScoreEntropy",
    "Sed",
    "Simple",
    "Spindle",
    "StateDependent",
    "States",
    "StepMasked",
    "Table",
    "TextDependent",
    "TimeDistribution",
    "TimeDomain",
    "Times",
    "TokenAdaptive",
    "TwoMode",
    "Uniform",
    "UniformTimes",
    "Weighting",
    "any_order_nats",
    "bind_process",
    "choose_interval",
    "cross_entropy",
    "draw_tokens",
    "exclude",
    "importance_heights",
    "hint_of",
    "init_params",
    "is_tight",
    "llada",
    "log_linear",
    "make_d3pm",
    "make_masks",
    "make_process",
    "make_schedule",
    "make_times",
    "make_weighting",
    "nats_at",
    "over_length",
    "reconstruction_nats",
    "row_keys",
    "split_rows",
    "symmetric",
    "uniform_rows",
]
