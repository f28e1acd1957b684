"""What a text has cost, against what the network and the classifier really do: a hook counts rows and positions in the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.models import Execution, build_network, cache, denoiser
from dlmjax.sampling.blocks import BlockSampler, sampler_for
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.drafters import MaskedDrafter
from dlmjax.sampling.growth import GrowingSampler
from dlmjax.sampling.samples import Counts
from dlmjax.sampling.search import Judged, Searcher
from dlmjax.sampling.settings import SampleSettings
from tests.models.tiny import VOCAB, lively, spec
from tests.sampling.test_growth import bind_of, canvas_of

NETWORK = build_network(spec(depth=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn=16), Execution())
PARAMS = lively(NETWORK.init(jax.random.key(3)))
MASK, END, LENGTH, PROMPT = VOCAB - 1, VOCAB - 2, 8, 3
FULL = Masked(VOCAB, MASK)
SEEN: list[str] = []  # calls of the functions below


def prompted(*prompts: int) -> Canvas:
    """Rows with prompts of these lengths."""
    tokens_BL = np.random.default_rng(1).integers(0, END, (len(prompts), LENGTH)).astype(np.int32)
    condition_BL = np.arange(LENGTH) < np.array(prompts)[:, None]
    return Canvas(tokens_BL, condition_BL, (~condition_BL).astype(np.float32))


@pytest.fixture
def read(monkeypatch):
    """(rows, positions) of each pass through the one layer, as they are executed."""
    passes, layer = [], denoiser.transformer_layer

    def counted(network, attend, rotary, time, batch_shape, x, *rest):
        rows, positions = batch_shape[0], x.size // x.shape[-1]
        jax.debug.callback(lambda: passes.append((rows, positions)))
        return layer(network, attend, rotary, time, batch_shape, x, *rest)

    monkeypatch.setattr(denoiser, "transformer_layer", counted)
    monkeypatch.setattr(cache, "transformer_layer", counted)
    return passes


def settings(**how) -> SampleSettings:
    return SampleSettings(**{"steps": 3, "rule": "confidence", "suppressed_ids": (END,)} | how)


CAUSAL = Autoregressive(VOCAB, bos_id=END, mask_id=MASK)
SEEDED = Blockwise(Masked(VOCAB, MASK), 4, seed_bos=END)
BLOCKS = Blockwise(Masked(VOCAB, MASK), 4)
SAMPLERS = {
    "whole canvas": lambda: sampler_for(FULL, NETWORK, settings()),
    "guidance": lambda: sampler_for(FULL, NETWORK, settings(guidance=1.0)),
    "shadows": lambda: sampler_for(FULL, NETWORK, settings(rule="wino(reveal=0.01)")),
    "calls left out": lambda: sampler_for(FULL, NETWORK, settings(rule="ancestral", cache=True, steps=12)),
    "stride": lambda: sampler_for(FULL, NETWORK, settings(), stride=2, window=6),
    "blocks": lambda: sampler_for(BLOCKS, NETWORK, settings(steps=2)),
    "blocks, guidance": lambda: sampler_for(BLOCKS, NETWORK, settings(steps=2, guidance=1.0)),
    "seeded blocks": lambda: sampler_for(SEEDED, NETWORK, settings(steps=2)),
    "causal": lambda: sampler_for(CAUSAL, NETWORK, settings(rule="ancestral")),
    "causal, no buffers": lambda: BlockSampler(CAUSAL, NETWORK, settings(rule="ancestral"), cached=False),
    "drafts of a run": lambda: sampler_for(
        CAUSAL, NETWORK, settings(rule="ancestral", draft="run(path=x, depth=3)"), drafter=MaskedDrafter(FULL, NETWORK.bind, PARAMS)
    ),
    "joint drafts": lambda: sampler_for(SEEDED, NETWORK, settings(rule="ancestral", draft="joint(depth=3)")),
    "dual": lambda: sampler_for(FULL, NETWORK, settings(cache="dual(block=4)", steps=2)),
    "dual, guidance": lambda: sampler_for(FULL, NETWORK, settings(cache="dual(block=4)", steps=2, guidance=1.0)),
}


SLOW = (
    "dual, guidance",
    "seeded blocks",
    "stride",
    "causal, no buffers",
    "shadows",
    "joint drafts",
)  # a compilation each, of shapes like the others


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SAMPLERS])
def test_counts_are_what_the_network_does(name, read):
    """One text, whose calls all count: rows and positions of all passes, and the calls of `evaluations`."""
    made = SAMPLERS[name]().sample(PARAMS, prompted(PROMPT), seed=1)
    jax.effects_barrier()
    counts = Counts(*(int(count_B[0]) for count_B in made.counts))
    assert counts == (made.evaluations, sum(rows for rows, _ in read), sum(positions for _, positions in read), 0)
    assert counts.reads_B > counts.rows_B > 0 or name == "causal"


@pytest.mark.parametrize("name", ["whole canvas", "dual"])
def test_a_text_counts_what_it_counts_alone(name):
    """Beside rows that are filled sooner or later, whose further calls do not count for it."""
    sampler = SAMPLERS[name]()
    both = sampler.sample(PARAMS, prompted(3, 7, 0), seed=1)
    for row, prompts in enumerate(((3, 8, 8), (8, 7, 8), (8, 8, 0))):
        alone = sampler.sample(PARAMS, prompted(*prompts), seed=1)
        assert [count_B[row] for count_B in alone.counts] == [count_B[row] for count_B in both.counts]
        assert sum(int(count_B.sum() - count_B[row]) for count_B in alone.counts) == 0
    assert both.counts.calls_B[1] < both.counts.calls_B[0] <= both.counts.calls_B[2]


def counted(p_BLV, t_BL):
    """A classifier of one's own that prefers the token 3."""
    jax.debug.callback(lambda: SEEN.append("classifier"))
    return jnp.sum(p_BLV[..., 3], axis=1)


