"""Differential privacy: Poisson sampling, clipped gradients, noise, and the privacy budget."""
