"""Laws of batch and rate go through their references with their exponents."""

import pytest

from dlmjax.errors import InputError
from dlmjax.sweep.rules import BatchLaw, CompleteP, FixedBatch, FixedRate, RateLaw


def test_batch_law():
    law = BatchLaw(tokens=4096, at=1e7)
    assert law.windows(1e7, 128) == 32
    # Ten times the tokens: 32 * 10^0.82 = 211, nearest in ratio to 256; with eight devices 208.
    assert law.windows(1e8, 128) == 256
    assert BatchLaw(tokens=4096, at=1e7, multiple=8).windows(1e8, 128) == 208
    assert law.windows(1e3, 128) == 1 and BatchLaw(tokens=4096, at=1e7, multiple=8).windows(1e3, 128) == 8


def test_rate_law():
    law = RateLaw(lr=1e-2, batch=4096)
    assert law.rate(32, 128) == pytest.approx(1e-2)
    assert law.rate(64, 128) / law.rate(32, 128) == pytest.approx(2**0.34)
    assert RateLaw(lr=1e-2, batch=4096, exponent=0.5).rate(128, 128) == pytest.approx(2e-2)


def test_fixed_values_and_transfer():
    assert FixedBatch(12).windows(1e9, 7) == 12 and FixedRate(3e-4).rate(1, 1) == 3e-4
    assert CompleteP(256, 6).leaves() == {"model.completep_width": 256, "model.completep_depth": 6}


@pytest.mark.parametrize(
    "make",
    [
        lambda: BatchLaw(0, 1e7),
        lambda: BatchLaw(1, 1, multiple=-1),
        lambda: FixedBatch(10**300),
        lambda: RateLaw(1e-2, float("nan")),
        lambda: FixedRate(0),
        lambda: FixedBatch(-1),
    ],
)
def test_what_is_no_law(make):
    with pytest.raises(InputError, match="give"):
        make()


@pytest.mark.parametrize(
    "law",
    [BatchLaw(1e300, 1), BatchLaw(1, 1, 1e3), BatchLaw(1, 1, 1e3, multiple=8), RateLaw(1, 1, 1e3), RateLaw(1, 1, -1e3)],
)
def test_laws_beyond_reason_are_refused_and_do_not_hang(law):
    with pytest.raises(InputError, match=f"{type(law).__name__}.*check its numbers"):
        law.windows(1e12, 128) if isinstance(law, BatchLaw) else law.rate(10**6, 128)
