"""Likelihood bounds with error bars, the protocols (suites) of texts, and n-gram baselines."""

from dlmjax.evaluation.compare import Difference, PairAccuracy, pair_accuracy, paired_difference
from dlmjax.evaluation.likelihood import Evaluator, LikelihoodResult, evaluate_nelbo
from dlmjax.evaluation.ngram import EntropyBaselines, empirical_entropy, entropy_baselines, witten_bell_bits
from dlmjax.evaluation.suites import SUITES, Suite, find_suite
from dlmjax.evaluation.windows import Windows, cut_windows

__all__ = [
    "SUITES",
    "Difference",
    "EntropyBaselines",
    "Evaluator",
    "LikelihoodResult",
    "PairAccuracy",
    "Suite",
    "Windows",
    "cut_windows",
    "empirical_entropy",
    "entropy_baselines",
    "evaluate_nelbo",
    "find_suite",
    "pair_accuracy",
    "paired_difference",
    "witten_bell_bits",
]