def score(candidates):
    SEEN.extend("score" for _ in candidates)
    return np.stack([(each.tokens_BL == 3).sum(axis=1) for each in candidates], axis=1)


def reward(state):
    SEEN.extend("reward" for _ in state.tokens_BL)
    return np.zeros(len(state.tokens_BL))


@pytest.mark.parametrize(
    ("guide", "gradients", "others"),
    [("classifier(order=first, ", 1, 0), ("classifier(order=exact, ", 0, LENGTH * VOCAB), ("project(rounds=3, steps=2, ", 3 * 2, 3)],
)
def test_passes_of_a_guide_are_counted(guide, gradients, others):
    """A gradient is one pass forwards, which is seen, and counts as 3."""
    SEEN.clear()
    made = sampler_for(FULL, NETWORK, settings(guide=f"{guide}of={__name__}.counted)")).sample(PARAMS, prompted(PROMPT))
    jax.effects_barrier()
    assert len(SEEN) == made.evaluations * (gradients + others) > 0
    assert made.to_json()["extra_each"] == made.counts.extra_B.tolist() == [made.evaluations * (3 * gradients + others)]


SEARCHES = {
    "best(n=3)": {"score": score},
    "smc(particles=4)": {"reward": reward},
    "beam(width=2, branch=2)": {"reward": reward},
    "paths(n=2, rounds=1)": {"score": score},
    "votes(n=2, blocks=(2, 8))": {},
    "votes(over=steps)": {},
}
FAST = ("best(n=3)", "beam(width=2, branch=2)")


@pytest.mark.parametrize("search", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in SEARCHES])
def test_a_search_counts_all_that_it_makes(search, read):
    SEEN.clear()
    sampler, own = SAMPLERS["whole canvas"](), SEARCHES[search]
    made = Searcher(search, sampler, **own).sample(PARAMS, prompted(PROMPT), seed=2).samples
    jax.effects_barrier()
    wanted = made.evaluations, sum(rows for rows, _ in read), sum(positions for _, positions in read), len(SEEN)
    assert Counts(*(int(count_B[0]) for count_B in made.counts)) == wanted
    assert (len(SEEN) > 0) == bool(own)
    if own:
        plain = Searcher(search, sampler).sample(PARAMS, prompted(PROMPT), seed=2).samples
        assert plain.counts.extra_B.tolist() == [0], "confidence is known without a further pass"


def test_a_verifier_says_its_passes():
    found = Searcher("best(n=2)", SAMPLERS["whole canvas"](), score=lambda made: Judged(score(made), np.array([[5, 7], [1, 0]])))
    assert found.sample(PARAMS, prompted(PROMPT, PROMPT), seed=2).samples.counts.extra_B.tolist() == [12, 1]


def test_a_canvas_that_grows_counts_its_buckets():
    """Each call of a row reads its bucket: texts of 11 and 21 positions in the end, buckets of 16 and 32."""
    how = SampleSettings(grow="daedal(initial=8, window=4, add=2, longest=64)", end_ids=(20,), suppressed_ids=(21,), temperature=0.0)
    made = GrowingSampler(Masked(22, 21), bind_of(0.99), how).sample((), canvas_of(1, 3))
    assert made.counts.rows_B.tolist() == made.calls_B.tolist() and made.calls_B.max() == made.evaluations
    assert made.counts.reads_B.tolist() == [4 * 16, 4 * 16 + 7 * 32] and made.canvas_B.tolist() == [11, 21]


def test_counts_in_words():
    assert str(Counts(1, 2, 3000, 0)) == "1 calls, 2 rows, 3,000 positions read" and "4 passes" in str(Counts(1, 2, 3, 4))
