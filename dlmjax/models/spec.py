"""Sizes and structure of the denoiser (`ModelSpec`) and how it is run (`Execution`): plain values, checked on construction.

Shapes: B batch, L length, D width, H query heads, G key/value heads, K head_dim, F ffn, V vocab, N layers,
T width of the time signal, R rows (a flattened batch of positions).
"""

from __future__ import annotations

import dataclasses

from dlmjax.choices import nearest
from dlmjax.errors import InputError
from dlmjax.fields import MOST_LOOPS, check_section, default_of

TIME_INPUTS = ("none", "adaln", "add", "prefix")
TIME_FEATURES = ("sinusoidal", "fourier")
TIME_GATES = ("zero", "one")
ROPE_SCALINGS = ("linear", "ntk", "llama3", "yarn")
# The kinds of scaling that read a field, when positions are scaled.
STRETCHES_BY = {
    "rope_original": ("llama3", "yarn"),
    "rope_slow": ("llama3", "yarn"),
    "rope_fast": ("llama3", "yarn"),
    "rope_truncate": ("yarn",),
}
SCALES_ATTENTION = ("yarn",)  # by `rope_attention`, also when positions are not scaled
BIASES = ("none", "qkv", "all")
NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu", "gelu_tanh")
POSITIONS = ("rotary", "learned")
NORM_PLACEMENTS = ("pre", "post", "branch")
HINTS = ("x0", "hidden")
HEADS = ("linear", "transform")
SMALLEST, LARGEST = 2.0**-126, 2.0**126  # float32: smaller values are 0 on a device, larger ones soon overflow
MOST_ATTENTION = 100.0  # a factor of the cosines and sines; published ones lie below 2, and its square multiplies every score


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """By default a Qwen3-shaped Transformer (Qwen3 2505.09388; pre-RMSNorm, SwiGLU 2002.05202, RoPE 2104.09864, GQA 2305.13245).

    `vocab` counts the classes of the logits, special ids included. `rope_scaling` is the factor by which the context is stretched
    (1 = off), `rope_scaling_type` how: "linear" divides positions, "ntk" enlarges the base, "llama3" (Llama 3 2407.21783) and "yarn" (YaRN
    2309.00071) divide the slow frequencies alone: those with less than `rope_slow` rotations in `rope_original` positions, but none
    with more than `rope_fast`. "yarn" also multiplies cosines and sines by `rope_attention`, and rounds the two borders outwards to
    whole channels (`rope_truncate`).

    The fields that distinguish families (`families.py` has their combinations): `qk_norm`, RMSNorm on queries and keys, of each head or,
    with `qk_norm_all`, of all heads together (OLMo 2 2501.00656); `bias`, on which linear maps ("qkv": queries, keys and values); `norm`,
    RMSNorm or LayerNorm with bias (1607.06450); `mlp`, gated SwiGLU or a plain layer with GELU (erf, or its tanh form; 1606.08415);
    `positions`, rotated or a learned table of `max_positions` rows, whose first `position_offset` no token uses; `norm_placement`, norms
    before each branch ("pre"), after each sum ("post": the embedding then has a norm and the stack none), or after each branch and before
    the sum ("branch", OLMo 2); `token_types`, rows of BERT's segment table, of which row 0 is added everywhere; `head`, "transform" puts a
    dense layer with GELU before the last norm and a bias on the logits (BERT 1810.04805). `shift`: the state that predicts a position is
    that of the one before it, as in weights that were trained to predict the next token (Dream 2508.15487). `loops`: how often the layers
    are run one after the other, with the same weights (Universal Transformer 1807.03819); `looped`: which of them, (first, end) from 0 on,
    while those before and after are run once (LoopMDM 2605.26106); () = all. It is the network of `effective_depth` layers whose weights
    repeat.
    `anchor_depth`: the first layers of `depth` are a network of their own, whose prediction the others read (`anchored.py`); 0 = off.
    `window`: a position attends to those less than `window` away from it (Mistral 2310.06825); 0 = all that the process allows.
    `board`: rows are boards of 9 x 9 cells and one token more, and learned vectors of a cell's row, column and box are added to the
    embedding. `peers`: a cell attends to those of its row, column and box alone; the network then knows which cells the rules of Sudoku
    compare.

    `time_input` is how the network is conditioned on the time t: "adaln" modulates every layer and starts the final layers at zero (DiT
    2212.09748), "add" adds a vector to every embedding, "prefix" adds a first position that all attend to (its t is the row's largest);
    absorbing processes leave it "none". `time_features`: "sinusoidal" of t, or "fourier", fixed random frequencies (Tancik et al.
    2006.10739). `time_gates`: where the gates of "adaln" start, "zero", so that each layer starts as the identity (DiT), or "one", so that
    a network that read no time starts as the same function. `input_dim` > 0: the network reads vectors of that size instead of token ids.
    `self_condition`: it takes a hint of an earlier pass, of which `hint` says what it is: "x0", its x0 prediction, by a matrix; "hidden",
    its final hidden states, by a norm (loopholing, 2510.19304). `completep_width` and `completep_depth` are the sizes of the base model
    whose hyper-parameters are transferred (CompleteP 2505.01618); 0 = off.
    Raises InputError on sizes that contradict each other.
    """

    vocab: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    qk_norm: bool = True
    tied: bool = default_of("model.tied")
    rope_base: float = default_of("model.rope_base")
    rope_scaling: float = default_of("model.rope_scaling")
    rope_scaling_type: str = "linear"
    dropout: float = default_of("model.dropout")
    time_input: str = default_of("model.time_input")
    time_width: int = 128
    time_features: str = "sinusoidal"
    time_gates: str = "zero"
    input_dim: int = 0
    self_condition: bool = False
    hint: str = default_of("process.hint")
    completep_width: int = default_of("model.completep_width")
    completep_depth: int = default_of("model.completep_depth")
    norm_eps: float = 1e-6
    init_std: float = 0.02
    bias: str = "none"
    norm: str = "rms"
    mlp: str = "swiglu"
    positions: str = "rotary"
    max_positions: int = 0
    position_offset: int = 0
    norm_placement: str = "pre"
    token_types: int = 0
    head: str = "linear"
    shift: bool = False
    rope_original: int = 8192
    loops: int = 1
    looped: tuple[int, ...] = ()
    window: int = 0
    board: bool = False
    peers: bool = False
    qk_norm_all: bool = False
    rope_slow: float = 1.0
    rope_fast: float = 4.0
    rope_attention: float = 1.0
    rope_truncate: bool = True
    anchor_depth: int = default_of("model.anchor_depth")

    def __post_init__(self) -> None:
        check_section("model", vars(self))
        self._check_numbers()
        if min(self.vocab, self.time_width) < 1:
            raise InputError(f"a network requires model.vocab={self.vocab} and time_width={self.time_width} to be at least 1")
        if self.heads % self.kv_heads:
            raise InputError(f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; choose a divisor of the heads")
        if self.head_dim % 2:
            raise InputError(f"model.head_dim={self.head_dim} is odd; rotary positions rotate pairs of channels; choose an even number")
        if bool(self.completep_width) != bool(self.completep_depth):
            raise InputError(
                f"model.completep_width={self.completep_width} and model.completep_depth={self.completep_depth} go together: give the base "
                "model's width and depth, or 0 and 0"
            )
        _one_of("model.time_input", self.time_input, TIME_INPUTS)
        _one_of("model.time_input: features", self.time_features, TIME_FEATURES)
        _one_of("model.time_input: gates", self.time_gates, TIME_GATES)
        _one_of("process.hint", self.hint, HINTS)
        if self.input_dim and self.tied:
            raise InputError(
                "model.tied=true requires an embedding of tokens, and the network of this process reads vectors; set model.tied=false"
            )
        _one_of("model.family: rope_scaling_type", self.rope_scaling_type, ROPE_SCALINGS)
        attention_fits = SMALLEST <= self.rope_attention <= MOST_ATTENTION
        if self.rope_original < 1 or not SMALLEST <= self.rope_slow < self.rope_fast or not attention_fits:
            raise InputError(
                f"model.family: rope_original={self.rope_original} must be at least 1, rope_slow={self.rope_slow} above 0 and below "
                f"rope_fast={self.rope_fast}, rope_attention={self.rope_attention} above 0 and at most {MOST_ATTENTION:g}"
            )
        self._check_family()
        self._check_anchors()

    def differing(self, other: ModelSpec) -> list[str]:
        """Fields in which two networks compute different functions of the same weights, or hold different weights. Initial values and
        dropout are not part of the function."""
        names = [name for name, value in self._function().items() if value != other._function()[name]]
        causes = [name for name in names if getattr(self, name) != getattr(other, name)]  # equal fields may be unused in one
        return causes or (["rope_scaling_type"] if names else [])  # the only field that decides which others are used

    def misfits(self, source: ModelSpec) -> list[str]:
        """Fields of `differing` but those by which the weights of `source` can start this network as the same function.

        These add weights that are zero at the start and leave the others as they are, or leave out weights whose input may be zeros:
        biases; conditioning on the time by "add", or by "adaln" with gates of one, for a network that read no time; the hint of
        self-conditioning, in both directions. All other fields change the function, or other weights.
        """
        gained_time = source.time_input == "none" and (self.time_input, self.time_gates) in (
            *(("add", gates) for gates in TIME_GATES),
            ("adaln", "one"),
        )
        free = {"hint"} if self.self_condition != source.self_condition else set()
        free |= {"self_condition"}
        free |= {"bias"} if BIASES.index(self.bias) > BIASES.index(source.bias) else set()
        free |= {"time_input", "time_width", "time_features", "time_gates"} if gained_time else set()
        return [name for name in self.differing(source) if name not in free]

    def _function(self) -> dict[str, object]:
        """Fields by name, with None for those that the network does not read."""
        values = {name: value for name, value in vars(self).items() if name not in ("dropout", "init_std")}
        values |= {"completep_width": self.width_ratio, "completep_depth": self.depth_ratio}
        rotary, kind = self.positions == "rotary", self.rope_scaling_type
        stretched = rotary and self.rope_scaling > 1
        if kind not in SCALES_ATTENTION:
            values["rope_attention"] = 1.0
        used = {
            **dict.fromkeys(("rope_base", "rope_scaling", "rope_attention"), rotary),
            "rope_scaling_type": stretched,
            **{name: stretched and kind in kinds for name, kinds in STRETCHES_BY.items()},
            **dict.fromkeys(("max_positions", "position_offset"), not rotary),
            **dict.fromkeys(("time_width", "time_features"), self.time_input != "none"),
            "time_gates": self.time_input == "adaln",
            "looped": self.loops > 1,
            "hint": self.self_condition,
        }
        values["looped"] = self.looped or (0, self.depth)
        return {name: value if used.get(name, True) else None for name, value in values.items()}

    def _check_numbers(self) -> None:
        """Whole numbers must fit in int32, others in float32: a larger one fails much later, as a network that is not finite."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            high = {"int": 2**31 - 1, "float": LARGEST}.get(field.type)
            if high and not abs(value) <= high:
                raise InputError(f"model.{field.name}={value!r:.40} is too large for the network's arithmetic; give at most {high:g}")
        if self.norm_eps < SMALLEST:
            raise InputError(
                f"model.family: norm_eps={self.norm_eps} must be at least {SMALLEST:.1e} (a norm adds it to the mean square before the "
                "division; published networks have 1e-12 to 1e-5)"
            )

    def _check_anchors(self) -> None:
        """Contradictions with an anchor network."""
        if not self.anchor_depth:
            return
        if self.anchor_depth >= self.depth:
            raise InputError(
                f"model.anchor_depth={self.anchor_depth} leaves no layer of model.depth={self.depth} for the rest; lower it, or 0 for none"
            )
        conflicts = {
            "process.self_condition": self.self_condition,
            "a process on vectors": self.input_dim,
            "model.family: shift": self.shift,
        }
        for name in (name for name, value in conflicts.items() if value):
            raise InputError(f"model.anchor_depth={self.anchor_depth} conflicts with {name}; set it to 0")

    def _check_family(self) -> None:
        """Contradictions between the fields that a family decides."""
        texts = dict(bias=BIASES, norm=NORMS, mlp=MLPS, positions=POSITIONS, norm_placement=NORM_PLACEMENTS, head=HEADS)
        for name, valid in texts.items():
            _one_of(f"model.family: {name}", getattr(self, name), valid)
        if self.position_offset < 0:
            raise InputError(f"model.family: position_offset={self.position_offset} is negative; give the rows that no token uses, or 0")
        if self.positions == "learned" and not 0 <= self.position_offset < self.max_positions:
            raise InputError(
                f"model.family: max_positions={self.max_positions} leaves no row of the table of learned positions after the first "
                f"{self.position_offset}; raise it"
            )
        if not 1 <= self.loops <= MOST_LOOPS:
            raise InputError(f"model.family: loops={self.loops} must be from 1 to {MOST_LOOPS} (the number of times that layers are run)")
        if self.looped and not (len(self.looped) == 2 and 0 <= self.looped[0] < self.looped[1] <= self.depth):
            raise InputError(
                f"model.family: looped={self.looped} is not a range of the layers 0 to {self.depth - 1}; give (first, end), such as "
                f"({self.depth // 4}, {-(-self.depth // 2)}), where 0 <= first < end <= model.depth={self.depth}"
            )
        if self.token_types < 0:
            raise InputError(f"model.family: token_types={self.token_types} is negative; give the rows of the segment table, or 0 for none")
        if self.window < 0:
            raise InputError(f"model.family: window={self.window} is negative; give the number of positions, or 0 for all")
        if self.norm_placement != "pre" and (self.time_input == "adaln" or self.completep_width):
            what = "model.time_input=adaln" if self.time_input == "adaln" else "CompleteP (model.completep_width)"
            raise InputError(f"{what} requires norms before each branch, and model.family has them after it; choose another family")

    @property
    def mlp_matrices(self) -> int:
        """Matrices of [width, ffn] in an MLP."""
        return 3 if self.mlp == "swiglu" else 2

    @property
    def context(self) -> int:
        """Tokens of the longest document that has positions; 0 = no limit."""
        return self.max_positions - self.position_offset if self.positions == "learned" else 0

    @property
    def width_ratio(self) -> float:
        """Width over the CompleteP base width; 1 when CompleteP is off."""
        return self.width / self.completep_width if self.completep_width else 1.0

    @property
    def effective_depth(self) -> int:
        """Number of layers that a token passes, repeated runs included."""
        return sum(runs * (end - first) for first, end, runs in self.spans)

    @property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """The layers in the order in which they are run: (first, end, number of runs of these layers)."""
        first, end = self.looped or (0, self.depth)
        spans = ((0, first, 1), (first, end, self.loops), (end, self.depth, 1))
        return tuple(span for span in spans if span[0] < span[1]) if self.loops > 1 else ((0, self.depth, 1),)

    @property
    def depth_ratio(self) -> float:
        """Effective depth over the CompleteP base depth; 1 when CompleteP is off."""
        return self.effective_depth / self.completep_depth if self.completep_depth else 1.0


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is run; no field changes what is computed beyond rounding.

    `dtype` is that of weights and activations inside the layers (master weights, logits, softmax and reductions stay float32);
    `scan` runs the stacked layers by `lax.scan` (short compilation) or unrolled (20-50 % faster on CPU); `remat` recomputes nothing,
    everything, or everything but the weight matmuls in the backward pass; `head_chunk` is the number of positions whose logits exist
    at once (0 = chosen from the vocabulary).
    """

    dtype: str = default_of("execution.dtype")
    scan: bool = default_of("execution.scan")
    remat: str = default_of("execution.remat")
    attention: str = default_of("execution.attention")
    head_chunk: int = default_of("execution.head_chunk")

    def __post_init__(self) -> None:
        check_section("execution", vars(self))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r} is unknown{nearest(value, choices)}")
