"""A page of one run: what its files say, drawn and written as one HTML file that needs no other."""

from dlmjax.report.facts import RunFacts, read_facts
from dlmjax.report.page import render

__all__ = ["RunFacts", "read_facts", "render"]
