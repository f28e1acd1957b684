"""lm-eval's own command line with the model `dlmjax` registered: python -m dlmjax.harness --model dlmjax --model_args workdir=DIR ..."""

from lm_eval.__main__ import cli_evaluate

import dlmjax.harness.adapter  # noqa: F401  (registers the model)

if __name__ == "__main__":
    cli_evaluate()
