"""Checkpoints of other code bases: their names and shapes (`layouts`), their files (`safetensors`), and the way in (`importer`)."""
