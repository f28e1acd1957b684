"""lm-eval-harness on a dlmjax run: `dlmjax lm-eval`, or lm-eval's own command line through `python -m dlmjax.harness`.

Importing `dlmjax.harness.adapter` makes the model `dlmjax` known to lm-eval (which has no entry points for models); this package itself
imports nothing, so that a command line without lm-eval installed can say so.
"""
