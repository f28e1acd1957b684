"""Likelihood bounds with error bars, and the n-gram marks they are read against."""

from dlmjax.evaluation.likelihood import Evaluator, LikelihoodResult, evaluate_nelbo
from dlmjax.evaluation.ngram import EntropyMarks, empirical_entropy, entropy_marks, witten_bell_bits

__all__ = [
    "EntropyMarks",
    "Evaluator",
    "LikelihoodResult",
    "empirical_entropy",
    "entropy_marks",
    "evaluate_nelbo",
    "witten_bell_bits",
]
