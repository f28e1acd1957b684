"""What is kept of the runs of a server."""

from dlmjax.play.fields import Limits
from dlmjax.play.runs import PlayRun, Samplers
from tests.test_run import tiny


def test_the_samplers_that_were_used_last_are_kept():
    """By run, settings and shape: two places, of which the one that was used longest ago is given up."""
    play, samplers = PlayRun("tiny", tiny("masked"), Limits()), Samplers(most=2)

    def used(temperature, length=8):
        return samplers.get(play, {"temperature": temperature}, (1, length))

    first, second = used(1.0), used(2.0)
    assert used(1.0) is first and used(1.0, 9) is not first  # in place of the second
    assert used(1.0) is first and used(2.0) is not second
