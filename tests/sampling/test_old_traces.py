"""Traces of every order, threshold, remask and method, made before rules had call strings, replay bit for bit.

Each record below is the settings of an old trace, as its file holds them, and a digest of all its states: tokens, masks, the step of each
token, network calls. They were made by the code of before; `SampleSettings.from_json` reads them as rules.
"""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.hybrid import Hybrid
from dlmjax.sampling.blocks import BlockSampler, StrideSampler
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.sampling import test_blocks
from tests.sampling.toy import Law

LAW = Law(symbols=3, length=5, seed=4, sharpness=2.0)
PLAIN = {
    "steps": 3,
    "order": "ancestral",
    "method": "ancestral",
    "grid": "uniform",
    "sweep": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "guidance": 0.0,
    "remask": False,
    "threshold": None,
    "remainder": "spread",
    "cache": False,
    "never": [3],
}


def canvas_of(length=5, known=((0, 0), (2, 3), (3, 0), (3, 1), (3, 4))):
    """A prompt of one token, of none, in the middle; the last row has two masks."""
    tokens_BL = np.full((4, length), 3, np.int32)
    condition_mask_BL = np.zeros((4, length), bool)
    for row, index in known:
        tokens_BL[row, index], condition_mask_BL[row, index] = (row + index) % 3, True
    return Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))


def digest_of(states) -> str:
    digest = hashlib.sha256()
    for state in states:
        for array in (np.where(state.masked_BL, -1, state.tokens_BL), state.fixed_BL):
            digest.update(np.ascontiguousarray(array, np.int32).tobytes())
        digest.update(f"{state.step} {state.calls}".encode())
    return digest.hexdigest()[:12]


def replayed(kind: str, how: dict) -> str:
    settings = SampleSettings.from_json(PLAIN | how)
    if kind in ("blocks", "autoregressive"):
        process, options = test_blocks.PROCESSES[kind]
        sampler = BlockSampler(process, test_blocks.NETWORK, settings, **options)
        return digest_of(sampler.states(test_blocks.PARAMS, test_blocks.prompted(3, 10), seed=5))
    if kind == "stride":
        sampler = StrideSampler(LAW.process(), _chain, settings, window=3, stride=2)
        return digest_of(sampler.states((), canvas_of(7, known=((0, 0), (2, 0), (2, 1))), seed=5))
    process = Hybrid(LAW.vocab, LAW.mask_id, p_uniform=0.2) if kind == "hybrid" else LAW.process()
    return digest_of(Sampler(process, LAW.bind, settings).states(jnp.float32(0.8), canvas_of(), seed=5))


def _chain(params, segments_BL, positions_BL, attention):
    return Law(symbols=3, length=3, seed=2).bind(1.0, segments_BL, positions_BL, attention)


RANKED = ("confidence", "top_probability", "entropy", "margin")
CASES = [
    *({"order": order} for order in ("random", "left_to_right", *RANKED)),
    *({"order": order, "steps": 64} for order in ("random", "confidence")),
    *({"order": order, "remainder": "first"} for order in ("random", "entropy")),
    *({"order": order, "threshold": 0.6} for order in RANKED),
    *({"order": order, "remask": True} for order in RANKED),
    *({"order": order, "temperature": 0.5, "top_p": 0.8, "guidance": 1.0} for order in ("confidence", "margin")),
    {"order": "top_probability", "threshold": 0.9, "temperature": 0.0, "guidance": 0.5},
    {"order": "random", "steps": 64, "cache": True},
    *({"method": method} for method in ("ancestral", "tau_leap", "first_hitting", "predetermined", "remask(rule=cap, eta=0.3)", "rdm")),
    {"method": "remask(rule=loop, eta=0.5)", "grid": "hold(at=0.3, share=0.5)", "steps": 6},
    {"method": "rdm(route=random)", "temperature": 0.5, "guidance": 1.0},
    {"sweep": 2, "steps": 5, "cache": True},
]
OTHERS = [
    *(("hybrid", {"order": order}) for order in ("confidence", "random")),
    *(("hybrid", {"method": method}) for method in ("ancestral", "analytic", "self_correct(rounds=2, level=0.1)")),
    *(("blocks", how) for how in ({"order": "confidence"}, {"order": "margin", "threshold": 0.3}, {"order": "ancestral"})),
    ("autoregressive", {}),
    *(("stride", how) for how in ({"order": "margin"}, {"order": "entropy", "threshold": 0.5}, {"method": "ancestral"})),
]


DIGESTS = [
    "910c78cd3edd",
    "833f106c63af",
    "9d44fdadad6a",
    "68da434d3720",
    "0392545f0790",
    "79dfb34e28e2",
    "ddd01af1d9ca",
    "75708b1a8559",
    "55c86c6a73c2",
    "d1039d02bdd8",
    "75708b1a8559",
    "2c34e51b517d",
    "deff919bade1",
    "d53356d9cb88",
    "efe7f15743da",
    "878d72fb4898",
    "e3605569654b",
    "58d985cc7b66",
    "2966573c38a6",
    "9574884b8fb9",
    "4d84ae692741",
    "ddd01af1d9ca",
    "65b56ec64600",
    "96c32151dbd1",
    "66281e0e789a",
    "5026107a5d9c",
    "2bcb437d009b",
    "c6d00715ef39",
    "0bae7b58900b",
    "888e8ccdd3cc",
    "37ba8152848f",
    "9d44fdadad6a",
    "910c78cd3edd",
    "a93e09cba1ae",
    "07f1690a5cd2",
    "bd3ab19e6026",
    "7fa51470c02b",
    "ff70be0b7d34",
    "cbf4992260b3",
    "558df02910cf",
    "1dd858917e08",
    "d60034f555ce",
    "9c2ecb618998",
]
FAST = {  # the others are slow
    ("masked", "{'order': 'random', 'remainder': 'first'}"),
    ("masked", "{'order': 'margin', 'temperature': 0.5, 'top_p': 0.8, 'guidance': 1.0}"),
    ("masked", "{'order': 'entropy', 'threshold': 0.6}"),
    ("masked", "{'order': 'confidence', 'remask': True}"),
    ("masked", "{'method': 'first_hitting'}"),
}
ALL = [*(("masked", how) for how in CASES), *OTHERS]


@pytest.mark.parametrize(
    "kind, how, digest",
    [
        pytest.param(kind, how, digest, marks=() if (kind, str(how)) in FAST else pytest.mark.slow, id=f"{kind} {how}")
        for (kind, how), digest in zip(ALL, DIGESTS, strict=True)
    ],
)
def test_an_old_trace_replays_bit_for_bit(kind, how, digest):
    assert replayed(kind, how) == digest


def test_an_old_record_is_the_rule_of_today():
    """Its text, and that a record of today is read as it was written."""
    rules = {
        "confidence(on=drawn)": {"order": "confidence"},
        "confidence": {"order": "top_probability"},
        "threshold(value=0.6, on=best, by=confidence)": {"order": "top_probability", "threshold": 0.6},
        "threshold(value=0.6, on=drawn, by=margin)": {"order": "margin", "threshold": 0.6},
        "entropy(plan=first, remask=True)": {"order": "entropy", "remainder": "first", "remask": True},
        "ancestral": {},
    }
    for rule, old in rules.items():
        settings = SampleSettings.from_json(PLAIN | old)
        assert settings.rule == rule and SampleSettings.from_json(settings.to_json()) == settings
