"""Weightings: functions of a denoiser's output that are trained in place of the bound."""
