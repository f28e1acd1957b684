"""Sweeps: many runs, planned, run and recorded. Nothing is imported here, so that reading records needs no jax.

A sweep's directory:
    sweep.json        the validation that every run ends with, the policy for runs that fail                 (manifest.py)
    manifest.jsonl    one planned run per line: its id, its whole config, what it will cost                   (manifest.py)
    runs/ID/          the workdir of a run
    records.jsonl     one record per run that ended                                                           (records.py)
"""
