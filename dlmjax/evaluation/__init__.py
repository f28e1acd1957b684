"""Likelihood bounds with error bars, and the n-gram marks they are read against."""

from dlmjax.evaluation.likelihood import Evaluator, LikelihoodResult, evaluate_nelbo

__all__ = ["Evaluator", "LikelihoodResult", "evaluate_nelbo"]
