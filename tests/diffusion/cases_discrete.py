"""Cases of the battery: the rate form of masked noise, and schedules per token where all tokens are alike.

Unequal schedules have no kernel that the oracle knows, and discrete time no integral: they are enumerated in test_state_dependent.py,
test_frequency.py and test_d3pm.py.
"""

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.frequency import Spindle
from dlmjax.diffusion.processes.masked import MaskedLambda
from dlmjax.diffusion.processes.state_dependent import GenMd4
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, Case

CASES = [
    Case("masked_lambda", MaskedLambda(VOCAB, MASK, (BOS,)), oracle.masked_kernel(TOKENS, *LINEAR), light=True),
    Case("genmd4", GenMd4(VOCAB, MASK, (BOS,)), oracle.masked_kernel(TOKENS, *LINEAR)),
    Case(
        "spindle",
        Spindle(VOCAB, MASK, (BOS,), counts_V=(5, 3, 1, 0, 0), strength=0.0),
        oracle.masked_kernel(TOKENS, *LINEAR),
        light=True,
    ),
]
