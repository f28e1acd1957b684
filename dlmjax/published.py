"""Published exponents of the best batch and learning rate (von Rütte et al. 2512.10858): masked, uniform and hybrid diffusion, CompleteP.

A sweep plans with them and a fit predicts with them where the user has no law of their own.
"""

BATCH_EXPONENT = 0.82  # of the training tokens, for the best batch in tokens
LR_EXPONENT = 0.34  # of the batch, for the best learning rate
