"""Differential privacy: Poisson samples, clipped gradients, noise, and what they cost."""
