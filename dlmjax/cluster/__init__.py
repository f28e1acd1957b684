"""Processes and hosts: which process of how many this is, start, agreement, signals, supervision. No tensors but the agreement."""
