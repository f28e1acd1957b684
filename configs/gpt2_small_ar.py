"""The autoregressive twin of gpt2_small_masked: same network, data order, optimizer and steps; causal mask and exact likelihood.

dlmjax train --config configs/gpt2_small_ar.py --config.data.paths=data/corpus --workdir runs/gpt2_small_ar

Published for OpenWebText after a million steps: perplexity 17.5 (MDLM's autoregressive baseline).
"""

import importlib.util
import pathlib


def get_config():
    # Read beside this file, whatever the working directory: the pair must not drift apart.
    path = pathlib.Path(__file__).with_name("gpt2_small_masked.py")
    spec = importlib.util.spec_from_file_location("gpt2_small_masked", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.process.name = "autoregressive"
    return config
