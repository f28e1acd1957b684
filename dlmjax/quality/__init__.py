"""Measurements of a trained run: quality of generated text, speed of sampling, puzzles, text embeddings, outliers of activations."""
