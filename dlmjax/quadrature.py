"""The settings of a quadrature over time t that evaluations, sweeps and their flags share, with their bounds. Imports no jax."""

from dlmjax import checks
from dlmjax.errors import InputError

RULES = ("gauss", "stratified", "count")  # see `evaluation.likelihood`
NODES = 16  # default number of nodes of an evaluation
ENOUGH_NODES = 12  # of "gauss": from here on the integrand itself says how far the rule is off; below, an evaluation reads more nodes
REFERENCE_NODES, REFERENCE_WINDOWS = 64, 32  # that it then reads, of this many windows at least
MOST_CALLS = 2**20  # nodes x draws is below: the draws of boundary terms have the tags from here on


def check_quadrature(owner: str, rule: str, nodes: int, draws: int) -> None:
    """Raises InputError, which names `owner`: an unknown rule, no node or draw, too many network calls."""
    checks.whole(owner, 1, nodes=nodes, draws=draws)
    if rule not in RULES:
        raise InputError(f"{owner}(rule={rule!r}): choose one of {', '.join(RULES)}")
    if nodes * draws >= MOST_CALLS:
        raise InputError(f"{owner}: nodes x draws is {nodes * draws:,}; it must be below {MOST_CALLS:,}; give fewer --nodes or --draws")
