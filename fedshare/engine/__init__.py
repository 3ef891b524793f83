"""Engines: how simulated clients are trained, one after another or many at once."""
