"""Noise processes, one file a family."""
