"""Exact answers on toy vocabularies: enumeration of every text and state, toy distributions, denoisers that know them."""
