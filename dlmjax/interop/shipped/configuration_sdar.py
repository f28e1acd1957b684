"""The configuration of an exported block-diffusion model, for engines that load model_type "sdar".

SDAR (2510.06303) is Qwen3's network with block-causal attention. Transformers 5 moves `rope_theta` into `rope_parameters`; engines that
then look for the attribute fall back to a base of their own, so it is set here in any case.
"""

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    model_type = "sdar"

    def __init__(self, block_size=4, mask_token_id=151669, rope_theta=10000.0, **values):
        super().__init__(rope_theta=rope_theta, **values)
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        self.rope_theta = rope_theta
