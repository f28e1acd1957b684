"""Scaling laws fitted to the records of runs. Imports no jax, and of `sweep` only the reader of records."""
