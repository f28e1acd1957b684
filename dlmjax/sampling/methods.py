"""The step methods by name, as `--method` and records write them."""

from dlmjax.sampling.accept import Accept, AcceptOnce
from dlmjax.sampling.by_name import build
from dlmjax.sampling.correctors import Acs, Gibbs
from dlmjax.sampling.gaussian import Ddim, Ddpm, Heun
from dlmjax.sampling.hitting import FirstHitting, Predetermined
from dlmjax.sampling.psi import Psi
from dlmjax.sampling.remask import Remask
from dlmjax.sampling.steppers import Analytic, Ancestral, Rdm, SelfCorrect, Stepper, TauLeap

METHODS: dict[str, type] = {
    cls.name: cls
    for cls in (
        *(Ancestral, TauLeap, Analytic, FirstHitting, Predetermined, Remask, Psi, Rdm, SelfCorrect, Gibbs, Acs),
        *(Accept, AcceptOnce, Ddpm, Ddim, Heun),
    )
}


def make_method(text: str) -> Stepper:
    """The stepper of a name, with its values written as a call: "tau_leap", "remask(rule=cap, eta=0.2)"."""
    return build("method", text, METHODS)
