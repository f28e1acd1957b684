"""A page of one run: what its files say, drawn and written as one HTML file that needs no other."""

from dlmjax.report.facts import RunFacts, read_facts
from dlmjax.report.page import render
from dlmjax.report.phases import TrainedPhase, trained_phases

__all__ = ["RunFacts", "TrainedPhase", "read_facts", "render", "trained_phases"]
