"""lm-eval-harness on a dlmjax run: `dlmjax lm-eval`, or lm-eval's own command line through `python -m dlmjax.harness`.

Importing `dlmjax.harness.adapter` registers the model `dlmjax` with lm-eval, which has no entry points for models. This package itself
imports nothing, so that the command can report a missing lm-eval.
"""
